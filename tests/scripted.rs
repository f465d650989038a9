//! Verdicts against a broker that says things in every order that AMQP and RabbitMQ allow, through
//! the real client.

#![allow(missing_docs, unreachable_pub, clippy::expect_used, clippy::unwrap_used)]

mod support {
    pub mod output;
    pub mod scripted;
}

use std::{collections::BTreeSet, time::Duration};

use futures_util::StreamExt;
use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage, RetryPolicy,
    publisher::{PublishErrorKind, PublisherBuilder, PublisherState},
};
use support::output::Output;
use support::scripted::{Peer, Said, ScriptedBroker, ack, nack, returned};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(60);

/// A routing key that leads nowhere.
const LOST: &str = "lost";

async fn connected(set: impl FnOnce(PublisherBuilder) -> PublisherBuilder) -> (IdempotentPublisher, Peer) {
    let broker = ScriptedBroker::start().await;
    let builder = set(IdempotentPublisher::builder(broker.url()));
    let (publisher, peer) = tokio::join!(builder.connect(), broker.accept());
    (publisher.expect("connect"), peer)
}

fn is_lost(number: usize) -> bool {
    number.is_multiple_of(10)
}

/// Publishes so many, each tenth of them to nowhere, and gives the numbers of those that failed as
/// unroutable.
async fn unroutable_of(publisher: IdempotentPublisher, count: usize) -> BTreeSet<usize> {
    let messages = (0..count)
        .map(|n| OutgoingMessage::to("e", if is_lost(n) { LOST } else { "queue" }).body(n.to_string()));
    let mut results = publisher.publish_all(messages).enumerate();
    let mut unroutable = BTreeSet::new();
    while let Some((n, result)) = timeout(DEADLINE, results.next()).await.expect("no call hangs") {
        match result {
            Ok(_) => {}
            Err(error) if error.kind() == PublishErrorKind::Unroutable => {
                assert_eq!(error.message().payload().as_ref(), n.to_string().as_bytes());
                unroutable.insert(n);
            }
            Err(error) => panic!("{n}: {error}"),
        }
    }
    unroutable
}

fn lost_of(count: usize) -> BTreeSet<usize> {
    (0..count).filter(|n| is_lost(*n)).collect()
}

