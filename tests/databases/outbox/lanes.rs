//! Who has which lane: point 5 of the contract.

use std::time::Duration;

use futures_util::future::join_all;
use lapin_idempotent::outbox::{Lane, Outbox, RelayId, Term};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Boxed, Kind, LEASE};

trials! {
    every_lane_is_there_and_free<Postgres, MySql, Sqlite>,
    lane_is_taken_only_with_its_term<Postgres, MySql, Sqlite>,
    lane_of_a_live_relay_stays_its_own<Postgres, MySql, Sqlite>,
    lane_of_a_dead_relay_is_taken<Postgres, MySql, Sqlite>,
    takers_race_and_one_wins<Postgres, MySql, Sqlite>,
    beat_is_refused_when_the_lease_is_over<Postgres, MySql, Sqlite>,
    beat_under_way_keeps_its_lanes<Postgres, MySql>,
    lanes_are_free_when_they_are_released_or_left<Postgres, MySql, Sqlite>,
    relay_row_that_is_gone_frees_its_lanes<Postgres, MySql, Sqlite>,
    restart_under_the_same_name_owns_nothing<Postgres, MySql, Sqlite>,
    relay_that_nobody_knows_takes_nothing<Postgres, MySql, Sqlite>,
    relays_of_yesterday_are_forgotten<Postgres, MySql, Sqlite>,
    leases_of_any_length_are_understood<Postgres, MySql, Sqlite>,
}

pub async fn every_lane_is_there_and_free<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let there = boxed.outbox.ownership(LEASE).await.expect("ownership");
    assert!(there.relays.is_empty());
    let free = (0..boxed.outbox.lanes()).map(|lane| (Term { lane: Lane(lane), term: 0 }, None));
    assert_eq!(there.lanes, free.collect::<Vec<_>>());
    assert_eq!(boxed.outbox.lanes(), if K::NAME == "SQLite" { 1 } else { 16 });
}

pub async fn lane_is_taken_only_with_its_term<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let relay = boxed.relay().await;
    let old = boxed.terms(&[0]).await[0];
    let wrong = Term { term: old.term + 1, ..old };
    assert_eq!(boxed.outbox.take(relay, &[wrong], LEASE).await.expect("take"), []);
    let taken = boxed.outbox.take(relay, &[old], LEASE).await.expect("take");
    assert_eq!(taken, [Term { term: old.term + 1, ..old }]);
    let there = boxed.outbox.ownership(LEASE).await.expect("ownership");
    assert_eq!(there.relays, [relay]);
    assert_eq!(there.lanes[0], (taken[0], Some(relay)));
    assert!(there.lanes[1..].iter().all(|(_, owner)| owner.is_none()));
    // Neither it nor anybody else gets it a second time with the old one.
    boxed.outbox.release(&taken).await.expect("release");
    assert_eq!(boxed.outbox.take(relay, &[old], LEASE).await.expect("take"), []);
    let again = boxed.outbox.take(relay, &taken, LEASE).await.expect("take");
    assert_eq!(again, [Term { term: old.term + 2, ..old }]);
}

pub async fn lane_of_a_live_relay_stays_its_own<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let (owner, term) = boxed.take(0).await;
    let rival = boxed.relay().await;
    assert_eq!(boxed.outbox.take(rival, &[term], LEASE).await.expect("take"), []);
    // Nor does the owner take it once more.
    assert_eq!(boxed.outbox.take(owner, &[term], LEASE).await.expect("take"), []);
    assert!(boxed.outbox.beat(owner, LEASE).await.expect("beat"));
    assert_eq!(boxed.outbox.ownership(LEASE).await.expect("ownership").lanes[0], (term, Some(owner)));
}

