//! A message on its way out.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::Serialize;

use super::{
    epoch::Epoch,
    headers::{HeaderValue, Headers},
    id::MessageId,
    trace::{TRACEPARENT, TRACESTATE, TraceContext},
    validate::{InvalidMessage, check},
};

/// A message to be published: where to, the body, and what identifies it.
///
/// Setters cannot fail; what AMQP or this crate does not allow is found by
/// [`validate`](Self::validate), which every publish does before anything is sent. `Debug` shows
/// neither the body nor header values.
///
/// `Serialize` and `Deserialize` are for an outbox, or for what failed and is to be published
/// again: everything that was set comes back, with the ID and the time of the first publish. The
/// form has a version; one that is not known, an unknown field and an invalid message are errors.
/// Later releases read what this one wrote. It needs a format that describes itself, such as JSON.
///
/// ```
/// use lapin_idempotent::OutgoingMessage;
///
/// # fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let debit = OutgoingMessage::to("payments", "debit") // exchange, routing key
///     .idempotency_key("debit/order-42")
///     .kind("debit.requested")
///     .json(&serde_json::json!({ "account": "A", "amount": 500 }))?;
/// debit.validate()?;
///
/// let stored = serde_json::to_string(&debit)?;
/// let again: OutgoingMessage = serde_json::from_str(&stored)?;
/// assert_eq!(again, debit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq)]
#[must_use = "a message does nothing until it is published"]
pub struct OutgoingMessage {
    exchange: String,
    routing_key: String,
    body: Bytes,
    id: Option<MessageId>,
    key: Option<Vec<String>>,
    content_type: Option<String>,
    timestamp: Option<SystemTime>,
    /// Its ID was made for it and tells the time, so that it goes without a timestamp.
    timed_by_id: bool,
    /// Most messages set none of these.
    extra: Option<Box<Extra>>,
    persistent: bool,
}

/// The properties that few messages set.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Extra {
    pub(crate) kind: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) reply_to: Option<String>,
    pub(crate) priority: Option<u8>,
    pub(crate) expiration: Option<Duration>,
    pub(crate) user_id: Option<String>,
    pub(crate) mandatory: Option<bool>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) replay: Option<Epoch>,
    pub(crate) headers: Headers,
}

impl OutgoingMessage {
    /// A message to an exchange, with a routing key. The exchange `""` leads to the queue that the
    /// routing key names.
    pub fn to(exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        Self {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            body: Bytes::new(),
            id: None,
            key: None,
            content_type: None,
            timestamp: None,
            timed_by_id: false,
            extra: None,
            persistent: true,
        }
    }
}

/// # Identity
impl OutgoingMessage {
    /// Sets the identity itself: AMQP property `message_id`. Goes before any key or strategy.
    pub fn message_id(mut self, id: MessageId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the business identity that the message ID is derived from, such as `"debit/order-42"`.
    ///
    /// The same key always gives the same ID, also after a restart and in another process, so one
    /// key must name one message: `"order-42"` alone would make the order's debit and its shipment
    /// one message. An empty key is refused at publish.
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(vec![key.into()]);
        self
    }

    /// Like [`idempotency_key`](Self::idempotency_key), of several parts. `("ab", "c")` and `("a",
    /// "bc")` are different keys.
    ///
    /// One part is the same as [`idempotency_key`](Self::idempotency_key). None, or only empty
    /// ones, are refused at publish.
    pub fn idempotency_key_parts<I>(mut self, parts: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.key = Some(parts.into_iter().map(Into::into).collect());
        self
    }
}

/// # Body
impl OutgoingMessage {
    /// Sets the body as bytes. Default: empty.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets the body as text, and `content_type` to `text/plain; charset=utf-8`.
    pub fn text(self, body: impl Into<String>) -> Self {
        self.body(body.into()).content_type("text/plain; charset=utf-8")
    }

    /// Sets the body as JSON, and `content_type` to `application/json`.
    ///
    /// # Errors
    ///
    /// What [`serde_json::to_vec`] says of the value.
    pub fn json<T: Serialize + ?Sized>(self, body: &T) -> Result<Self, serde_json::Error> {
        Ok(self.body(serde_json::to_vec(body)?).content_type("application/json"))
    }

