//! How a consumer is doing.

use std::{collections::BTreeMap, fmt};

use tokio::sync::watch;

use crate::idempotency::{DuplicateCause, Outcome};

/// How a consumer is doing, at one moment; see [`ConsumerMonitor::status`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// What it is doing.
    pub state: ConsumerState,
    /// Deliveries in the hands of handlers.
    pub in_hand: usize,
    /// Deliveries that are held until they may be tried again: for another consumer's lease,
    /// because they could not be delayed or parked, or because the store, or what the handler
    /// depends on, was away for them again and again.
    pub held: usize,
    /// How many deliveries had each outcome, by [`Outcome::name`].
    pub outcomes: BTreeMap<&'static str, u64>,
    /// How many duplicates had each cause, by [`DuplicateCause::name`].
    pub duplicates: BTreeMap<&'static str, u64>,
    /// How many deliveries were passed on to a delay queue.
    pub delayed: u64,
    /// How many were published anew to their own queue, because they came near its delivery limit
    /// or the broker's consumer timeout.
    pub moved: u64,
    /// How many were parked, by [`ParkReason::name`](super::ParkReason::name).
    pub parked: BTreeMap<&'static str, u64>,
    /// How deliveries were answered, by a consumer that answers: `sent` replies, `unclaimed` ones,
    /// which no queue took, and `lost` ones, which were not there; see
    /// [`UnclaimedReply`](super::UnclaimedReply) and [`LostReply`](super::LostReply).
    pub replies: BTreeMap<&'static str, u64>,
    /// How often it subscribed anew.
    pub reconnects: u64,
    /// What went wrong last with the broker, the store or what the handler depends on; holds no
    /// credentials of the first two.
    pub last_error: Option<String>,
}

impl ConsumerStatus {
    /// Ready: it takes messages. Not while it is paused, or the store or what the handler depends
    /// on is away.
    pub fn is_ready(&self) -> bool {
        self.state == ConsumerState::Consuming
    }

    /// Live: it works, or will by itself. A consumer is not live when it has ended, and when it
    /// fails again and again without getting anything done.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, ConsumerState::Failing | ConsumerState::Stopped)
    }
}

/// What a consumer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConsumerState {
    /// It has not subscribed yet.
    Starting,
    /// It takes messages.
    Consuming,
    /// The connection or the subscription is lost; it is made anew.
    Reconnecting,
    /// The store cannot be asked. Nothing is taken and nothing acked until it answers, again or for
    /// the first time.
    StoreAway,
    /// The handler said that what it depends on is away
    /// ([`HandlerError::unavailable`](crate::HandlerError::unavailable)). Nothing is taken for a
    /// while, or one message is tried. With nothing to try after the pause, the state is
    /// [`Consuming`](Self::Consuming): the next message is tried alone.
    DependencyAway,
    /// It was [paused](super::ConsumerControl::pause). Nothing is taken.
    Paused,
    /// Several subscriptions in turn ended before a single delivery was settled: something in the
    /// queue or the broker ends them. It goes on trying, with long pauses.
    Failing,
    /// It was told to stop, and finishes what is in hand.
    Draining,
    /// It has ended.
    Stopped,
}

impl ConsumerState {
    /// A short name for logs and probes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Consuming => "consuming",
            Self::Reconnecting => "reconnecting",
            Self::StoreAway => "store_away",
            Self::DependencyAway => "dependency_away",
            Self::Paused => "paused",
            Self::Failing => "failing",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// Looks at a consumer from outside: for health probes and metrics. Cheap to clone; outlives the
/// consumer.
#[derive(Clone)]
pub struct ConsumerMonitor {
    status: watch::Sender<ConsumerStatus>,
}

impl ConsumerMonitor {
    pub(crate) fn new() -> Self {
        let status = ConsumerStatus {
            state: ConsumerState::Starting,
            in_hand: 0,
            held: 0,
            outcomes: BTreeMap::new(),
            duplicates: BTreeMap::new(),
            delayed: 0,
            moved: 0,
            parked: BTreeMap::new(),
            replies: BTreeMap::new(),
            reconnects: 0,
            last_error: None,
        };
        Self { status: watch::channel(status).0 }
    }

    /// How the consumer is doing now.
    pub fn status(&self) -> ConsumerStatus {
        self.status.borrow().clone()
    }

