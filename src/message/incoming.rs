//! A message as it was delivered.

use std::{
    error::Error,
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::{
    epoch::Taken,
    fingerprint::Fingerprint,
    headers::{HeaderValue, Headers},
    id::{InvalidMessageId, MessageId},
    reply::AtHand,
    trace::{TRACEPARENT, TRACESTATE, TraceContext},
};

/// A delivered message, read-only. It cannot be acked: settling is the consumer's.
///
/// `Debug` shows neither the body nor header values.
///
/// ```
/// use lapin_idempotent::IncomingMessage;
///
/// # fn main() -> Result<(), lapin_idempotent::BoxError> {
/// // As a consumer would hand it over; to try a handler.
/// let message = IncomingMessage::new(r#"["A", 500]"#).with_message_id("debit/order-42");
/// let (account, amount): (String, i64) = message.json()?;
/// assert_eq!((account.as_str(), amount), ("A", 500));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct IncomingMessage {
    pub(crate) body: Bytes,
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) redelivered: bool,
    pub(crate) properties: Properties,
    /// The scope and the effective ID, of the first guard that took it, and the epoch if it is of a
    /// replay. Another guard gives its handler a clone with its own.
    pub(crate) identity: OnceLock<(Arc<str>, MessageId, Option<Taken>)>,
    /// Of an RPC handler.
    pub(crate) at_hand: AtHand,
}

/// The AMQP properties of a delivery.
#[derive(Debug, Clone, Default)]
pub(crate) struct Properties {
    pub(crate) message_id: Option<String>,
    pub(crate) timestamp: Option<u64>,
    pub(crate) app_id: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) content_encoding: Option<String>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) reply_to: Option<String>,
    pub(crate) user_id: Option<String>,
    pub(crate) priority: Option<u8>,
    pub(crate) headers: Headers,
}

/// The body is not what the handler expects. As an error of a handler, or anywhere among the
/// sources of one, it means that the message is rejected, not tried again.
///
/// Its source may quote the body.
#[derive(Debug, thiserror::Error)]
#[error("the message body cannot be decoded")]
pub struct DecodeError {
    source: Undecodable,
}

/// What the body is not. An error that is shown as its cause (`#[error(transparent)]`,
/// [`std::io::Error::other`]) leaves the [`DecodeError`] itself out of the chain of its sources,
/// but not this.
#[derive(Debug, thiserror::Error)]
#[error("it is not {wanted}")]
struct Undecodable {
    wanted: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

impl DecodeError {
    fn new(wanted: &'static str, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Undecodable { wanted, source: error.into() } }
    }

    /// Whether it is an error, or one of its sources.
    pub(crate) fn is_in(error: &(dyn Error + 'static)) -> bool {
        std::iter::successors(Some(error), |&error| error.source())
            .any(|error| error.is::<Self>() || error.is::<Undecodable>())
    }
}

impl IncomingMessage {
    /// A message that did not come through this crate's consumer: out of a consume loop of your
    /// own, or for a test.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    /// Sets the property `message_id` as it was received; it is checked when it is used.
    #[must_use]
    pub fn with_message_id(mut self, id: impl Into<String>) -> Self {
        self.properties.message_id = Some(id.into());
        self
    }

    /// Sets the exchange and the routing key of the delivery.
    #[must_use]
    pub fn with_route(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.exchange = exchange.into();
        self.routing_key = routing_key.into();
        self
    }

    /// Sets the broker's flag `redelivered`.
    #[must_use]
    pub fn with_redelivered(mut self, redelivered: bool) -> Self {
        self.redelivered = redelivered;
        self
    }

    /// Sets a header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.properties.headers.insert(name, value);
        self
    }

    /// Sets the property `app_id`.
    #[must_use]
    pub fn with_app_id(mut self, app: impl Into<String>) -> Self {
        self.properties.app_id = Some(app.into());
        self
    }

    /// Sets the property `type`.
    #[must_use]
    pub fn with_kind(mut self, kind: impl Into<String>) -> Self {
        self.properties.kind = Some(kind.into());
        self
    }

    /// Sets the property `content_type`.
    #[must_use]
    pub fn with_content_type(mut self, mime: impl Into<String>) -> Self {
        self.properties.content_type = Some(mime.into());
        self
    }

    /// Sets the property `content_encoding`.
    #[must_use]
    pub fn with_content_encoding(mut self, encoding: impl Into<String>) -> Self {
        self.properties.content_encoding = Some(encoding.into());
        self
    }

    /// Sets the property `correlation_id`.
    #[must_use]
    pub fn with_correlation_id(mut self, id: impl Into<String>) -> Self {
        self.properties.correlation_id = Some(id.into());
        self
    }

    /// Sets the property `reply_to`.
    #[must_use]
    pub fn with_reply_to(mut self, queue: impl Into<String>) -> Self {
        self.properties.reply_to = Some(queue.into());
        self
    }

    /// Sets the property `user_id`.
    #[must_use]
    pub fn with_user_id(mut self, user: impl Into<String>) -> Self {
        self.properties.user_id = Some(user.into());
        self
    }

    /// Sets the property `timestamp`, in seconds since 1970-01-01 UTC as on the wire.
    #[must_use]
    pub fn with_timestamp(mut self, seconds: u64) -> Self {
        self.properties.timestamp = Some(seconds);
        self
    }

    /// Sets the property `priority`.
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.properties.priority = Some(priority);
        self
    }

    /// The message ID; `None` if there is none, or an empty one.
    ///
    /// # Errors
    ///
    /// [`InvalidMessageId`] if another client sent one that is not allowed here.
    pub fn id(&self) -> Result<Option<MessageId>, InvalidMessageId> {
        match self.raw_message_id() {
            None | Some("") => Ok(None),
            Some(id) => MessageId::new(id).map(Some),
        }
    }

