//! A channel to a parking queue, for those who look at what is in it.

use std::time::Duration;

use lapin::{
    Channel,
    message::{BasicGetMessage, Delivery},
    options::{BasicAckOptions, BasicGetOptions, BasicNackOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use tokio::time::{sleep, timeout};

use super::{
    error::ConsumeError,
    forwarder::{ForwardedCopy, Forwarder},
};
use crate::{
    amqp::{self, ClosedOnDrop, ConnectOptions, InvalidUri, within},
    error::{BoxError, Chain},
};

/// How often, and after what pause, the queue is asked whether it has back what was looked at.
/// Another one may have taken some.
const RETURNED: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

pub(super) struct ParkingChannel {
    pub(super) forwarder: Forwarder,
    pub(super) channel: Channel,
    /// How long each step may take that is not a read.
    pub(super) limit: Duration,
    connection: ClosedOnDrop,
    parking: String,
}

impl ParkingChannel {
    /// `what` it is opened for is in the connection's name, unless that was set.
    pub(super) async fn open(
        connect: &Result<ConnectOptions, InvalidUri>,
        what: &str,
        parking: &str,
    ) -> Result<Self, ConsumeError> {
        let mut connect = connect.clone().map_err(ConsumeError::invalid)?;
        connect.check().map_err(ConsumeError::invalid)?;
        let name = connect.name.get_or_insert_with(|| format!("{what} {parking}")).clone();
        let forwarder = Forwarder::new(name, connect.clone());
        let connection = ClosedOnDrop::new(connect.open().await?);
        forwarder.negotiated(connection.configuration().frame_max());
        let (limit, parking) = (connect.timeout, parking.to_owned());
        match within(limit, connection.create_channel()).await {
            Ok(channel) => Ok(Self { forwarder, channel, limit, connection, parking }),
            Err(error) => {
                amqp::close(&connection).await;
                Err(ConsumeError::of_channel(error))
            }
        }
    }

    /// How many messages are ready to be read.
    pub(super) async fn ready(&self) -> Result<u32, BoxError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let found = self.channel.queue_declare(self.queue()?, passive, FieldTable::default()).await?;
        Ok(found.message_count())
    }

    /// The next one, unacknowledged.
    pub(super) async fn get(&self) -> Result<Option<BasicGetMessage>, BoxError> {
        Ok(self.channel.basic_get(self.queue()?, BasicGetOptions::default()).await?)
    }

    fn queue(&self) -> Result<ShortString, BoxError> {
        Ok(ShortString::try_new(self.parking.as_str())?)
    }

    /// Publishes a message that stays parked anew to its queue, so that the broker counts its
    /// deliveries from 0. Whether it did.
    pub(super) async fn publish_anew(&self, delivery: &Delivery) -> bool {
        let copy = amqp::renewed_properties(&delivery.properties, &self.parking);
        let copy = ForwardedCopy::new(copy, delivery.data.clone().into());
        match self.forwarder.publish("", &self.parking, &copy).await {
            Ok(()) => {
                drop(delivery.acker.ack(BasicAckOptions::default()).await);
                true
            }
            Err(error) => {
                tracing::warn!(queue = %self.parking, error = Chain(&error).to_string(), "message not published anew; the broker counts that it was looked at");
                false
            }
        }
    }

    /// Gives back all that is unacknowledged.
    ///
    /// Closing does the same, but is counted also from RabbitMQ 4.3 on. Tag 0 is all that is
    /// outstanding (AMQP 0-9-1, basic.nack).
    pub(super) async fn give_back(&self) {
        let all = BasicNackOptions { multiple: true, requeue: true };
        let _ = timeout(self.limit, self.channel.basic_nack(0, all)).await;
    }

    /// Waits until so many are there again, for a while. A quorum queue takes its time to give
    /// back, and who looks next, or unparks, would miss what is not there yet.
    pub(super) async fn returned(&self, messages: u64) {
        let are_there = async {
            for _ in 0..RETURNED {
                if self.ready().await.is_ok_and(|ready| u64::from(ready) < messages) {
                    sleep(PAUSE).await;
                } else {
                    break;
                }
            }
        };
        let _ = timeout(self.limit, are_there).await;
    }

    pub(super) async fn close(self) {
        self.forwarder.close(self.limit).await;
        amqp::close(&self.connection).await;
    }
}
