//! What the outcomes say of the store, and of what the handler depends on.

use tokio::time::Instant;

use super::Consumption;
use crate::{
    consumer::{
        backoff::holding,
        buffer::{Next, Unsettled},
        status::ConsumerState,
    },
    error::Chain,
    idempotency::{IdempotencyStore, IdempotentHandler, Outcome, StoreError},
};

impl<S: IdempotencyStore, H: IdempotentHandler<S>> Consumption<'_, S, H> {
    /// Learns from the outcomes of a batch that began then; gives whether the store could not be
    /// asked, or what the handler depends on is away.
    pub(super) fn judge(&mut self, begun: Instant, handled: &[(Unsettled, Outcome)]) -> bool {
        let store_away = self.judge_store(handled);
        if !store_away {
            self.store.works();
        }
        self.judge_dependency(begun, handled) || store_away
    }

    /// Whether the outcomes say that what the handler depends on is away. Then nothing is taken for
    /// a while, and one message is tried after that.
    fn judge_dependency(&mut self, begun: Instant, handled: &[(Unsettled, Outcome)]) -> bool {
        let error = handled.iter().find_map(|(_, outcome)| match outcome {
            Outcome::DependencyUnavailable { error } => Some(error),
            _ => None,
        });
        let ran = |(_, outcome): &(Unsettled, Outcome)| {
            matches!(outcome, Outcome::Processed | Outcome::Retry { .. } | Outcome::Reject { .. })
        };
        let news = self.dependency.ended(begun, error.is_none() && handled.iter().any(ran));
        if let Some(error) = error {
            if !self.dependency.health.is_away() {
                let (error, pause) = (Chain(&**error).to_string(), self.dependency.health.failed());
                tracing::warn!(queue = %self.context.options.queue, error, ?pause, "what the handler depends on is away; nothing is taken for a while");
                self.context.monitor.failed(&error);
                self.show();
            }
            return true;
        }
        if news {
            self.show();
        }
        false
    }

    /// Whether the outcomes say that the store could not be asked. Then nothing is taken until it
    /// answers a probe.
    fn judge_store(&mut self, handled: &[(Unsettled, Outcome)]) -> bool {
        let error = handled.iter().find_map(|(_, outcome)| match outcome {
            Outcome::StoreUnavailable { error } => Some(error),
            _ => None,
        });
        let Some(error) = error else { return false };
        if !self.store.is_away() {
            self.store_failed(error);
        }
        true
    }

    fn store_failed(&mut self, error: &StoreError) {
        self.context.store_failed(error, self.store.failed());
        self.show();
    }

    /// Shows the monitor whether anything is taken, and why not; until the subscription ends, after
    /// which nothing is.
    pub(super) fn show(&self) {
        if self.draining {
            return;
        }
        self.context.monitor.enter(match () {
            () if self.store.is_away() => ConsumerState::StoreAway,
            () if self.paused => ConsumerState::Paused,
            () if self.dependency.health.is_doubtful() => ConsumerState::DependencyAway,
            () => ConsumerState::Consuming,
        });
    }

    pub(super) fn probed(&mut self, answer: Result<(), StoreError>) {
        self.probe = None;
        match answer {
            Ok(()) => {
                self.store.resume();
                self.show();
            }
            Err(error) => self.store_failed(&error),
        }
    }

    /// A message for which the store could not be asked, or what the handler depends on, keeps its
    /// place. If it happens again to the same one alone though the store answered a probe, or after
    /// a pause, it may be this message only, and it must not hold up the others.
    pub(super) fn refused(&mut self, mut unsettled: Unsettled, together_with: usize) -> Option<Unsettled> {
        if together_with > 1 {
            return Some(unsettled);
        }
        unsettled.delivery.refusals += 1;
        if unsettled.delivery.refusals < 3 {
            return Some(unsettled);
        }
        let after = holding(unsettled.delivery.refusals);
        self.hold(unsettled, after, Next::Handle);
        None
    }
}
