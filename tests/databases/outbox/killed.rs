//! A relay that dies at each of its steps, as a process of its own, and another one after it.

use std::{collections::BTreeSet, os::unix::process::ExitStatusExt};

use futures_util::{StreamExt, stream};
use lapin_idempotent::outbox::{Outbox, Select};

use super::{
    super::worker::Worker,
    Boxed, Kind, LEASE,
    orders::Orders,
    support::{
        broker, eventually,
        proxy::{Action, From, Proxy, method},
    },
};

trials! {
    relay_killed_at_every_step_loses_nothing_and_keeps_the_order<Postgres, MySql, Sqlite>,
}

/// Where the first relay dies, in the order in which it comes there. `sent` is between what the
/// worker knows of: its messages are in the queue, and it is not told.
const STEPS: [&str; 17] = [
    "register",
    "take",
    "parked-keys",
    "read",
    "send",
    "sent",
    "confirm",
    "before-remove",
    "remove",
    "before-fail",
    "fail",
    "before-park",
    "park",
    "beat",
    "before-release",
    "release",
    "leave",
];
const KEYS: [&str; 3] = ["a", "b", "c"];
/// Seconds. Long enough for a busy machine to renew it in time.
const SHORT: &str = "2";
/// Scenes at once: most of their time they wait for a lease to run out.
const AT_ONCE: usize = 9;
const SIGABRT: i32 = 6;

pub async fn relay_killed_at_every_step_loses_nothing_and_keeps_the_order<K: Kind>() {
    stream::iter(STEPS).for_each_concurrent(AT_ONCE, dies_at::<K>).await;
}

/// What the first relay has left behind.
struct Left {
    /// Messages in their lanes.
    rows: BTreeSet<String>,
    parked: Vec<String>,
    /// Attempts that are counted, of rows in their lanes.
    attempts: u32,
    /// Lanes with an owner.
    owned: usize,
    relays: usize,
    arrived: usize,
}

async fn left<K: Kind>(boxed: &Boxed<K>, orders: &Orders) -> Left {
    let rows = boxed.all().await;
    let parked = boxed.outbox.list_parked(&Select::All, 0, 10).await.expect("list");
    let ownership = boxed.outbox.ownership(LEASE).await.expect("ownership");
    Left {
        attempts: rows.iter().map(|row| row.attempts).sum(),
        rows: rows.iter().map(|row| row.message_id.to_string()).collect(),
        parked: parked.iter().map(|parked| parked.row.message_id.to_string()).collect(),
        owned: ownership.lanes.iter().filter(|(_, owner)| owner.is_some()).count(),
        relays: ownership.relays.len(),
        arrived: orders.arrivals.count(),
    }
}

impl Left {
    /// It died where it was told to, or the rest would prove nothing.
    fn assert_left_at(&self, step: &str, early: usize, lanes: usize) {
        let Self { rows, parked, attempts, owned, relays, arrived } = self;
        let (rows, parked) = (rows.len(), parked.len());
        let owns = match step {
            "register" | "release" => *owned == 0 && *relays == 1,
            "leave" => *owned == 0 && *relays == 0,
            "before-release" => *owned == lanes && *relays == 1,
            // A slow server may have given it only some so far.
            _ => *owned > 0 && *relays == 1,
        };
        assert!(owns, "{step}: {owned} lanes, {relays} relays");
        match step {
            "register" | "take" | "parked-keys" | "read" | "send" => {
                assert_eq!((rows, *arrived), (early, 0), "{step}: nothing is sent");
            }
            // One of each key, and all that have none.
            "sent" => assert_eq!((rows, *arrived), (early, KEYS.len() + 2), "{step}"),
            "confirm" | "before-remove" => {
                assert!(rows == early && *arrived > 0, "{step}: {rows} of {early}, {arrived} arrived");
            }
            "remove" => {
                assert!(rows < early && early - rows <= *arrived, "{step}: {rows} of {early}, {arrived}");
            }
            "before-release" | "release" | "leave" => assert_eq!((rows, *arrived), (0, early), "{step}"),
            _ => {}
        }
        let noted = match step {
            "fail" => *attempts == 1 && parked == 0,
            // What follows it may be parked with it.
            "park" => *attempts == 0 && (parked == 1 || parked == 2),
            _ => *attempts == 0 && parked == 0,
        };
        assert!(noted, "{step}: {attempts} attempts, {parked} parked");
    }
}

