//! The publisher's word: published, or not, or unknown.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all};
use lapin::{
    options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions},
    types::FieldTable,
};
use lapin_idempotent::{
    IdempotentPublisher, MessageId, OutgoingMessage, RetryPolicy, amqp::ConnectErrorKind,
    publisher::PublishErrorKind,
};
use tokio::time::timeout;

use super::support::{
    DEADLINE,
    amqp::Client,
    broker, eventually,
    proxy::{Action, From, Proxy, method},
};

trials! {
    every_one_of_100000_gets_its_own_verdict_classic,
    every_one_of_100000_gets_its_own_verdict_quorum,
    unroutable_is_an_error_and_gives_the_message_back,
    unroutable_is_retried_on_request,
    missing_exchange_is_retried_on_request,
    invalid_messages_leave_the_connection_alone,
    results_come_in_order,
    closed_publisher_refuses_and_pending_messages_come_back,
    wrong_credentials_and_dead_ports_are_typed_errors,
    cancelled_calls_leave_nothing_behind,
}

async fn publisher() -> IdempotentPublisher {
    IdempotentPublisher::builder(broker()).connect().await.expect("connect")
}

const PIPELINED: usize = 100_000;
const RUNS: usize = 5;

pub async fn every_one_of_100000_gets_its_own_verdict_classic() {
    let client = Client::connect(&broker()).await;
    for _ in 0..RUNS {
        let queue = client.queue("verdicts").await;
        every_message_gets_its_own_verdict(&client, &queue).await;
    }
}

pub async fn every_one_of_100000_gets_its_own_verdict_quorum() {
    let client = Client::connect(&broker()).await;
    for _ in 0..RUNS {
        let queue = client.quorum_queue("verdicts").await;
        every_message_gets_its_own_verdict(&client, &queue).await;
    }
}

/// Pipelined, every tenth unroutable: exactly those fail, and exactly the others are in the queue
/// (I5).
async fn every_message_gets_its_own_verdict(client: &Client, queue: &str) {
    let publisher = publisher().await;
    let messages = (0..PIPELINED).map(|n| {
        let routing_key = if n % 10 == 3 { "test.no-such-queue" } else { queue };
        OutgoingMessage::to("", routing_key)
            .message_id(MessageId::new(format!("m-{n}")).expect("id"))
            .body("x")
    });
    let mut verdicts = publisher.publish_all(messages).enumerate();
    let mut seen = 0;
    while let Some((n, verdict)) = verdicts.next().await {
        seen += 1;
        match verdict {
            Ok(receipt) => {
                assert_eq!((receipt.message_id().as_str(), n % 10 == 3), (&*format!("m-{n}"), false));
            }
            Err(error) => {
                assert_eq!((error.kind(), n % 10), (PublishErrorKind::Unroutable, 3), "message {n}");
                assert!(!error.may_have_been_published());
            }
        }
    }
    assert_eq!(seen, PIPELINED);
    let status = publisher.status();
    let tenth = u64::try_from(PIPELINED / 10).expect("count");
    assert_eq!((status.confirmed, status.returned, status.failed), (9 * tenth, tenth, tenth));
    let expected = u32::try_from(PIPELINED * 9 / 10).expect("count");
    let arrived = async || (client.ready(queue).await == expected).then_some(());
    eventually("all routed ones are there", arrived).await;
    client.delete(queue).await;
}

pub async fn unroutable_is_an_error_and_gives_the_message_back() {
    let message = OutgoingMessage::to("", "test.no-such-queue").body("x");
    let error = publisher().await.publish_idempotent(message).await.expect_err("unroutable");
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Unroutable, 1));
    let id = error.message_id().cloned().expect("the ID that it was stamped with");
    let message = error.into_message();
    assert_eq!((message.id(), message.payload().as_ref()), (Some(&id), b"x".as_slice()));
}

/// A publisher to which a missing route is one that comes later.
async fn waiting_for_a_route() -> IdempotentPublisher {
    let policy = RetryPolicy::default()
        .retry_unroutable(true)
        .max_attempts(1000)
        .max_delay(Duration::from_millis(200));
    IdempotentPublisher::builder(broker()).retry(policy).connect().await.expect("connect")
}

