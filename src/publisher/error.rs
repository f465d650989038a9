//! Why a publish failed, with the message handed back.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    error::BoxError,
    message::{MessageId, OutgoingMessage, Stamped},
};

/// A message that is not known to be published; it comes back through
/// [`into_message`](Self::into_message).
///
/// The message keeps the ID that it was stamped with, so publishing it again, or storing it and
/// publishing it tomorrow, cannot make a second effect at a guarded consumer.
///
/// ```no_run
/// # use lapin_idempotent::{IdempotentPublisher, OutgoingMessage};
/// # async fn example(publisher: IdempotentPublisher, debit: OutgoingMessage) -> Option<String> {
/// use lapin_idempotent::publisher::PublishErrorKind;
///
/// let Err(error) = publisher.publish_idempotent(debit).await else { return None };
/// match error.kind() {
///     // It would fail again.
///     PublishErrorKind::Invalid | PublishErrorKind::Unroutable => None,
///     // Stored under its ID, to be published again later.
///     _ => serde_json::to_string(&error.into_message()).ok(),
/// }
/// # }
/// ```
pub struct PublishError(Box<Inner>);

struct Inner {
    kind: PublishErrorKind,
    attempts: u32,
    elapsed: Duration,
    uncertain: bool,
    message: Returned,
    source: Option<BoxError>,
    reply: Option<BrokerReply>,
}

enum Returned {
    Stamped(Arc<Stamped>),
    Refused(OutgoingMessage),
}

/// The reason of a [`PublishError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PublishErrorKind {
    /// The message itself cannot be sent: a field too long, a reserved header, no ID.
    /// Nothing was sent.
    Invalid,
    /// The broker returned the message: no queue is bound for its exchange and routing key. Or
    /// there is no such exchange.
    Unroutable,
    /// The broker closed the channel over the message: no permission for the exchange, or larger
    /// than the broker's limit. Or the connection ended each of three times that the message was
    /// sent alone, while others were confirmed.
    Refused,
    /// The broker nacked the message, for example because a queue is full and rejects publishes.
    Nacked,
    /// No confirm came in time.
    TimedOut,
    /// The connection was lost, or could not be opened again, until the attempts or the time ran
    /// out.
    Disconnected,
    /// The publisher was closed before the message was confirmed.
    Closed,
    /// As many messages or bytes were in flight as may be; only from `try_enqueue`. Nothing was
    /// sent.
    Full,
}

impl PublishError {
    pub(crate) fn invalid(message: OutgoingMessage, source: BoxError) -> Self {
        Self(Box::new(Inner {
            kind: PublishErrorKind::Invalid,
            attempts: 0,
            elapsed: Duration::ZERO,
            uncertain: false,
            message: Returned::Refused(message),
            source: Some(source),
            reply: None,
        }))
    }

    pub(crate) fn new(failure: Failure, message: Arc<Stamped>) -> Self {
        let Failure { kind, attempts, elapsed, uncertain, source, reply } = failure;
        Self(Box::new(Inner {
            kind,
            attempts,
            elapsed,
            uncertain,
            message: Returned::Stamped(message),
            source,
            reply,
        }))
    }

    /// What happened last.
    pub fn kind(&self) -> PublishErrorKind {
        self.0.kind
    }

    /// Whether some attempt may have reached a queue although no confirm came back.
    ///
    /// False means that the broker returned or refused every attempt, or that nothing was sent at
    /// all. A nack makes it true: when one of several queues is full and rejects publishes,
    /// RabbitMQ nacks a message that the others have (its documentation, "Queue Length Limit"). So
    /// does the return of a message with an `x-delay` header, which the delayed message exchange
    /// gives back and delivers later. Publishing the message again is safe in any case, as it keeps
    /// its ID.
    pub fn may_have_been_published(&self) -> bool {
        self.0.uncertain
    }

    /// The reply code that the broker gave for the last attempt, when it returned the message (312,
    /// `NO_ROUTE`) or closed the channel over it (403, 404, 406, ..).
    pub fn reply_code(&self) -> Option<u16> {
        self.0.reply.as_ref().map(|reply| reply.code)
    }

    /// The broker's words that come with [`reply_code`](Self::reply_code). They can hold names of
    /// exchanges and users.
    pub fn reply_text(&self) -> Option<&str> {
        self.0.reply.as_ref().map(|reply| reply.text.as_str())
    }

    /// How often the message was sent.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// The time from the call to the failure.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed
    }

    /// The ID that the message was stamped with; none if no ID could be made.
    pub fn message_id(&self) -> Option<&MessageId> {
        self.message().id()
    }

    /// The message, with its ID.
    pub fn message(&self) -> &OutgoingMessage {
        match &self.0.message {
            Returned::Stamped(stamped) => &stamped.message,
            Returned::Refused(message) => message,
        }
    }

    /// Takes the message back, with its ID: to publish it again or to store it.
    pub fn into_message(self) -> OutgoingMessage {
        match self.0.message {
            Returned::Stamped(stamped) => Arc::unwrap_or_clone(stamped).message,
            Returned::Refused(message) => message,
        }
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.kind)?;
        match self.0.attempts {
            0 => {}
            1 => f.write_str(" after 1 attempt")?,
            attempts => write!(f, " after {attempts} attempts")?,
        }
        if self.0.uncertain { f.write_str("; it may have been published") } else { Ok(()) }
    }
}

impl fmt::Debug for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishError")
            .field("kind", &self.0.kind)
            .field("attempts", &self.0.attempts)
            .field("elapsed", &self.0.elapsed)
            .field("may_have_been_published", &self.0.uncertain)
            .field("message_id", &self.message_id())
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source.as_ref() as _)
    }
}

impl PublishErrorKind {
    /// A short name for logs and counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unroutable => "unroutable",
            Self::Refused => "refused",
            Self::Nacked => "nacked",
            Self::TimedOut => "timed_out",
            Self::Disconnected => "disconnected",
            Self::Closed => "closed",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for PublishErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "the message cannot be sent",
            Self::Unroutable => "the broker has no route for the message",
            Self::Refused => "the broker refused the message",
            Self::Nacked => "the broker nacked the message",
            Self::TimedOut => "no confirm came in time",
            Self::Disconnected => "the connection to the broker was lost",
            Self::Closed => "the publisher was closed",
            Self::Full => "as many messages are in flight as the publisher allows",
        })
    }
}

/// A publish that ended without a confirm, before its message is put back beside it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: PublishErrorKind,
    pub(crate) attempts: u32,
    pub(crate) elapsed: Duration,
    pub(crate) uncertain: bool,
    pub(crate) source: Option<BoxError>,
    pub(crate) reply: Option<BrokerReply>,
}

impl Failure {
    /// Nothing was sent.
    pub(crate) fn unsent(kind: PublishErrorKind, elapsed: Duration) -> Self {
        Self { kind, attempts: 0, elapsed, uncertain: false, source: None, reply: None }
    }
}

/// What the broker said when it returned a message or closed the channel over it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code} {}", .text.escape_debug())]
pub(crate) struct BrokerReply {
    pub(crate) code: u16,
    pub(crate) text: String,
}
