//! One generation of the consumer: a connection, a channel, a subscription.

use std::{future::Future, sync::Arc, time::Duration};

use lapin::{
    Channel, Connection, Consumer,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use tokio::time::timeout;

use super::{
    builder::Options,
    error::{ConsumeError, ConsumeErrorKind},
};
use crate::{
    amqp::{self, ConnectOptions},
    error::BoxError,
};

pub(crate) struct Session {
    connection: Arc<Connection>,
    channel: Channel,
    pub(crate) deliveries: Consumer,
}

impl Session {
    /// Connects, declares the parking queue, and subscribes.
    pub(crate) async fn open(connect: &ConnectOptions, options: &Options) -> Result<Self, ConsumeError> {
        let connection = connect.open().await?;
        match Self::subscribe(&connection, connect.timeout, options).await {
            Ok((channel, deliveries)) => Ok(Self { connection, channel, deliveries }),
            Err(error) => {
                amqp::close(&connection).await;
                Err(ConsumeError::new(ConsumeErrorKind::Refused, error))
            }
        }
    }

    async fn subscribe(
        connection: &Connection,
        limit: Duration,
        options: &Options,
    ) -> Result<(Channel, Consumer), BoxError> {
        if let Some(queue) = options.parking.queue_to_declare() {
            ensure_queue(connection, limit, ShortString::try_new(queue)?).await?;
        }
        let channel = within(limit, connection.create_channel()).await?;
        let qos = channel.basic_qos(options.prefetch, BasicQosOptions::default());
        within(limit, qos).await?;
        let queue = ShortString::try_new(options.queue.as_str())?;
        let consuming =
            BasicConsumeOptions { exclusive: options.exclusive, ..BasicConsumeOptions::default() };
        let mut arguments = FieldTable::default();
        if options.priority != 0 {
            arguments.insert(ShortString::from("x-priority"), AMQPValue::LongInt(options.priority));
        }
        // An empty tag lets the broker make one: nothing to collide with.
        let consume = channel.basic_consume(queue, ShortString::from(""), consuming, arguments);
        let deliveries = within(limit, consume).await?;
        Ok((channel, deliveries))
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Asks the broker to send nothing more.
    pub(crate) async fn cancel(&self) {
        let cancel = self.channel.basic_cancel(self.deliveries.tag(), BasicCancelOptions::default());
        let _ = timeout(Duration::from_secs(2), cancel).await;
    }

    /// Closes; what is unsettled goes back to the queue.
    pub(crate) async fn close(self) {
        amqp::close(&self.connection).await;
    }
}

/// Declares a durable queue unless there is one of that name, of whatever kind.
async fn ensure_queue(connection: &Connection, limit: Duration, queue: ShortString) -> Result<(), BoxError> {
    // A failed passive declare closes its channel, hence one for each try.
    let probe = within(limit, connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let found = within(limit, probe.queue_declare(queue.clone(), passive, FieldTable::default())).await;
    if found.is_err() {
        let channel = within(limit, connection.create_channel()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        within(limit, channel.queue_declare(queue, durable, FieldTable::default())).await?;
        let _ = within(limit, channel.close(200, ShortString::from(""))).await;
    } else {
        let _ = within(limit, probe.close(200, ShortString::from(""))).await;
    }
    Ok(())
}

async fn within<T>(limit: Duration, step: impl Future<Output = lapin::Result<T>>) -> Result<T, BoxError> {
    Ok(timeout(limit, step).await??)
}
