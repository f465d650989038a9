//! How a publisher is doing.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
};

use tokio::sync::watch;

use super::{error::PublishErrorKind, permits::InFlightPermits};

/// How a publisher is doing, at one moment; see
/// [`IdempotentPublisher::status`](super::IdempotentPublisher::status).
///
/// The counters go up from zero. One message can count several times: nacked, then returned, then
/// confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherStatus {
    /// Whether it can publish.
    pub state: PublisherState,
    /// How many connections it is to have.
    pub connections: usize,
    /// How many of them are up, blocked ones included.
    pub connected: usize,
    /// How many the broker has blocked (`connection.blocked`): it is short of memory or disk space.
    pub blocked: usize,
    /// Messages that are not answered yet: in flight, or waiting for a connection or a retry.
    pub in_flight: usize,
    /// The bytes of their bodies; one above the limit of `max_bytes_in_flight` counts as the limit.
    pub bytes_in_flight: usize,
    /// Messages that the broker confirmed and did not return.
    pub confirmed: u64,
    /// Attempts after the first of their message.
    pub retried: u64,
    /// Attempts that the broker returned as unroutable.
    pub returned: u64,
    /// Attempts that the broker nacked.
    pub nacked: u64,
    /// Messages over which the broker closed a channel.
    pub refused: u64,
    /// Attempts whose confirm did not come in time.
    pub timed_out: u64,
    /// Attempts that were unconfirmed when their connection or channel ended.
    pub disconnected: u64,
    /// Calls that ended in a `PublishError`.
    pub failed: u64,
    /// How often a channel was opened anew: its connection was lost, the broker closed it, or it
    /// did nothing but nack.
    pub reconnects: u64,
    /// What went wrong with a connection last; holds no credentials.
    pub last_error: Option<String>,
}

impl PublisherStatus {
    /// Ready: at least one connection takes messages.
    pub fn is_ready(&self) -> bool {
        self.state == PublisherState::Connected
    }

    /// Live: it publishes, or will by itself. Only one that was closed does not.
    pub fn is_live(&self) -> bool {
        self.state != PublisherState::Closed
    }
}

/// Whether a publisher can publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PublisherState {
    /// There was no connection yet; one is being opened. Only after
    /// [`connect_lazy`](super::PublisherBuilder::connect_lazy); `last_error` says what is in the
    /// way.
    Connecting,
    /// At least one connection takes messages.
    Connected,
    /// The broker takes no messages (`connection.blocked`); they wait, up to their deadlines.
    Blocked,
    /// There is no connection any more; one is being opened.
    Reconnecting,
    /// The publisher was closed, or the runtime is gone that connected it.
    Closed,
}

impl PublisherState {
    /// A short name for logs and probes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Blocked => "blocked",
            Self::Reconnecting => "reconnecting",
            Self::Closed => "closed",
        }
    }
}

/// What one worker can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum WorkerState {
    Down = 0,
    Up = 1,
    Blocked = 2,
    /// It was never up.
    New = 3,
}

#[derive(Debug, Default)]
struct Counters {
    confirmed: AtomicU64,
    retried: AtomicU64,
    returned: AtomicU64,
    nacked: AtomicU64,
    refused: AtomicU64,
    timed_out: AtomicU64,
    disconnected: AtomicU64,
    failed: AtomicU64,
    reconnects: AtomicU64,
}

/// Collects what the workers and the callers see.
pub(crate) struct Monitor {
    counters: Counters,
    /// One state for each worker; a connection's workers stand together.
    workers: Vec<AtomicU8>,
    channels_each: usize,
    permits: Arc<InFlightPermits>,
    closed: AtomicBool,
    last_error: Mutex<Option<String>>,
    watch: watch::Sender<PublisherStatus>,
}

impl Monitor {
    pub(crate) fn new(connections: usize, channels_each: usize, permits: Arc<InFlightPermits>) -> Self {
        let nothing = PublisherStatus {
            state: PublisherState::Connecting,
            connections,
            connected: 0,
            blocked: 0,
            in_flight: 0,
            bytes_in_flight: 0,
            confirmed: 0,
            retried: 0,
            returned: 0,
            nacked: 0,
            refused: 0,
            timed_out: 0,
            disconnected: 0,
            failed: 0,
            reconnects: 0,
            last_error: None,
        };
        Self {
            counters: Counters::default(),
            workers: (0..connections * channels_each)
                .map(|_| AtomicU8::new(WorkerState::New as u8))
                .collect(),
            channels_each,
            permits,
            closed: AtomicBool::new(false),
            last_error: Mutex::new(None),
            watch: watch::channel(nothing).0,
        }
    }

    pub(crate) fn set_worker(&self, worker: usize, state: WorkerState) {
        if self.workers[worker].swap(state as u8, Relaxed) != state as u8 {
            self.report();
        }
    }

    pub(crate) fn is_up(&self, worker: usize) -> bool {
        self.workers[worker].load(Relaxed) == WorkerState::Up as u8
    }

