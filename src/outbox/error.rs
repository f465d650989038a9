//! Why a message was not enqueued.

use crate::{
    idempotency::StoreError,
    message::{InvalidMessage, OutgoingMessage},
};

/// A message was not enqueued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The message itself cannot be published. Nothing was sent to the database, and the
    /// transaction is as usable as before.
    #[error("the message cannot be sent")]
    Invalid {
        /// The message.
        message: Box<OutgoingMessage>,
        /// What is wrong with it.
        source: InvalidMessage,
    },
    /// The table did not take it. Most databases can then not commit the transaction any more.
    #[error("the outbox did not take the message")]
    Store(#[from] StoreError),
}

impl EnqueueError {
    /// The message, if it is one that cannot be published.
    pub fn into_message(self) -> Option<OutgoingMessage> {
        match self {
            Self::Invalid { message, .. } => Some(*message),
            Self::Store(_) => None,
        }
    }
}
