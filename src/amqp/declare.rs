//! Queues that this crate declares, each on a channel of its own: one that is refused closes its
//! channel.

use std::{future::Future, time::Duration};

use lapin::{
    Connection,
    options::QueueDeclareOptions,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use tokio::time::timeout;

use crate::error::BoxError;

/// The delivery limit of queues that must have none.
///
/// Not -1, which says so from RabbitMQ 4.0 on: 3.x takes it for a limit, and removes a message that
/// is given back for the first time. And not nothing, which is a limit of 20 from 4.0 on.
pub(crate) const UNLIMITED: i64 = i32::MAX as i64;

/// Declares a quorum queue for messages that must not be lost, unless there is a queue of that
/// name, of whatever kind.
///
/// It outlives the loss of a node, and has no delivery limit: a reader that looks at its messages
/// and gives them back must not use them up.
pub(crate) async fn ensure_queue(
    connection: &Connection,
    limit: Duration,
    queue: &str,
) -> Result<(), BoxError> {
    // A failed passive declare closes its channel.
    let probe = within(limit, connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let name = ShortString::try_new(queue)?;
    if within(limit, probe.queue_declare(name, passive, FieldTable::default())).await.is_ok() {
        let _ = within(limit, probe.close(200, ShortString::from(""))).await;
        return Ok(());
    }
    let mut quorum = FieldTable::default();
    quorum.insert(ShortString::from("x-queue-type"), AMQPValue::LongString(LongString::from("quorum")));
    quorum.insert(ShortString::from("x-delivery-limit"), AMQPValue::LongLongInt(UNLIMITED));
    declare_durable(connection, limit, queue, quorum).await
}

/// Declares a durable queue, on a channel of its own: one that is refused closes its channel.
pub(crate) async fn declare_durable(
    connection: &Connection,
    limit: Duration,
    queue: &str,
    arguments: FieldTable,
) -> Result<(), BoxError> {
    let channel = within(limit, connection.create_channel()).await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    within(limit, channel.queue_declare(ShortString::try_new(queue)?, durable, arguments)).await?;
    let _ = within(limit, channel.close(200, ShortString::from(""))).await;
    Ok(())
}

/// What a step comes to, in the time that it has.
pub(crate) async fn within<T>(
    limit: Duration,
    step: impl Future<Output = lapin::Result<T>>,
) -> Result<T, BoxError> {
    Ok(timeout(limit, step).await??)
}
