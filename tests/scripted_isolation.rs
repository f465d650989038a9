//! One bad message among many, on a broker that does what a test says: it alone fails, and the
//! others are published.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::expect_used, clippy::unwrap_used)]

mod support {
    pub mod scripted;
}

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use amq_protocol::types::AMQPValue;
use futures_util::{StreamExt, future::join_all};
use lapin_idempotent::{
    IdempotentPublisher, MessageId, OutgoingMessage, PublishError, Receipt, RetryPolicy,
    publisher::{PublishErrorKind, PublisherBuilder},
};
use support::scripted::{Peer, Published, ScriptedBroker, ack, nack, returned};
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(120);

async fn connected(set: impl FnOnce(PublisherBuilder) -> PublisherBuilder) -> (IdempotentPublisher, Peer) {
    let broker = ScriptedBroker::start().await;
    let builder = set(IdempotentPublisher::builder(broker.url()));
    let (publisher, peer) = tokio::join!(builder.connect(), broker.accept());
    (publisher.expect("connect"), peer)
}

/// Publishes numbers up to `count`, all of them concurrently.
async fn publish_numbers(
    publisher: &IdempotentPublisher,
    count: usize,
) -> Vec<Result<Receipt, PublishError>> {
    let calls = (0..count)
        .map(|n| publisher.publish_idempotent(OutgoingMessage::to("e", "queue").body(n.to_string())));
    timeout(DEADLINE, join_all(calls)).await.expect("no call hangs")
}

fn number(published: &Published) -> usize {
    String::from_utf8_lossy(&published.body).parse().expect("a number")
}

/// The publishes that have come, at least one, and all on one channel.
async fn batch(peer: &mut Peer) -> Option<Vec<Published>> {
    let mut batch = vec![peer.next_or_end().await?];
    while peer.has_more(Duration::from_millis(5)).await {
        let more = peer.next_or_end().await?;
        if more.tag == 1 {
            batch.clear();
        }
        batch.push(more);
    }
    Some(batch)
}

/// A broker to which each answer takes `latency`, and which closes the channel over `bad` messages
/// with words that tell nothing.
async fn far_away(mut peer: Peer, latency: Duration, bad: BTreeSet<usize>) {
    let mut closed = None;
    while let Some(batch) = batch(&mut peer).await {
        if closed == Some(peer.channels) {
            continue;
        }
        sleep(latency).await;
        match batch.iter().find(|published| bad.contains(&number(published))) {
            Some(_) => {
                closed = Some(peer.channels);
                peer.close_channel(404, "NOT_FOUND - no exchange 'cut off in the mid").await;
            }
            None => peer.ack(batch.last().expect("one").tag, true).await,
        }
    }
}

/// Only those in `bad` fail, as `kind`.
fn assert_alone(results: &[Result<Receipt, PublishError>], bad: &BTreeSet<usize>, kind: PublishErrorKind) {
    for (n, result) in results.iter().enumerate() {
        let found = result.as_ref().map(|_| ()).map_err(PublishError::kind);
        assert_eq!(found, if bad.contains(&n) { Err(kind) } else { Ok(()) }, "message {n}: {result:?}");
    }
}

/// 40 ms a confirm, all defaults: one at a time, a thousand suspects would take 40 seconds, and a
/// publish may take 30.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_is_refused_far_away_fails_alone() {
    let bad = BTreeSet::from([400, 731]);
    let (publisher, peer) = connected(|builder| builder).await;
    tokio::spawn(far_away(peer, Duration::from_millis(40), bad.clone()));
    let results = publish_numbers(&publisher, 1_000).await;
    assert_alone(&results, &bad, PublishErrorKind::Unroutable);
    for n in bad {
        let error = results[n].as_ref().expect_err("refused");
        assert_eq!(error.reply_code(), Some(404));
        assert!(error.reply_text().expect("text").contains("NOT_FOUND"), "{error:?}");
    }
}

/// Ends the connection at each message of `bad`, without a word, and confirms all others.
async fn ends_connections(
    broker: ScriptedBroker,
    first: Peer,
    bad: BTreeSet<usize>,
    ended: Arc<AtomicUsize>,
) {
    let mut peer = first;
    loop {
        while let Some(published) = peer.next_or_end().await {
            if bad.contains(&number(&published)) {
                ended.fetch_add(1, SeqCst);
                break;
            }
            peer.ack(published.tag, false).await;
        }
        drop(peer);
        peer = broker.accept().await;
    }
}

