//! What operators do with parked rows, and the status.

use std::time::Duration;

use lapin_idempotent::outbox::{Confirmed, Failed, Lane, NewRow, Next, Outbox, ParkedKey, Select};

use super::{Boxed, Kind, failed, row, rows};

trials! {
    parked_rows_leave_their_lane_and_come_back_with_their_numbers<Postgres, MySql, Sqlite>,
    parked_rows_are_listed_and_discarded_as_selected<Postgres, MySql, Sqlite>,
    keys_of_parked_rows_are_told_by_lane<Postgres, MySql, Sqlite>,
    row_is_parked_as_a_follower_only_behind_a_parked_one<Postgres, MySql, Sqlite>,
    status_counts_what_waits<Postgres, MySql, Sqlite>,
}

async fn park<K: Kind>(boxed: &Boxed<K>, all: &[Confirmed]) {
    let mut held = Vec::new();
    for lane in all.iter().map(|of| of.row.lane).collect::<std::collections::BTreeSet<_>>() {
        let (relay, term) = boxed.take(lane.0).await;
        held.push((relay, term));
    }
    let terms: Vec<_> = held.iter().map(|(_, term)| *term).collect();
    let too_often =
        |of: &Confirmed| Failed { error: format!("too often: {}", of.row.seq), ..failed(of, Next::Park) };
    let failed: Vec<_> = all.iter().map(too_often).collect();
    assert_eq!(boxed.outbox.fail(&terms, &failed).await.expect("fail"), []);
    for (relay, _) in held {
        boxed.outbox.leave(relay).await.expect("leave");
    }
}

fn keyed(id: &str, key: &str, lane: u16) -> NewRow {
    NewRow { lane: Lane(lane), order_key: Some(key.to_owned()), ..row(id) }
}

pub async fn parked_rows_leave_their_lane_and_come_back_with_their_numbers<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    boxed.put(&rows("a", 4)).await;
    let all = boxed.all().await;
    let confirmed = [&all[0], &all[2]].map(Confirmed::from);
    park(&boxed, &confirmed).await;
    assert_eq!(boxed.ids().await, ["a1", "a3"]);
    let parked = boxed.outbox.list_parked(&Select::All, 0, 10).await.expect("list");
    let rows: Vec<_> = parked.iter().map(|parked| parked.row.clone()).collect();
    assert_eq!(
        rows.iter().map(|row| row.id).collect::<Vec<_>>(),
        [all[0].id, all[2].id],
        "with their own lanes"
    );
    assert_eq!((rows[1].attempts, rows[1].body.clone()), (1, all[2].body.clone()));
    assert_eq!(parked[0].error.as_deref(), Some(&*format!("too often: {}", all[0].id.seq)));
    assert!(parked[0].parked < Duration::from_secs(60));
    // Confirmations that come late find nothing.
    assert_eq!(boxed.outbox.remove(&confirmed).await.expect("remove").rows, 0);
    assert_eq!(boxed.outbox.unpark(&Select::All).await.expect("unpark"), 2);
    assert_eq!(boxed.outbox.unpark(&Select::All).await.expect("unpark"), 0);
    let back = boxed.all().await;
    assert_eq!(
        back.iter().map(|row| row.id).collect::<Vec<_>>(),
        all.iter().map(|row| row.id).collect::<Vec<_>>()
    );
    assert!(back.iter().all(|row| row.attempts == 0 && row.retry_in == Duration::ZERO));
    assert_eq!(boxed.outbox.list_parked(&Select::All, 0, 10).await.expect("list"), []);
}

pub async fn parked_rows_are_listed_and_discarded_as_selected<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let last = boxed.outbox.lanes() - 1;
    boxed
        .put(&[keyed("a", "k", 0), keyed("b", "K", last), keyed("c", "k", 0), row("d"), keyed("e", "k", 0)])
        .await;
    let mut all = boxed.confirmed().await;
    all.sort_unstable_by_key(|of| of.row.seq);
    park(&boxed, &all[..4]).await;
    let listed = async |select: Select, behind, limit| {
        let parked = boxed.outbox.list_parked(&select, behind, limit).await.expect("list");
        parked.iter().map(|parked| parked.row.message_id.to_string()).collect::<Vec<_>>().join(" ")
    };
    let key = |key: &str| Select::Key(key.to_owned());
    assert_eq!(listed(Select::All, 0, 10).await, "a b c d");
    assert_eq!(listed(Select::All, 0, 3).await, "a b c");
    assert_eq!(listed(Select::All, all[1].row.seq, 10).await, "c d");
    assert_eq!(listed(key("k"), 0, 10).await, "a c");
    assert_eq!(listed(key("k "), 0, 10).await, "");
    assert_eq!(listed(key("K"), 0, 10).await, "b");
    assert_eq!(listed(key("k"), all[0].row.seq, 10).await, "c");
    assert_eq!(listed(Select::Seq(all[3].row.seq), 0, 10).await, "d");
    assert_eq!(listed(Select::Seq(all[4].row.seq), 0, 10).await, "", "it is not parked");

    assert_eq!(boxed.outbox.discard(&Select::Seq(all[4].row.seq)).await.expect("discard"), 0);
    assert_eq!(boxed.outbox.unpark(&Select::Seq(all[2].row.seq)).await.expect("unpark"), 1);
    assert_eq!(boxed.ids().await, ["c", "e"]);
    assert_eq!(boxed.outbox.discard(&key("k")).await.expect("discard"), 1);
    assert_eq!(boxed.outbox.unpark(&key("K")).await.expect("unpark"), 1);
    assert_eq!(listed(Select::All, 0, 10).await, "d");
    assert_eq!(boxed.outbox.discard(&Select::All).await.expect("discard"), 1);
    assert_eq!(boxed.all().await.len(), 3, "a and d are gone");
}