async fn dies_at<K: Kind>(step: &'static str) {
    let boxed = Boxed::<K>::create().await;
    let mut orders = Orders::create().await;
    orders.commit(&boxed, "early", &KEYS, 2).await;
    let max_attempts = match step {
        "before-park" | "park" => "1",
        _ => "2",
    };
    if ["before-fail", "fail", "before-park", "park"].contains(&step) {
        orders.commit_poison(&boxed).await;
    }
    let early = orders.len() + orders.poison.len();
    // SQLite has one writer at a time, and this one does not end.
    let open = if K::NAME == "SQLite" {
        None
    } else {
        let mut open = boxed.begin().await;
        boxed.outbox.put(&mut open, &super::rows("never", 3)).await.expect("put");
        Some(open)
    };
    let relay = |amqp: &str, more: &[&str]| {
        let of_all = ["relay", "--amqp", amqp, "--outbox", &boxed.url, "--table", &boxed.name];
        let how = ["--lease", SHORT, "--max-attempts", max_attempts];
        let arguments = of_all.iter().chain(&how).chain(more);
        Worker::start(&arguments.map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
    };

    let mut first = if step == "sent" {
        let proxy = Proxy::start(&broker()).await;
        proxy.rule(
            |frame| {
                if frame.is(From::Broker, method::BASIC_ACK) { Action::Freeze } else { Action::Pass }
            },
        );
        let first = relay(proxy.url(), &[]);
        let all = KEYS.len() + 2;
        eventually("it has sent", async || (orders.arrivals.count() == all).then_some(())).await;
        first.signal("-ABRT");
        first
    } else {
        relay(&broker(), &["--abort-at", step])
    };
    if ["before-release", "release", "leave"].contains(&step) {
        let confirmed = || usize::try_from(first.count("confirmed")).expect("a count");
        eventually("it has relayed", async || (confirmed() == early).then_some(())).await;
        first.terminate();
    }
    let status = first.ends().await;
    assert_eq!(status.signal(), Some(SIGABRT), "{step}: {status}");
    // What it was told of is in the queue, and on its way from there.
    let confirmed = usize::try_from(first.count("confirmed")).expect("a count");
    eventually("that arrives", async || (orders.arrivals.count() >= confirmed).then_some(())).await;
    let left = left(&boxed, &orders).await;
    left.assert_left_at(step, early, usize::from(boxed.outbox.lanes()));

    orders.commit(&boxed, "late", &KEYS, 1).await;
    let late = orders.len() + orders.poison.len() - early;
    let mut second = relay(&broker(), &[]);
    let attempts = orders.settled(&boxed, step).await;
    second.stop().await;
    let copies = orders.arrived(step).await;
    drop(open);

    // What the first has deleted, and what it had not sent, is there once; the rest may be twice.
    let twice: BTreeSet<_> = copies.iter().filter(|(_, copies)| **copies > 1).map(|(id, _)| id).collect();
    assert!(copies.values().all(|copies| *copies <= 2), "{step}: {copies:?}");
    assert!(twice.iter().all(|id| left.rows.contains(*id)), "{step}: {copies:?}");
    assert!(twice.is_empty() || left.arrived > 0, "{step}: {copies:?}");
    let published = left.rows.iter().filter(|id| !orders.poison.contains(*id)).count() + late;
    assert_eq!(second.count("confirmed"), i64::try_from(published).expect("a count"), "{step}");
    let (counted, tried) = match step {
        "before-fail" => (vec![2, 0], 2),
        "fail" => (vec![2, 0], 1),
        "before-park" => (vec![1, 0], 1),
        "park" => (vec![1, 0], 0),
        _ => (vec![], 0),
    };
    assert_eq!((attempts, second.count("unroutable")), (counted, tried), "{step}: the poison");
    let lanes = boxed.outbox.ownership(LEASE).await.expect("ownership").lanes;
    assert!(lanes.iter().all(|(_, owner)| owner.is_none()), "{step}: {lanes:?}");
    orders.arrivals.delete().await;
}
