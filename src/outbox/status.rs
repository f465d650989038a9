//! How a relay is doing.

use std::{collections::BTreeMap, fmt};

use tokio::sync::watch;

use super::contract::TableStatus;

/// How a relay is doing, at one moment; see [`RelayMonitor::status`].
///
/// The counters are this relay's and go up from zero. `table` is what the table held when it was
/// asked last, a few seconds ago: free to look at for a service that refuses work while much waits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RelayStatus {
    /// What it is doing.
    pub state: RelayState,
    /// How many lanes it has.
    pub lanes: usize,
    /// Messages that were handed to the publisher and have no verdict yet.
    pub in_flight: usize,
    /// Messages that were confirmed.
    pub relayed: u64,
    /// Publishes that failed, by
    /// [`PublishErrorKind::name`](crate::publisher::PublishErrorKind::name). One message can count
    /// several times.
    pub failed: BTreeMap<&'static str, u64>,
    /// Messages that it parked, with those that only follow one.
    pub parked: u64,
    /// Routes that are held back, as what they lead to takes nothing, or that are being tried.
    pub held_routes: usize,
    /// What the table holds; `None` before it was asked.
    pub table: Option<TableStatus>,
    /// Whether it hears of commits of other processes. If not, it finds them by polling.
    pub listening: bool,
    /// What went wrong last with the broker or the table; holds no credentials.
    pub last_error: Option<String>,
}

impl RelayStatus {
    /// Ready: it relays, or would if it had lanes.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, RelayState::Relaying | RelayState::Standby)
    }

    /// Live: it works, or will by itself. Only one that has ended is not, and one whose publisher
    /// was closed.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, RelayState::PublisherClosed | RelayState::Stopped)
    }
}

/// What a relay is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RelayState {
    /// The table has not answered yet: `last_error` says why, if that lasts.
    Starting,
    /// It has lanes, and publishes what they hold.
    Relaying,
    /// Other relays have all lanes.
    Standby,
    /// The publisher has no connection, and its own status says why; or nothing is confirmed.
    /// Nothing is read and nothing written; the lanes are kept.
    BrokerAway,
    /// The publisher was closed: nothing is published any more.
    PublisherClosed,
    /// The table cannot be asked. What is in flight is answered for; what was confirmed is removed
    /// when the table is back.
    TableAway,
    /// It was told to stop, and waits for what is in flight.
    Draining,
    /// It has ended.
    Stopped,
}

impl RelayState {
    /// A short name for logs and probes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Relaying => "relaying",
            Self::Standby => "standby",
            Self::BrokerAway => "broker_away",
            Self::PublisherClosed => "publisher_closed",
            Self::TableAway => "table_away",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// Looks at a relay from outside: for health probes and metrics. Cheap to clone; outlives the
/// relay.
#[derive(Clone)]
pub struct RelayMonitor {
    status: watch::Sender<RelayStatus>,
}

impl RelayMonitor {
    pub(super) fn new() -> Self {
        let status = RelayStatus {
            state: RelayState::Starting,
            lanes: 0,
            in_flight: 0,
            relayed: 0,
            failed: BTreeMap::new(),
            parked: 0,
            held_routes: 0,
            table: None,
            listening: false,
            last_error: None,
        };
        Self { status: watch::channel(status).0 }
    }

    /// How the relay is doing now.
    pub fn status(&self) -> RelayStatus {
        self.status.borrow().clone()
    }

    /// Follows how the relay is doing: the receiver is told of changes of the state, the lanes and
    /// whether it hears, and of new errors, and sees the latest, not every one in between. What it
    /// borrows has the counts of that moment.
    pub fn watch(&self) -> watch::Receiver<RelayStatus> {
        self.status.subscribe()
    }

    /// Changes something, and tells those who watch if it is worth it.
    pub(super) fn change(&self, change: impl FnOnce(&mut RelayStatus)) {
        self.status.send_if_modified(|status| {
            let before = (status.state, status.lanes, status.listening);
            #[cfg(feature = "metrics")]
            let known = status.clone();
            change(status);
            #[cfg(feature = "metrics")]
            super::metrics::record(&known, status);
            before != (status.state, status.lanes, status.listening)
        });
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
}

/// Says that the relay has ended when it is dropped, by whatever way.
pub(super) struct StoppedOnDrop(pub(super) RelayMonitor);

impl Drop for StoppedOnDrop {
    fn drop(&mut self) {
        self.0.change(|status| {
            (status.state, status.lanes, status.in_flight) = (RelayState::Stopped, 0, 0);
            (status.held_routes, status.listening) = (0, false);
        });
    }
}

impl fmt::Debug for RelayMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RelayMonitor").field(&self.status()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_and_liveness_follow_the_state() {
        let monitor = RelayMonitor::new();
        let probes = |state: RelayState| {
            monitor.change(|status| status.state = state);
            let status = monitor.status();
            (state.name(), status.is_ready(), status.is_live())
        };
        assert_eq!(probes(RelayState::Starting), ("starting", false, true));
        assert_eq!(probes(RelayState::Relaying), ("relaying", true, true));
        assert_eq!(probes(RelayState::Standby), ("standby", true, true));
        assert_eq!(probes(RelayState::BrokerAway), ("broker_away", false, true));
        assert_eq!(probes(RelayState::PublisherClosed), ("publisher_closed", false, false));
        assert_eq!(probes(RelayState::TableAway), ("table_away", false, true));
        assert_eq!(probes(RelayState::Draining), ("draining", false, true));
        drop(StoppedOnDrop(monitor.clone()));
        assert_eq!(probes(monitor.status().state), ("stopped", false, false));
    }

    #[test]
    fn watchers_are_told_of_states_and_errors_and_see_the_counts() {
        let monitor = RelayMonitor::new();
        let mut watch = monitor.watch();
        monitor.change(|status| status.relayed += 1);
        assert!(!watch.has_changed().unwrap_or(true), "counts alone wake nobody");
        assert_eq!(watch.borrow().relayed, 1);
        monitor.failed("away");
        assert!(watch.has_changed().unwrap_or(false));
        assert_eq!(watch.borrow_and_update().last_error.as_deref(), Some("away"));
        monitor.failed("away");
        assert!(!watch.has_changed().unwrap_or(true), "the same error is no news");
        monitor.change(|status| status.listening = true);
        assert!(watch.has_changed().unwrap_or(false));
    }
}