pub async fn keys_of_parked_rows_are_told_by_lane<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let last = boxed.outbox.lanes() - 1;
    boxed
        .put(&[
            keyed("a", "k", 0),
            keyed("b", "K ", last),
            keyed("c", "k", 0),
            row("d"),
            keyed("e", "free", 0),
        ])
        .await;
    let mut all = boxed.confirmed().await;
    all.sort_unstable_by_key(|of| of.row.seq);
    park(&boxed, &all[..4]).await;
    let keys = async |lanes: &[u16]| {
        let lanes: Vec<Lane> = lanes.iter().map(|&lane| Lane(lane)).collect();
        let mut keys = boxed.outbox.parked_keys(&lanes).await.expect("keys");
        keys.sort_unstable();
        keys
    };
    let parked = |key: &str, first: usize| ParkedKey { key: key.to_owned(), first: all[first].row.seq };
    assert_eq!(keys(&[0, last]).await, [parked("K ", 1), parked("k", 0)]);
    assert_eq!(keys(&[]).await, []);
    if last > 0 {
        assert_eq!(keys(&[0]).await, [parked("k", 0)]);
        assert_eq!(keys(&[1]).await, []);
    }
    boxed.outbox.discard(&Select::Key("K ".to_owned())).await.expect("discard");
    assert_eq!(keys(&[0, last]).await, [parked("k", 0)]);
    boxed.outbox.unpark(&Select::Seq(all[0].row.seq)).await.expect("unpark");
    assert_eq!(keys(&[0]).await, [parked("k", 2)], "the first one goes on");
}

/// An operator may have put back what it follows, after it was found to follow.
pub async fn row_is_parked_as_a_follower_only_behind_a_parked_one<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    boxed.put(&[keyed("a", "k", 0), keyed("other", "K", 0), keyed("b", "k", 0), row("d")]).await;
    let all = boxed.confirmed().await;
    let follows = async |of: &Confirmed| {
        let (relay, term) = boxed.take(0).await;
        let failed = Failed { counted: false, ..failed(of, Next::Park) };
        assert_eq!(boxed.outbox.fail(&[term], &[failed]).await.expect("fail"), []);
        boxed.outbox.leave(relay).await.expect("leave");
        boxed.outbox.status().await.expect("status").parked
    };
    assert_eq!(follows(&all[2]).await, 0, "nothing is parked");
    park(&boxed, &all[1..2]).await;
    assert_eq!(follows(&all[2]).await, 1, "another key");
    park(&boxed, &all[..1]).await;
    assert_eq!(follows(&all[2]).await, 3);
}

pub async fn status_counts_what_waits<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let status = boxed.outbox.status().await.expect("status");
    assert_eq!((status.backlog, status.oldest, status.parked, status.relays), (0, None, 0, 0));
    let last = boxed.outbox.lanes() - 1;
    boxed.put(&[rows("a", 4), vec![keyed("b", "k", last)]].concat()).await;
    let all = boxed.confirmed().await;
    park(&boxed, &all[..1]).await;
    let relays = [boxed.relay().await, boxed.relay().await];
    boxed.freeze(relays[0], 61).await;
    let older = match K::NAME {
        "PostgreSQL" => "enqueued_at - interval '1 hour'",
        "MySQL" => "enqueued_at - INTERVAL 1 HOUR",
        _ => "enqueued_at - 3600000",
    };
    boxed
        .sql(&format!(
            "UPDATE {} SET enqueued_at = {older} WHERE order_key IS NOT NULL OR seq = {}",
            boxed.name, all[1].row.seq
        ))
        .await;
    let status = boxed.outbox.status().await.expect("status");
    assert_eq!((status.backlog, status.parked, status.relays), (4, 1, 1));
    let oldest = status.oldest.expect("one waits").as_secs();
    assert!((3600..3660).contains(&oldest), "{oldest}");
    boxed.put(&rows("many", 10_100)).await;
    let status = boxed.outbox.status().await.expect("status");
    assert_eq!(status.backlog, if last == 0 { 10_000 } else { 10_001 }, "counted to 10,000 in each lane");
}