pub async fn lane_of_a_dead_relay_is_taken<K: Kind>() {
    const LEASE: Duration = Duration::from_secs(15);
    let boxed = Boxed::<K>::create().await;
    let (dead, term) = boxed.take(0).await;
    let rival = boxed.relay().await;
    boxed.freeze(dead, 10).await;
    assert_eq!(boxed.outbox.take(rival, &[term], LEASE).await.expect("take"), [], "it may only be slow");
    boxed.freeze(dead, 6).await;
    let there = boxed.outbox.ownership(LEASE).await.expect("ownership");
    assert_eq!((there.relays, there.lanes[0]), (vec![rival], (term, Some(dead))));
    let taken = boxed.outbox.take(rival, &[term], LEASE).await.expect("take");
    assert_eq!(taken, [Term { term: term.term + 1, ..term }]);
    // Who comes back learns of it, however long it thinks its lease is, and releases nothing.
    assert!(!boxed.outbox.beat(dead, super::LEASE).await.expect("beat"));
    boxed.outbox.release(&[term]).await.expect("release");
    boxed.outbox.leave(dead).await.expect("leave");
    assert_eq!(boxed.outbox.ownership(LEASE).await.expect("ownership").lanes[0], (taken[0], Some(rival)));
}

pub async fn takers_race_and_one_wins<K: Kind>() {
    const RIVALS: usize = 6;
    let boxed = Boxed::<K>::create().await;
    let lanes: Vec<u16> = (0..boxed.outbox.lanes()).collect();
    let mut rivals = Vec::new();
    for _ in 0..RIVALS {
        let rival = boxed.again().await;
        rivals.push((rival.relay().await, rival));
    }
    for round in 0..5 {
        let terms = boxed.terms(&lanes).await;
        let races = rivals.iter().map(|(relay, rival)| {
            let terms = &terms;
            async move { (*relay, rival.outbox.take(*relay, terms, LEASE).await.expect("take")) }
        });
        let won = join_all(races).await;
        let mut all: Vec<(Term, Option<RelayId>)> = Vec::new();
        for (relay, won) in &won {
            all.extend(won.iter().map(|term| (*term, Some(*relay))));
        }
        all.sort_unstable_by_key(|(term, _)| term.lane);
        assert_eq!(all, boxed.outbox.ownership(LEASE).await.expect("ownership").lanes, "round {round}");
        assert!(all.iter().all(|(term, _)| term.term == round + 1));
        let all: Vec<Term> = all.into_iter().map(|(term, _)| term).collect();
        boxed.outbox.release(&all).await.expect("release");
    }
}

pub async fn beat_is_refused_when_the_lease_is_over<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let relay = boxed.relay().await;
    let lease = Duration::from_secs(15);
    boxed.freeze(relay, 14).await;
    assert!(boxed.outbox.beat(relay, lease).await.expect("beat"));
    boxed.freeze(relay, 14).await;
    assert!(boxed.outbox.beat(relay, lease).await.expect("beat"), "the last one counts");
    boxed.freeze(relay, 16).await;
    assert!(!boxed.outbox.beat(relay, lease).await.expect("beat"));
    assert!(!boxed.outbox.beat(relay, lease).await.expect("beat"), "and it stays refused");
    assert!(!boxed.outbox.beat(RelayId(Uuid::new_v4()), lease).await.expect("beat"), "nobody knows it");
}

/// A beat that the database has not committed yet, when its relay seems dead to another one.
pub async fn beat_under_way_keeps_its_lanes<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let (slow, term) = boxed.take(0).await;
    let rival = boxed.relay().await;
    boxed.freeze(slow, 60).await;
    let mut beating = boxed.begin().await;
    let now = if K::NAME == "MySQL" { "UTC_TIMESTAMP(6)" } else { "now()" };
    let beat = format!("UPDATE {}_relays SET beat_at = {now} WHERE relay = '{}'", boxed.name, slow.0);
    K::run(&mut beating, &beat).await.expect("beat");
    let lease = Duration::from_secs(15);
    let terms = [term];
    let mut taking = Box::pin(boxed.outbox.take(rival, &terms, lease));
    assert!(timeout(Duration::from_millis(300), &mut taking).await.is_err(), "it waits for the beat");
    beating.commit().await.expect("commit");
    assert_eq!(taking.await.expect("take"), []);
    assert!(boxed.outbox.beat(slow, lease).await.expect("beat"));
}

