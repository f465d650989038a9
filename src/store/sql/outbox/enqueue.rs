//! Messages become rows in the caller's transaction.

use super::{SqlDatabase, SqlOutbox};
use crate::{
    message::{IdStrategy, MessageId, OutgoingMessage, TraceContext},
    outbox::{EnqueueError, NewRow, Placement},
};

/// # Enqueuing
///
/// In a transaction of your own, or in the one that a handler is given: `&mut *transaction` there,
/// `&mut **session` here. On a connection without a transaction the message is enqueued at once.
///
/// # Cancellation
///
/// A future that is dropped may have put rows in or not; the transaction decides about them, as
/// about everything else: do not commit one in which a call was dropped.
impl<DB: SqlDatabase> SqlOutbox<DB> {
    /// Enqueues a message: it is published if, and only after, the transaction commits, at least
    /// once, under the ID that is returned. In order with nothing; see
    /// [`enqueue_in_order`](Self::enqueue_in_order).
    ///
    /// The ID is given here, once and for all, as is the trace context; the message's
    /// [`deadline`](OutgoingMessage::deadline) is not kept. Call [`wake`](Self::wake) after the
    /// commit.
    ///
    /// # Errors
    ///
    /// [`EnqueueError::Invalid`], which hands the message back, if it could not be published; the
    /// transaction is then as usable as before. [`EnqueueError::Store`] if the database did not
    /// take it.
    pub async fn enqueue(
        &self,
        connection: &mut DB::Connection,
        message: OutgoingMessage,
    ) -> Result<MessageId, EnqueueError> {
        self.enqueue_one(connection, self.placement.place(message)?).await
    }

    /// Enqueues a message that is in order with all others of its key, 1 to 255 bytes that are
    /// compared byte by byte, such as `"order-42"`.
    ///
    /// Before it is sent for the first time, every message of its key whose transaction had
    /// committed when it was enqueued has been confirmed, or given up by an operator. Transactions
    /// that are open at the same time have no order: lock what they are about first, as an UPDATE
    /// of it does.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue), and if that is no key.
    pub async fn enqueue_in_order(
        &self,
        connection: &mut DB::Connection,
        order_key: impl Into<String>,
        message: OutgoingMessage,
    ) -> Result<MessageId, EnqueueError> {
        self.enqueue_one(connection, self.placement.place_in_order(order_key, message)?).await
    }

    /// Enqueues many messages, in few statements, each in order with nothing. Their IDs are in the
    /// order of the messages.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue). Nothing was sent to the database if one of them is invalid.
    pub async fn enqueue_all(
        &self,
        connection: &mut DB::Connection,
        messages: impl IntoIterator<Item = OutgoingMessage>,
    ) -> Result<Vec<MessageId>, EnqueueError> {
        let rows = messages.into_iter().map(|message| self.placement.place(message));
        let rows: Vec<NewRow> = rows.collect::<Result<_, _>>()?;
        self.put_in(connection, &rows).await?;
        Ok(rows.into_iter().map(|row| row.message_id).collect())
    }

    async fn enqueue_one(
        &self,
        connection: &mut DB::Connection,
        row: NewRow,
    ) -> Result<MessageId, EnqueueError> {
        self.put_in(connection, std::slice::from_ref(&row)).await?;
        Ok(row.message_id)
    }

    /// Sets how messages get their ID that have neither one nor an idempotency key. Default:
    /// [`IdStrategy::uuid_v7`].
    #[must_use]
    pub fn id_strategy(self, strategy: IdStrategy) -> Self {
        self.placed(|placement| placement.id_strategy(strategy))
    }

    /// Sets where messages without a trace context get theirs from: it is asked when they are
    /// enqueued, and their publish belongs to that trace. Default: none.
    #[must_use]
    pub fn trace_context(self, current: impl Fn() -> Option<TraceContext> + Send + Sync + 'static) -> Self {
        self.placed(|placement| placement.trace_context(current))
    }

    /// Sets the largest body that is taken; no larger than what the relay's publisher sends, or the
    /// message is parked there. Default: 16 MiB, as a publisher's.
    #[must_use]
    pub fn max_message_bytes(self, bytes: usize) -> Self {
        self.placed(|placement| placement.max_message_bytes(bytes))
    }

    fn placed(self, set: impl FnOnce(Placement) -> Placement) -> Self {
        Self { placement: set(self.placement), ..self }
    }
}
