//! What a consumer says of itself.

use std::time::Duration;

use lapin_idempotent::consumer::ConsumerState;

use super::support::{
    amqp::{Client, with_id},
    broker, eventually,
    ledger::{Debit, Ledger},
    proxy::{Action, From, Proxy},
};

trials! {
    status_follows_the_consumer,
    duplicates_are_counted_by_cause,
    lost_subscription_shows_until_there_is_another,
    consumer_that_gets_nothing_done_is_failing_and_recovers,
}

pub async fn status_follows_the_consumer() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("status").await;
    let ledger = Ledger::create().await;
    let handler = Debit { dawdle: Duration::from_millis(700), ..Debit::default() };
    let consumer = ledger.consume(&broker(), &queue, handler);
    consumer.until(ConsumerState::Consuming).await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    eventually("it is in hand", async || (consumer.monitor.status().in_hand == 1).then_some(())).await;
    consumer.ask_to_stop();
    consumer.until(ConsumerState::Draining).await;
    let monitor = consumer.monitor.clone();
    consumer.stop().await;
    let status = monitor.status();
    assert_eq!((status.state, status.in_hand), (ConsumerState::Stopped, 0));
    assert_eq!(status.outcomes, [("processed", 1)].into());
    client.delete(&queue).await;
}

pub async fn duplicates_are_counted_by_cause() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("causes").await;
    let ledger = Ledger::create().await;
    for _ in 0..3 {
        client.publish(&queue, b"500", with_id("order-42")).await;
    }
    let consumer = ledger.consume(&broker(), &queue, Debit::default());
    let status = eventually("three deliveries", async || {
        let status = consumer.monitor.status();
        (status.outcomes.values().sum::<u64>() == 3).then_some(status)
    })
    .await;
    assert_eq!(status.outcomes, [("processed", 1), ("duplicate", 2)].into());
    assert_eq!(status.duplicates, [("republished", 2)].into());
    consumer.stop().await;
    client.delete(&queue).await;
}

pub async fn lost_subscription_shows_until_there_is_another() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("status-deleted").await;
    let ledger = Ledger::create().await;
    let consumer = ledger.consume(&broker(), &queue, Debit::default());
    consumer.until(ConsumerState::Consuming).await;
    client.delete(&queue).await;
    consumer.until(ConsumerState::Reconnecting).await;
    let status = consumer.monitor.status();
    assert!(status.last_error.is_some() && status.is_live() && !status.is_ready(), "{status:?}");
    client.declare(&queue).await;
    consumer.until(ConsumerState::Consuming).await;
    assert!(consumer.monitor.status().reconnects >= 1);
    consumer.stop().await;
    client.delete(&queue).await;
}

/// A message that ends every connection it is delivered on: no hot loop, and the status says so.
pub async fn consumer_that_gets_nothing_done_is_failing_and_recovers() {
    const DELIVER: (u16, u16) = (60, 60);
    let client = Client::connect(&broker()).await;
    let queue = client.queue("poison-frame").await;
    let ledger = Ledger::create().await;
    let proxy = Proxy::start(&broker()).await;
    proxy.rule(|frame| if frame.is(From::Broker, DELIVER) { Action::CutBefore } else { Action::Pass });
    client.publish(&queue, b"500", with_id("order-42")).await;
    let consumer = ledger.consume(proxy.url(), &queue, Debit::default());
    consumer.until(ConsumerState::Failing).await;
    let status = consumer.monitor.status();
    assert!(!status.is_live() && status.last_error.is_some(), "{status:?}");
    assert!(proxy.connections() <= 10, "{} connections: a hot loop", proxy.connections());
    proxy.rule(|_| Action::Pass);
    eventually("the effect", async || (ledger.rows().await == (1, 1)).then_some(())).await;
    consumer.until(ConsumerState::Consuming).await;
    consumer.stop().await;
    client.delete(&queue).await;
}
