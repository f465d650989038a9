//! A relay whose connections are cut behind every frame, in each direction: to the broker, and to
//! its database. What was committed arrives, in the order of its key, and nothing else.
//!
//! Which frame has which number differs a little from run to run, as two tasks of the relay ask the
//! database side by side; so the runs together, and not each by itself, are behind every frame. By
//! default every frame to the broker and a sample of the others are made; `CUTS=all` makes all, and
//! `CUTS=Database-server-13` only the run of that name.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::{FutureExt, StreamExt, stream};
use lapin_idempotent::{
    IdempotentPublisher, RetryPolicy,
    outbox::{Outbox, Relay},
    store::SqlOutbox,
};
use tokio::{sync::watch, time::timeout};

use super::{
    Boxed, Kind,
    orders::Orders,
    support::{
        broker,
        proxy::{Action, From, Proxy},
    },
};
use crate::databases::database::{
    cutter::Cutter,
    frames::{self, Behind, Passed},
};

trials! {
    relay_cut_behind_every_frame_loses_nothing_and_keeps_the_order<Postgres, MySql>,
}

const KEYS: [&str; 3] = ["a", "b", "c"];
const SECOND: Duration = Duration::from_secs(1);
/// Nobody waits for it to run out. Long enough for a busy machine to renew it in time.
const LEASE: Duration = Duration::from_secs(2);
/// Runs at once.
const AT_ONCE: usize = 9;
/// The longest that one run may take.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Broker,
    Database,
}

/// Behind this frame of all that goes this way, whatever its connection.
type Cut = frames::Cut<Whose>;

fn behind(cut: Option<Cut>, whose: Whose) -> Behind {
    cut.filter(|cut| cut.whose == whose).map(|cut| (cut.servers, cut.number))
}

async fn broker_through(behind: Behind) -> (Proxy, watch::Receiver<Passed>) {
    let proxy = Proxy::start(&broker()).await;
    let (passed, seen) = watch::channel(Passed::default());
    proxy.rule(move |frame| {
        let servers = frame.from == From::Broker;
        let number = passed.borrow().counts[usize::from(servers)];
        let is_here = behind == Some((servers, number));
        passed.send_modify(|passed| {
            passed.counts[usize::from(servers)] += 1;
            passed.cuts += usize::from(is_here);
        });
        if is_here { Action::CutAfter } else { Action::Pass }
    });
    (proxy, seen)
}

/// One relay, from its start to its end.
async fn run<K: Kind>(cut: Option<Cut>) -> [Passed; 2] {
    let what = &cut.map_or_else(|| "undisturbed".to_owned(), |cut| cut.to_string());
    let boxed = Boxed::<K>::create().await;
    let mut orders = Orders::create().await;
    orders.commit(&boxed, "early", &KEYS, 2).await;
    let (to_broker, passed) = broker_through(behind(cut, Whose::Broker)).await;
    let to_database = Cutter::start(&boxed.url, behind(cut, Whose::Database)).await;

    let outbox = SqlOutbox::<K>::connect_lazy(to_database.url()).expect("outbox");
    let publisher = IdempotentPublisher::builder(to_broker.url())
        .connect_timeout(2 * SECOND)
        .confirm_timeout(2 * SECOND)
        // Sending again is the relay's.
        .retry(RetryPolicy::never())
        .connect_lazy()
        .expect("publisher");
    let relay = Relay::new(outbox.table(&boxed.name).expect("name"), publisher.clone());
    let relay = relay.lease(LEASE).poll(SECOND / 20).max_attempts(1).spawn();
    orders.arrived(what).await;
    orders.commit(&boxed, "late", &KEYS, 1).await;
    boxed.outbox.wake();
    orders.arrived(what).await;
    assert_eq!(orders.settled(&boxed, what).await, [0; 0], "{what}: nothing is parked");
    relay.stop().await;
    // At once: nobody waits for a lease.
    let there = boxed.outbox.ownership(LEASE).await.expect("ownership");
    let is_held = |owner: &Option<_>| owner.is_some_and(|owner| there.relays.contains(&owner));
    assert!(there.lanes.iter().all(|(_, owner)| !is_held(owner)), "{what}: {there:?}");
    assert!(there.relays.is_empty(), "{what}: {there:?}");

    let _ = publisher.close(2 * SECOND).await;
    orders.arrived(what).await;
    orders.arrivals.delete().await;
    let database = Passed { counts: to_database.counts(), cuts: to_database.cuts() };
    let passed = *passed.borrow();
    [passed, database]
}

/// Of each hundred frames, how many are cut behind if not all of them are.
fn share(whose: Whose, servers: bool) -> usize {
    match (whose, servers) {
        (Whose::Broker, false) => 100,
        (Whose::Broker, true) => 33,
        (Whose::Database, _) => 20,
    }
}

pub async fn relay_cut_behind_every_frame_loses_nothing_and_keeps_the_order<K: Kind>() {
    let passed = run::<K>(None).await;
    let chosen = std::env::var("CUTS").unwrap_or_default();
    let mut cuts = Vec::new();
    for (whose, Passed { counts, .. }) in [Whose::Broker, Whose::Database].into_iter().zip(passed) {
        for (servers, count) in [false, true].into_iter().zip(counts) {
            assert!(count > 5, "the cuts cover the whole exchange: {passed:?}");
            let all = (0..count).map(|number| Cut { whose, servers, number });
            let share = share(whose, servers);
            let is_chosen = |cut: &Cut| match chosen.as_str() {
                "" => (cut.number + 1) * share / 100 > cut.number * share / 100,
                "all" => true,
                name => cut.to_string() == name,
            };
            cuts.extend(all.filter(is_chosen));
        }
    }
    println!("{}: {passed:?}, {} cuts", K::NAME, cuts.len());
    let running = cuts.iter().map(|cut| async move {
        let done = timeout(LIMIT, AssertUnwindSafe(run::<K>(Some(*cut))).catch_unwind()).await;
        match done {
            Ok(Ok(passed)) => Some(passed.iter().map(|passed| passed.cuts).sum::<usize>()),
            Ok(Err(_)) => {
                println!("FAILS: {cut}");
                None
            }
            Err(_) => {
                println!("HANGS: {cut}");
                None
            }
        }
    });
    let made: Vec<_> = stream::iter(running).buffer_unordered(AT_ONCE).collect().await;
    assert!(made.iter().all(Option::is_some), "{}: runs failed", K::NAME);
    let made = made.iter().flatten().sum::<usize>();
    println!("{}: {made} of {} cuts were made", K::NAME, cuts.len());
    // Later polls and beats may not come, if all goes faster than the first time.
    assert!(made * 10 >= cuts.len() * 7, "{}: {made} of {} cuts were made", K::NAME, cuts.len());
}