    /// Counts attempts that did not end with a confirm.
    pub(crate) fn count(&self, kind: PublishErrorKind, attempts: u64) {
        let counter = match kind {
            PublishErrorKind::Unroutable => &self.counters.returned,
            PublishErrorKind::Nacked => &self.counters.nacked,
            PublishErrorKind::TimedOut => &self.counters.timed_out,
            PublishErrorKind::Disconnected => &self.counters.disconnected,
            PublishErrorKind::Refused => &self.counters.refused,
            PublishErrorKind::Invalid | PublishErrorKind::Closed | PublishErrorKind::Full => return,
        };
        counter.fetch_add(attempts, Relaxed);
    }

    pub(crate) fn confirmed(&self, messages: u64) {
        self.counters.confirmed.fetch_add(messages, Relaxed);
    }

    pub(crate) fn retried(&self) {
        self.counters.retried.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.counters.failed.fetch_add(1, Relaxed);
    }

    /// A worker has a channel: again, unless it is its first.
    pub(crate) fn reconnected(&self, worker: usize) {
        if self.workers[worker].load(Relaxed) != WorkerState::New as u8 {
            self.counters.reconnects.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn error(&self, error: String) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        self.report();
    }

    pub(crate) fn closed(&self) {
        self.closed.store(true, Relaxed);
        self.report();
    }

    pub(crate) fn status(&self) -> PublisherStatus {
        let states: Vec<u8> = self.workers.iter().map(|state| state.load(Relaxed)).collect();
        let connections = states.chunks(self.channels_each);
        let has = |connection: &[u8], state: WorkerState| connection.contains(&(state as u8));
        let blocked = connections.clone().filter(|workers| has(workers, WorkerState::Blocked)).count();
        let up = connections.clone().filter(|workers| has(workers, WorkerState::Up)).count();
        let connected = connections
            .clone()
            .filter(|workers| has(workers, WorkerState::Up) || has(workers, WorkerState::Blocked));
        let state = match () {
            () if self.closed.load(Relaxed) => PublisherState::Closed,
            () if up > 0 => PublisherState::Connected,
            () if blocked > 0 => PublisherState::Blocked,
            () if states.iter().all(|state| *state == WorkerState::New as u8) => PublisherState::Connecting,
            () => PublisherState::Reconnecting,
        };
        let (in_flight, bytes_in_flight) = self.permits.taken();
        let counters = &self.counters;
        PublisherStatus {
            state,
            connections: connections.len(),
            connected: connected.count(),
            blocked,
            in_flight,
            bytes_in_flight,
            confirmed: counters.confirmed.load(Relaxed),
            retried: counters.retried.load(Relaxed),
            returned: counters.returned.load(Relaxed),
            nacked: counters.nacked.load(Relaxed),
            refused: counters.refused.load(Relaxed),
            timed_out: counters.timed_out.load(Relaxed),
            disconnected: counters.disconnected.load(Relaxed),
            failed: counters.failed.load(Relaxed),
            reconnects: counters.reconnects.load(Relaxed),
            last_error: self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<PublisherStatus> {
        let receiver = self.watch.subscribe();
        // Afterwards: without a receiver there is nobody to report to, and the first look would be
        // at an old state.
        self.report();
        receiver
    }

    /// Tells watchers and the metrics recorder what has changed.
    pub(crate) fn report(&self) {
        #[cfg(not(feature = "metrics"))]
        if self.watch.receiver_count() == 0 {
            return;
        }
        self.watch.send_if_modified(|known| {
            // Under the lock of the channel, so that no older state replaces a newer one.
            let status = self.status();
            #[cfg(feature = "metrics")]
            super::metrics::record(known, &status);
            let changed = *known != status;
            *known = status;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_the_best_of_the_connections() {
        let monitor = Monitor::new(2, 2, Arc::new(InFlightPermits::new(4, 100)));
        let seen = |monitor: &Monitor| {
            let status = monitor.status();
            (status.state, status.connected, status.blocked)
        };
        assert_eq!(seen(&monitor), (PublisherState::Connecting, 0, 0));
        monitor.set_worker(0, WorkerState::Up);
        monitor.set_worker(0, WorkerState::Down);
        assert_eq!(seen(&monitor), (PublisherState::Reconnecting, 0, 0));
        monitor.set_worker(0, WorkerState::Blocked);
        assert_eq!(seen(&monitor), (PublisherState::Blocked, 1, 1));
        monitor.set_worker(3, WorkerState::Up);
        assert_eq!(seen(&monitor), (PublisherState::Connected, 2, 1));
        monitor.closed();
        assert_eq!(seen(&monitor).0, PublisherState::Closed);
    }

    #[test]
    fn watchers_see_changes_and_only_changes() {
        let monitor = Monitor::new(1, 1, Arc::new(InFlightPermits::new(4, 100)));
        let mut watcher = monitor.subscribe();
        watcher.mark_unchanged();
        monitor.report();
        assert!(!watcher.has_changed().unwrap());
        monitor.count(PublishErrorKind::Nacked, 2);
        monitor.report();
        assert!(watcher.has_changed().unwrap());
        assert_eq!(watcher.borrow_and_update().nacked, 2);
    }
}
