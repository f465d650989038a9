//! Other clients on either side.

use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions},
    types::FieldTable,
};
use lapin_idempotent::{
    Guard, IdempotentPublisher, IncomingMessage, Outcome, OutgoingMessage,
    consumer::{Settlement, settle},
    idempotency::Scope,
};

use super::support::{
    amqp::{Client, header, with_id},
    broker,
    ledger::{Debit, Ledger},
};

trials! {
    message_of_another_client_is_guarded,
    another_client_sees_the_stamp,
    guard_in_a_consume_loop_of_ones_own,
}

/// As in the vendor's recipe: plain lapin, only `message_id` set.
pub async fn message_of_another_client_is_guarded() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("foreign").await;
    for _ in 0..3 {
        client.publish(&queue, b"500", with_id("order-42")).await;
    }
    let ledger = Ledger::create().await;
    let consumer = ledger.consume(&broker(), &queue, Debit::default());
    assert_eq!(consumer.decided(3).await, ["processed", "duplicate", "duplicate"]);
    consumer.stop().await;
    assert_eq!(client.ready(&queue).await, 0);
    assert_eq!((ledger.rows().await, ledger.sum().await), ((1, 1), 500));
    client.delete(&queue).await;
}

pub async fn another_client_sees_the_stamp() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("stamp").await;
    let publisher = IdempotentPublisher::builder(broker()).app_id("orders").connect().await.expect("connect");
    let message = OutgoingMessage::to("", &queue)
        .kind("debit")
        .correlation_id("c-1")
        .reply_to("answers")
        .priority(3)
        .expiration(std::time::Duration::from_secs(600))
        .header("tenant", "t-1")
        .json(&500)
        .expect("json");
    let receipt = publisher.publish_idempotent(message).await.expect("published");

    let seen = client.get(&queue).await.expect("message");
    let properties = &seen.properties;
    let text = |field: &Option<lapin::types::ShortString>| field.as_ref().map(ToString::to_string);
    assert_eq!(text(properties.message_id()).as_deref(), Some(receipt.message_id().as_str()));
    assert_eq!(text(properties.app_id()).as_deref(), Some("orders"));
    assert_eq!(text(properties.kind()).as_deref(), Some("debit"));
    assert_eq!(text(properties.content_type()).as_deref(), Some("application/json"));
    assert_eq!(text(properties.correlation_id()).as_deref(), Some("c-1"));
    assert_eq!(text(properties.reply_to()).as_deref(), Some("answers"));
    assert_eq!(text(properties.expiration()).as_deref(), Some("600000"));
    assert_eq!(*properties.priority(), Some(3));
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(*properties.timestamp(), None, "a UUIDv7 holds the time");
    assert_eq!(header(&seen, "tenant").as_deref(), Some("t-1"));
    assert_eq!(header(&seen, "x-idempotency-attempt"), None, "first attempts carry no header of ours");

    let keyed = OutgoingMessage::to("", &queue).idempotency_key("order-42").body("500");
    publisher.publish_idempotent(keyed).await.expect("published");
    let seen = client.get(&queue).await.expect("message");
    assert!(seen.properties.timestamp().is_some(), "a derived ID does not say when");
    client.delete(&queue).await;
}

pub async fn guard_in_a_consume_loop_of_ones_own() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("own-loop").await;
    for body in ["500", "500", "700", "-1"] {
        let id = if body == "-1" { "order-43" } else { "order-42" };
        client.publish(&queue, body.as_bytes(), with_id(id)).await;
    }
    let ledger = Ledger::create().await;
    let guard = Guard::new(ledger.store.clone(), Scope::new("ledger").expect("scope"));
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let deliveries = client.channel.basic_consume(queue.as_str().into(), "".into(), options, arguments).await;
    let mut deliveries = deliveries.expect("consume");
    let mut outcomes = Vec::new();
    for _ in 0..4 {
        let delivery = deliveries.next().await.expect("delivery").expect("delivery");
        let outcome = guard.process(&IncomingMessage::from(&delivery), &Debit::default()).await;
        outcomes.push((
            outcome.name(),
            settle(&outcome) == Settlement::Ack,
            matches!(outcome, Outcome::Processed),
        ));
        delivery.ack(BasicAckOptions::default()).await.expect("ack");
    }
    assert_eq!(
        outcomes,
        [
            ("processed", true, true),
            ("duplicate", true, false),
            ("fingerprint_mismatch", false, false),
            ("reject", false, false)
        ]
    );
    assert_eq!((ledger.rows().await, ledger.sum().await), ((1, 1), 500));
    client.delete(&queue).await;
}
