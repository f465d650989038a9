//! A relay, a process of its own, that is frozen for longer than its lease, at each of its steps;
//! another one takes its lanes, and then it wakes up.
//!
//! Not on SQLite, whose one writer would be frozen with it now and then, and everybody with that.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, stream};
use lapin_idempotent::{
    IdempotentPublisher,
    outbox::{Outbox, Relay, Row},
};

use super::{
    super::worker::Worker,
    Boxed, Kind,
    orders::Orders,
    support::{
        broker, eventually,
        proxy::{Action, From, Proxy, method},
    },
};

trials! {
    relay_that_was_frozen_sends_and_writes_nothing_of_lanes_it_has_lost<Postgres, MySql>,
}

/// Where the first relay freezes. `sent` is between what the worker knows of: its messages are in
/// the queue, and it is not told.
const STEPS: [&str; 9] =
    ["take", "parked-keys", "read", "send", "sent", "confirm", "before-remove", "before-fail", "before-park"];
const KEYS: [&str; 3] = ["a", "b", "c"];
const OF_EACH: usize = 5;
/// Long enough for a busy machine to renew it in time.
const LEASE: Duration = Duration::from_secs(2);
const HOUR: Duration = Duration::from_secs(3600);

pub async fn relay_that_was_frozen_sends_and_writes_nothing_of_lanes_it_has_lost<K: Kind>() {
    stream::iter(STEPS).for_each_concurrent(STEPS.len(), freezes_at::<K>).await;
}

/// What a row's failures have left in it, without what grows with time.
fn state(row: &Row) -> (String, u32, bool) {
    (row.message_id.to_string(), row.attempts, row.retry_in > HOUR / 2)
}

/// What the first one may have sent, or may yet send: of each key all that it knows to be
/// confirmed, and the next one; and what has no key.
fn in_flight(orders: &Orders, step: &str, first: &Worker) -> BTreeSet<String> {
    if ["take", "parked-keys", "read"].contains(&step) {
        return BTreeSet::new();
    }
    let confirmed: BTreeSet<String> = first.said().into_iter().map(|(id, _)| id).collect();
    let mut all: BTreeSet<String> = orders.of_key("").iter().cloned().collect();
    for key in KEYS {
        let ids = orders.of_key(key);
        let known = ids.iter().take_while(|id| confirmed.contains(*id)).count();
        all.extend(ids.iter().take(known + 1).cloned());
    }
    all
}

async fn freezes_at<K: Kind>(step: &'static str) {
    let boxed = Boxed::<K>::create().await;
    let mut orders = Orders::create().await;
    orders.commit(&boxed, "early", &KEYS, OF_EACH).await;
    if ["before-fail", "before-park"].contains(&step) {
        orders.commit_poison(&boxed).await;
    }
    let proxy = Proxy::start(&broker()).await;
    let max_attempts = if step == "before-park" { "1" } else { "9" };
    let mut arguments = vec!["relay", "--amqp", proxy.url(), "--outbox", &boxed.url, "--table", &boxed.name];
    arguments.extend(["--lease", "2", "--max-attempts", max_attempts]);
    if step == "sent" {
        proxy.rule(
            |frame| {
                if frame.is(From::Broker, method::BASIC_ACK) { Action::Freeze } else { Action::Pass }
            },
        );
    } else {
        arguments.extend(["--freeze-at", step]);
    }
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let mut first = Worker::start(&arguments);
    if step == "sent" {
        let all = KEYS.len() + OF_EACH;
        eventually("it has sent", async || (orders.arrivals.count() == all).then_some(())).await;
        first.signal("-STOP");
    }
    eventually(&format!("{step}: it is frozen"), async || first.is_frozen().then_some(())).await;

    // Its failures are written once, and leave a row alone for good.
    let publisher = IdempotentPublisher::builder(broker()).connect_lazy().expect("publisher");
    let second = Relay::new(boxed.again().await.outbox, publisher).lease(LEASE).retry_delays(HOUR, HOUR);
    let second = second.max_attempts(9).spawn();
    orders.arrived(step).await;
    let left = eventually(&format!("{step}: the second has published all"), async || {
        let left: Vec<_> = boxed.all().await.iter().map(state).collect();
        let is_tried = left.first().is_none_or(|(_, attempts, _)| *attempts > 0);
        (left.len() == orders.poison.len() && is_tried).then_some(left)
    })
    .await;
    let expected = orders.poison.iter().cloned().zip([(1, true), (0, false)]);
    assert_eq!(left, expected.map(|(id, (tried, waits))| (id, tried, waits)).collect::<Vec<_>>(), "{step}");
    assert!(first.is_frozen(), "{step}: it slept all the time");
    let in_flight = in_flight(&orders, step, &first);

    proxy.rule(|_| Action::Pass);
    proxy.thaw();
    first.signal("-CONT");
    // It has found out, and has its share of the lanes under a new identity.
    eventually(&format!("{step}: both have lanes"), async || {
        let there = boxed.outbox.ownership(LEASE).await.expect("ownership");
        let owners: BTreeSet<_> = there.lanes.iter().filter_map(|(_, owner)| *owner).collect();
        let is_shared = owners.len() == 2 && owners.iter().all(|owner| there.relays.contains(owner));
        is_shared.then_some(())
    })
    .await;
    // What comes now is published by the first alone, after whatever it was about to do.
    second.stop().await;
    let known = first.count("confirmed");
    orders.commit(&boxed, "late", &KEYS, 1).await;
    let copies = orders.arrived(step).await;
    let late = i64::try_from(KEYS.len() + 1).expect("a count");
    eventually(&format!("{step}: the first goes on"), async || {
        (first.count("confirmed") >= known + late).then_some(())
    })
    .await;
    first.stop().await;

    let copies_now = orders.arrived(step).await;
    assert_eq!(copies_now, copies, "{step}: nothing comes after that");
    let twice: BTreeSet<_> = copies.iter().filter(|(_, copies)| **copies > 1).map(|(id, _)| id).collect();
    assert!(copies.values().all(|copies| *copies <= 2), "{step}: {copies:?}");
    assert!(twice.iter().all(|id| in_flight.contains(*id)), "{step}: sent of a lost lane: {twice:?}");
    if step == "sent" {
        assert_eq!(twice.len(), KEYS.len() + OF_EACH, "{step}: {copies:?}");
    }
    assert_eq!(
        boxed.all().await.iter().map(state).collect::<Vec<_>>(),
        left,
        "{step}: a lost lane is written"
    );
    assert_eq!(boxed.outbox.status().await.expect("status").parked, 0, "{step}: parked in a lost lane");
    orders.arrivals.delete().await;
}