/// Publishes a message that is lost and one that is not, and lets the broker answer.
async fn two_messages(answer: impl AsyncFn(&mut Peer, Vec<support::scripted::Published>)) {
    for _ in 0..50 {
        let (publisher, mut peer) = connected(|builder| builder).await;
        let first = publisher.clone();
        let first =
            tokio::spawn(async move { first.publish_idempotent(OutgoingMessage::to("e", "queue")).await });
        let mut published = peer.take(1).await;
        let second = publisher.clone();
        let second =
            tokio::spawn(async move { second.publish_idempotent(OutgoingMessage::to("e", LOST)).await });
        published.extend(peer.take(1).await);
        answer(&mut peer, published).await;
        let verdicts = timeout(DEADLINE, async { (first.await.unwrap(), second.await.unwrap()) });
        let (first, second) = verdicts.await.expect("no call hangs");
        first.expect("the first is confirmed");
        assert_eq!(second.expect_err("the second came back").kind(), PublishErrorKind::Unroutable);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_2_then_ack_1_then_ack_2() {
    two_messages(async |peer, published| {
        peer.say(&[returned(&published[1]), ack(1, false), ack(2, false)]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_2_then_ack_1_and_later_ack_2() {
    two_messages(async |peer, published| {
        peer.say(&[returned(&published[1]), ack(1, false)]).await;
        tokio::task::yield_now().await;
        peer.ack(2, false).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_2_then_ack_up_to_2() {
    two_messages(async |peer, published| peer.say(&[returned(&published[1]), ack(2, true)]).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn return_2_then_ack_2_then_ack_1() {
    two_messages(async |peer, published| {
        peer.say(&[returned(&published[1]), ack(2, false), ack(1, false)]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returns_come_several_confirms_early() {
    const COUNT: usize = 200;
    let (publisher, mut peer) = connected(|builder| builder.max_in_flight(COUNT)).await;
    let publishing = tokio::spawn(unroutable_of(publisher, COUNT));
    let published = peer.take(COUNT).await;
    let early: Vec<Vec<Said>> =
        published.iter().filter(|p| p.publish.routing_key.as_str() == LOST).map(returned).collect();
    peer.say(&early).await;
    for message in &published {
        peer.ack(message.tag, false).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(publishing.await.unwrap(), lost_of(COUNT));
}

/// One ack of everything so far, again and again, while the collector is busy with the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_tags_under_one_ack() {
    const COUNT: usize = 40_000;
    const WINDOW: usize = 8_000;
    // Patient: on a busy machine this takes its time, and a verdict that waits for another keeps
    // the window full meanwhile.
    let (publisher, mut peer) =
        connected(|builder| builder.max_in_flight(WINDOW).confirm_timeout(DEADLINE)).await;
    let publishing = tokio::spawn(unroutable_of(publisher, COUNT));
    let mut seen = 0;
    while seen < COUNT {
        let some = fastrand::usize(2..=WINDOW / 4).min(COUNT - seen);
        let published = peer.take(some).await;
        seen += some;
        let mut said: Vec<Vec<Said>> =
            published.iter().filter(|p| p.publish.routing_key.as_str() == LOST).map(returned).collect();
        said.push(ack(seen as u64, true));
        peer.say(&said).await;
    }
    assert_eq!(publishing.await.unwrap(), lost_of(COUNT));
}

/// Returns at their moment, confirms in any order, one by one or several at once, some of them
/// negative.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirms_out_of_order_with_nacks_between() {
    const COUNT: usize = 5_000;
    let (publisher, mut peer) =
        connected(|builder| builder.max_in_flight(COUNT).retry(RetryPolicy::never())).await;
    let messages = (0..COUNT)
        .map(|n| OutgoingMessage::to("e", if is_lost(n) { LOST } else { "queue" }).body(n.to_string()));
    let publishing = tokio::spawn(async move {
        publisher
            .publish_all(messages)
            .map(|result| result.map_err(|error| error.kind()))
            .collect::<Vec<_>>()
            .await
    });
    let mut published = peer.take(COUNT).await;
    fastrand::shuffle(&mut published);
    for part in published.chunks(37) {
        let mut said = Vec::new();
        for message in part {
            let number: usize = String::from_utf8(message.body.clone()).unwrap().parse().unwrap();
            if message.publish.routing_key.as_str() == LOST {
                said.push(returned(message));
            }
            said.push(if number % 7 == 3 { nack(message.tag, false) } else { ack(message.tag, false) });
        }
        peer.say(&said).await;
    }
    let results = timeout(DEADLINE, publishing).await.expect("no call hangs").unwrap();
    for (n, result) in results.into_iter().enumerate() {
        let expected = match n {
            n if is_lost(n) => Err(PublishErrorKind::Unroutable),
            n if n % 7 == 3 => Err(PublishErrorKind::Nacked),
            _ => Ok(()),
        };
        assert_eq!(result.map(|_| ()), expected, "message {n}");
    }
}

/// Two messages with one ID, one of them to nowhere: each gets its own verdict.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_id_twice_in_flight() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    let message = |key: &str| OutgoingMessage::to("e", key).idempotency_key("order-42");
    let call = |message| {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish_idempotent(message).await })
    };
    let (good, bad) = (call(message("queue")), call(message(LOST)));
    let published = peer.take(2).await;
    assert_eq!(published[0].id(), published[1].id());
    let lost = published.iter().find(|p| p.publish.routing_key.as_str() == LOST).unwrap();
    peer.say(&[returned(lost), ack(2, true)]).await;
    good.await.unwrap().expect("confirmed");
    assert_eq!(bad.await.unwrap().expect_err("returned").kind(), PublishErrorKind::Unroutable);
}

/// A return of something that was never sent: the channel cannot be trusted, and nothing counts as
/// published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_return_of_nothing_in_flight_ends_the_channel() {
    let broker = ScriptedBroker::start().await;
    let builder = IdempotentPublisher::builder(broker.url());
    let (publisher, mut peer) = tokio::join!(builder.connect(), broker.accept());
    let publisher = publisher.expect("connect");
    let calling = publisher.clone();
    let call =
        tokio::spawn(
            async move { calling.publish_idempotent(OutgoingMessage::to("e", "queue").body("1")).await },
        );
    let first = peer.next().await;
    let mut stranger = first.clone();
    stranger.header.properties = stranger.header.properties.with_message_id("another".into());
    peer.say(&[returned(&stranger), ack(1, false)]).await;
    let mut peer = broker.accept().await;
    let again = peer.next().await;
    assert_eq!((again.id(), again.body), (first.id(), first.body), "same ID, same body");
    peer.ack(1, false).await;
    assert_eq!(timeout(DEADLINE, call).await.expect("in time").unwrap().expect("published").attempts(), 2);
}

/// Callers that go away leave their confirms with the collector, and the other callers' verdicts
/// stay right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_callers_leave_no_confirm_behind() {
    const COUNT: usize = 300;
    let (publisher, mut peer) = connected(|builder| builder.max_in_flight(COUNT)).await;
    let calls: Vec<_> = (0..COUNT)
        .map(|n| {
            let publisher = publisher.clone();
            let message =
                OutgoingMessage::to("e", if is_lost(n) { LOST } else { "queue" }).body(n.to_string());
            tokio::spawn(async move { publisher.publish_idempotent(message).await })
        })
        .collect();
    let published = peer.take(COUNT).await;
    let mut kept = Vec::new();
    for (n, call) in calls.into_iter().enumerate() {
        if n % 3 == 0 { call.abort() } else { kept.push((n, call)) }
    }
    let mut said: Vec<Vec<Said>> =
        published.iter().filter(|p| p.publish.routing_key.as_str() == LOST).map(returned).collect();
    said.push(ack(COUNT as u64, true));
    peer.say(&said).await;
    for (n, call) in kept {
        let result = timeout(DEADLINE, call).await.expect("in time").unwrap();
        assert_eq!(result.is_err(), is_lost(n), "message {n}");
    }
    publisher.close(DEADLINE).await.expect("nothing is left in flight");
    assert_eq!(publisher.status().in_flight, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_connection_is_in_the_status_and_never_a_hang() {
    let (publisher, mut peer) =
        connected(|builder| builder.retry(RetryPolicy::default().max_elapsed(Duration::from_millis(600))))
            .await;
    let mut status = publisher.watch();
    peer.block(true).await;
    let blocked = timeout(DEADLINE, status.wait_for(|status| status.state == PublisherState::Blocked));
    assert_eq!(blocked.await.expect("in time").expect("watch").blocked, 1);

    let error = publisher.publish_idempotent(OutgoingMessage::to("e", "queue")).await.expect_err("blocked");
    assert_eq!(error.kind(), PublishErrorKind::TimedOut);
    assert!(!error.may_have_been_published(), "nothing is written to a blocked connection");

    peer.block(false).await;
    let open = timeout(DEADLINE, status.wait_for(|status| status.state == PublisherState::Connected));
    open.await.expect("in time").expect("watch");
    let again = tokio::spawn(async move { publisher.publish_idempotent(error.into_message()).await });
    let published = peer.next().await;
    peer.ack(published.tag, false).await;
    again.await.unwrap().expect("published");
}

/// RabbitMQ can go on to nack everything on a channel that was opened while a quorum queue had no
/// leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channel_that_only_nacks_is_replaced() {
    let policy = RetryPolicy::default().max_attempts(1000).max_delay(Duration::from_millis(200));
    let (publisher, mut peer) = connected(|builder| builder.retry(policy)).await;
    let call = tokio::spawn(async move {
        publisher
            .publish_idempotent(OutgoingMessage::to("e", "queue"))
            .await
            .map(|receipt| (receipt, publisher))
    });
    while peer.channels == 0 {
        let published = peer.next().await;
        let answer = if peer.channels == 0 { nack(published.tag, false) } else { ack(published.tag, false) };
        peer.say(&[answer]).await;
    }
    let (receipt, publisher) = timeout(DEADLINE, call).await.expect("in time").unwrap().expect("published");
    let status = publisher.status();
    assert_eq!((status.confirmed, status.reconnects, status.connected), (1, 1, 1));
    assert_eq!(u64::from(receipt.attempts()), status.nacked + 1);
}

/// The span of a publish, and what it says at its end.
#[tokio::test]
async fn publish_is_a_span_with_the_names_of_opentelemetry() {
    let output = Output::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(output.clone())
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
        .with_ansi(false)
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let (publisher, mut peer) = connected(|builder| builder).await;
    let message = OutgoingMessage::to("payments", "debit").idempotency_key("order-42").body("12345");
    let (error, id) = tokio::join!(publisher.publish_idempotent(message), async {
        let published = peer.next().await;
        peer.say(&[returned(&published), ack(published.tag, false)]).await;
        published.id()
    });
    error.expect_err("returned");
    let text = output.text();
    for field in [
        "otel.kind=\"producer\"",
        "messaging.system=\"rabbitmq\"",
        "messaging.operation.name=\"publish\"",
        "messaging.operation.type=\"send\"",
        "messaging.destination.name=\"payments\"",
        "messaging.rabbitmq.destination.routing_key=\"debit\"",
        &format!("messaging.message.id={id}"),
        "messaging.message.body.size=5",
        "attempts=1",
        "error.type=\"unroutable\"",
        "otel.status_code=\"ERROR\"",
    ] {
        assert!(text.contains(field), "{field} is not in {text}");
    }
}
