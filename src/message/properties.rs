//! What is set on an outgoing message, to be read.

use std::time::{Duration, SystemTime};

use super::{
    epoch::Epoch,
    outgoing::{Extra, OutgoingMessage},
};

/// What is set on an [`OutgoingMessage`], beside its route, body, ID and headers. `None` is what
/// was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutgoingProperties<'a> {
    /// The MIME type of the body.
    pub content_type: Option<&'a str>,
    /// Such as `gzip`.
    pub content_encoding: Option<&'a str>,
    /// AMQP property `type`.
    pub kind: Option<&'a str>,
    /// AMQP property `correlation_id`.
    pub correlation_id: Option<&'a str>,
    /// AMQP property `reply_to`.
    pub reply_to: Option<&'a str>,
    /// AMQP property `user_id`.
    pub user_id: Option<&'a str>,
    /// AMQP property `priority`.
    pub priority: Option<u8>,
    /// In whole milliseconds.
    pub expiration: Option<Duration>,
    /// In whole seconds. A message that was handed back has the time of its first publish, unless
    /// its ID holds it.
    pub timestamp: Option<SystemTime>,
    /// Delivery mode 2, unless it is [`transient`](OutgoingMessage::transient).
    pub is_persistent: bool,
    /// The parts of its idempotency key.
    pub idempotency_key: Option<&'a [String]>,
    /// In place of the publisher's.
    pub mandatory: Option<bool>,
    /// In place of the retry policy's limit.
    pub deadline: Option<Duration>,
    /// The epoch of a replay.
    pub replay: Option<&'a str>,
}

impl OutgoingMessage {
    /// Everything else that was set.
    pub fn properties(&self) -> OutgoingProperties<'_> {
        let extra = self.extra();
        let text = |field: fn(&Extra) -> &Option<String>| extra.and_then(|extra| field(extra).as_deref());
        OutgoingProperties {
            content_type: self.mime(),
            content_encoding: text(|extra| &extra.content_encoding),
            kind: text(|extra| &extra.kind),
            correlation_id: text(|extra| &extra.correlation_id),
            reply_to: text(|extra| &extra.reply_to),
            user_id: text(|extra| &extra.user_id),
            priority: extra.and_then(|extra| extra.priority),
            expiration: extra.and_then(|extra| extra.expiration),
            timestamp: self.stamped_at(),
            is_persistent: self.is_persistent(),
            idempotency_key: self.key(),
            mandatory: extra.and_then(|extra| extra.mandatory),
            deadline: extra.and_then(|extra| extra.deadline),
            replay: extra.and_then(|extra| extra.replay.as_ref()).map(Epoch::as_str),
        }
    }
}