pub async fn unroutable_is_retried_on_request() {
    let client = Client::connect(&broker()).await;
    let late = super::support::unique("late");
    let publisher = waiting_for_a_route().await;
    let mut status = publisher.watch();
    let publishing = tokio::spawn({
        let message = OutgoingMessage::to("", &late).body("x");
        async move { publisher.publish_idempotent(message).await }
    });
    timeout(DEADLINE, status.wait_for(|status| status.returned > 0))
        .await
        .expect("in time")
        .expect("it came back");
    let options = lapin::options::QueueDeclareOptions { durable: true, ..Default::default() };
    client
        .channel
        .queue_declare(late.as_str().into(), options, FieldTable::default())
        .await
        .expect("declare");
    let receipt = publishing.await.expect("join").expect("published in the end");
    assert!(receipt.attempts() > 1);
    assert_eq!(client.ready(&late).await, 1);
    client.delete(&late).await;
}

/// The broker closes the channel over it (404); on request that, too, waits for the topology.
pub async fn missing_exchange_is_retried_on_request() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("late-exchange").await;
    let exchange = super::support::unique("late-exchange");
    let publisher = waiting_for_a_route().await;
    let mut status = publisher.watch();
    let message = OutgoingMessage::to(&exchange, "k").body("x");
    let publishing = tokio::spawn(async move { publisher.publish_idempotent(message).await });
    timeout(DEADLINE, status.wait_for(|status| status.returned > 0))
        .await
        .expect("in time")
        .expect("refused");
    let (name, fanout) = (exchange.as_str(), lapin::ExchangeKind::Fanout);
    client
        .channel
        .exchange_declare(name.into(), fanout, ExchangeDeclareOptions::default(), FieldTable::default())
        .await
        .expect("declare");
    let (bind, none) = (QueueBindOptions::default(), FieldTable::default());
    client.channel.queue_bind(queue.as_str().into(), name.into(), "".into(), bind, none).await.expect("bind");
    let receipt = timeout(DEADLINE, publishing).await.expect("in time").expect("join").expect("published");
    assert!(receipt.attempts() > 1);
    assert_eq!(client.ready(&queue).await, 1);
    client.channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await.expect("delete");
    client.delete(&queue).await;
}

pub async fn invalid_messages_leave_the_connection_alone() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("invalid").await;
    let publisher = publisher().await;
    let invalid = [
        OutgoingMessage::to("", "k".repeat(256)),
        OutgoingMessage::to("", &queue).kind("k".repeat(256)),
        OutgoingMessage::to("", &queue).header("x-idempotency-attempt", 7),
        OutgoingMessage::to("", &queue).header("h".repeat(256), 7),
        OutgoingMessage::to("", &queue).idempotency_key(""),
        OutgoingMessage::to("", &queue).header("ratio", f64::NAN),
        OutgoingMessage::to("", &queue).header("size", u64::MAX),
        OutgoingMessage::to("", &queue).header("CC", "elsewhere"),
        OutgoingMessage::to("", &queue).reply_to("amq.rabbitmq.reply-to"),
    ];
    for message in invalid {
        let error = publisher.publish_idempotent(message).await.expect_err("invalid");
        assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Invalid, 0));
        assert!(!error.may_have_been_published());
    }
    for id in ["x".repeat(256), "é".repeat(128), "a\nb".into(), "a\0".into(), "\u{85}".into(), String::new()]
    {
        assert!(MessageId::new(id).is_err());
    }
    let longest = MessageId::new("é".repeat(127) + "x").expect("255 bytes");
    let message = OutgoingMessage::to("", &queue).message_id(longest.clone()).body("x");
    publisher.publish_idempotent(message).await.expect("the connection is as it was");
    let seen = client.get(&queue).await.expect("message");
    assert_eq!(seen.properties.message_id().as_ref().map(|id| id.as_str()), Some(longest.as_str()));
    client.delete(&queue).await;
}

