//! The broker dies with messages in flight.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use futures_util::StreamExt;
use lapin_idempotent::{IdempotentPublisher, OutgoingMessage, RetryPolicy, consumer::ConsumerState};

use super::support::{
    DEADLINE,
    amqp::{Client, with_id},
    eventually,
    ledger::{Debit, Ledger},
    node::Node,
};

trials! {
    what_is_synced_outlives_a_kill,
    in_the_middle_of_2000_publishes_none_lost_none_doubled,
}

/// What the tests that kill a node stand on: a queue that is declared right before is there again,
/// with what was confirmed.
pub async fn what_is_synced_outlives_a_kill() {
    let node = Node::start().await;
    for _ in 0..3 {
        let client = Client::connect(node.url()).await;
        let queues = [client.queue("synced").await, client.quorum_queue("synced").await];
        node.sync().await;
        for queue in &queues {
            client.publish(queue, b"x", with_id("m")).await;
        }
        node.kill().await;
        node.start_again().await;
        let client = Client::connect(node.url()).await;
        for queue in &queues {
            eventually("the message is there again", async || (client.ready(queue).await == 1).then_some(()))
                .await;
        }
    }
}

const MESSAGES: i64 = 2000;
const WINDOW: i64 = 128;

pub async fn in_the_middle_of_2000_publishes_none_lost_none_doubled() {
    let node = Node::start().await;
    let queue = Client::connect(node.url()).await.queue("restart").await;
    node.sync().await;
    let ledger = Ledger::create().await;
    let handler = Debit::default();
    let consumer = ledger.consume(node.url(), &queue, handler.clone());
    // One whose first connection fails gives up.
    consumer.until(ConsumerState::Consuming).await;
    let publisher = IdempotentPublisher::builder(node.url())
        .max_in_flight(usize::try_from(WINDOW).expect("window"))
        .retry(RetryPolicy::default().max_elapsed(DEADLINE))
        .connect()
        .await
        .expect("connect");

    let taken = Arc::new(AtomicI64::new(0));
    let (count, to) = (Arc::clone(&taken), queue.clone());
    let messages = (0..MESSAGES).map(move |n| {
        count.fetch_add(1, Ordering::SeqCst);
        OutgoingMessage::to("", &to).idempotency_key(format!("order-{n}")).json(&n).expect("json")
    });
    let mut results = publisher.publish_all(messages);
    let mut receipts = Vec::new();
    for _ in 0..MESSAGES / 2 {
        receipts.push(results.next().await.expect("a result for each").expect("published"));
    }
    // Frozen first, so that the window fills with messages that are sent and not confirmed.
    node.pause().await;
    let publishing = tokio::spawn(async move {
        while let Some(result) = results.next().await {
            receipts.push(result.expect("published"));
        }
        receipts
    });
    let full = MESSAGES / 2 + WINDOW;
    eventually("the window is full", async || (taken.load(Ordering::SeqCst) >= full).then_some(())).await;
    node.kill().await;
    node.start_again().await;
    let receipts = publishing.await.expect("join");
    assert_eq!(i64::try_from(receipts.len()), Ok(MESSAGES));
    assert!(receipts.iter().any(|receipt| receipt.attempts() > 1), "the restart hit messages in flight");

    let client = Client::connect(node.url()).await;
    client.publish(&queue, b"0", with_id("the last")).await;
    eventually("all effects", async || (ledger.rows().await.1 > MESSAGES).then_some(())).await;
    consumer.stop().await;
    assert_eq!(ledger.rows().await, (MESSAGES + 1, MESSAGES + 1), "none lost, none doubled");
    assert_eq!(client.ready(&queue).await, 0);
}
