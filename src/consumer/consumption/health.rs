//! What the outcomes say of the store, and of what the handler depends on.

use std::time::Duration;

use tokio::time::Instant;

use super::Consumption;
use crate::{
    consumer::{
        backoff::holding,
        buffer::{Next, Unsettled},
        dependency::{Evidence, News},
        status::ConsumerState,
    },
    error::Chain,
    idempotency::{IdempotencyStore, IdempotentHandler, Outcome, StoreError},
};

impl<S: IdempotencyStore, H: IdempotentHandler<S> + 'static> Consumption<'_, S, H> {
    /// Learns from the outcomes of a batch that began then; gives whether the store could not be
    /// asked, or what the handler depends on is away.
    pub(super) fn judge(&mut self, begun: Instant, handled: &[(Unsettled, Outcome)]) -> bool {
        let away = handled.iter().any(|(_, outcome)| outcome.is_unavailable());
        if !away && handled.iter().any(|(_, outcome)| outcome.has_used_dependencies()) {
            self.worked = Some(Instant::now());
        }
        if away && handled.iter().all(|(unsettled, _)| self.is_its_own(unsettled)) {
            return true;
        }
        self.judge_store(handled);
        self.judge_dependency(begun, handled);
        away
    }

    /// Whether it is this message's own fault if something is away for it: it was so again and
    /// again, and since the last time others were handled.
    fn is_its_own(&self, unsettled: &Unsettled) -> bool {
        let others_worked = self.worked > unsettled.delivery.refused;
        let doubtful = self.store.is_doubtful() || self.dependency.is_doubtful();
        unsettled.is_held_apart() && others_worked && !doubtful
    }

    /// If the outcomes say that what the handler depends on is away, nothing is taken for a while,
    /// and one message is tried after that.
    fn judge_dependency(&mut self, begun: Instant, handled: &[(Unsettled, Outcome)]) {
        let error = handled.iter().find_map(|(_, outcome)| match outcome {
            Outcome::DependencyUnavailable { error } => Some(error),
            _ => None,
        });
        let evidence = match error {
            Some(_) => Evidence::Away,
            None if handled.iter().any(|(_, outcome)| outcome.has_used_dependencies()) => Evidence::Works,
            None => Evidence::None,
        };
        match (self.dependency.ended(begun, evidence), error) {
            (Some(News::Away(pause)), Some(error)) => {
                let error = Chain(&**error).to_string();
                tracing::warn!(queue = %self.context.options.queue, error, ?pause, "what the handler depends on is away; nothing is taken for a while");
                self.context.monitor.failed(&error);
                self.show();
            }
            (Some(_), _) => self.show(),
            (None, _) => {}
        }
    }

    /// If the outcomes say that the store could not be asked, nothing is taken until it answers a
    /// probe.
    fn judge_store(&mut self, handled: &[(Unsettled, Outcome)]) {
        let error = handled.iter().find_map(|(_, outcome)| match outcome {
            Outcome::StoreUnavailable { error } => Some(error),
            _ => None,
        });
        match error {
            Some(error) if !self.store.is_away() => self.store_failed(error),
            Some(_) => {}
            None => {
                self.store.works();
            }
        }
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
            () if self.dependency.is_away() || self.dependency.is_tried() => ConsumerState::DependencyAway,
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

    /// A message for which the store could not be asked, or what the handler depends on was away,
    /// keeps its place. If it happens again to the same one alone though the store answered a
    /// probe, or after a pause, it may be this message only, and it must not hold up the others.
    pub(super) fn refused(
        &mut self,
        mut unsettled: Unsettled,
        together_with: usize,
        took: Duration,
    ) -> Option<Unsettled> {
        if together_with > 1 {
            return Some(unsettled);
        }
        if unsettled.is_held_apart() {
            self.buffer.apart_took(took);
        }
        unsettled.delivery.refusals += 1;
        unsettled.delivery.refused = Some(Instant::now());
        if !unsettled.is_held_apart() {
            return Some(unsettled);
        }
        let after = holding(unsettled.delivery.refusals);
        self.hold(unsettled, after, Next::Handle);
        None
    }
}
