//! Pausing, resuming and stopping a consumer from outside.

use std::fmt;

use tokio::sync::watch;

/// Pauses, resumes and stops a consumer. Cheap to clone; outlives the consumer.
///
/// ```no_run
/// # use lapin_idempotent::{HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, MemoryStore, idempotency::Lease};
/// # struct Debit;
/// # impl IdempotentHandler<MemoryStore> for Debit {
/// #     async fn handle(&self, _: &IncomingMessage, _: &mut Lease) -> HandlerResult { Ok(()) }
/// # }
/// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
/// let consumer = IdempotentConsumer::builder("amqp://localhost", "debits", MemoryStore::new(100_000))
///     .scope("ledger")
///     .build()?;
/// let control = consumer.control();
/// let running = tokio::spawn(consumer.run(Debit));
/// control.pause(); // for the time of a migration
/// control.resume();
/// control.stop();
/// running.await??;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ConsumerControl(watch::Sender<Wanted>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Running,
    Paused,
    Stopped,
}

impl ConsumerControl {
    pub(super) fn new() -> Self {
        Self(watch::channel(Wanted::Running).0)
    }

    /// Takes no more messages until [`resume`](Self::resume). Handlers that run go on, and are
    /// settled. What the broker has delivered already stays here, unacknowledged, up to the
    /// prefetch; before the broker's consumer timeout it is published anew.
    pub fn pause(&self) {
        self.change(Wanted::Paused);
    }

    /// Takes messages again.
    pub fn resume(&self) {
        self.change(Wanted::Running);
    }

    /// Stops the consumer, as its shutdown future would. That cannot be taken back.
    pub fn stop(&self) {
        self.change(Wanted::Stopped);
    }

    fn change(&self, wanted: Wanted) {
        self.0.send_if_modified(|now| *now != Wanted::Stopped && std::mem::replace(now, wanted) != wanted);
    }

    pub(super) async fn stopped(&self) {
        // The sender is here.
        let _ = self.0.subscribe().wait_for(|wanted| *wanted == Wanted::Stopped).await;
    }

    pub(super) fn pausing(&self) -> Pausing {
        Pausing(self.0.subscribe())
    }
}

impl fmt::Debug for ConsumerControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConsumerControl").field(&*self.0.borrow()).finish()
    }
}

/// Learns of pauses.
pub(super) struct Pausing(watch::Receiver<Wanted>);

impl Pausing {
    pub(super) fn is_paused(&mut self) -> bool {
        *self.0.borrow_and_update() == Wanted::Paused
    }

    /// Whether it is paused, once that may have changed. A stop changes nothing of it: whoever is
    /// paused then takes nothing more until it is told of the stop, which may be a moment later.
    pub(super) async fn changed(&mut self) -> bool {
        match self.0.changed().await.map(|()| *self.0.borrow_and_update()) {
            Ok(Wanted::Running) => false,
            Ok(Wanted::Paused) => true,
            Ok(Wanted::Stopped) | Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_is_stopped_stays_so() {
        let control = ConsumerControl::new();
        let mut pausing = control.pausing();
        assert!(!pausing.is_paused());
        control.pause();
        assert!(pausing.changed().await);
        control.resume();
        assert!(!pausing.changed().await);
        control.pause();
        assert!(pausing.changed().await);
        control.stop();
        assert_eq!(pausing.changed().now_or_never(), None, "what was paused takes nothing more");
        control.pause();
        control.resume();
        assert_eq!(pausing.changed().now_or_never(), None);
        control.stopped().await;
        assert_eq!(format!("{control:?}"), "ConsumerControl(Stopped)");
    }
}
