//! Identity: who handles, and what makes a message the same message.

use std::{fmt, sync::Arc};

use crate::{
    error::{BoxError, caught_in, readable},
    message::{IdError, IdStrategy, IncomingMessage, InvalidMessageId, MessageId},
};

/// The consumer's identity: one message may take effect once in each scope.
///
/// Two services, or two handlers, that read copies of the same messages and share a table need
/// different scopes; all instances of one service need the same. 1 to 255 bytes of UTF-8 without
/// control characters, compared byte by byte.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope(pub(super) Arc<str>);

/// A scope is empty, too long, or holds control characters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.told_of("a scope"))]
pub struct InvalidScope(InvalidMessageId);

impl Scope {
    /// Checks a scope.
    ///
    /// # Errors
    ///
    /// [`InvalidScope`] unless it has 1 to 255 bytes and no control characters.
    pub fn new(scope: impl Into<Arc<str>>) -> Result<Self, InvalidScope> {
        // A scope obeys the same rules as a message ID, so that every store can hold both.
        let scope = scope.into();
        MessageId::new(Arc::clone(&scope)).map_err(InvalidScope)?;
        Ok(Self(scope))
    }

    /// The scope as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({:?})", self.0)
    }
}

/// A key for one step of handling one message, for a system that a handler calls and that knows
/// idempotency keys.
///
/// Derived from scope, message ID and step (a UUIDv5), so every run of the handler, in whatever
/// process, gives the same key for the same step, and two scopes or two steps never share one. The
/// called system must remember keys for at least as long as the message may come again. In a
/// handler, [`IncomingMessage::effect_key`] takes scope and ID from the message. For a message that
/// the handler publishes, [`MessageId::derive`] gives the ID.
///
/// ```
/// use lapin_idempotent::{MessageId, idempotency::{Scope, effect_key}};
///
/// # fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let (scope, id) = (Scope::new("billing")?, MessageId::new("order-42")?);
/// assert_eq!(effect_key(&scope, &id, "charge"), effect_key(&scope, &id, "charge"));
/// assert_ne!(effect_key(&scope, &id, "charge"), effect_key(&scope, &id, "receipt"));
/// # Ok(())
/// # }
/// ```
pub fn effect_key(scope: &Scope, message_id: &MessageId, step: &str) -> MessageId {
    // The length keeps scope and step apart: neither may hold a control character, but both may
    // hold anything else.
    message_id.derive(&format!("effect:{}:{scope}:{step}", scope.as_str().len()))
}

type KeyFn = dyn Fn(&IncomingMessage) -> Result<Option<MessageId>, BoxError> + Send + Sync;

/// Which unique data of a message makes it the same message.
///
/// The message ID by default. A publisher that sets none may still send something unique: a header,
/// or a field of the body.
#[derive(Clone, Default)]
pub struct KeySource(Source);

#[derive(Clone, Default)]
enum Source {
    #[default]
    MessageId,
    Header(Arc<str>),
    Body(IdStrategy),
    Closure(Arc<KeyFn>),
}

impl KeySource {
    /// The AMQP property `message_id`.
    pub fn message_id() -> Self {
        Self::default()
    }

    /// A header whose value is text or an integer; the value itself is the ID.
    pub fn header(name: impl Into<Arc<str>>) -> Self {
        Self(Source::Header(name.into()))
    }

    /// The values at JSON pointers into the body (RFC 6901), such as `/order/id`.
    ///
    /// Gives the ID that a publisher with [`IdStrategy::json_pointers`] stamps for the same body. A
    /// value that is missing, `null` or empty counts as no ID, an object or an array as one that is
    /// not usable.
    pub fn json_pointers<I>(pointers: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self(Source::Body(IdStrategy::json_pointers(pointers)))
    }

    /// The ID that a strategy derives from the body, which must be one of [`IdStrategy::content`],
    /// [`canonical_json`](IdStrategy::canonical_json) and
    /// [`json_pointers`](IdStrategy::json_pointers).
    ///
    /// ```
    /// # use lapin_idempotent::{IdStrategy, idempotency::KeySource};
    /// KeySource::body(IdStrategy::json_pointers(["/order"]).with_structured_values());
    /// ```
    pub fn body(strategy: IdStrategy) -> Self {
        Self(Source::Body(strategy))
    }

    /// A function of the message; `None` means that the message has no ID. If it fails or panics,
    /// the message has no usable one.
    pub fn from_fn<F>(key: F) -> Self
    where
        F: Fn(&IncomingMessage) -> Result<Option<MessageId>, BoxError> + Send + Sync + 'static,
    {
        Self(Source::Closure(Arc::new(key)))
    }

    /// Whether there can be a message that has an ID: without a pointer, with one that is malformed
    /// and with a strategy that takes nothing from the body all messages of a queue would be
    /// parked.
    pub(crate) fn check(&self) -> Result<(), IdError> {
        match &self.0 {
            Source::Body(strategy) => match strategy.derive_from_body(b"{}") {
                Err(error @ (IdError::InvalidPointer { .. } | IdError::NotFromBody)) => Err(error),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// The ID of a message; `None` if it has none, an error if what it has is not usable.
    pub(crate) fn id(&self, message: &IncomingMessage) -> Result<Option<MessageId>, BoxError> {
        match &self.0 {
            Source::MessageId => Ok(message.id()?),
            Source::Header(name) => {
                let Some(value) = message.header(name) else { return Ok(None) };
                let text = match (value.as_str(), value.as_i64()) {
                    (Some(text), _) => text.to_owned(),
                    (None, Some(number)) => number.to_string(),
                    (None, None) => return Err("the header is neither text nor an integer".into()),
                };
                if text.is_empty() { Ok(None) } else { Ok(Some(MessageId::new(text)?)) }
            }
            Source::Body(strategy) => match strategy.derive_from_body(message.body()) {
                Ok(id) => Ok(Some(id)),
                Err(IdError::PointerMissing { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            },
            // A panic of its own would end the consumer, at each delivery of the message anew.
            Source::Closure(key) => caught_in("the key source", || key(message))?
                .map_err(|error| readable("the error of the key source", error)),
        }
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::MessageId => f.write_str("KeySource::message_id"),
            Source::Header(name) => write!(f, "KeySource::header({name:?})"),
            Source::Body(strategy) => write!(f, "KeySource({strategy:?})"),
            Source::Closure(_) => f.write_str("KeySource::from_fn"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It would make one message of all that have it.
    #[test]
    fn an_empty_key_is_no_id() {
        let sources = [
            KeySource::message_id(),
            KeySource::header("k"),
            KeySource::json_pointers(["/k"]),
            KeySource::body(IdStrategy::json_pointers(["/k"]).with_structured_values()),
        ];
        for body in [r#"{"k":""}"#, r#"{"k":null}"#, r#"{"k":[]}"#, "{}"] {
            let message = IncomingMessage::new(body).with_message_id("").with_header("k", "");
            for source in &sources {
                assert_eq!(source.id(&message).unwrap(), None, "{source:?} {body}");
            }
        }
        let structured = IncomingMessage::new(r#"{"k":[1]}"#);
        assert!(sources[2].id(&structured).is_err());
        assert!(sources[3].id(&structured).unwrap().is_some());
    }
}
