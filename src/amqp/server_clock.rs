//! What time a broker has.
//!
//! AMQP has no question for it. But a broker that dead-letters a message writes down when it did,
//! so one is let expire, in queues that nobody else sees and that are gone with their connection.

use std::time::{Duration, SystemTime};

use lapin::{
    BasicProperties, Channel,
    options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tokio::time::{Instant, sleep};

use super::{
    connect::{ClosedOnDrop, ConnectOptions, close},
    error::{ConnectError, ConnectErrorKind},
};

/// How often it is asked whether the message has expired.
const PAUSE: Duration = Duration::from_millis(10);

/// Asks a broker what time it has, in whole seconds, rounded down.
///
/// Makes two exclusive queues with names that the broker chooses, which are gone when this returns.
/// The user needs the rights to configure, write and read `amq.gen-.*`, and to write to
/// `amq.default`. Of several nodes of a cluster, each may have another time.
///
/// # Errors
///
/// A [`ConnectError`] if no broker answers at this URI, or if it refuses, as it does without those
/// rights: its kind is [`Protocol`](ConnectErrorKind::Protocol) then.
///
/// # Cancellation
///
/// The connection is closed, and with it the queues are gone.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub async fn server_clock(uri: impl AsRef<str>) -> Result<SystemTime, ConnectError> {
    let mut connect = ConnectOptions::new([uri])?;
    connect.check()?;
    connect.name.get_or_insert_with(|| "clock".to_owned());
    let connection = ClosedOnDrop::new(connect.open().await?);
    let limit = connect.timeout;
    let asked = async {
        let channel = ConnectError::within(limit, connection.create_channel()).await?;
        let deadline = Instant::now() + limit;
        let read = exclusive(&channel, limit, FieldTable::default()).await?;
        let mut arguments = FieldTable::default();
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        arguments.insert(ShortString::from("x-message-ttl"), AMQPValue::LongInt(0));
        arguments.insert(ShortString::from("x-dead-letter-exchange"), text(""));
        arguments.insert(ShortString::from("x-dead-letter-routing-key"), text(read.as_str()));
        let expires = exclusive(&channel, limit, arguments).await?;
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish("".into(), expires, options, b"", BasicProperties::default());
        ConnectError::within(limit, published).await?;
        while Instant::now() < deadline {
            let got = channel.basic_get(read.clone(), BasicGetOptions { no_ack: true });
            if let Some(got) = ConnectError::within(limit, got).await? {
                return died_at(&got.delivery.properties).ok_or_else(|| {
                    ConnectError::setup(ConnectErrorKind::Protocol, "a dead-lettered message has no time")
                });
            }
            sleep(PAUSE).await;
        }
        Err(ConnectError::setup(ConnectErrorKind::TimedOut, "no message was dead-lettered"))
    }
    .await;
    close(&connection).await;
    asked
}

/// The name of a new queue that is this connection's.
async fn exclusive(
    channel: &Channel,
    limit: Duration,
    arguments: FieldTable,
) -> Result<ShortString, ConnectError> {
    let options =
        QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(ShortString::from(""), options, arguments);
    Ok(ConnectError::within(limit, declared).await?.name().clone())
}

/// When the broker dead-lettered a message last.
fn died_at(properties: &BasicProperties) -> Option<SystemTime> {
    let AMQPValue::FieldArray(deaths) = properties.headers().as_ref()?.inner().get("x-death")? else {
        return None;
    };
    let AMQPValue::FieldTable(death) = deaths.as_slice().first()? else { return None };
    let AMQPValue::Timestamp(seconds) = death.inner().get("time")? else { return None };
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))
}
