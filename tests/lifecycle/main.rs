//! A publisher's life: how it starts, what it hands out, how it ends; against a broker that says
//! exactly what a test tells it to.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::expect_used, clippy::unwrap_used)]

#[path = "../support/scripted.rs"]
mod scripted;

mod closing;
mod dropping;
mod handles;
mod log;
mod panics;
mod sockets;
mod starting;

use std::{future::Future, time::Duration};

use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage, PublishError, Receipt, publisher::PublisherBuilder,
};
use scripted::{Peer, ScriptedBroker};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

/// The longest that anything may take before it counts as hung.
const DEADLINE: Duration = Duration::from_secs(60);

async fn connected(set: impl FnOnce(PublisherBuilder) -> PublisherBuilder) -> (IdempotentPublisher, Peer) {
    let broker = ScriptedBroker::start().await;
    let builder = set(IdempotentPublisher::builder(broker.url()));
    let (publisher, peer) = tokio::join!(builder.connect(), broker.accept());
    (publisher.expect("connect"), peer)
}

fn message(body: &'static str) -> OutgoingMessage {
    OutgoingMessage::to("e", "queue").idempotency_key(body).body(body)
}

/// Publishes in the background.
fn publish(publisher: &IdempotentPublisher, body: &'static str) -> JoinHandle<Result<Receipt, PublishError>> {
    let publisher = publisher.clone();
    tokio::spawn(async move { publisher.publish_idempotent(message(body)).await })
}

/// Polls until `condition` gives a value.
async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}
