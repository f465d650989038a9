//! Promise: what is committed to an outbox is published, at least once and under its ID, in the
//! order of its key, and nothing else is; its row is deleted only after its own confirm.
//!
//! Without a database and a broker, in tokio's time: everything here is of the relay.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "outbox/broker.rs"]
mod broker;
#[path = "outbox/failures.rs"]
mod failures;
#[path = "outbox/lanes.rs"]
mod lanes;
#[path = "outbox/lost.rs"]
mod lost;
#[path = "outbox/order.rs"]
mod order;
#[path = "outbox/promise.rs"]
mod promise;

use std::{collections::BTreeMap, time::Duration};

use lapin_idempotent::{
    MessageId, OutgoingMessage,
    outbox::{Outbox, Relay, RelayHandle},
    testing::{MemoryOutbox, MemoryPublisher},
};
use tokio::time::{Instant, sleep};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

fn text(body: impl Into<String>) -> OutgoingMessage {
    OutgoingMessage::to("orders", "placed").text(body)
}

/// Enqueues a message in a transaction of its own, and wakes the relays of this process.
async fn enqueue(outbox: &MemoryOutbox, key: Option<&str>, message: OutgoingMessage) -> MessageId {
    let mut transaction = outbox.begin();
    let id = match key {
        Some(key) => outbox.enqueue_in_order(&mut transaction, key, message).await.unwrap(),
        None => outbox.enqueue(&mut transaction, message).await.unwrap(),
    };
    transaction.commit();
    outbox.wake();
    id
}

fn start(outbox: &MemoryOutbox, publisher: &MemoryPublisher) -> RelayHandle {
    Relay::new(outbox.clone(), publisher.clone()).spawn()
}

/// Waits for something, for at most an hour of the clock that stands still.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < 60 * MINUTE, "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn body(message: &OutgoingMessage) -> String {
    String::from_utf8(message.payload().to_vec()).unwrap()
}

/// The bodies that were confirmed, in the order of their first confirms.
fn published(publisher: &MemoryPublisher) -> Vec<String> {
    let mut seen = Vec::new();
    for message in publisher.published() {
        let body = body(&message);
        if !seen.contains(&body) {
            seen.push(body);
        }
    }
    seen
}

/// How often each ID was confirmed.
fn copies(publisher: &MemoryPublisher) -> BTreeMap<MessageId, usize> {
    let mut copies = BTreeMap::new();
    for message in publisher.published() {
        *copies.entry(message.id().unwrap().clone()).or_insert(0) += 1;
    }
    copies
}

/// How many lanes have an owner.
async fn owned(outbox: &MemoryOutbox) -> usize {
    let ownership = outbox.ownership(MINUTE).await.unwrap();
    ownership.lanes.iter().filter(|(_, owner)| owner.is_some()).count()
}
