//! What a table keeps: messages that wait to be published.

use std::{fmt, time::Duration};

use bytes::Bytes;

use crate::message::MessageId;

/// One of the shares that the rows are spread over. A lane belongs to one relay at a time.
///
/// A table counts its lanes from 0; what is parked has left them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(pub u16);

/// Which row: its lane, and its number there. Later rows of a lane have greater numbers; numbers
/// are never used again, but for those of commits that the database has lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// Its lane.
    pub lane: Lane,
    /// Its number.
    pub seq: i64,
}

/// A message as it is enqueued: checked, with its identity.
#[derive(Clone, PartialEq)]
pub struct NewRow {
    /// Where it goes.
    pub lane: Lane,
    /// Its identity.
    pub message_id: MessageId,
    /// The exchange it is published to.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// What it is in order with, 1 to 255 bytes; `None` if nothing.
    pub order_key: Option<String>,
    /// Its other properties and its headers, as JSON; `None` if it is persistent and nothing else
    /// was set.
    pub properties: Option<String>,
    /// Its body.
    pub body: Bytes,
}

/// A message as it is read.
#[derive(Clone, PartialEq)]
pub struct Row {
    /// Which.
    pub id: RowId,
    /// What was enqueued, as it was; its lane is that of `id`.
    pub message_id: MessageId,
    /// See [`NewRow::exchange`].
    pub exchange: String,
    /// See [`NewRow::routing_key`].
    pub routing_key: String,
    /// See [`NewRow::order_key`].
    pub order_key: Option<String>,
    /// See [`NewRow::properties`].
    pub properties: Option<String>,
    /// See [`NewRow::body`].
    pub body: Bytes,
    /// How long ago it was enqueued, by the table's clock.
    pub age: Duration,
    /// How often publishing it failed, as far as that is the message's own fault.
    pub attempts: u32,
    /// How long it is to be left alone, by the table's clock; zero if it may be sent.
    pub retry_in: Duration,
}

/// Where a message goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Its exchange.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
}

impl fmt::Debug for NewRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewRow")
            .field("lane", &self.lane)
            .field("message_id", &self.message_id)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row")
            .field("id", &self.id)
            .field("message_id", &self.message_id)
            .field("attempts", &self.attempts)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}
