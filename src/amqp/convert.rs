//! The only mapping between `message/` and lapin's messages.

use bytes::Bytes;
use lapin::{
    Acker, BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString, ShortStringError},
};

use super::{
    origin,
    values::{field_table, header_value, headers},
};
use crate::message::{AtHand, IncomingMessage, Properties, Stamped, reserved, seconds_since_1970 as seconds};

const TRANSIENT: u8 = 1;
pub(super) const PERSISTENT: u8 = 2;

/// The properties of attempt number `attempt` of a message.
///
/// A first attempt carries no header of this crate, and no timestamp if its ID holds the time.
/// Every few bytes of properties cost the broker throughput: it parses them, and above 64 bytes its
/// runtime keeps them outside of the message's process.
pub(crate) fn properties(stamped: &Stamped, attempt: u32) -> Result<BasicProperties, ShortStringError> {
    let message = &stamped.message;
    let mut headers = FieldTable::default();
    let mut properties = BasicProperties::default()
        .with_message_id(ShortString::try_new(stamped.id().as_str())?)
        .with_delivery_mode(if message.is_persistent() { PERSISTENT } else { TRANSIENT });
    if let Some(timestamp) = message.stamped_at() {
        properties = properties.with_timestamp(seconds(timestamp));
    }
    if let Some(mime) = message.mime() {
        properties = properties.with_content_type(ShortString::try_new(mime)?);
    }
    if let Some(app_id) = &stamped.app_id {
        properties = properties.with_app_id(ShortString::try_new(&**app_id)?);
    }
    if let Some(extra) = message.extra() {
        if let Some(kind) = &extra.kind {
            properties = properties.with_type(ShortString::try_new(kind.as_str())?);
        }
        if let Some(encoding) = &extra.content_encoding {
            properties = properties.with_content_encoding(ShortString::try_new(encoding.as_str())?);
        }
        if let Some(id) = &extra.correlation_id {
            properties = properties.with_correlation_id(ShortString::try_new(id.as_str())?);
        }
        if let Some(queue) = &extra.reply_to {
            properties = properties.with_reply_to(ShortString::try_new(queue.as_str())?);
        }
        if let Some(user) = &extra.user_id {
            properties = properties.with_user_id(ShortString::try_new(user.as_str())?);
        }
        if let Some(priority) = extra.priority {
            properties = properties.with_priority(priority);
        }
        if let Some(after) = extra.expiration {
            properties = properties.with_expiration(ShortString::try_new(after.as_millis().to_string())?);
        }
        headers = field_table(extra.headers.iter())?;
        if let Some(epoch) = &extra.replay {
            headers.insert(ShortString::from(reserved::REPLAY), AMQPValue::LongString(epoch.as_str().into()));
        }
    }
    if attempt > 1 {
        headers.insert(ShortString::from(reserved::ATTEMPT), AMQPValue::LongLongInt(attempt.into()));
    }
    Ok(if headers.inner().is_empty() { properties } else { properties.with_headers(headers) })
}

/// The attempt that a copy of a message was sent in; 0 if its header makes no sense.
pub(crate) fn attempt(properties: &BasicProperties) -> u32 {
    match properties.headers().as_ref().and_then(|headers| headers.inner().get(reserved::ATTEMPT)) {
        None => 1,
        Some(value) => {
            header_value(value).as_i64().and_then(|attempt| attempt.try_into().ok()).unwrap_or_default()
        }
    }
}

/// Takes a delivery apart: the message for the handler, the properties in case it is parked, and
/// what settles it.
pub(crate) fn incoming(mut delivery: Delivery) -> (IncomingMessage, BasicProperties, Acker) {
    if let Some(believed) = origin::believed(&delivery) {
        delivery.properties = believed;
    }
    let body = std::mem::take(&mut delivery.data).into();
    (message(&delivery, &delivery.properties, body), delivery.properties, delivery.acker)
}

impl From<&Delivery> for IncomingMessage {
    /// For a consume loop of your own; copies the body.
    ///
    /// What a message says of its failures, its delays and its way back from parking is left out
    /// unless it was published to the queue that it names as its own: it was copied from another
    /// message, or made up.
    fn from(delivery: &Delivery) -> Self {
        let body = Bytes::copy_from_slice(&delivery.data);
        let believed = origin::believed(delivery);
        message(delivery, believed.as_ref().unwrap_or(&delivery.properties), body)
    }
}

fn message(delivery: &Delivery, properties: &BasicProperties, body: Bytes) -> IncomingMessage {
    let text = |field: &Option<ShortString>| field.as_ref().map(ToString::to_string);
    let (exchange, routing_key) = origin::original_route(delivery)
        .unwrap_or_else(|| (delivery.exchange.to_string(), delivery.routing_key.to_string()));
    IncomingMessage {
        body,
        exchange,
        routing_key,
        redelivered: delivery.redelivered,
        identity: std::sync::OnceLock::new(),
        at_hand: AtHand::default(),
        properties: Properties {
            message_id: text(properties.message_id()),
            timestamp: *properties.timestamp(),
            app_id: text(properties.app_id()),
            kind: text(properties.kind()),
            content_type: text(properties.content_type()),
            content_encoding: text(properties.content_encoding()),
            correlation_id: text(properties.correlation_id()),
            reply_to: text(properties.reply_to()),
            user_id: text(properties.user_id()),
            priority: *properties.priority(),
            headers: properties.headers().as_ref().map(headers).unwrap_or_default(),
        },
    }
}
