//! What a handler's message is to the guard: under which identity it takes effect.

use std::{ops::Deref, sync::Arc};

use super::{
    claim::ClaimRequest,
    key::{Scope, effect_key},
    replay::replay_id,
};
use crate::message::{Epoch, IncomingMessage, MessageId, Taken};

/// The identity under which a message takes effect once: the guard's scope, and the message's
/// effective ID.
///
/// Cloning is cheap.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    scope: Scope,
    message_id: MessageId,
}

impl Identity {
    /// The consumer's identity.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The message's identity: what the [`KeySource`](super::KeySource) made of it, which need not
    /// be [`IncomingMessage::id`].
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// A key for one step of the handler: see [`effect_key`].
    pub fn effect_key(&self, step: &str) -> MessageId {
        effect_key(&self.scope, &self.message_id, step)
    }

    /// What is claimed for it in a replay.
    pub(crate) fn in_epoch(self, epoch: &Epoch) -> Self {
        Self { message_id: replay_id(&self.scope, &self.message_id, epoch), ..self }
    }
}

/// What the guard makes known to the handler.
impl IncomingMessage {
    /// The identity under which this message takes effect: the scope, and the ID that the guard
    /// claimed, also where the [`KeySource`](super::KeySource) is not the message ID or the ID was
    /// derived from the content.
    ///
    /// `None` before a guard looked at the message; never in a handler that a guard calls, whatever
    /// the store, alone or in a batch. With
    /// [`MissingIdPolicy::HandleUnguarded`](super::MissingIdPolicy) a message without an ID has a
    /// random one, another at each delivery. In a [replay](super::ReplayPolicy) it is the
    /// original's.
    ///
    /// ```
    /// # use lapin_idempotent::{Guard, HandlerResult, IdempotentHandler, IncomingMessage, MemoryStore, Outcome};
    /// # use lapin_idempotent::idempotency::{KeySource, Lease, Scope};
    /// struct Charge;
    ///
    /// impl IdempotentHandler<MemoryStore> for Charge {
    ///     async fn handle(&self, message: &IncomingMessage, _: &mut Lease) -> HandlerResult {
    ///         let identity = message.identity().expect("a guard calls this");
    ///         assert_eq!(identity.scope().as_str(), "billing");
    ///         assert_eq!(identity.message_id().as_str(), "order-42");
    ///         Ok(())
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), lapin_idempotent::BoxError> {
    /// let guard = Guard::new(MemoryStore::new(100), Scope::new("billing")?).key(KeySource::header("order"));
    /// let message = IncomingMessage::new("500").with_header("order", "order-42");
    /// assert_eq!(message.identity(), None);
    /// assert!(matches!(guard.process(&message, &Charge).await, Outcome::Processed));
    /// # Ok(())
    /// # }
    /// ```
    pub fn identity(&self) -> Option<Identity> {
        let (scope, message_id, _) = self.identity.get()?;
        Some(Identity { scope: Scope(Arc::clone(scope)), message_id: message_id.clone() })
    }

    /// A key for one step of handling this message, for a system that a handler calls and that
    /// knows idempotency keys: see [`effect_key`]. `None` where [`identity`](Self::identity) is.
    ///
    /// ```
    /// # use lapin_idempotent::{IncomingMessage, MessageId, idempotency::{Scope, effect_key}};
    /// # fn main() -> Result<(), lapin_idempotent::BoxError> {
    /// let (scope, id) = (Scope::new("billing")?, MessageId::new("order-42")?);
    /// let message = IncomingMessage::new("500").with_identity(scope.clone(), id.clone());
    /// assert_eq!(message.effect_key("charge"), Some(effect_key(&scope, &id, "charge")));
    /// # Ok(())
    /// # }
    /// ```
    pub fn effect_key(&self, step: &str) -> Option<MessageId> {
        Some(self.identity()?.effect_key(step))
    }

    /// Sets the identity, as a guard does before it calls the handler: for a test of a handler
    /// without one. A guard that takes the message gives its handler its own.
    #[must_use]
    pub fn with_identity(mut self, scope: Scope, message_id: MessageId) -> Self {
        self.identity = (scope.0, message_id, None).into();
        self
    }
}

/// A message with the identity that it is claimed under.
pub(super) enum Identified<'m> {
    Itself(&'m IncomingMessage),
    /// Another guard took it before: under its own scope, or another ID.
    Clone(Box<IncomingMessage>),
}

impl Deref for Identified<'_> {
    type Target = IncomingMessage;

    fn deref(&self) -> &IncomingMessage {
        match self {
            Self::Itself(message) => message,
            Self::Clone(message) => message,
        }
    }
}

/// Makes known what a message is claimed under, unless a guard did so before.
pub(super) fn known_as<'m>(
    message: &'m IncomingMessage,
    request: &ClaimRequest,
    taken: Option<&Taken>,
) -> &'m (Arc<str>, MessageId, Option<Taken>) {
    let ClaimRequest { scope, message_id, .. } = request;
    message.identity.get_or_init(|| (Arc::clone(&scope.0), message_id.clone(), taken.cloned()))
}

/// The message with the identity of a request, and in the epoch of a replay.
pub(super) fn identified<'m>(
    message: &'m IncomingMessage,
    request: &ClaimRequest,
    taken: Option<&Taken>,
) -> Identified<'m> {
    let (scope, id, known) = known_as(message, request, taken);
    if *scope == request.scope.0 && *id == request.message_id && known.as_ref() == taken {
        Identified::Itself(message)
    } else {
        // What its handler answers is looked for at the message itself.
        message.at_hand.share();
        let mut clone = message.clone();
        clone.identity = (Arc::clone(&request.scope.0), request.message_id.clone(), taken.cloned()).into();
        Identified::Clone(Box::new(clone))
    }
}
