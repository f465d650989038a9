//! The faults, and the queue that they happen to.

use lapin_idempotent::BoxError;
use lapin_idempotent::lapin::{
    Channel, Connection, ConnectionProperties,
    options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};

use crate::proxy::{Action, From, Proxy, method};

/// At sending: on each of the first two connections, once a fifth of the orders is sent, the next
/// confirm does not arrive: the connection is cut instead. What was in flight is in the queue, and
/// the publisher cannot know it.
pub(crate) fn lose_confirms(proxy: &Proxy, orders: usize) {
    let mut sent = [0; 2];
    proxy.rule(move |frame| {
        let Some(sent) = sent.get_mut(frame.connection) else { return Action::Pass };
        if frame.is(From::Client, method::BASIC_PUBLISH) {
            *sent += 1;
        }
        let cut = *sent > orders / 5 && frame.is(From::Broker, method::BASIC_ACK);
        if cut { Action::CutBefore } else { Action::Pass }
    });
}

/// At delivery: each of the first connections of the consumer is cut where its sixth ack would have
/// gone. The effects of that batch are committed; the broker delivers its messages again.
pub(crate) fn lose_acks(proxy: &Proxy) {
    let mut acks = [0; 3];
    proxy.rule(move |frame| {
        let Some(acks) = acks.get_mut(frame.connection) else { return Action::Pass };
        if frame.is(From::Client, method::BASIC_ACK) {
            *acks += 1;
        }
        if *acks > 5 { Action::CutBefore } else { Action::Pass }
    });
}

/// A queue of its own for this run.
pub(crate) struct Queue {
    pub(crate) name: String,
    channel: Channel,
    _connection: Connection,
}

impl Queue {
    pub(crate) async fn declare(amqp: &str) -> Result<Self, BoxError> {
        let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let name = format!("demo.payments.{}", uuid::Uuid::new_v4().simple());
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.as_str().into(), durable, FieldTable::default()).await?;
        Ok(Self { name, channel, _connection: connection })
    }

    pub(crate) async fn depth(&self) -> Result<u32, BoxError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue =
            self.channel.queue_declare(self.name.as_str().into(), passive, FieldTable::default()).await?;
        Ok(queue.message_count())
    }

    /// Empties it; the IDs of what was in it.
    pub(crate) async fn take_ids(&self) -> Result<Vec<String>, BoxError> {
        let mut ids = Vec::new();
        let no_ack = BasicGetOptions { no_ack: true };
        while let Some(message) = self.channel.basic_get(self.name.as_str().into(), no_ack).await? {
            ids.extend(message.properties.message_id().as_ref().map(ToString::to_string));
        }
        Ok(ids)
    }

    pub(crate) async fn delete(&self) -> Result<(), BoxError> {
        for queue in [self.name.clone(), format!("{}.parked", self.name)] {
            self.channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
        }
        Ok(())
    }
}

/// How many messages wait in a queue.
pub(crate) async fn depth(amqp: &str, queue: &str) -> Result<u32, BoxError> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let queue = Queue { name: queue.to_owned(), channel, _connection: connection };
    queue.depth().await
}
