//! Plain lapin: what another client would do and see.

use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Queue,
    message::BasicGetMessage,
    options::{
        BasicAckOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
        QueueDeleteOptions,
    },
    types::{AMQPValue, FieldTable},
};

use super::unique;

/// A connection of another client, with a queue of its own that goes away with it.
pub struct Client {
    pub channel: Channel,
    _connection: Connection,
}

impl Client {
    pub async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("connect");
        let channel = connection.create_channel().await.expect("channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm mode");
        Self { channel, _connection: connection }
    }

    /// Declares a durable queue of a new name.
    pub async fn queue(&self, name: &str) -> String {
        self.queue_with(name, FieldTable::default()).await
    }

    pub async fn quorum_queue(&self, name: &str) -> String {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        self.queue_with(name, arguments).await
    }

    pub async fn queue_with(&self, name: &str, arguments: FieldTable) -> String {
        let name = unique(name);
        self.declare_as(&name, arguments).await;
        name
    }

    /// Declares a durable queue of this name, again if it was deleted.
    pub async fn declare(&self, queue: &str) {
        self.declare_as(queue, FieldTable::default()).await;
    }

    pub async fn declare_as(&self, queue: &str, arguments: FieldTable) {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(queue.into(), options, arguments).await.expect("declare");
    }

    /// How many messages are ready in a queue.
    pub async fn ready(&self, queue: &str) -> u32 {
        self.inspect(queue).await.message_count()
    }

    /// How many consumers a queue has.
    pub async fn consumers(&self, queue: &str) -> u32 {
        self.inspect(queue).await.consumer_count()
    }

    async fn inspect(&self, queue: &str) -> Queue {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await.expect("declare")
    }

    /// Takes one message out of a queue.
    pub async fn get(&self, queue: &str) -> Option<BasicGetMessage> {
        let message = self.channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("get")?;
        message.ack(BasicAckOptions::default()).await.expect("ack");
        Some(message)
    }

    /// Publishes to a queue as the vendor's recipe does.
    pub async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let confirm = self.channel.basic_publish("".into(), queue.into(), options, body, properties).await;
        let confirmation = confirm.expect("publish").await.expect("confirm");
        assert!(confirmation.is_ack() && confirmation.take_message().is_none(), "not published");
    }

    pub async fn delete(&self, queue: &str) {
        let _ = self.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
    }
}

pub fn with_id(id: &str) -> BasicProperties {
    BasicProperties::default().with_message_id(id.into()).with_delivery_mode(2)
}

/// The text of a header of a message.
pub fn header(message: &BasicGetMessage, name: &str) -> Option<String> {
    match message.properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => Some(format!("{other:?}")),
    }
}
