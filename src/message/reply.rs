//! What a handler answers a request with.

use std::{
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use serde::Serialize;

use super::{
    headers::{HeaderValue, Headers},
    outgoing::OutgoingMessage,
    properties::OutgoingProperties,
    validate::InvalidMessage,
};

/// What a handler answers a request with: a body, its content type, headers.
///
/// It has no address: each delivery of the request is answered at its own `reply_to`, under its own
/// `correlation_id`. Setters cannot fail; a reply that could not be sent, or is too large for its
/// store, is refused when the handler has returned it ([`InvalidReply`]). `Debug` shows neither the
/// body nor header values.
///
/// ```
/// use lapin_idempotent::message::Reply;
///
/// # fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let reply = Reply::json(&serde_json::json!({ "price": 500 }))?.kind("quote.made").header("tenant", "t-1");
/// assert_eq!(&reply.body()[..], br#"{"price":500}"#);
/// assert_eq!(reply.properties().content_type, Some("application/json"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
#[must_use = "a reply is sent when the handler returns it"]
pub struct Reply(OutgoingMessage);

/// A reply that cannot be kept or sent. The request is rejected for it, and nothing is committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidReply {
    /// Its body is larger than the store was told to keep.
    #[error("the reply has {bytes} bytes, and the store keeps {max} at most")]
    TooLarge {
        /// How many bytes it has.
        bytes: usize,
        /// How many are kept.
        max: usize,
    },
    /// A property or a header is not allowed, such as one whose name is reserved.
    #[error("the reply cannot be sent")]
    Invalid(#[from] InvalidMessage),
}

impl Reply {
    /// A body of bytes, without a content type.
    pub fn bytes(body: impl Into<Bytes>) -> Self {
        Self(OutgoingMessage::to("", "").body(body))
    }

    /// A body of text, with the content type `text/plain; charset=utf-8`.
    pub fn text(body: impl Into<String>) -> Self {
        Self(OutgoingMessage::to("", "").text(body))
    }

    /// A body of JSON, with the content type `application/json`.
    ///
    /// # Errors
    ///
    /// What [`serde_json::to_vec`] says of the value.
    pub fn json<T: Serialize + ?Sized>(body: &T) -> Result<Self, serde_json::Error> {
        OutgoingMessage::to("", "").json(body).map(Self)
    }

    /// Sets the AMQP property `content_type`: the MIME type of the body.
    pub fn content_type(self, mime: impl Into<String>) -> Self {
        Self(self.0.content_type(mime))
    }

    /// Sets the AMQP property `content_encoding`, such as `gzip`.
    pub fn content_encoding(self, encoding: impl Into<String>) -> Self {
        Self(self.0.content_encoding(encoding))
    }

    /// Sets the AMQP property `type`: what kind of reply this is, such as `quote.refused`.
    pub fn kind(self, kind: impl Into<String>) -> Self {
        Self(self.0.kind(kind))
    }

    /// Sets a header. Names that start with `x-idempotency-` are reserved and refused.
    pub fn header(self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        Self(self.0.header(name, value))
    }

    /// Sets the AMQP property `expiration`: after this time in the requester's queue the broker
    /// drops the reply. At most ten years.
    pub fn expiration(self, after: Duration) -> Self {
        Self(self.0.expiration(after))
    }

    /// Sets the AMQP property `delivery_mode` to 1 instead of 2: a restart of the broker may lose
    /// the reply, although it was confirmed.
    pub fn transient(self) -> Self {
        Self(self.0.transient())
    }

    /// The body.
    pub fn body(&self) -> &Bytes {
        self.0.payload()
    }

    /// The headers.
    pub fn headers(&self) -> Option<&Headers> {
        self.0.headers()
    }

    /// Everything else that was set.
    pub fn properties(&self) -> OutgoingProperties<'_> {
        self.0.properties()
    }

    pub(crate) fn check(&self, max: usize) -> Result<(), InvalidReply> {
        self.0.validate()?;
        let bytes = self.body().len();
        if bytes > max { Err(InvalidReply::TooLarge { bytes, max }) } else { Ok(()) }
    }

    /// The message that says it to whoever asked.
    pub(crate) fn correlated(self, correlation_id: &str) -> OutgoingMessage {
        self.0.correlation_id(correlation_id)
    }

    /// What it has beside its body, as it is stored.
    #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn stored_properties(&self) -> Result<Option<String>, serde_json::Error> {
        self.0.stored_properties()
    }

    /// The reply of a body, and of what [`stored_properties`](Self::stored_properties) gave.
    #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
    pub(crate) fn stored(properties: Option<&str>, body: Bytes) -> Result<Self, serde_json::Error> {
        let reply = OutgoingMessage::to("", "").body(body);
        Ok(Self(match properties {
            Some(json) => reply.with_stored_properties(json)?,
            None => reply,
        }))
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("kind", &self.properties().kind)
            .field("body_bytes", &self.body().len())
            .field("headers", &self.headers().map_or(0, Headers::len))
            .finish_non_exhaustive()
    }
}

/// What the last run of the handler answered a message with, as long as the message is in hand: a
/// reply that was just committed need not be read again. Clones share it, once it is shared.
#[derive(Debug, Clone, Default)]
pub(crate) struct AtHand(OnceLock<Arc<Mutex<Option<Reply>>>>);

impl AtHand {
    /// Makes what a clone of it gets be seen here.
    pub(crate) fn share(&self) -> &Mutex<Option<Reply>> {
        self.0.get_or_init(Arc::default)
    }

    pub(crate) fn put(&self, reply: Reply) {
        // No code of others runs under the lock.
        *self.share().lock().unwrap_or_else(PoisonError::into_inner) = Some(reply);
    }

    pub(crate) fn take(&self) -> Option<Reply> {
        self.0.get()?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_content() {
        let reply = Reply::text("canary").header("token", "canary");
        assert!(!format!("{reply:?}").contains("canary"));
    }

    #[test]
    fn what_cannot_be_kept_or_sent_is_told_apart() {
        assert!(Reply::text("four").check(4).is_ok());
        let large = Reply::text("five!").check(4);
        assert!(matches!(large, Err(InvalidReply::TooLarge { bytes: 5, max: 4 })), "{large:?}");
        let reserved = Reply::text("").header("X-Idempotency-Failures", 1).check(4);
        assert!(matches!(reserved, Err(InvalidReply::Invalid(_))), "{reserved:?}");
    }

    #[test]
    fn clones_of_a_message_share_what_is_at_hand() {
        let (alone, shared) = (AtHand::default(), AtHand::default());
        shared.share();
        let (apart, beside) = (alone.clone(), shared.clone());
        apart.put(Reply::text("a"));
        beside.put(Reply::text("b"));
        assert_eq!((alone.take(), shared.take()), (None, Some(Reply::text("b"))));
        assert_eq!(beside.take(), None, "it was taken");
    }

    #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
    #[test]
    fn stored_reply_is_the_same_reply() {
        let plain = Reply::bytes(&b"\xff\0"[..]);
        let full = Reply::text("a").kind("k").header("n", 1).expiration(Duration::from_secs(1)).transient();
        for reply in [plain, Reply::json("a").unwrap(), full.content_encoding("gzip")] {
            let properties = reply.stored_properties().unwrap();
            assert_eq!(Reply::stored(properties.as_deref(), reply.body().clone()).unwrap(), reply);
        }
    }
}
