//! Publishing deliveries onward, confirmed: only then may the original be acked.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{FieldTable, ShortString, ShortStringError},
};
use tokio::sync::{Mutex, OnceCell};

use super::session::declare_durable;
use crate::{
    amqp::{self, ConnectError, ConnectOptions},
    error::BoxError,
    publisher::{Failure, Forwarded, IdempotentPublisher, PublishErrorKind, PublisherBuilder},
};

/// Publishes on a connection of its own, made when it is needed: a blocked publisher must not keep acks from being written.
#[derive(Debug)]
pub(crate) struct Onward {
    name: String,
    connect: ConnectOptions,
    publisher: OnceCell<IdempotentPublisher>,
    /// The queues that are declared, as far as we know.
    declared: Mutex<BTreeSet<String>>,
}

/// A message could not be passed on; it stays where it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OnwardError {
    #[error("cannot connect to pass a message on")]
    Connect(#[from] ConnectError),
    #[error("the destination has a name that AMQP cannot carry")]
    Name(#[from] ShortStringError),
    #[error("the destination cannot be declared")]
    Declare(#[source] BoxError),
    #[error("the copy was not confirmed: {}", .0.kind)]
    Unconfirmed(Failure),
}

impl Onward {
    pub(crate) fn new(name: String, connect: ConnectOptions) -> Self {
        Self { name, connect, publisher: OnceCell::new(), declared: Mutex::default() }
    }

    /// Returns when the broker has confirmed the copy.
    pub(crate) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), OnwardError> {
        let forwarded = Forwarded {
            exchange: ShortString::try_new(exchange)?,
            routing_key: ShortString::try_new(routing_key)?,
            properties,
            body,
        };
        let publisher = self.publisher.get_or_try_init(|| self.connect()).await?;
        publisher.forward(forwarded).await.map_err(OnwardError::Unconfirmed)
    }

    /// As [`publish`](Self::publish), to a queue that is declared before, and again if somebody deleted it.
    pub(crate) async fn publish_to(
        &self,
        queue: &str,
        arguments: &FieldTable,
        properties: BasicProperties,
        body: Bytes,
    ) -> Result<(), OnwardError> {
        self.declare(queue, arguments).await?;
        match self.publish("", queue, properties.clone(), body.clone()).await {
            Err(OnwardError::Unconfirmed(failure)) if failure.kind == PublishErrorKind::Unroutable => {
                self.declared.lock().await.remove(queue);
                self.declare(queue, arguments).await?;
                self.publish("", queue, properties, body).await
            }
            done => done,
        }
    }

    async fn declare(&self, queue: &str, arguments: &FieldTable) -> Result<(), OnwardError> {
        let mut declared = self.declared.lock().await;
        if !declared.contains(queue) {
            let connection = self.connect.open().await?;
            let done = declare_durable(&connection, self.connect.timeout, queue, arguments.clone()).await;
            amqp::close(&connection).await;
            done.map_err(OnwardError::Declare)?;
            declared.insert(queue.to_owned());
        }
        Ok(())
    }

    async fn connect(&self) -> Result<IdempotentPublisher, ConnectError> {
        PublisherBuilder::over(self.connect.clone())
            .connection_name(self.name.clone())
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
