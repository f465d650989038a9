//! One generation of the consumer: a connection, a channel, a subscription.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, Consumer,
    message::Delivery,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::{AMQPValue, ShortString},
};
use tokio::time::{Instant, timeout, timeout_at};

use super::{error::ConsumeError, options::Options};
use crate::{
    amqp::{self, ClosedOnDrop, ConnectOptions, Topology, ensure_queue, field_table, within},
    error::{BoxError, Chain},
};

/// How long each step of a new subscription on the same channel may take.
const RESUBSCRIBE: Duration = Duration::from_secs(2);

pub(crate) struct Subscription {
    connection: ClosedOnDrop,
    limit: Duration,
    channel: Channel,
    pub(crate) deliveries: Consumer,
    /// Why there is no parking queue. It is asked for again when something is to be parked.
    pub(crate) no_parking: Option<String>,
}

impl Subscription {
    /// Connects, sees to the parking queue, and subscribes.
    pub(crate) async fn open(
        connect: &ConnectOptions,
        options: &Options,
        prefetch: u16,
    ) -> Result<Self, ConsumeError> {
        let connection = ClosedOnDrop::new(connect.open().await?);
        match Self::start(&connection, connect.timeout, options, prefetch).await {
            Ok((channel, deliveries, no_parking)) => {
                Ok(Self { connection, limit: connect.timeout, channel, deliveries, no_parking })
            }
            Err(error) => {
                amqp::close(&connection).await;
                Err(ConsumeError::of_channel(error))
            }
        }
    }

    async fn start(
        connection: &Connection,
        limit: Duration,
        options: &Options,
        prefetch: u16,
    ) -> Result<(Channel, Consumer, Option<String>), BoxError> {
        Topology::declare(options.topology.as_ref(), connection, limit).await?;
        let mut no_parking = None;
        if let Some(queue) = options.parking.queue_to_declare()
            && let Err(error) = ensure_queue(connection, limit, queue).await
        {
            no_parking = Some(format!("no parking queue {queue}: {}", Chain(&*error)));
        }
        let channel = within(limit, connection.create_channel()).await?;
        let deliveries = subscribe(&channel, limit, options, prefetch).await?;
        Ok((channel, deliveries, no_parking))
    }

    /// Subscribes anew with another prefetch count, on the same channel: what is unsettled stays
    /// with this consumer. Gives what came meanwhile.
    pub(crate) async fn resubscribe(
        &mut self,
        options: &Options,
        prefetch: u16,
    ) -> Result<Vec<Delivery>, BoxError> {
        // Nothing else is done meanwhile, and leases must be renewed.
        let limit = self.limit.min(RESUBSCRIBE);
        let cancel = self.channel.basic_cancel(self.deliveries.tag(), BasicCancelOptions::default());
        within(limit, cancel).await?;
        let mut before = Vec::new();
        while let Some(delivery) = timeout(limit, self.deliveries.next()).await? {
            before.push(delivery?);
        }
        self.deliveries = subscribe(&self.channel, limit, options, prefetch).await?;
        Ok(before)
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// The largest frame that was agreed upon with the broker; 0 for no limit.
    pub(crate) fn frame_max(&self) -> u32 {
        self.connection.configuration().frame_max()
    }

    /// Asks the broker to send nothing more.
    pub(crate) async fn cancel(&self, by: Instant) {
        let cancel = self.channel.basic_cancel(self.deliveries.tag(), BasicCancelOptions::default());
        let _ = timeout_at(by.min(Instant::now() + Duration::from_secs(2)), cancel).await;
    }

    /// Gives back what is unsettled, and closes.
    pub(crate) async fn close(self) {
        if self.channel.status().connected() {
            // Closing does the same, but counts towards the delivery limit also from RabbitMQ 4.3
            // on. Tag 0 is all that is outstanding (AMQP 0-9-1, basic.nack).
            let all = BasicNackOptions { multiple: true, requeue: true };
            let _ = timeout(Duration::from_secs(1), self.channel.basic_nack(0, all)).await;
        }
        amqp::close(&self.connection).await;
    }
}

async fn subscribe(
    channel: &Channel,
    limit: Duration,
    options: &Options,
    prefetch: u16,
) -> Result<Consumer, BoxError> {
    within(limit, channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let queue = ShortString::try_new(options.queue.as_str())?;
    let consuming = BasicConsumeOptions { exclusive: options.exclusive, ..BasicConsumeOptions::default() };
    let mut arguments = field_table(options.arguments.iter().map(|(name, value)| (name.as_str(), value)))?;
    if options.priority != 0 {
        arguments.insert(ShortString::from("x-priority"), AMQPValue::LongInt(options.priority));
    }
    // An empty tag lets the broker make one: nothing to collide with.
    within(limit, channel.basic_consume(queue, ShortString::from(""), consuming, arguments)).await
}
