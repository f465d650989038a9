//! What an application sees of single messages.

use std::{fmt, sync::Arc, time::Duration};

use crate::{error::caught_in, message::MessageId, publisher::PublishErrorKind};

/// A message of the outbox that was published, or not; what an
/// [`on_outcome`](super::Relay::on_outcome) hook is shown.
#[derive(Debug)]
#[non_exhaustive]
pub struct Relayed<'a> {
    /// The ID that it was enqueued with.
    pub message_id: &'a MessageId,
    /// The exchange that it was published to.
    pub exchange: &'a str,
    /// Its routing key.
    pub routing_key: &'a str,
    /// Its order key, if it has one.
    pub order_key: Option<&'a str>,
    /// The time since it was enqueued, by the database's clock up to the read and by this process's
    /// since.
    pub age: Duration,
    /// How often it was tried in vain before, by its own fault.
    pub attempts: u32,
    /// Confirmed, or why not.
    pub result: Result<(), PublishErrorKind>,
    /// Whether it is parked: it is not tried again, unless an operator puts it back.
    pub is_parked: bool,
}

type OutcomeFn = dyn Fn(&Relayed<'_>) + Send + Sync;

/// The application's observer of messages, if there is one.
#[derive(Clone, Default)]
pub(super) struct OutcomeHook(Option<Arc<OutcomeFn>>);

impl OutcomeHook {
    pub(super) fn new(observe: impl Fn(&Relayed<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(observe)))
    }

    /// A panic in the hook must not end the relay.
    pub(super) fn call(&self, relayed: &Relayed<'_>) {
        let Some(observe) = &self.0 else { return };
        if let Err(error) = caught_in("the on_outcome hook", || observe(relayed)) {
            tracing::error!(%error, "an outcome was not shown");
        }
    }
}

impl fmt::Debug for OutcomeHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "OutcomeHook(set)" } else { "OutcomeHook(none)" })
    }
}