/// A publisher that does not run out of time, and what it is connected to.
async fn patient() -> (ScriptedBroker, Peer, IdempotentPublisher) {
    let broker = ScriptedBroker::start().await;
    let policy = RetryPolicy::default().max_elapsed(Duration::from_secs(100));
    let builder = IdempotentPublisher::builder(broker.url()).retry(policy);
    let (publisher, peer) = tokio::join!(builder.connect(), broker.accept());
    (broker, peer, publisher.expect("connect"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_over_which_connections_end_fails_alone() {
    let bad = BTreeSet::from([77]);
    let (broker, peer, publisher) = patient().await;
    let ended = Arc::new(AtomicUsize::new(0));
    let serving = tokio::spawn(ends_connections(broker, peer, bad.clone(), Arc::clone(&ended)));
    // Others go on being published, or nothing would tell a message that ends connections from a
    // broker that does.
    let (all, more) = tokio::join!(publish_numbers(&publisher, 200), async {
        let mut results = Vec::new();
        while publisher.status().in_flight > 0 || results.is_empty() {
            let message = OutgoingMessage::to("e", "queue").body("1000");
            results.push(publisher.publish_idempotent(message).await.map_err(|error| error.kind()));
            sleep(Duration::from_millis(50)).await;
        }
        results
    });
    assert_alone(&all, &bad, PublishErrorKind::Refused);
    assert!(more.iter().all(Result::is_ok), "{more:?}");
    let error = all[77].as_ref().expect_err("refused");
    assert!(error.may_have_been_published(), "nobody said that it was not");
    assert!(ended.load(SeqCst) < 30, "found by halves: {ended:?}");
    serving.abort();
}

/// Confirms only the first of what has come whenever one of `bad` is among it, and ends the
/// connection: the other confirms are lost with it.
async fn ends_connections_early(broker: ScriptedBroker, first: Peer, bad: BTreeSet<usize>) {
    let mut peer = first;
    loop {
        while let Some(batch) = batch(&mut peer).await {
            let first = batch.first().expect("one");
            if !batch.iter().any(|published| bad.contains(&number(published))) {
                peer.ack(batch.last().expect("one").tag, true).await;
                continue;
            }
            if !bad.contains(&number(first)) {
                peer.ack(first.tag, false).await;
                // Or the end of the connection would overtake it.
                sleep(Duration::from_millis(20)).await;
            }
            break;
        }
        drop(peer);
        peer = broker.accept().await;
    }
}

/// Each connection brings a confirm before it ends, so none is without result; the messages beside
/// the culprit would all the same have no attempts left, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_beside_one_that_ends_connections_are_published() {
    let (broker, peer, publisher) = patient().await;
    let serving = tokio::spawn(ends_connections_early(broker, peer, BTreeSet::from([77])));
    let (all, ()) = tokio::join!(publish_numbers(&publisher, 200), async {
        // Others go on, as above.
        while publisher.status().in_flight > 0 || publisher.status().confirmed == 0 {
            let _ = publisher.publish_idempotent(OutgoingMessage::to("e", "queue").body("1000")).await;
            sleep(Duration::from_millis(50)).await;
        }
    });
    let failed: Vec<_> = (all.iter().enumerate()).filter(|(_, result)| result.is_err()).collect();
    assert!(matches!(failed[..], [(77, _)]), "{failed:?}");
    serving.abort();
}

/// Ten attempts are not gone in a moment when a broker takes connections and ends each at the first
/// publish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_without_a_confirm_are_followed_by_pauses() {
    let broker = ScriptedBroker::start().await;
    let builder = IdempotentPublisher::builder(broker.url()).retry(RetryPolicy::default().max_attempts(6));
    let (publisher, peer) = tokio::join!(builder.connect(), broker.accept());
    let publisher = publisher.expect("connect");
    let every: BTreeSet<usize> = (0..10).collect();
    let ended = Arc::new(AtomicUsize::new(0));
    let serving = tokio::spawn(ends_connections(broker, peer, every, Arc::clone(&ended)));
    let started = Instant::now();
    let error = timeout(DEADLINE, publisher.publish_idempotent(OutgoingMessage::to("e", "queue").body("1")));
    let error = error.await.expect("no call hangs").expect_err("never confirmed");
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Disconnected, 6));
    assert!(error.may_have_been_published());
    // 100, 200, 400, 800 and 1,600 ms, each at least half of that.
    assert!(started.elapsed() > Duration::from_millis(1_500), "{:?}", started.elapsed());
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_above_the_negotiated_frame_fail_alone_and_unsent() {
    let broker = ScriptedBroker::start().await.frame_max(8_192);
    let (publisher, mut peer) =
        tokio::join!(IdempotentPublisher::builder(broker.url()).connect(), broker.accept());
    let publisher = publisher.expect("connect");
    let large = OutgoingMessage::to("e", "queue").header("stack", "x".repeat(9_000)).body("0");
    let error = publisher.publish_idempotent(large).await.expect_err("it does not fit");
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Invalid, 0));
    assert!(!error.may_have_been_published());
    let (result, ()) =
        tokio::join!(publisher.publish_idempotent(OutgoingMessage::to("e", "queue").body("1")), async {
            let published = peer.next().await;
            assert_eq!(number(&published), 1, "the first was sent");
            peer.ack(published.tag, false).await;
        });
    result.expect("published");
}

