//! Duplicates at rebalancing: consumers join, leave and die while messages are in their hands.

use std::time::Duration;

use lapin_idempotent::{IdempotentPublisher, OutgoingMessage};

use super::support::{
    amqp::{Client, with_id},
    broker, eventually,
    ledger::{Debit, Ledger},
    proxy::Proxy,
};
use futures_util::StreamExt;

trials! {
    consumer_joins_and_leaves_one_effect_each,
    consumer_dies_in_the_handler_one_effect,
}

const MESSAGES: i64 = 300;

pub async fn consumer_joins_and_leaves_one_effect_each() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("rebalance").await;
    let publisher = IdempotentPublisher::builder(broker()).connect().await.expect("connect");
    let messages: Vec<_> = (0..MESSAGES)
        .map(|n| {
            OutgoingMessage::to("", &queue).idempotency_key(format!("order-{n}")).json(&n).expect("json")
        })
        .collect();
    let published: Vec<_> = publisher.publish_all(messages).collect().await;
    assert!(published.iter().all(Result::is_ok));

    let ledger = Ledger::create().await;
    let proxy = Proxy::start(&broker()).await;
    let handler = Debit::default();
    let first = ledger.consume(proxy.url(), &queue, handler.clone());
    eventually("a third is done", async || (ledger.rows().await.0 >= MESSAGES / 3).then_some(())).await;
    let second = ledger.consume(&broker(), &queue, handler.clone());
    // The first one loses its connection with a prefetch window in hand, comes back, and then
    // leaves for good.
    proxy.cut_all();
    eventually("two thirds are done", async || (ledger.rows().await.0 >= MESSAGES * 2 / 3).then_some(()))
        .await;
    first.stop().await;
    // What the first one left is before this message in the queue: when it is done, everything is.
    client.publish(&queue, b"0", with_id("the last")).await;
    eventually("all are done", async || (ledger.rows().await.0 > MESSAGES).then_some(())).await;
    second.stop().await;

    assert_eq!(ledger.rows().await, (MESSAGES + 1, MESSAGES + 1), "none lost, none doubled");
    assert_eq!(ledger.sum().await, (0..MESSAGES).sum::<i64>());
    assert_eq!(client.ready(&queue).await, 0);
    client.delete(&queue).await;
}

pub async fn consumer_dies_in_the_handler_one_effect() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("dies").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let handler = Debit { dawdle: Duration::from_secs(600), ..Debit::default() };
    let dying = ledger.consume(&broker(), &queue, handler.clone());
    eventually("the handler is in the middle of it", async || {
        (handler.order.lock().expect("order").len() == 1).then_some(())
    })
    .await;
    // Dropped in the handler: the transaction rolls back, the delivery goes back to the queue.
    dying.die().await;

    let successor = Debit::default();
    let consumer = ledger.consume(&broker(), &queue, successor.clone());
    eventually("the effect", async || (ledger.rows().await.0 == 1).then_some(())).await;
    consumer.stop().await;
    assert_eq!((ledger.rows().await, successor.runs()), ((1, 1), 1));
    assert_eq!(client.ready(&queue).await, 0);
    client.delete(&queue).await;
}