pub async fn results_come_in_order() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("order").await;
    let publisher = IdempotentPublisher::builder(broker()).max_in_flight(7).connect().await.expect("connect");
    let messages = (0..100).map(|n| {
        let message = OutgoingMessage::to("", if n % 3 == 0 { "test.no-such-queue" } else { &queue });
        message.message_id(MessageId::new(format!("m-{n}")).expect("id"))
    });
    let results: Vec<_> = publisher.publish_all(messages).collect().await;
    for (n, result) in results.iter().enumerate() {
        let id = match result {
            Ok(receipt) => receipt.message_id(),
            Err(error) => error.message_id().expect("id"),
        };
        assert_eq!((id.as_str(), result.is_err()), (&*format!("m-{n}"), n % 3 == 0));
    }
    // Sharing one publisher between tasks keeps everything apart, too.
    let calls = (0..100).map(|n| {
        let (publisher, queue) = (publisher.clone(), queue.clone());
        tokio::spawn(async move {
            let id = MessageId::new(format!("c-{n}")).expect("id");
            publisher
                .publish_idempotent(OutgoingMessage::to("", queue).message_id(id.clone()))
                .await
                .map(|r| (r, id))
        })
    });
    for call in join_all(calls).await {
        let (receipt, id) = call.expect("join").expect("published");
        assert_eq!(*receipt.message_id(), id);
    }
    client.delete(&queue).await;
}

pub async fn closed_publisher_refuses_and_pending_messages_come_back() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("close").await;
    let proxy = Proxy::start(&broker()).await;
    let publisher = IdempotentPublisher::builder(proxy.url()).connect().await.expect("connect");
    publisher.publish_idempotent(OutgoingMessage::to("", &queue).body("x")).await.expect("published");
    proxy.rule(|frame| if frame.is(From::Broker, method::BASIC_ACK) { Action::Drop } else { Action::Pass });
    let pending = tokio::spawn({
        let (publisher, message) = (publisher.clone(), OutgoingMessage::to("", &queue).body("y"));
        async move { publisher.publish_idempotent(message).await }
    });
    eventually("it is in the queue, unconfirmed", async || (client.ready(&queue).await == 2).then_some(()))
        .await;

    let left =
        timeout(DEADLINE, publisher.close(Duration::from_millis(300))).await.expect("within its limit");
    let left = left.expect_err("one was left").into_messages();
    assert_eq!(left.len(), 1);
    let error = pending.await.expect("join").expect_err("not confirmed");
    assert_eq!(error.kind(), PublishErrorKind::Closed);
    assert!(error.may_have_been_published());
    assert_eq!(error.message_id(), left[0].id());
    let refused = publisher.publish_idempotent(OutgoingMessage::to("", &queue)).await.expect_err("closed");
    assert_eq!((refused.kind(), refused.may_have_been_published()), (PublishErrorKind::Closed, false));
    client.delete(&queue).await;
}

pub async fn wrong_credentials_and_dead_ports_are_typed_errors() {
    let url = broker();
    let (_, host) = url.split_once('@').expect("credentials");
    let wrong = IdempotentPublisher::builder(format!("amqp://guest:canary@{host}")).connect().await;
    let error = wrong.expect_err("wrong password");
    assert_eq!(error.kind(), ConnectErrorKind::Refused);
    assert!(!format!("{error} {error:?}").contains("canary"));

    let nowhere = IdempotentPublisher::builder("amqp://guest:canary@127.0.0.1:1").connect().await;
    let error = nowhere.expect_err("nobody listens");
    assert_eq!(error.kind(), ConnectErrorKind::Unreachable);
    assert!(!format!("{error} {error:?}").contains("canary"));

    let cluster = IdempotentPublisher::builder_for_cluster(["amqp://127.0.0.1:1", url.as_str()]);
    cluster.connect().await.expect("one node is enough");
}

pub async fn cancelled_calls_leave_nothing_behind() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cancelled").await;
    let publisher = IdempotentPublisher::builder(broker()).max_in_flight(4).connect().await.expect("connect");
    for _ in 0..100 {
        let call = publisher.publish_idempotent(OutgoingMessage::to("", &queue).body("x"));
        // Polled once, so that it is handed over, then dropped.
        let _ = timeout(Duration::ZERO, call).await;
    }
    for _ in 0..20 {
        publisher
            .publish_idempotent(OutgoingMessage::to("", &queue).body("x"))
            .await
            .expect("places are free again");
    }
    publisher.close(DEADLINE).await.expect("nothing is left");
    client.delete(&queue).await;
}