/// One ID and one route, and headers by which an exchange routes them differently.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_with_other_headers_have_verdicts_of_their_own() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    let plain = || OutgoingMessage::to("e", "queue").message_id(MessageId::new("one").unwrap()).body("1");
    let message = |region: &str| plain().header("region", region);
    let (eu, us, none, ()) = tokio::join!(
        publisher.publish_idempotent(message("eu")),
        publisher.publish_idempotent(message("us")),
        publisher.publish_idempotent(plain()),
        async {
            let published = peer.take(3).await;
            let eu = |published: &Published| {
                let headers = published.header.properties.headers().as_ref();
                let region = headers.and_then(|headers| headers.inner().get("region"));
                region == Some(&AMQPValue::LongString("eu".into()))
            };
            let lost = published.iter().find(|published| eu(published)).expect("eu");
            peer.say(&[returned(lost), ack(3, true)]).await;
        }
    );
    assert_eq!(eu.expect_err("returned").kind(), PublishErrorKind::Unroutable);
    us.expect("routed");
    none.expect("routed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returned_by_an_exchange_that_delivers_later_may_have_been_published() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    let message = OutgoingMessage::to("later", "queue").header("x-delay", 5_000).body("1");
    let (error, ()) = tokio::join!(publisher.publish_idempotent(message), async {
        let published = peer.next().await;
        peer.say(&[returned(&published), ack(1, false)]).await;
    });
    let error = error.expect_err("returned");
    assert_eq!((error.kind(), error.reply_code()), (PublishErrorKind::Unroutable, Some(312)));
    assert!(error.may_have_been_published());
}

/// The first is nacked until all others have come, which needs more places than there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publish_all_uses_free_places_behind_a_slow_front() {
    const COUNT: usize = 300;
    let policy = RetryPolicy::default().max_attempts(u32::MAX).max_elapsed(DEADLINE);
    let policy = policy.max_delay(Duration::from_millis(100));
    let (publisher, mut peer) =
        connected(|builder| builder.retry(policy).max_bytes_in_flight(10 * 1024)).await;
    let messages = (0..COUNT).map(|n| OutgoingMessage::to("e", "queue").body(format!("{n:>1024}")));
    let publishing = tokio::spawn(publisher.publish_all(messages).collect::<Vec<_>>());
    let mut seen = BTreeSet::new();
    while seen.len() < COUNT {
        let published = peer.next().await;
        let n: usize = String::from_utf8_lossy(&published.body).trim().parse().expect("number");
        let first = seen.insert(n) && n == 0;
        let wait = n == 0 && (first || seen.len() < COUNT);
        peer.say(&[if wait { nack(published.tag, false) } else { ack(published.tag, false) }]).await;
    }
    let finishing = tokio::spawn(async move {
        while let Some(published) = peer.next_or_end().await {
            peer.ack(published.tag, false).await;
        }
    });
    let results = timeout(DEADLINE, publishing).await.expect("in time").expect("join");
    assert!(results.iter().all(Result::is_ok));
    drop(publisher);
    finishing.abort();
}

/// More bytes than the link carries within the confirm timeout, on a broker that confirms what has
/// come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_over_a_slow_link_are_sent_once() {
    const BODY: usize = 4 << 20;
    const COUNT: usize = 12;
    let (publisher, mut peer) = connected(|builder| builder.confirm_timeout(Duration::from_secs(2))).await;
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Some(published) = peer.next_or_end().await {
            // The kernel holds some megabytes of what comes next.
            sleep(Duration::from_millis(350)).await;
            seen.lock().unwrap().push(published.id());
            peer.ack(published.tag, false).await;
        }
    });
    let body = vec![b'x'; BODY];
    let calls = (0..COUNT)
        .map(|_| publisher.publish_idempotent(OutgoingMessage::to("e", "queue").body(body.clone())));
    for result in timeout(DEADLINE, join_all(calls)).await.expect("no call hangs") {
        assert_eq!(result.expect("published").attempts(), 1);
    }
    assert_eq!(sent.lock().unwrap().len(), COUNT);
    assert_eq!(publisher.status().reconnects, 0);
}

/// Nothing of a call that was dropped stays: no place in the window, and nothing to hand back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_were_dropped_leave_nothing_behind() {
    let (publisher, mut peer) = connected(|builder| builder.max_in_flight(64)).await;
    peer.block(true).await;
    let mut status = publisher.watch();
    let blocked = status.wait_for(|status| status.blocked == 1);
    timeout(DEADLINE, blocked).await.expect("in time").expect("watch");
    let calls: Vec<_> = (0..64)
        .map(|n| {
            let publisher = publisher.clone();
            let message = OutgoingMessage::to("e", "queue").body(n.to_string());
            tokio::spawn(async move { publisher.publish_idempotent(message).await })
        })
        .collect();
    let full = async {
        while publisher.status().in_flight < 64 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, full).await.expect("all are taken");
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    let free = async {
        while publisher.status().in_flight > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, free).await.expect("the places are free, although the connection is blocked");
    publisher.close(Duration::ZERO).await.expect("nothing is handed back");
}
