//! One bad message among many: it alone fails, and is told why.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions},
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage, PublishError, RetryPolicy, publisher::PublishErrorKind,
};
use tokio::time::timeout;

use super::support::{DEADLINE, amqp::Client, broker, load::drain, unique};

trials! {
    message_nacked_by_one_queue_of_a_fanout_may_have_been_published,
    message_whose_refusal_is_cut_off_fails_alone,
    messages_to_missing_exchanges_fail_each_for_itself,
    bad_messages_of_two_kinds_fail_each_for_its_own_reason,
}

const MESSAGES: usize = 500;

/// Publishes good messages to `queue`, all of them concurrently, but what `bad` gives for a place.
/// Gives the errors of the bad ones; the good ones are published once each or more.
async fn among_many(
    queue: &str,
    client: &Client,
    bad: impl Fn(usize) -> Option<OutgoingMessage>,
) -> Vec<PublishError> {
    let publisher = IdempotentPublisher::builder(broker()).connect().await.expect("connect");
    let mut numbers = BTreeSet::new();
    let calls: Vec<_> = (0..MESSAGES)
        .map(|n| {
            if let Some(message) = bad(n) {
                (true, message)
            } else {
                numbers.insert(n);
                let message = OutgoingMessage::to("", queue).body(n.to_string());
                let id = lapin_idempotent::MessageId::new(format!("m-{n}")).expect("ID");
                (false, message.message_id(id))
            }
        })
        .collect();
    let calls = calls.into_iter().map(|(bad, message)| {
        let publisher = publisher.clone();
        async move { (bad, publisher.publish_idempotent(message).await) }
    });
    let mut errors = Vec::new();
    for (bad, result) in timeout(DEADLINE, join_all(calls)).await.expect("no call hangs") {
        match result {
            Ok(_) => assert!(!bad, "a bad one was published"),
            Err(error) => {
                assert!(bad, "a good one failed: {error:?}");
                errors.push(error);
            }
        }
    }
    let copies = drain(client, queue).await;
    let found: BTreeSet<usize> =
        copies.keys().map(|id| id.trim_start_matches("m-").parse().expect("number")).collect();
    assert_eq!(found, numbers, "all good ones are there");
    client.delete(queue).await;
    errors
}

/// RabbitMQ cuts what it says of an exchange at 255: 3.10 in the middle of a character; 4.3 at a
/// character, which can be too long for the frame all the same, and then it closes the connection.
pub async fn message_whose_refusal_is_cut_off_fails_alone() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("unreadable").await;
    let bad = |n| (n == 250).then(|| OutgoingMessage::to("é".repeat(120), "key").body("bad"));
    let errors = among_many(&queue, &client, bad).await;
    assert_eq!(errors.len(), 1);
    // It was in flight with others when the first channel ended: nobody knows what became of that
    // attempt.
    match errors[0].kind() {
        PublishErrorKind::Unroutable => assert_eq!(errors[0].reply_code(), Some(404)),
        kind => {
            assert_eq!((kind, errors[0].reply_code()), (PublishErrorKind::Refused, None), "{:?}", errors[0]);
        }
    }
}

pub async fn messages_to_missing_exchanges_fail_each_for_itself() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("missing").await;
    let missing = unique("nowhere");
    let bad = |n| (n % 10 == 5).then(|| OutgoingMessage::to(missing.as_str(), "key").body("bad"));
    let errors = among_many(&queue, &client, bad).await;
    assert_eq!(errors.len(), MESSAGES / 10);
    for error in errors {
        assert_eq!(
            (error.kind(), error.reply_code()),
            (PublishErrorKind::Unroutable, Some(404)),
            "{error:?}"
        );
        assert!(error.reply_text().expect("text").contains(&missing), "{error:?}");
    }
}

/// RabbitMQ nacks a message that one queue rejects, and the others have it. Of one kind the broker
/// does not say which it was, so all are suspects when it names the exchange of the other.
pub async fn bad_messages_of_two_kinds_fail_each_for_its_own_reason() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("two-kinds").await;
    let (missing, target) = (unique("missing"), queue.clone());
    let bad = move |n: usize| match n % 20 {
        3 => Some(OutgoingMessage::to("", &target).user_id("somebody").body("bad")),
        7 => Some(OutgoingMessage::to(&missing, "key").body("bad")),
        _ => None,
    };
    let errors = among_many(&queue, &client, bad).await;
    let (wrong_user, no_exchange): (Vec<_>, Vec<_>) =
        errors.iter().partition(|error| error.message().exchange().is_empty());
    assert_eq!((wrong_user.len(), no_exchange.len()), (MESSAGES / 20, MESSAGES / 20));
    for error in wrong_user {
        assert_eq!((error.kind(), error.reply_code()), (PublishErrorKind::Refused, Some(406)), "{error:?}");
    }
    for error in no_exchange {
        assert_eq!(
            (error.kind(), error.reply_code()),
            (PublishErrorKind::Unroutable, Some(404)),
            "{error:?}"
        );
    }
}

pub async fn message_nacked_by_one_queue_of_a_fanout_may_have_been_published() {
    let client = Client::connect(&broker()).await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongInt(0));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let queues = [client.queue("open").await, client.queue_with("full", full).await];
    let exchange = unique("fanout");
    let declared = client.channel.exchange_declare(
        exchange.as_str().into(),
        ExchangeKind::Fanout,
        ExchangeDeclareOptions::default(),
        FieldTable::default(),
    );
    declared.await.expect("exchange");
    for queue in &queues {
        let bind = client.channel.queue_bind(
            queue.as_str().into(),
            exchange.as_str().into(),
            "".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bind.await.expect("bind");
    }
    let policy = RetryPolicy::default().max_attempts(4);
    let publisher = IdempotentPublisher::builder(broker()).retry(policy).connect().await.expect("connect");
    let error = publisher.publish_idempotent(OutgoingMessage::to(exchange.as_str(), "").body("1")).await;
    let error = error.expect_err("one of them is full");
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Nacked, 4));
    assert_eq!(client.ready(&queues[0]).await, 4, "the other has each attempt");
    assert!(error.may_have_been_published());
    let options = ExchangeDeleteOptions::default();
    client.channel.exchange_delete(exchange.as_str().into(), options).await.expect("delete");
    for queue in &queues {
        client.delete(queue).await;
    }
}
