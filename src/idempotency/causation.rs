//! Messages that a handler sends because of the one that it handles.

use crate::message::{IncomingMessage, OutgoingMessage};

/// The message that is to be the cause has no identity: no guard has taken it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the message that causes another has no identity: only in a handler that a guard calls it has")]
pub struct NoIdentity;

/// # Causation
impl OutgoingMessage {
    /// Makes this a message that a handler sends because of the one that it handles, in a step of
    /// its own, such as `"shipped"`.
    ///
    /// * Its ID is [`IncomingMessage::effect_key`] of the step, unless it has an ID or a key: every
    ///   run of the handler for one identity gives the same step the same ID, and the next guard
    ///   drops what comes twice. Steps of one handler must have different names, also in a loop:
    ///   `&format!("shipped/{n}")`. Other scopes make other IDs of the same step.
    /// * Its `correlation_id` is that of the cause, or the cause's ID, unless one is set.
    /// * It belongs to the trace of the cause, unless it has one.
    ///
    /// Where it is enqueued in the handler's transaction
    /// ([`outbox`](crate::outbox)), it is committed with the effect or not at all, and an ID of its
    /// own would do. Where the handler has a lease, or publishes by itself, a message may be sent
    /// by a run whose effect is repeated later: then its ID must be this one.
    ///
    /// # Errors
    ///
    /// [`NoIdentity`] outside of a handler; a test sets one with
    /// [`IncomingMessage::with_identity`].
    ///
    /// ```
    /// use lapin_idempotent::{IncomingMessage, MessageId, OutgoingMessage, Scope};
    ///
    /// # fn main() -> Result<(), lapin_idempotent::BoxError> {
    /// let order = IncomingMessage::new("42").with_identity(Scope::new("shipping")?, MessageId::new("order-42")?);
    /// let shipped = OutgoingMessage::to("mail", "shipped").caused_by(&order, "shipped")?;
    /// assert_eq!(shipped.id(), order.effect_key("shipped").as_ref());
    /// # Ok(())
    /// # }
    /// ```
    pub fn caused_by(self, cause: &IncomingMessage, step: &str) -> Result<Self, NoIdentity> {
        let identity = cause.identity().ok_or(NoIdentity)?;
        let mut message = self;
        if !message.has_identity() {
            message = message.message_id(identity.effect_key(step));
        }
        if message.extra().is_none_or(|extra| extra.correlation_id.is_none()) {
            let correlation = cause.correlation_id().unwrap_or_else(|| identity.message_id().as_str());
            message = message.correlation_id(correlation);
        }
        if !message.has_trace()
            && let Some(context) = cause.trace_context()
        {
            message = message.trace_context(&context);
        }
        Ok(message)
    }

    /// Has what follows from a replay take effect once more, too: puts it into the epoch that its
    /// cause is handled in ([`IncomingMessage::replay_epoch`]), if there is one, and changes
    /// nothing else.
    ///
    /// Without it the messages that a replay sends have the IDs which they had the first time
    /// ([`caused_by`](Self::caused_by)), and whoever gets them drops them. With it each scope that
    /// gets them takes them for a replay, and parks them unless it has opened the same epoch.
    ///
    /// ```
    /// # use lapin_idempotent::{IncomingMessage, OutgoingMessage, idempotency::NoIdentity};
    /// fn shipped(order: &IncomingMessage) -> Result<OutgoingMessage, NoIdentity> {
    ///     Ok(OutgoingMessage::to("mail", "shipped").caused_by(order, "shipped")?.cascade(order))
    /// }
    /// ```
    pub fn cascade(self, cause: &IncomingMessage) -> Self {
        match cause.taken_epoch() {
            Some(epoch) => self.in_epoch(epoch.clone()),
            None => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        idempotency::Scope,
        message::{Epoch, MessageId, TraceContext},
    };

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn cause(scope: &str) -> IncomingMessage {
        let id = MessageId::new("order-42").unwrap();
        IncomingMessage::new("500")
            .with_header("traceparent", TRACE)
            .with_identity(Scope::new(scope).unwrap(), id)
    }

    fn child() -> OutgoingMessage {
        OutgoingMessage::to("mail", "shipped")
    }

    fn id(message: &OutgoingMessage) -> MessageId {
        message.id().expect("an ID").clone()
    }

    #[test]
    fn rerun_makes_the_same_child_ids() {
        let first = id(&child().caused_by(&cause("billing"), "done").unwrap());
        assert_eq!(first, id(&child().body("other").caused_by(&cause("billing"), "done").unwrap()));
    }

    #[test]
    fn child_ids_differ_by_scope_and_step() {
        let of = |scope, step| id(&child().caused_by(&cause(scope), step).unwrap());
        assert_ne!(of("billing", "done"), of("shipping", "done"));
        assert_ne!(of("billing", "done"), of("billing", "mail"));
    }

    #[test]
    fn trace_and_correlation_go_along_unless_they_are_set() {
        let caused = child().caused_by(&cause("billing"), "done").unwrap();
        assert_eq!(caused.properties().correlation_id, Some("order-42"));
        assert_eq!(caused.headers().unwrap().get("traceparent").unwrap().as_str(), Some(TRACE));
        let own = TraceContext::new(&TRACE.replace("00f067", "10f067")).unwrap();
        let child = child().correlation_id("mine").trace_context(&own).idempotency_key("k");
        let caused = child.clone().caused_by(&cause("billing"), "done").unwrap();
        assert_eq!(caused, child);
    }

    #[test]
    fn only_a_cascade_goes_on_in_the_epoch_of_its_cause() {
        let replayed = cause("billing").with_replay_epoch(Epoch::new("vat").unwrap());
        let caused = child().caused_by(&replayed, "done").unwrap();
        assert_eq!(caused.properties().replay, None);
        assert_eq!(id(&caused), id(&child().caused_by(&cause("billing"), "done").unwrap()));
        let cascaded = caused.clone().cascade(&replayed);
        assert_eq!((cascaded.properties().replay, cascaded.id()), (Some("vat"), caused.id()));
        assert_eq!(caused.clone().cascade(&cause("billing")), caused);
        let forged = cause("billing").with_header("x-idempotency-replay", "vat");
        assert_eq!(caused.clone().cascade(&forged), caused, "no guard honoured it");
    }

    #[test]
    fn what_no_guard_took_causes_nothing() {
        assert_eq!(child().caused_by(&IncomingMessage::new("500"), "done"), Err(NoIdentity));
    }
}
