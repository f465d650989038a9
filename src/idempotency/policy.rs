//! What the guard does where the protocol leaves a choice.

use std::time::{Duration, SystemTime};

use super::{
    guard::Guard,
    outcome::{Duplicate, DuplicateCause, Outcome},
    store::IdempotencyStore,
};
use crate::message::{Fingerprint, IdStrategy, IncomingMessage, MessageId};

/// What happens to a message whose ID took effect with another body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MismatchPolicy {
    /// The outcome is [`Outcome::FingerprintMismatch`], and the consumer parks it: two different messages share an ID, and one of them would be lost.
    #[default]
    Park,
    /// It counts as a duplicate, of cause [`DuplicateCause::IdReuse`]: for publishers that change the body between two attempts,
    /// by a time of sending for example.
    Duplicate,
}

/// What happens to a message that is older than the retention, if its ID is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StalePolicy {
    /// It is not handled; the outcome is [`Outcome::Indeterminate`], and the consumer parks it.
    #[default]
    Park,
    /// It is handled, at the risk of a second effect.
    Handle,
}

/// What happens to a message without an ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MissingIdPolicy {
    /// It is not handled; the outcome is [`Outcome::MissingId`], and the consumer parks it.
    #[default]
    Park,
    /// Its ID is the hash of its body ([`IdStrategy::content`]): two messages with equal bodies are one message.
    DeriveFromContent,
    /// It is handled at every delivery, under a random ID: no protection from duplicates.
    HandleUnguarded,
}

impl<S: IdempotencyStore> Guard<S> {
    /// The identity of a message; its outcome if it has none.
    pub(super) fn identify(&self, message: &IncomingMessage) -> Result<MessageId, Outcome> {
        let invalid = |error| Outcome::InvalidId { error };
        match (self.key.id(message).map_err(invalid)?, self.missing_id) {
            (Some(id), _) => Ok(id),
            (None, MissingIdPolicy::Park) => Err(Outcome::MissingId),
            (None, MissingIdPolicy::DeriveFromContent) => {
                IdStrategy::content().derive_from_body(message.body()).map_err(|error| invalid(error.into()))
            }
            (None, MissingIdPolicy::HandleUnguarded) => Ok(MessageId::random()),
        }
    }

    /// The age of a message that is too old to be handled without a record of it.
    pub(super) fn too_old(&self, message: &IncomingMessage) -> Option<Duration> {
        let retention = self.retention.filter(|_| self.stale == StalePolicy::Park)?;
        message.unknown_for(SystemTime::now()).filter(|age| *age > retention)
    }

    /// The outcome of a message whose ID has taken effect.
    pub(super) fn known(
        &self,
        message: &IncomingMessage,
        processed_at: SystemTime,
        stored: Fingerprint,
        found: Fingerprint,
    ) -> Outcome {
        if stored == found {
            return Outcome::Duplicate(Duplicate::new(message, processed_at));
        }
        match self.mismatch {
            MismatchPolicy::Park => Outcome::FingerprintMismatch { stored, found },
            MismatchPolicy::Duplicate => Outcome::Duplicate(Duplicate {
                cause: DuplicateCause::IdReuse,
                fingerprint: stored,
                processed_at,
            }),
        }
    }
}