pub async fn lanes_are_free_when_they_are_released_or_left<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let (first, term) = boxed.take(0).await;
    boxed.outbox.release(&[term]).await.expect("release");
    assert_eq!(boxed.outbox.ownership(LEASE).await.expect("ownership").lanes[0], (term, None));
    let (second, term) = boxed.take(0).await;
    boxed.outbox.leave(second).await.expect("leave");
    let there = boxed.outbox.ownership(LEASE).await.expect("ownership");
    assert_eq!((there.relays, there.lanes[0].0), (vec![first], term));
    let taken = boxed.outbox.take(first, &[term], LEASE).await.expect("take");
    assert_eq!(taken, [Term { term: term.term + 1, ..term }]);
}

/// Somebody has tidied up, or it was forgotten after a day.
pub async fn relay_row_that_is_gone_frees_its_lanes<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let (gone, term) = boxed.take(0).await;
    let rival = boxed.relay().await;
    boxed.sql(&format!("DELETE FROM {}_relays WHERE relay = '{}'", boxed.name, gone.0)).await;
    let there = boxed.outbox.ownership(LEASE).await.expect("ownership");
    assert_eq!((there.relays, there.lanes[0]), (vec![rival], (term, Some(gone))), "its lane names it yet");
    let taken = boxed.outbox.take(rival, &[term], LEASE).await.expect("take");
    assert_eq!(taken, [Term { term: term.term + 1, ..term }], "and is taken at once");
    assert!(!boxed.outbox.beat(gone, LEASE).await.expect("beat"), "it learns of it");
}

pub async fn restart_under_the_same_name_owns_nothing<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let (dead, restarted) = (RelayId(Uuid::new_v4()), RelayId(Uuid::new_v4()));
    boxed.outbox.register(dead, "pod-0").await.expect("register");
    let taken = boxed.outbox.take(dead, &boxed.terms(&[0]).await, LEASE).await.expect("take");
    boxed.freeze(dead, 60).await;
    boxed.outbox.register(restarted, "pod-0").await.expect("register");
    let lease = Duration::from_secs(120);
    assert!(boxed.outbox.beat(restarted, lease).await.expect("beat"));
    let there = boxed.outbox.ownership(lease).await.expect("ownership");
    assert_eq!(there.lanes[0], (taken[0], Some(dead)));
    assert_eq!(boxed.outbox.take(restarted, &taken, lease).await.expect("take"), []);
    // What the new one does keeps no lane of the old one alive.
    boxed.freeze(dead, 60).await;
    let again = boxed.outbox.take(restarted, &taken, lease).await.expect("take");
    assert_eq!(again, [Term { term: taken[0].term + 1, ..taken[0] }]);
}

pub async fn relay_that_nobody_knows_takes_nothing<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let terms = boxed.terms(&[0]).await;
    let relay = RelayId(Uuid::new_v4());
    assert_eq!(boxed.outbox.take(relay, &terms, LEASE).await.expect("take"), []);
    // The same name and the same number again are no error.
    boxed.outbox.register(relay, "näme\0 with what no text may have").await.expect("register");
    boxed.outbox.register(relay, &"n".repeat(5000)).await.expect("register");
    assert_eq!(boxed.outbox.take(relay, &terms, LEASE).await.expect("take").len(), 1);
}

pub async fn relays_of_yesterday_are_forgotten<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let (old, young) = (boxed.relay().await, boxed.relay().await);
    boxed.freeze(old, 25 * 3600).await;
    boxed.freeze(young, 23 * 3600).await;
    let now = boxed.relay().await;
    let relays = boxed.outbox.ownership(Duration::MAX).await.expect("ownership").relays;
    let mut expected = vec![young, now];
    expected.sort_unstable();
    assert_eq!(relays, expected);
}

pub async fn leases_of_any_length_are_understood<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let relay = boxed.relay().await;
    for lease in [Duration::MAX, Duration::from_secs(u64::from(u32::MAX)), Duration::from_secs(5)] {
        assert!(boxed.outbox.beat(relay, lease).await.expect("beat"), "{lease:?}");
        assert_eq!(boxed.outbox.ownership(lease).await.expect("ownership").relays, [relay], "{lease:?}");
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!boxed.outbox.beat(relay, Duration::from_millis(10)).await.expect("beat"));
}
