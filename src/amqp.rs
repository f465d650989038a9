//! The only mapping between `message/` and lapin's types.

mod connect;
mod credentials;
mod deaths;
mod fit;
mod onward;
mod origin;
mod screen;
mod server_version;
mod settings;
mod socket;
#[cfg(feature = "tls")]
mod tls;
mod uri;

use bytes::Bytes;
use lapin::{
    Acker, BasicProperties, ErrorKind,
    message::Delivery,
    types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString, ShortStringError},
};

pub(crate) use connect::{ClosedOnDrop, ConnectOptions, Connection, close};
pub use connect::{ConnectError, ConnectErrorKind};
pub(crate) use credentials::CredentialSource;
pub use credentials::Credentials;
pub(crate) use deaths::{COUNTS, DELAY_SUFFIX, growth, last_death};
pub(crate) use fit::fitted;
pub(crate) use onward::{
    Delay, Move, Note, delayed_properties, moved_properties, parked_properties, renewed_properties,
    unparked_properties,
};
pub(crate) use origin::text_header;
pub use server_version::ServerVersion;
pub(crate) use server_version::server_version;
pub(crate) use settings::connection_settings;
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use tls::TlsOptions;
pub use uri::InvalidUri;

use crate::message::{
    HeaderValue, Headers, IncomingMessage, Properties, Stamped, reserved, seconds_since_1970 as seconds,
};

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

/// The properties of attempt number `attempt` of a message.
///
/// A first attempt carries no header of ours, and no timestamp if its ID holds the time. Every few bytes of properties cost
/// the broker throughput: it parses them, and above 64 bytes its runtime keeps them outside of the message's process.
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
        for (name, value) in extra.headers.iter() {
            headers.insert(ShortString::try_new(name)?, amqp_value(value)?);
        }
    }
    if attempt > 1 {
        headers.insert(ShortString::from(reserved::ATTEMPT), AMQPValue::LongLongInt(attempt.into()));
    }
    Ok(if headers.inner().is_empty() { properties } else { properties.with_headers(headers) })
}

/// The attempt that a copy of one of our messages was sent in; 0 if its header makes no sense.
pub(crate) fn attempt(properties: &BasicProperties) -> u32 {
    match properties.headers().as_ref().and_then(|headers| headers.inner().get(reserved::ATTEMPT)) {
        None => 1,
        Some(value) => {
            header_value(value).as_i64().and_then(|attempt| attempt.try_into().ok()).unwrap_or_default()
        }
    }
}

/// The reply code with which the broker closed a channel over what was sent on it; other channels go on.
pub(crate) fn refusal(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) if error.is_amqp_soft_error() => {
            Some((protocol.get_id(), protocol.get_message().to_string()))
        }
        _ => None,
    }
}

/// Whether the broker answered, and said no. What it says of a connection that it closes to shut down is no answer (320, connection-forced).
pub(crate) fn is_refusal(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    error.downcast_ref::<lapin::Error>().is_some_and(|error| match error.kind() {
        ErrorKind::ProtocolError(protocol) => protocol.get_id() != 320,
        _ => false,
    })
}

/// Takes a delivery apart: the message for the handler, the properties in case it is parked, and what settles it.
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
    /// What a message says of its failures, its delays and its way back from parking is left out unless it was published to the queue that it names as its own:
    /// it was copied from another message, or made up.
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

fn headers(table: &FieldTable) -> Headers {
    table.inner().iter().map(|(name, value)| (name.to_string(), header_value(value))).collect()
}

fn header_value(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::Boolean(value) => HeaderValue::Bool(*value),
        AMQPValue::ShortShortInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortShortUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::ShortUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongUInt(value) => HeaderValue::Int((*value).into()),
        AMQPValue::LongLongInt(value) => HeaderValue::Int(*value),
        AMQPValue::Float(value) => HeaderValue::Float((*value).into()),
        AMQPValue::Double(value) => HeaderValue::Float(*value),
        AMQPValue::DecimalValue(value) => {
            HeaderValue::Float(f64::from(value.value) / 10_f64.powi(value.scale.into()))
        }
        AMQPValue::ShortString(value) => HeaderValue::String(value.to_string()),
        AMQPValue::LongString(value) => match std::str::from_utf8(value.as_bytes()) {
            Ok(text) => HeaderValue::String(text.to_owned()),
            Err(_) => HeaderValue::Bytes(Bytes::copy_from_slice(value.as_bytes())),
        },
        AMQPValue::FieldArray(values) => {
            HeaderValue::List(values.as_slice().iter().map(header_value).collect())
        }
        AMQPValue::Timestamp(value) => HeaderValue::Timestamp(*value),
        AMQPValue::FieldTable(table) => HeaderValue::Table(headers(table)),
        AMQPValue::ByteArray(value) => HeaderValue::Bytes(Bytes::copy_from_slice(value.as_slice())),
        AMQPValue::Void => HeaderValue::Void,
    }
}

fn amqp_value(value: &HeaderValue) -> Result<AMQPValue, ShortStringError> {
    Ok(match value {
        HeaderValue::Void => AMQPValue::Void,
        HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
        HeaderValue::Int(value) => AMQPValue::LongLongInt(*value),
        // Refused before: no message is sent with one.
        HeaderValue::Unsigned(value) => AMQPValue::LongString(LongString::from(value.to_string())),
        HeaderValue::Float(value) => AMQPValue::Double(*value),
        HeaderValue::String(text) => AMQPValue::LongString(LongString::from(text.as_str())),
        HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(bytes.to_vec().into()),
        HeaderValue::Timestamp(value) => AMQPValue::Timestamp(*value),
        HeaderValue::List(values) => AMQPValue::FieldArray(FieldArray::from(
            values.iter().map(amqp_value).collect::<Result<Vec<_>, _>>()?,
        )),
        HeaderValue::Table(table) => {
            let mut fields = FieldTable::default();
            for (name, value) in table.iter() {
                fields.insert(ShortString::try_new(name)?, amqp_value(value)?);
            }
            AMQPValue::FieldTable(fields)
        }
    })
}
