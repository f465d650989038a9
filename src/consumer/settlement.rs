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
    /// Try it again after a delay: the handler failed. Pass it on to a delay queue with a confirm
    /// and then ack it; or hold it, and ask the guard again.
    ///
    /// Giving it back instead (`basic.nack` or `basic.reject` with requeue) counts towards the
    /// delivery limit of a quorum queue: 20 by default since RabbitMQ 4.0, and what exceeds it is
    /// dead-lettered or, without a dead-letter exchange, deleted.
    Retry {
        /// The least delay that the handler asked for; otherwise the consumer's own.
        after: Option<Duration>,
        /// How often the handler failed in this delivery.
        failures: u32,
    },
    /// Try it again after a delay, without counting a failure: the handler had asked for a longer
    /// one than the delay queues have.
    Defer {
        /// How much of it is left.
        after: Duration,
    },
    /// Hold it unacknowledged, and ask the guard again: it is not the message's own failure. The
    /// store or what the handler depends on is away, somebody else is busy with it, a lease was
    /// lost, or rivals stood in the way.
    ///
    /// Not `basic.nack` with requeue: up to RabbitMQ 4.2 each return counts towards the delivery
    /// limit of a quorum queue, and a store that is away for some minutes would use it up.
    Hold {
        /// How long to wait before the guard is asked again.
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
    /// The store's database refuses its ID, and takes others.
    RefusedByStore,
    /// Its ID was seen before with another body.
    FingerprintMismatch,
    /// It is older than the retention, and its ID is not known.
    Indeterminate,
    /// It is of a replay that is not open in the consumer's scope.
    ReplayRefused,
    /// Its consumers died with it, again and again, the last times with nothing else in hand.
    ConsumerDied,
    /// It took effect, and no queue took its reply: see [`UnclaimedReply`](super::UnclaimedReply).
    ReplyUnclaimed,
    /// It took effect, and its reply cannot be sent: it does not fit into a frame, is larger than
    /// the broker's limit, or the broker closed the channel over it.
    ReplyRefused,
    /// It took effect, and its reply is not there: see [`LostReply`](super::LostReply).
    ReplyLost,
}

impl ParkReason {
    /// The value of the header.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::AttemptsExhausted => "attempts-exhausted",
            Self::MissingId => "missing-id",
            Self::InvalidId => "invalid-id",
            Self::RefusedByStore => "refused-by-store",
            Self::FingerprintMismatch => "fingerprint-mismatch",
            Self::Indeterminate => "indeterminate",
            Self::ReplayRefused => "replay-refused",
            Self::ConsumerDied => "consumer-died",
            Self::ReplyUnclaimed => "reply-unclaimed",
            Self::ReplyRefused => "reply-refused",
            Self::ReplyLost => "reply-lost",
        }
    }
}

/// How long to wait before something that is away is asked again.
const AWAY: Duration = Duration::from_secs(1);

/// How long rivals are left alone.
const CONFLICT: Duration = Duration::from_secs(1);

/// The longest time to wait for somebody else's lease before the guard is asked again: it may have
/// been released.
const LONGEST_HOLD: Duration = Duration::from_secs(10);

/// What an outcome means for its delivery. Pure: no outcome but a committed effect leads to a plain
/// ack (I1).
///
/// ```
/// use lapin_idempotent::{Outcome, consumer::{ParkReason, Settlement, settle}};
///
/// assert_eq!(settle(&Outcome::Processed), Settlement::Ack);
/// assert_eq!(settle(&Outcome::MissingId), Settlement::Park(ParkReason::MissingId));
/// assert!(matches!(settle(&Outcome::LeaseLost), Settlement::Hold { .. }));
/// ```
pub fn settle(outcome: &Outcome) -> Settlement {
    match outcome {
        Outcome::Processed | Outcome::Duplicate(_) => Settlement::Ack,
        Outcome::InProgress { remaining } => Settlement::Hold { after: (*remaining).min(LONGEST_HOLD) },
        Outcome::Retry { after, failures, .. } => Settlement::Retry { after: *after, failures: *failures },
        Outcome::TooEarly { remaining } => Settlement::Defer { after: *remaining },
        Outcome::Reject { .. } => Settlement::Park(ParkReason::Rejected),
        Outcome::FingerprintMismatch { .. } => Settlement::Park(ParkReason::FingerprintMismatch),
        Outcome::Indeterminate { .. } => Settlement::Park(ParkReason::Indeterminate),
        Outcome::ReplayRefused { .. } => Settlement::Park(ParkReason::ReplayRefused),
        Outcome::MissingId => Settlement::Park(ParkReason::MissingId),
        Outcome::InvalidId { .. } => Settlement::Park(ParkReason::InvalidId),
        Outcome::Refused { .. } => Settlement::Park(ParkReason::RefusedByStore),
        // The next claim tells what happened.
        Outcome::StoreUnavailable { .. } => Settlement::Hold { after: AWAY },
        Outcome::DependencyUnavailable { .. } => Settlement::Hold { after: AWAY },
        Outcome::Conflict { .. } => Settlement::Hold { after: CONFLICT },
        Outcome::LeaseLost => Settlement::Hold { after: Duration::ZERO },
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
            (Outcome::InProgress { remaining: second }, Settlement::Hold { after: second }),
            (Outcome::InProgress { remaining: second * 3600 }, Settlement::Hold { after: LONGEST_HOLD }),
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
            (Outcome::ReplayRefused { epoch: "vat".into() }, Settlement::Park(ParkReason::ReplayRefused)),
            (Outcome::MissingId, Settlement::Park(ParkReason::MissingId)),
            (Outcome::InvalidId { error: "e".into() }, Settlement::Park(ParkReason::InvalidId)),
            (
                Outcome::Refused { error: StoreError::from(StoreErrorKind::Refused) },
                Settlement::Park(ParkReason::RefusedByStore),
            ),
            (
                Outcome::StoreUnavailable { error: StoreError::from(StoreErrorKind::OutcomeUnknown) },
                Settlement::Hold { after: AWAY },
            ),
            (Outcome::DependencyUnavailable { error: "e".into() }, Settlement::Hold { after: AWAY }),
            (Outcome::Conflict { error: "e".into() }, Settlement::Hold { after: CONFLICT }),
            (Outcome::LeaseLost, Settlement::Hold { after: Duration::ZERO }),
        ];
        for (outcome, expected) in table {
            assert_eq!(settle(&outcome), expected, "{}", outcome.name());
            assert_eq!(settle(&outcome) == Settlement::Ack, outcome.is_handled(), "{}", outcome.name());
            let away =
                expected == Settlement::Hold { after: AWAY } && outcome.name().ends_with("_unavailable");
            assert_eq!(away, outcome.is_unavailable(), "{}", outcome.name());
        }
    }
}