    /// Sets the AMQP property `content_type`: the MIME type of the body.
    pub fn content_type(mut self, mime: impl Into<String>) -> Self {
        self.content_type = Some(mime.into());
        self
    }
}

/// # Properties and headers
impl OutgoingMessage {
    /// Sets the AMQP property `content_encoding`, such as `gzip`.
    pub fn content_encoding(mut self, encoding: impl Into<String>) -> Self {
        self.extra_mut().content_encoding = Some(encoding.into());
        self
    }

    /// Sets the AMQP property `type`: what kind of message this is, such as `order.created`.
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.extra_mut().kind = Some(kind.into());
        self
    }

    /// Sets the AMQP property `correlation_id`.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.extra_mut().correlation_id = Some(id.into());
        self
    }

    /// Sets the AMQP property `reply_to`.
    pub fn reply_to(mut self, queue: impl Into<String>) -> Self {
        self.extra_mut().reply_to = Some(queue.into());
        self
    }

    /// Sets the AMQP property `priority`.
    pub fn priority(mut self, priority: u8) -> Self {
        self.extra_mut().priority = Some(priority);
        self
    }

    /// Sets the AMQP property `expiration`: after this time in a queue the broker drops or
    /// dead-letters the message. At most ten years.
    ///
    /// In milliseconds on the wire, rounded up. Zero is kept: RabbitMQ then drops what it cannot
    /// deliver at once, also after it was confirmed.
    pub fn expiration(mut self, after: Duration) -> Self {
        let millis = Duration::from_millis(after.as_millis().try_into().unwrap_or(u64::MAX));
        let rest = if millis < after { Duration::from_millis(1) } else { Duration::ZERO };
        self.extra_mut().expiration = Some(millis.saturating_add(rest));
        self
    }

    /// Sets the AMQP property `timestamp`, in whole seconds; before 1970 becomes 1970.
    ///
    /// Default: the time of the publish, unless the publisher makes the message a time-ordered ID
    /// (UUIDv7, ULID), which says it better. A message that is handed back has kept it, so that a
    /// consumer sees its age when it is published again.
    pub fn timestamp(mut self, at: SystemTime) -> Self {
        self.timestamp = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds_since_1970(at)));
        self
    }

    /// Sets the AMQP property `user_id`. RabbitMQ closes the channel over one that is not the user
    /// of the connection, and the message then fails as
    /// [`Refused`](crate::publisher::PublishErrorKind::Refused).
    pub fn user_id(mut self, user: impl Into<String>) -> Self {
        self.extra_mut().user_id = Some(user.into());
        self
    }

    /// Sets whether this message must reach a queue, in place of the publisher's
    /// [`mandatory`](crate::publisher::PublisherBuilder::mandatory). With `false`, one that no
    /// queue gets is confirmed and gone: for exchanges that may have no subscribers, and for those
    /// that keep messages themselves (`x-delayed-message`).
    pub fn mandatory(mut self, mandatory: bool) -> Self {
        self.extra_mut().mandatory = Some(mandatory);
        self
    }

    /// Sets a header. Names that start with `x-idempotency-` are reserved and refused at publish.
    ///
    /// RabbitMQ acts on some headers: `CC` and `BCC`, lists of strings, route copies of the
    /// message.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.extra_mut().headers.insert(name, value);
        self
    }

    /// Sets the trace that the message belongs to: headers `traceparent` and `tracestate` (W3C
    /// Trace Context).
    pub fn trace_context(self, context: &TraceContext) -> Self {
        let message = self.header(TRACEPARENT, context.traceparent());
        match context.tracestate() {
            Some(state) => message.header(TRACESTATE, state),
            None => message,
        }
    }

    /// Sets how long publishing this message may take in all, in place of the retry policy's
    /// [`max_elapsed`](crate::RetryPolicy::max_elapsed). Nothing of it travels. It is looked at
    /// every 100 milliseconds, more often only if the policy's own limits are below 2 seconds.
    pub fn deadline(mut self, after: Duration) -> Self {
        self.extra_mut().deadline = Some(after);
        self
    }

    /// Sets the AMQP property `delivery_mode` to 1 instead of 2: a restart of the broker may lose
    /// the message, although it was confirmed.
    pub fn transient(mut self) -> Self {
        self.persistent = false;
        self
    }
}

