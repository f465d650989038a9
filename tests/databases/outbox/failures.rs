//! Failures are noted, by whoever has the lane: point 6 of the contract.

use std::time::Duration;

use lapin_idempotent::outbox::{Failed, Lane, Next, Outbox, Select, Term};

use super::{Boxed, Kind, LEASE, failed, rows};

trials! {
    failure_is_counted_and_the_row_is_left_alone<Postgres, MySql, Sqlite>,
    failure_of_a_lane_that_was_lost_changes_nothing<Postgres, MySql, Sqlite>,
    failure_of_a_row_that_is_gone_is_none<Postgres, MySql, Sqlite>,
    failures_of_held_lanes_are_noted_beside_lost_ones<Postgres, MySql>,
}

pub async fn failure_is_counted_and_the_row_is_left_alone<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    boxed.put(&rows("a", 3)).await;
    let (_, term) = boxed.take(0).await;
    let all = boxed.confirmed().await;
    let minute = Next::Retry(Duration::from_secs(60));
    let uncounted = Failed { counted: false, error: "é\0".repeat(2000), ..failed(&all[1], minute) };
    let lost = boxed.outbox.fail(&[term], &[uncounted, failed(&all[0], minute)]).await.expect("fail");
    assert_eq!(lost, []);
    boxed.outbox.fail(&[term], &[failed(&all[0], minute)]).await.expect("fail");
    let now = boxed.all().await;
    assert_eq!(now.iter().map(|row| row.attempts).collect::<Vec<_>>(), [2, 0, 0]);
    for row in &now[..2] {
        let left = row.retry_in.as_secs_f64();
        assert!((30.0..=60.1).contains(&left), "{left}");
    }
    assert_eq!(now[2].retry_in, Duration::ZERO);
    // It is over at once, and for ever does not overflow.
    let pauses = [(0, Duration::ZERO), (1, Duration::MAX)];
    let pauses = pauses.map(|(row, pause)| failed(&all[row], Next::Retry(pause)));
    boxed.outbox.fail(&[term], &pauses).await.expect("fail");
    let now = boxed.all().await;
    assert_eq!(now[0].retry_in, Duration::ZERO);
    assert!(now[1].retry_in > Duration::from_secs(365 * 24 * 3600));
}

pub async fn failure_of_a_lane_that_was_lost_changes_nothing<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    boxed.put(&rows("a", 1)).await;
    let of = &boxed.confirmed().await[0];
    let (old, term) = boxed.take(0).await;
    let unchanged = async |held: &[Term]| {
        for next in [Next::Retry(LEASE), Next::Park] {
            let lost = boxed.outbox.fail(held, &[failed(of, next)]).await.expect("fail");
            assert_eq!(lost, [Lane(0)]);
        }
        let row = &boxed.all().await[0];
        assert_eq!((row.attempts, row.retry_in), (0, Duration::ZERO));
        assert_eq!(boxed.outbox.list_parked(&Select::All, 0, 10).await.expect("list"), []);
    };
    unchanged(&[]).await;
    unchanged(&[Term { term: term.term - 1, ..term }]).await;
    boxed.freeze(old, 60).await;
    // Nobody else has it yet.
    assert_eq!(boxed.outbox.fail(&[term], &[]).await.expect("fail"), []);
    let new = boxed.relay().await;
    let taken = boxed.outbox.take(new, &[term], Duration::from_secs(15)).await.expect("take");
    unchanged(&[term]).await;
    boxed.outbox.release(&taken).await.expect("release");
    unchanged(&taken).await;
}

pub async fn failure_of_a_row_that_is_gone_is_none<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    boxed.put(&rows("a", 2)).await;
    let all = boxed.confirmed().await;
    let (_, term) = boxed.take(0).await;
    boxed.outbox.remove(&all[..1]).await.expect("remove");
    let failures = [failed(&all[0], Next::Park), failed(&all[1], Next::Park)];
    assert_eq!(boxed.outbox.fail(&[term], &failures).await.expect("fail"), []);
    // Parked already: it is in its lane no more.
    assert_eq!(boxed.outbox.fail(&[term], &failures).await.expect("fail"), []);
    let parked = boxed.outbox.list_parked(&Select::All, 0, 10).await.expect("list");
    assert_eq!(
        parked.iter().map(|parked| (parked.row.id, parked.row.attempts)).collect::<Vec<_>>(),
        [(all[1].row, 1)]
    );
}

pub async fn failures_of_held_lanes_are_noted_beside_lost_ones<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let mut put = rows("a", 3);
    for (row, lane) in put.iter_mut().zip([0, 3, 7]) {
        row.lane = Lane(lane);
    }
    boxed.put(&put).await;
    let all = boxed.confirmed().await;
    let held = [boxed.take(7).await.1, boxed.take(0).await.1, boxed.terms(&[3]).await[0]];
    let failures: Vec<Failed> = all.iter().map(|of| failed(of, Next::Retry(LEASE))).collect();
    assert_eq!(boxed.outbox.fail(&held, &failures).await.expect("fail"), [Lane(3)]);
    assert_eq!(boxed.all().await.iter().map(|row| row.attempts).collect::<Vec<_>>(), [1, 0, 1]);
}
