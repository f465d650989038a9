//! Parking: publish onward with a confirm, *then* ack.

use std::{
    error::Error,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{ShortString, ShortStringError},
};
use tokio::sync::OnceCell;

use super::settle::ParkReason;
use crate::{
    amqp::{ConnectOptions, Note, parked_properties},
    publisher::{Failure, Forwarded, IdempotentPublisher, PublisherBuilder},
};

/// How much of an error's text travels with a parked message.
const ERROR_BYTES: usize = 1024;

/// Where parked messages go.
#[derive(Debug, Clone)]
pub(crate) struct ParkingTarget {
    exchange: String,
    routing_key: String,
    declare: bool,
}

impl ParkingTarget {
    pub(crate) fn queue_beside(queue: &str) -> Self {
        Self { exchange: String::new(), routing_key: format!("{queue}.parked"), declare: true }
    }

    pub(crate) fn exchange(exchange: String, routing_key: String) -> Self {
        Self { exchange, routing_key, declare: false }
    }

    pub(crate) fn queue_to_declare(&self) -> Option<&str> {
        self.declare.then_some(self.routing_key.as_str())
    }
}

/// Publishes parked messages, on a connection of its own: a blocked publisher must not keep acks from being written.
#[derive(Debug)]
pub(crate) struct Parking {
    target: ParkingTarget,
    queue: String,
    scope: String,
    connect: ConnectOptions,
    publisher: OnceCell<IdempotentPublisher>,
}

/// A delivery on its way to the parking queue.
#[derive(Debug)]
pub(crate) struct Parked {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    pub(crate) reason: ParkReason,
    pub(crate) error: Option<String>,
    pub(crate) attempts: u32,
}

/// A message could not be parked; it stays where it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ParkError {
    #[error("cannot connect to park a message")]
    Connect(#[source] crate::amqp::ConnectError),
    #[error("the parking target has a name that AMQP cannot carry")]
    Name(#[from] ShortStringError),
    #[error("the parked message was not confirmed: {}", .0.kind)]
    Unconfirmed(Failure),
}

impl Parking {
    pub(crate) fn new(target: ParkingTarget, queue: String, scope: String, connect: ConnectOptions) -> Self {
        Self { target, queue, scope, connect, publisher: OnceCell::new() }
    }

    /// Returns when the broker has confirmed the parked copy; only then may the original be acked.
    pub(crate) async fn park(&self, parked: Parked) -> Result<(), ParkError> {
        let publisher =
            self.publisher.get_or_try_init(|| self.connect()).await.map_err(ParkError::Connect)?;
        let note = Note {
            reason: parked.reason.as_str(),
            error: parked.error.as_deref().map(bounded),
            attempts: parked.attempts,
            at: SystemTime::now(),
            scope: &self.scope,
            queue: &self.queue,
            exchange: parked.exchange.as_str(),
            routing_key: parked.routing_key.as_str(),
        };
        let forwarded = Forwarded {
            exchange: ShortString::try_new(self.target.exchange.as_str())?,
            routing_key: ShortString::try_new(self.target.routing_key.as_str())?,
            properties: parked_properties(&parked.properties, &note),
            body: parked.body,
        };
        publisher.forward(forwarded).await.map_err(ParkError::Unconfirmed)
    }

    async fn connect(&self) -> Result<IdempotentPublisher, crate::amqp::ConnectError> {
        PublisherBuilder::over(self.connect.clone())
            .connection_name(format!("{} (parking)", self.scope))
            .max_in_flight(256)
            .connect()
            .await
    }

    pub(crate) async fn close(&self, limit: Duration) {
        if let Some(publisher) = self.publisher.get() {
            // Nothing is in flight any more, or its original is unacked and comes again.
            let _ = publisher.close(limit).await;
        }
    }
}

/// The beginning of a text, without control characters that could disturb whoever prints it.
fn bounded(text: &str) -> String {
    let mut short = String::with_capacity(text.len().min(ERROR_BYTES + 8));
    for c in text.chars() {
        if short.len() >= ERROR_BYTES {
            short.push('…');
            break;
        }
        if c.is_control() { short.extend(c.escape_default()) } else { short.push(c) }
    }
    short
}

/// An error with its causes, as text.
pub(crate) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_text_is_bounded_and_escaped() {
        assert_eq!(bounded("a\u{1b}[31m\nb"), "a\\u{1b}[31m\\nb");
        assert!(bounded(&"é".repeat(10_000)).len() <= ERROR_BYTES + 8);
    }
}
