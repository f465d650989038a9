//! The one table that turns an outcome into AMQP.

use std::time::Duration;

use crate::idempotency::Outcome;

/// What to do with a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "a delivery that is not settled is delivered again when the channel closes"]
pub enum Settlement {
    /// `basic.ack`: the message has taken effect, now or earlier.
    Ack,
    /// Deliver it again after a delay: the handler failed. Passed on to a delay queue with a confirm, and then acked; or held, and given back with
    /// `basic.reject` and requeue, which counts towards the delivery limit of a quorum queue (RabbitMQ 4.3).
    Retry {
        /// The least delay that the handler asked for; otherwise the consumer's own.
        after: Option<Duration>,
        /// How often the handler failed in this delivery.
        failures: u32,
    },
    /// Deliver it again after a delay, without counting a failure: the handler had asked for a longer one than the delay queues have.
    Defer {
        /// How much of it is left.
        after: Duration,
    },
    /// Give it back: we, or somebody else, are busy with it, or the store is away. `basic.nack` with requeue, which does not count.
    Requeue {
        /// How long to hold it before.
        after: Duration,
    },
    /// Publish it to the parking queue with a confirm, then ack.
    Park(ParkReason),
}

/// Why a message is parked; travels in the header `x-idempotency-parked-reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ParkReason {
    /// The handler refused it, or it could not be decoded.
    Rejected,
    /// The handler failed as often as the consumer allows.
    AttemptsExhausted,
    /// It has no message ID.
    MissingId,
    /// Its message ID cannot be used.
    InvalidId,
    /// Its ID was seen before with another body.
    FingerprintMismatch,
    /// It is older than the retention, and its ID is not known.
    Indeterminate,
}

impl ParkReason {
    /// The value of the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::MissingId => "missing-id",
            Self::InvalidId => "invalid-id",
            Self::FingerprintMismatch => "fingerprint-mismatch",
            Self::Indeterminate => "indeterminate",
        }
    }
}

/// How long a message is held when the store is away, so that it does not spin between broker and consumer.
const STORE_AWAY: Duration = Duration::from_secs(1);

/// The longest time for which a message is held for somebody else's lease.
const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// What an outcome means for its delivery. Pure: no outcome but a committed effect leads to a plain ack (I1).
pub fn settle(outcome: &Outcome) -> Settlement {
    match outcome {
        Outcome::Processed | Outcome::Duplicate(_) => Settlement::Ack,
        Outcome::InProgress { remaining } => Settlement::Requeue { after: (*remaining).min(LONGEST_HOLD) },
        Outcome::Retry { after, failures, .. } => Settlement::Retry { after: *after, failures: *failures },
        Outcome::TooEarly { remaining } => Settlement::Defer { after: *remaining },
        Outcome::Reject { .. } => Settlement::Park(ParkReason::Rejected),
        Outcome::FingerprintMismatch { .. } => Settlement::Park(ParkReason::FingerprintMismatch),
        Outcome::Indeterminate { .. } => Settlement::Park(ParkReason::Indeterminate),
        Outcome::MissingId => Settlement::Park(ParkReason::MissingId),
        Outcome::InvalidId { .. } => Settlement::Park(ParkReason::InvalidId),
        Outcome::StoreUnavailable { .. } => Settlement::Requeue { after: STORE_AWAY },
        // The next claim tells what happened.
        Outcome::LeaseLost => Settlement::Requeue { after: Duration::ZERO },
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        idempotency::{Duplicate, StoreError, StoreErrorKind},
        message::{Fingerprint, IncomingMessage},
    };

    #[test]
    fn every_outcome_has_its_settlement() {
        let message = IncomingMessage::new("body");
        let print = Fingerprint::of(b"x");
        let second = Duration::from_secs(1);
        let table = [
            (Outcome::Processed, Settlement::Ack),
            (Outcome::Duplicate(Duplicate::new(&message, SystemTime::UNIX_EPOCH)), Settlement::Ack),
            (Outcome::InProgress { remaining: second }, Settlement::Requeue { after: second }),
            (Outcome::InProgress { remaining: second * 3600 }, Settlement::Requeue { after: LONGEST_HOLD }),
            (
                Outcome::Retry { after: Some(second), failures: 3, error: "e".into() },
                Settlement::Retry { after: Some(second), failures: 3 },
            ),
            (Outcome::TooEarly { remaining: second * 3600 }, Settlement::Defer { after: second * 3600 }),
            (Outcome::Reject { error: "e".into() }, Settlement::Park(ParkReason::Rejected)),
            (
                Outcome::FingerprintMismatch { stored: print, found: print },
                Settlement::Park(ParkReason::FingerprintMismatch),
            ),
            (Outcome::Indeterminate { age: second }, Settlement::Park(ParkReason::Indeterminate)),
            (Outcome::MissingId, Settlement::Park(ParkReason::MissingId)),
            (Outcome::InvalidId { error: "e".into() }, Settlement::Park(ParkReason::InvalidId)),
            (
                Outcome::StoreUnavailable { error: StoreError::from(StoreErrorKind::OutcomeUnknown) },
                Settlement::Requeue { after: STORE_AWAY },
            ),
            (Outcome::LeaseLost, Settlement::Requeue { after: Duration::ZERO }),
        ];
        for (outcome, expected) in table {
            assert_eq!(settle(&outcome), expected, "{}", outcome.name());
            assert_eq!(settle(&outcome) == Settlement::Ack, outcome.is_handled(), "{}", outcome.name());
        }
    }
}