/// # What was set
impl OutgoingMessage {
    /// The ID that was set, or that it was stamped with when it was published.
    pub fn id(&self) -> Option<&MessageId> {
        self.id.as_ref()
    }

    /// The exchange it goes to.
    pub fn exchange(&self) -> &str {
        &self.exchange
    }

    /// Its routing key.
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }

    /// Its body.
    pub fn payload(&self) -> &Bytes {
        &self.body
    }

    /// The application's headers.
    pub fn headers(&self) -> Option<&Headers> {
        self.extra.as_ref().map(|extra| &extra.headers)
    }

    pub(crate) fn has_trace(&self) -> bool {
        self.headers().is_some_and(|headers| headers.get(TRACEPARENT).is_some())
    }

    /// Checks what the message alone shows. Every publish does so before anything is sent.
    ///
    /// * Exchange, routing key and the properties that are short strings: at most 255 bytes, and no
    ///   zero byte.
    /// * `reply_to` is not `amq.rabbitmq.reply-to`, which needs a consumer on the publisher's own
    ///   channel.
    /// * `expiration`: at most ten years.
    /// * Names of headers and in nested tables: 1 to 255 bytes, no zero byte; none of the headers
    ///   is reserved.
    /// * Values of headers, also nested: floating-point numbers are finite, integers fit into 64
    ///   bits with a sign; lists and tables are nested at most 16 deep.
    /// * `CC` and `BCC` are lists of strings, `x-death` is a list of tables.
    /// * All headers together: at most 120,000 bytes.
    ///
    /// What depends on the publisher is checked by the publish: the length of the body
    /// ([`max_message_bytes`](crate::publisher::PublisherBuilder::max_message_bytes)), the length
    /// of the headers, for which its frames may have less room, and whether its
    /// [`IdStrategy`](super::IdStrategy) can make an ID. What only the broker knows, such as
    /// whether the exchange is there or `user_id` is right, it says itself.
    ///
    /// # Errors
    ///
    /// The first [`InvalidMessage`] found.
    pub fn validate(&self) -> Result<(), InvalidMessage> {
        check(self)
    }

    /// Whether its identity is the application's: an ID or a key.
    pub(crate) fn has_identity(&self) -> bool {
        self.id.is_some() || self.key.is_some()
    }

    pub(super) fn key(&self) -> Option<&[String]> {
        self.key.as_deref()
    }

    pub(crate) fn stamped_at(&self) -> Option<SystemTime> {
        self.timestamp
    }

    /// Sets that its ID tells the time, as one does that a publisher has made.
    pub(crate) fn timed_by_id(self) -> Self {
        Self { timed_by_id: true, ..self }
    }

    pub(crate) fn is_timed_by_id(&self) -> bool {
        self.timed_by_id
    }

    pub(crate) fn extra(&self) -> Option<&Extra> {
        self.extra.as_deref()
    }

    pub(crate) fn mime(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    pub(crate) fn is_persistent(&self) -> bool {
        self.persistent
    }

    pub(super) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_with(Box::default)
    }
}

/// As AMQP counts; 0 before.
pub(crate) fn seconds_since_1970(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl fmt::Debug for OutgoingMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingMessage")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("id", &self.id)
            .field("body_bytes", &self.body.len())
            .field("headers", &self.headers().map_or(0, Headers::len))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_content() {
        let message = OutgoingMessage::to("e", "k").body("canary").header("token", "canary");
        assert!(!format!("{message:?}").contains("canary"));
    }

    #[test]
    fn an_expiration_is_never_shorter_than_asked_for() {
        let of = |after| OutgoingMessage::to("e", "k").expiration(after).properties().expiration.unwrap();
        assert_eq!(of(Duration::from_nanos(1)), Duration::from_millis(1));
        assert_eq!(of(Duration::from_micros(1500)), Duration::from_millis(2));
        assert_eq!(of(Duration::from_secs(3)), Duration::from_secs(3));
        assert_eq!(of(Duration::ZERO), Duration::ZERO);
        assert!(OutgoingMessage::to("e", "k").expiration(Duration::MAX).validate().is_err());
    }
}
