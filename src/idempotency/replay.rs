//! Replays: messages that take effect once more, on purpose, and once.

use super::{
    claim::{ClaimRequest, Claims, Record},
    key::Scope,
};
use crate::message::{Epoch, MessageId};

/// What becomes of a message that says it is of a replay
/// ([`OutgoingMessage::replay`](crate::OutgoingMessage::replay)).
///
/// Anybody can set a header, so it decides nothing by itself: an opening in the store's database
/// does, or a list in the code.
///
/// A message that is honoured is **another identity**, (scope, message ID, epoch): it takes effect
/// once, however often it is delivered, and a copy of the original stays a duplicate. Its handler
/// has the original's [`identity`](crate::IncomingMessage::identity), so that the messages that it
/// sends have the IDs which they had the first time, and other scopes drop them; so do systems that
/// know its effect keys. It may be of any age. Its body must be the original's, as far as that is
/// known, unless [`MismatchPolicy::Duplicate`](super::MismatchPolicy) says that bodies do not
/// count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ReplayPolicy {
    /// The header means nothing: a copy of what took effect is a duplicate.
    #[default]
    Ignore,
    /// It takes effect if its epoch is open in the scope, as `store::Replays` opens it; otherwise
    /// the outcome is [`Outcome::ReplayRefused`](super::Outcome::ReplayRefused), and the consumer
    /// parks it. For SQL stores.
    ///
    /// The opening is locked until the effect is committed, and what took effect is recorded in the
    /// same commit. A replay of what is not known to have taken effect counts as its first effect,
    /// too.
    Opened,
    /// It takes effect if its epoch is one of these; otherwise the outcome is
    /// [`Outcome::ReplayRefused`](super::Outcome::ReplayRefused), and the consumer parks it. For
    /// every store; what took effect is logged and nothing more.
    ///
    /// The claim is as good as the store's others, and its memory as long. The original's record is
    /// not looked at: what never took effect is to come without the header, or its original may do
    /// so as well.
    Listed(Vec<Epoch>),
}

/// What a guard asks its store for a message of a replay:
/// [`IdempotencyStore::claim_replay`](super::IdempotencyStore::claim_replay).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayRequest {
    /// The identity of the original, and the fingerprint of the message that asks.
    pub original: ClaimRequest,
    /// The replay.
    pub epoch: Epoch,
    /// What is to be claimed, in the same scope: [`replay_id`].
    pub replay_id: MessageId,
}

impl ReplayRequest {
    /// Asks for the replay of an original.
    pub fn new(original: ClaimRequest, epoch: Epoch) -> Self {
        let replay_id = replay_id(&original.scope, &original.message_id, &epoch);
        Self { original, epoch, replay_id }
    }

    /// The claim on what takes effect in the replay.
    pub fn claim(&self) -> ClaimRequest {
        ClaimRequest { message_id: self.replay_id.clone(), ..self.original.clone() }
    }
}

/// A store's answer to a [`ReplayRequest`].
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "a claim that is not acted on loses a message or doubles its effect"]
pub enum ReplayClaim<S> {
    /// The epoch is not open in this scope.
    Refused,
    /// It is open, or the message has taken effect in it.
    #[non_exhaustive]
    Open {
        /// One answer, to [`ReplayRequest::claim`].
        claims: Claims<S>,
        /// What was known of the original.
        original: Option<Record>,
    },
}

impl<S> ReplayClaim<S> {
    /// For stores: the epoch is open, with the answer to [`ReplayRequest::claim`], and what was
    /// known of the original.
    pub fn open(claims: Claims<S>, original: Option<Record>) -> Self {
        Self::Open { claims, original }
    }
}

/// The ID that a message is remembered under in a replay: of its original's scope and ID, and the
/// epoch.
///
/// ```
/// use lapin_idempotent::{MessageId, Scope, idempotency::replay_id, message::Epoch};
///
/// # fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let (scope, id) = (Scope::new("ledger")?, MessageId::new("order-42")?);
/// let of = |epoch: &str| Ok::<_, lapin_idempotent::BoxError>(replay_id(&scope, &id, &Epoch::new(epoch)?));
/// assert_eq!(of("vat")?, of("vat")?);
/// assert_ne!(of("vat")?, of("fees")?);
/// # Ok(())
/// # }
/// ```
pub fn replay_id(scope: &Scope, message_id: &MessageId, epoch: &Epoch) -> MessageId {
    // As for `effect_key`: the length keeps scope and epoch apart.
    message_id.derive(&format!("replay:{}:{scope}:{epoch}", scope.as_str().len()))
}
