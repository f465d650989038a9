//! What the guard does where the protocol leaves a choice.

#[cfg(doc)]
use super::outcome::{DuplicateCause, Outcome};
#[cfg(doc)]
use crate::message::IdStrategy;

/// What happens to a message whose ID took effect with another body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MismatchPolicy {
    /// The outcome is [`Outcome::FingerprintMismatch`], and the consumer parks it: two different
    /// messages share an ID, and one of them would be lost.
    #[default]
    Park,
    /// It counts as a duplicate, of cause [`DuplicateCause::IdReuse`]: for publishers that change
    /// the body between two attempts, by a time of sending for example.
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
    /// Its ID is the hash of its body ([`IdStrategy::content`]): two messages with equal bodies are
    /// one message.
    DeriveFromContent,
    /// It is handled at every delivery, under a random ID: no protection from duplicates.
    HandleUnguarded,
}
