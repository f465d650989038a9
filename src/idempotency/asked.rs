//! What the guard asks for one message, and what it has without a session.

use super::{claim::ClaimRequest, outcome::Outcome, store::StoreError};
use crate::message::{Epoch, Taken};

/// What is asked of the store for one message.
pub(super) struct Asked {
    /// Of the message itself, or of its original.
    pub(super) request: ClaimRequest,
    pub(super) replay: Option<Replay>,
}

/// A replay that is to be honoured.
pub(super) struct Replay {
    pub(super) epoch: Epoch,
    /// Whether the store has to say that it is open.
    pub(super) opened: bool,
}

impl Asked {
    /// What a message is known as, that is handled or was.
    pub(super) fn taken(&self, is_first: bool) -> Option<Taken> {
        let Replay { epoch, .. } = self.replay.as_ref()?;
        Some(Taken { epoch: epoch.clone(), is_first })
    }

    pub(super) fn epoch(&self) -> Option<&Epoch> {
        self.replay.as_ref().map(|replay| &replay.epoch)
    }
}

/// Why there is nothing for a handler to do.
pub(super) enum NoSession {
    Decided(Outcome),
    /// A rival's transaction stood in the way.
    Conflict(StoreError),
}

impl From<Outcome> for NoSession {
    fn from(outcome: Outcome) -> Self {
        Self::Decided(outcome)
    }
}
