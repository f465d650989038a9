//! What the guard decided about one delivery.

use std::time::{Duration, SystemTime};

use super::store::StoreError;
use crate::{
    error::{BoxError, Chain},
    message::{Fingerprint, IncomingMessage},
};

/// What became of one delivery. `consumer::settle` says what to do with it: ack it, hold it, try it
/// again later, or park it.
///
/// ```
/// # use lapin_idempotent::Outcome;
/// fn told(outcome: &Outcome) -> String {
///     match outcome {
///         Outcome::Processed => "took effect".into(),
///         Outcome::Duplicate(duplicate) => format!("had taken effect: {:?}", duplicate.cause),
///         Outcome::Retry { error, .. } | Outcome::Reject { error } => format!("failed: {error}"),
///         other => other.name().into(),
///     }
/// }
/// assert_eq!(told(&Outcome::MissingId), "missing_id");
/// ```
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "an outcome that is not settled leaves its delivery unacknowledged"]
pub enum Outcome {
    /// The handler ran and its effect is committed.
    Processed,
    /// The effect was committed before; the handler did not run.
    Duplicate(Duplicate),
    /// Another consumer is at it.
    InProgress {
        /// How long its lease still runs, unless it is renewed.
        remaining: Duration,
    },
    /// A rival's transaction stood in the way, each of several times in a row (a deadlock, a
    /// serialization failure). Nothing was committed, and it is not the handler's failure.
    Conflict {
        /// What the store or the handler said.
        error: BoxError,
    },
    /// The handler failed and asks for another try. Nothing was committed.
    Retry {
        /// The least delay that the handler asked for.
        after: Option<Duration>,
        /// How often the handler failed in this delivery: more than once if it was tried again at
        /// once.
        failures: u32,
        /// What the handler said.
        error: BoxError,
    },
    /// The handler refused the message for good. Nothing was committed.
    Reject {
        /// What the handler said.
        error: BoxError,
    },
    /// The ID was seen before with another body: two different messages share one ID.
    FingerprintMismatch {
        /// The fingerprint that the ID was completed with.
        stored: Fingerprint,
        /// The fingerprint of this message.
        found: Fingerprint,
    },
    /// The message is older than the retention and its ID is not known: it may never have taken
    /// effect, or its ID may have been forgotten. The handler did not run.
    Indeterminate {
        /// How old it is, by its ID or timestamp.
        age: Duration,
    },
    /// The message says that it is of a replay, which is not open in this scope, or that the guard
    /// was not told of. The handler did not run.
    ReplayRefused {
        /// The epoch that it names; empty if that is no text.
        epoch: String,
    },
    /// The handler asked for a delay that has not passed. It did not run.
    TooEarly {
        /// How much of it is left.
        remaining: Duration,
    },
    /// The message has no ID.
    MissingId,
    /// The message has an ID that cannot be used.
    InvalidId {
        /// What is wrong with it.
        error: BoxError,
    },
    /// The store takes others and refuses this one, twice: by a constraint or a trigger of its
    /// table, an encoding without one of the ID's characters, a column that is too short. The
    /// handler did not run.
    Refused {
        /// What the store said.
        error: StoreError,
    },
    /// The store could not be asked, or the outcome of the commit is unknown. The guard must be
    /// asked again.
    StoreUnavailable {
        /// What the store said.
        error: StoreError,
    },
    /// The handler said that what it depends on is away
    /// ([`HandlerError::unavailable`](super::HandlerError::unavailable)), or it did so for another
    /// message of the batch and was not asked for this one. Nothing was committed.
    DependencyUnavailable {
        /// What the handler said.
        error: BoxError,
    },
    /// The lease ran out before the work was complete. The effect, if it was outside of the
    /// session, may repeat.
    LeaseLost,
}

/// Why a handler failed that did not get as far as to tell whether what it depends on is there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Inconclusive(#[source] pub(super) BoxError);

