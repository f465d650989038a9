//! What a message is to the guard: its identity, whether it is too old to tell, and what a record
//! of it means.

use std::time::{Duration, SystemTime};

use super::{
    guard::Guard,
    outcome::{Duplicate, DuplicateCause, Outcome},
    policy::{MismatchPolicy, MissingIdPolicy, StalePolicy},
    store::IdempotencyStore,
};
use crate::message::{Fingerprint, IdStrategy, IncomingMessage, MessageId};

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
        message.unknown_for(self.now.get()).filter(|age| *age > retention)
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