    /// Follows how the consumer is doing: the receiver is told of changes of the state and of new
    /// errors, and sees the latest, not every one in between. What it borrows has the counts of
    /// that moment; do not keep it: the consumer waits for as long as something is borrowed.
    pub fn watch(&self) -> watch::Receiver<ConsumerStatus> {
        self.status.subscribe()
    }

    /// Changes what nobody is told of.
    fn change(&self, change: impl FnOnce(&mut ConsumerStatus)) {
        self.status.send_if_modified(|status| {
            change(status);
            false
        });
    }

    pub(super) fn enter(&self, state: ConsumerState) {
        self.status.send_if_modified(|status| std::mem::replace(&mut status.state, state) != state);
    }

    pub(super) fn failed(&self, error: &str) {
        self.status.send_if_modified(|status| {
            let is_new = status.last_error.as_deref() != Some(error);
            if is_new {
                status.last_error = Some(error.to_owned());
            }
            is_new
        });
    }

    pub(super) fn reconnected(&self) {
        self.change(|status| status.reconnects += 1);
    }

    pub(super) fn delayed(&self) {
        self.change(|status| status.delayed += 1);
    }

    pub(super) fn moved(&self) {
        self.change(|status| status.moved += 1);
    }

    pub(super) fn parked(&self, reason: &'static str) {
        self.change(|status| *status.parked.entry(reason).or_default() += 1);
    }

    pub(super) fn answered(&self, how: &'static str) {
        self.change(|status| *status.replies.entry(how).or_default() += 1);
    }

    pub(super) fn in_hand(&self, deliveries: usize) {
        self.change(|status| status.in_hand = deliveries);
    }

    pub(super) fn held(&self, deliveries: usize) {
        self.change(|status| status.held = deliveries);
    }

    /// Counts the outcomes of a batch.
    pub(super) fn decided<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome>) {
        self.change(|status| {
            for outcome in outcomes {
                *status.outcomes.entry(outcome.name()).or_default() += 1;
                if let Outcome::Duplicate(duplicate) = outcome {
                    *status.duplicates.entry(DuplicateCause::name(duplicate.cause)).or_default() += 1;
                }
            }
        });
    }
}

/// Says that the consumer has ended when it is dropped, by whatever way.
pub(super) struct StoppedOnDrop(pub(super) ConsumerMonitor);

impl Drop for StoppedOnDrop {
    fn drop(&mut self) {
        self.0.in_hand(0);
        self.0.held(0);
        self.0.enter(ConsumerState::Stopped);
    }
}

impl fmt::Debug for ConsumerMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConsumerMonitor").field(&self.status()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_and_liveness_follow_the_state() {
        let monitor = ConsumerMonitor::new();
        let mut watch = monitor.watch();
        let probes = |state| {
            monitor.enter(state);
            let status = monitor.status();
            (status.is_ready(), status.is_live())
        };
        assert_eq!(probes(ConsumerState::Starting), (false, true));
        assert!(!watch.has_changed().unwrap_or(true), "it was in this state before");
        assert_eq!(probes(ConsumerState::Consuming), (true, true));
        assert!(watch.has_changed().unwrap_or(false));
        assert_eq!(watch.borrow_and_update().state, ConsumerState::Consuming);
        assert_eq!(probes(ConsumerState::Reconnecting), (false, true));
        assert_eq!(probes(ConsumerState::StoreAway), (false, true));
        assert_eq!(probes(ConsumerState::DependencyAway), (false, true));
        assert_eq!(probes(ConsumerState::Draining), (false, true));
        assert_eq!(probes(ConsumerState::Failing), (false, false));
        assert_eq!(probes(ConsumerState::Stopped), (false, false));
    }

    #[test]
    fn watchers_are_told_of_states_and_errors_and_see_the_counts() {
        let monitor = ConsumerMonitor::new();
        let mut watch = monitor.watch();
        monitor.delayed();
        assert!(!watch.has_changed().unwrap_or(true), "counts alone wake nobody");
        assert_eq!(watch.borrow().delayed, 1);
        monitor.failed("away");
        assert!(watch.has_changed().unwrap_or(false));
        assert_eq!(watch.borrow_and_update().last_error.as_deref(), Some("away"));
        monitor.failed("away");
        assert!(!watch.has_changed().unwrap_or(true), "the same error is no news");
    }
}