impl Outcome {
    /// A short name for logs and counters.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Processed => "processed",
            Self::Duplicate(_) => "duplicate",
            Self::InProgress { .. } => "in_progress",
            Self::Conflict { .. } => "conflict",
            Self::Retry { .. } => "retry",
            Self::Reject { .. } => "reject",
            Self::FingerprintMismatch { .. } => "fingerprint_mismatch",
            Self::Indeterminate { .. } => "indeterminate",
            Self::ReplayRefused { .. } => "replay_refused",
            Self::TooEarly { .. } => "too_early",
            Self::MissingId => "missing_id",
            Self::InvalidId { .. } => "invalid_id",
            Self::Refused { .. } => "refused",
            Self::StoreUnavailable { .. } => "store_unavailable",
            Self::DependencyUnavailable { .. } => "dependency_unavailable",
            Self::LeaseLost => "lease_lost",
        }
    }

    /// What the handler or the store said, or what is wrong with the message, for people.
    pub(crate) fn error_text(&self) -> Option<String> {
        match self {
            Self::Retry { error, .. }
            | Self::Reject { error }
            | Self::InvalidId { error }
            | Self::Conflict { error }
            | Self::DependencyUnavailable { error } => Some(Chain(&**error).to_string()),
            Self::Refused { error } | Self::StoreUnavailable { error } => Some(Chain(error).to_string()),
            Self::FingerprintMismatch { stored, found } => {
                Some(format!("the ID was completed with body {stored}, this body is {found}"))
            }
            Self::ReplayRefused { epoch } => Some(format!("the replay {epoch:?} is not open here")),
            _ => None,
        }
    }

    /// Whether the message has taken effect, now or earlier.
    pub fn is_handled(&self) -> bool {
        matches!(self, Self::Processed | Self::Duplicate(_))
    }

    /// Whether the handler ran until it was done, and did not say that what it depends on is away.
    pub(crate) fn has_used_dependencies(&self) -> bool {
        match self {
            Self::Processed | Self::Reject { .. } => true,
            Self::Retry { error, .. } => !error.is::<Inconclusive>(),
            _ => false,
        }
    }

    /// Whether it says nothing of its message, and that the next one would fare no better: the
    /// store could not be asked, or what the handler depends on is away. Besides holding this
    /// message, a consume loop should take nothing until the time of the settlement is over, and
    /// then try one message before all others: not the same one again and again, as it may be that
    /// one alone.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::StoreUnavailable { .. } | Self::DependencyUnavailable { .. })
    }
}

/// A delivery whose effect had been committed before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Duplicate {
    /// Where the copy most likely comes from.
    pub cause: DuplicateCause,
    /// The hash of the body that took effect.
    pub fingerprint: Fingerprint,
    /// When the effect was committed, by the store's clock.
    pub processed_at: SystemTime,
}

impl Duplicate {
    /// A copy of what took effect.
    pub(crate) fn new(message: &IncomingMessage, processed_at: SystemTime) -> Self {
        let cause = if message.redelivered() {
            DuplicateCause::BrokerRedelivery
        } else if message.is_replay() || message.claimed_epoch().is_some() {
            DuplicateCause::Replayed
        } else if message.failures() > 0 {
            DuplicateCause::DelayedRedelivery
        } else if message.attempt().is_some() {
            DuplicateCause::PublisherRetry
        } else {
            DuplicateCause::Republished
        };
        Self { cause, fingerprint: message.fingerprint(), processed_at }
    }
}

/// Why a copy of a handled message was delivered.
///
/// Told from the delivery itself, as far as it shows: the broker's `redelivered` flag first, then
/// the headers of the consumer and the publisher. It explains duplicates; it never decides whether
/// something is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DuplicateCause {
    /// At delivery or rebalance: the broker delivered the same copy again, because its ack did not
    /// arrive.
    BrokerRedelivery,
    /// At sending: the publisher sent the message again, because its confirm did not arrive.
    PublisherRetry,
    /// At delivery: the consumer passed the message on to a delay queue, and the ack of the
    /// original did not arrive.
    DelayedRedelivery,
    /// An operator put it back into its queue after it was parked, or it was sent again in a
    /// [replay](super::ReplayPolicy).
    Replayed,
    /// The application published the same ID and body anew.
    Republished,
    /// The application published another body under the same ID, which
    /// [`MismatchPolicy::Duplicate`](super::MismatchPolicy) lets pass.
    IdReuse,
}

impl DuplicateCause {
    /// A short name for logs and counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::BrokerRedelivery => "broker_redelivery",
            Self::PublisherRetry => "publisher_retry",
            Self::DelayedRedelivery => "delayed_redelivery",
            Self::Replayed => "replayed",
            Self::Republished => "republished",
            Self::IdReuse => "id_reuse",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_explained_by_what_it_carries() {
        let message = IncomingMessage::new("");
        let cause = |message: &IncomingMessage| Duplicate::new(message, SystemTime::UNIX_EPOCH).cause;
        assert_eq!(cause(&message), DuplicateCause::Republished);
        let retried = message.with_header("x-idempotency-attempt", 2);
        assert_eq!(cause(&retried), DuplicateCause::PublisherRetry);
        let delayed = retried.with_header("x-idempotency-failures", 3);
        assert_eq!(cause(&delayed), DuplicateCause::DelayedRedelivery);
        let replayed = delayed.with_header("x-idempotency-unparked", 1);
        assert_eq!(cause(&replayed), DuplicateCause::Replayed);
        assert_eq!(cause(&replayed.with_redelivered(true)), DuplicateCause::BrokerRedelivery);
    }
}