    /// AMQP property `message_id` as it came, unchecked. Escape it before printing.
    pub fn raw_message_id(&self) -> Option<&str> {
        self.properties.message_id.as_deref()
    }

    /// The body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The body, decoded from JSON. Up to 128 levels deep.
    ///
    /// # Errors
    ///
    /// A [`DecodeError`] if it is not such JSON; returned from a handler it rejects the message.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        serde_json::from_slice(&self.body)
            .map_err(|error| DecodeError::new("the JSON that is expected", error))
    }

    /// The body as text.
    ///
    /// # Errors
    ///
    /// A [`DecodeError`] if it is not UTF-8.
    pub fn text(&self) -> Result<&str, DecodeError> {
        std::str::from_utf8(&self.body).map_err(|error| DecodeError::new("UTF-8", error))
    }

    /// The hash of the body as it was received.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.body)
    }

    /// The exchange that it was published to; by this crate's header, where the consumer
    /// delayed it or it was put back after parking.
    pub fn exchange(&self) -> &str {
        &self.exchange
    }

    /// Its routing key; by this crate's header, as for [`exchange`](Self::exchange).
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }

    /// Whether the broker delivered this copy before. False does not mean that the message is new:
    /// a publisher's retry is a copy of its own.
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// AMQP property `timestamp`.
    pub fn timestamp(&self) -> Option<SystemTime> {
        let seconds = self.properties.timestamp?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    /// How old it is at `now`: by its property `timestamp` or by the time in its ID
    /// ([`MessageId::time`]), whichever is older; `None` without both, zero if the other clock is
    /// ahead.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let made = self.id().ok().flatten().and_then(|id| id.time());
        let since = self.timestamp().into_iter().chain(made).min()?;
        Some(now.duration_since(since).unwrap_or_default())
    }

    /// AMQP property `app_id`.
    pub fn app_id(&self) -> Option<&str> {
        self.properties.app_id.as_deref()
    }

    /// AMQP property `type`.
    pub fn kind(&self) -> Option<&str> {
        self.properties.kind.as_deref()
    }

    /// AMQP property `content_type`.
    pub fn content_type(&self) -> Option<&str> {
        self.properties.content_type.as_deref()
    }

    /// AMQP property `content_encoding`.
    pub fn content_encoding(&self) -> Option<&str> {
        self.properties.content_encoding.as_deref()
    }

    /// AMQP property `correlation_id`.
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties.correlation_id.as_deref()
    }

    /// AMQP property `reply_to`.
    pub fn reply_to(&self) -> Option<&str> {
        self.properties.reply_to.as_deref()
    }

    /// AMQP property `user_id`, which the broker has checked. `None` after a delayed redelivery, as
    /// only the publisher itself may set it.
    pub fn user_id(&self) -> Option<&str> {
        self.properties.user_id.as_deref()
    }

    /// AMQP property `priority`.
    pub fn priority(&self) -> Option<u8> {
        self.properties.priority
    }

    /// All headers, those of this crate and of the broker included.
    pub fn headers(&self) -> &Headers {
        &self.properties.headers
    }

    /// The trace that it belongs to, if it carries a `traceparent` that is well-formed.
    pub fn trace_context(&self) -> Option<TraceContext> {
        let context = TraceContext::new(self.header(TRACEPARENT)?.as_str()?).ok()?;
        match self.header(TRACESTATE).and_then(HeaderValue::as_str) {
            Some(state) => Some(context.with_state(state)),
            None => Some(context),
        }
    }

    /// One header.
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        self.properties.headers.get(name)
    }
}

impl fmt::Debug for IncomingMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IncomingMessage")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .field("message_id", &self.raw_message_id())
            .field("redelivered", &self.redelivered)
            .field("body_bytes", &self.body.len())
            .field("headers", &self.headers().len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_id_is_none_and_a_bad_one_an_error() {
        assert_eq!(IncomingMessage::new("").id(), Ok(None));
        assert_eq!(IncomingMessage::new("").with_message_id("").id(), Ok(None));
        assert!(IncomingMessage::new("").with_message_id("a\u{7}").id().is_err());
    }

    #[test]
    fn age_is_by_the_older_of_stamp_and_id() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let seconds = |seconds: u32| Some(Duration::from_secs(seconds.into()));
        let now = at(2_000_000_000);
        let message = IncomingMessage::new("");
        assert_eq!(message.age(now), None);
        assert_eq!(message.clone().with_message_id("order-42").age(now), None);
        let stamped = message.with_timestamp(1_700_000_000);
        assert_eq!(stamped.age(now), seconds(300_000_000));
        assert_eq!(stamped.age(at(0)), Some(Duration::ZERO));
        // RFC 9562, appendix A.6: made at 1,645,557,742 s.
        let republished = stamped.with_message_id("017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        assert_eq!(republished.age(now), seconds(354_442_258));
        assert_eq!(republished.with_timestamp(u64::MAX).age(now), seconds(354_442_258));
    }

    #[test]
    fn text_and_json() {
        assert_eq!(IncomingMessage::new("[1,2]").json::<Vec<u8>>().unwrap(), [1, 2]);
        assert_eq!(IncomingMessage::new("é").text().unwrap(), "é");
        let error = IncomingMessage::new(&b"\xff"[..]).text().unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(!error.to_string().contains(&cause));
    }

    #[test]
    fn deep_json_is_an_error_not_a_crash() {
        let deep = "[".repeat(100_000);
        assert!(IncomingMessage::new(deep).json::<serde_json::Value>().is_err());
    }

    #[test]
    fn debug_shows_no_content() {
        let message = IncomingMessage::new("canary").with_header("token", "canary");
        assert!(!format!("{message:?}").contains("canary"));
    }
}
