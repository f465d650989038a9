//! What is left of a publisher that is dropped while there is no broker: nothing.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
#[cfg(target_os = "linux")]
use futures_util::future::join_all;
use lapin_idempotent::{IdempotentPublisher, OutgoingMessage, RetryPolicy, publisher::PublisherState};
use tokio::{runtime::Handle, time::timeout};

#[cfg(target_os = "linux")]
use super::sockets::{run_alone, threads_and_descriptors};
use super::{DEADLINE, eventually, scripted::ScriptedBroker};

const YEAR: Duration = Duration::from_secs(31_536_000);

/// What becomes of the broker.
#[derive(Debug, Clone, Copy)]
enum Outage {
    /// Nobody listens any more.
    Refuses,
    /// Connections are taken, and nothing is said on them.
    Silent,
    /// The connection stays, and nothing more is said on it.
    Frozen,
}

const OUTAGES: [Outage; 3] = [Outage::Refuses, Outage::Silent, Outage::Frozen];

/// A body that shows how long it is kept.
struct Body(#[expect(dead_code, reason = "it is counted")] Arc<()>);

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        b"500"
    }
}

/// Publishes messages that have a year, drops the calls and the publisher, and waits until nothing
/// keeps them.
async fn dropped_in(outage: Outage) {
    let kept = Arc::new(());
    let broker = ScriptedBroker::start().await;
    let hook = Arc::clone(&kept);
    let builder = IdempotentPublisher::builder(broker.url())
        .retry(RetryPolicy::default().max_attempts(u32::MAX).max_elapsed(YEAR))
        .confirm_timeout(Duration::from_secs(1))
        .on_attempt(move |_| drop(Arc::clone(&hook)));
    let (publisher, mut peer) = tokio::join!(builder.connect(), broker.accept());
    let publisher = publisher.expect("connect");
    let call = || {
        let body = Bytes::from_owner(Body(Arc::clone(&kept)));
        let (publisher, message) = (publisher.clone(), OutgoingMessage::to("e", "queue").body(body));
        tokio::spawn(async move { publisher.publish_idempotent(message.deadline(YEAR)).await })
    };
    let mut calls = vec![call()];
    peer.next().await;
    let (broker, peer) = match outage {
        Outage::Refuses => (None, None),
        Outage::Silent => (Some(broker), None),
        Outage::Frozen => (Some(broker), Some(peer)),
    };
    if peer.is_none() {
        let mut status = publisher.watch();
        let lost = status.wait_for(|status| status.state == PublisherState::Reconnecting);
        timeout(DEADLINE, lost).await.expect("in time").expect("watch");
    }
    calls.extend((0..10).map(|_| call()));
    eventually("all are taken", async || (publisher.status().in_flight == 11).then_some(())).await;
    for call in calls {
        call.abort();
        let _ = call.await;
    }
    drop(publisher);
    eventually("nothing keeps them", async || (Arc::strong_count(&kept) == 1).then_some(())).await;
    drop((broker, peer));
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publisher_dropped_in_an_outage_leaves_no_task_and_no_message() {
    let before = tasks();
    for outage in OUTAGES {
        dropped_in(outage).await;
        eventually("no task is left", async || (tasks() <= before).then_some(())).await;
    }
}

/// Run by the one below: others would count, too.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "run in a process of its own, by publisher_dropped_in_an_outage_leaves_no_thread_and_no_descriptor"]
async fn counted() {
    // What the first one makes once and for all.
    dropped_in(Outage::Refuses).await;
    let (threads, descriptors) = threads_and_descriptors();
    for _ in 0..5 {
        join_all(OUTAGES.map(dropped_in)).await;
    }
    eventually("as many as before", async || {
        let now = threads_and_descriptors();
        (now.0 <= threads && now.1 <= descriptors).then_some(())
    })
    .await;
}

#[cfg(target_os = "linux")]
#[test]
fn publisher_dropped_in_an_outage_leaves_no_thread_and_no_descriptor() {
    run_alone("dropping::counted");
}
