//! What can be set of a relay.

use std::time::Duration;

use super::memory::OnPoison;
use crate::outbox::{
    status::RelayMonitor,
    telemetry::{OutcomeHook, Relayed},
    verdict::Patience,
};

/// No lease is shorter: its beats would be most of what the table does.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// No pause is longer: an `Instant` cannot be moved by every duration.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Publishes what is committed to an outbox, and removes what the broker confirmed.
///
/// A message is published if, and only after, the transaction commits that enqueued it: at least
/// once, and every copy under the ID and with the body that were committed. Its row is deleted only
/// after the broker confirmed this very message and did not return it. With an order key: before a
/// message is sent for the first time, every message of its key whose transaction had committed
/// when this one was enqueued has been confirmed, or given up by an operator. A message that cannot
/// be published blocks nothing but its own key, is kept, and is shown.
///
/// Not promised: one copy, which is what the consumer's guard is for; an order of transactions that
/// were open at the same time.
///
/// # Several relays
///
/// Any number of relays may work on one table, in as many processes: they share its lanes, and one
/// that dies loses them to the others when its lease has run out. More of them than lanes stand by.
///
/// # The broker and the table
///
/// While the broker is away nothing is read and no row is written. A queue that is full is tried by
/// one message at a time, and not counted as a failure of any; what goes elsewhere goes on, unless
/// it is behind such a message in its key. The publisher's retry policy bounds one attempt: a relay
/// tries again for ever, so a short one is enough.
#[cfg_attr(feature = "testing", doc = "")]
#[cfg_attr(feature = "testing", doc = "```")]
#[cfg_attr(feature = "testing", doc = include_str!("../../docs/relay.rs"))]
#[cfg_attr(feature = "testing", doc = "```")]
#[derive(Debug, Clone)]
#[must_use = "a relay does nothing until it runs"]
pub struct Relay<O, P> {
    pub(super) outbox: O,
    pub(super) publisher: P,
    pub(super) monitor: RelayMonitor,
    pub(super) settings: Settings,
}

/// Whether a relay listens for what other processes commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Listen {
    /// If the table can tell. While it does, the table is polled every five seconds only.
    #[default]
    Auto,
    /// It polls. Commits of this process wake it all the same.
    Off,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) poll: Duration,
    pub(super) listen: Listen,
    pub(super) window: usize,
    pub(super) window_bytes: u64,
    pub(super) lease: Duration,
    pub(super) patience: Patience,
    pub(super) on_poison: OnPoison,
    pub(super) drain_timeout: Duration,
    pub(super) hook: OutcomeHook,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: format!("relay-{}", std::process::id()),
            poll: Duration::from_millis(250),
            listen: Listen::Auto,
            window: 1_024,
            window_bytes: 8 << 20,
            lease: Duration::from_secs(15),
            patience: Patience {
                first: Duration::from_secs(1),
                longest: Duration::from_secs(300),
                max_attempts: 20,
            },
            on_poison: OnPoison::BlockKey,
            drain_timeout: Duration::from_secs(20),
            hook: OutcomeHook::default(),
        }
    }
}

/// # Settings
impl<O, P> Relay<O, P> {
    /// Sets the name that people see in the table. It says nothing of what the relay owns: two with
    /// one name are two, and one that is restarted is another.
    ///
    /// Default: `relay-` and the number of the process.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Sets the longest pause between two reads while nothing wakes the relay: how late a message
    /// can be that it was not told of. After a read that found something the pause is shorter.
    ///
    /// Default: 250 milliseconds.
    pub fn poll(mut self, pause: Duration) -> Self {
        self.settings.poll = pause.min(LONGEST);
        self
    }

    /// Sets whether it listens for what other processes commit. Default: [`Listen::Auto`].
    pub fn listen(mut self, listen: Listen) -> Self {
        self.settings.listen = listen;
        self
    }

    /// Sets how many messages are in flight at most, at least 1. As many as the publisher has in
    /// flight at most is enough. Twice as many wait in memory to be sent.
    ///
    /// Default: 1,024.
    pub fn window(mut self, messages: usize) -> Self {
        self.settings.window = messages.max(1);
        self
    }

    /// Sets how many bytes their bodies have at most. A larger one is in memory alone, after a read
    /// that may have been of one such message a lane.
    ///
    /// Default: 8 MiB.
    pub fn window_bytes(mut self, bytes: u64) -> Self {
        self.settings.window_bytes = bytes.max(1);
        self
    }

    /// Sets for how long the lanes of a relay are its own after its last sign of life: so late are
    /// the messages of one that was killed. One that stops gives its lanes back at once. All relays
    /// of a table should have the same. At least 100 milliseconds.
    ///
    /// Default: 15 seconds.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.settings.lease = lease.clamp(SHORTEST_LEASE, LONGEST);
        self
    }

    /// Sets the pause after the first attempt that failed by the message's own fault, and the
    /// longest one; it doubles with each.
    ///
    /// Default: 1 second, 5 minutes.
    pub fn retry_delays(mut self, first: Duration, longest: Duration) -> Self {
        self.settings.patience.first = first.min(LONGEST);
        self.settings.patience.longest = longest.min(LONGEST);
        self
    }

    /// Sets how often a message is tried that cannot be published by its own fault, such as one
    /// without a route, before it is parked; at least once. What is not its fault, a full queue or
    /// a broker that is away, does not count.
    ///
    /// Default: 20.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.patience.max_attempts = attempts.max(1);
        self
    }

    /// Sets what becomes of the messages that follow a parked one of their order key. Default:
    /// [`OnPoison::BlockKey`].
    pub fn on_poison(mut self, on_poison: OnPoison) -> Self {
        self.settings.on_poison = on_poison;
        self
    }

    /// Sets for how long a relay that is told to stop waits for confirms. It then ends within a few
    /// seconds; what was not confirmed is published again, by another one.
    ///
    /// Default: 20 seconds.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.settings.drain_timeout = limit.min(LONGEST);
        self
    }

    /// Calls `observe` with the outcome of every publish. It must not block; if it panics, that is
    /// logged. Nothing by default.
    pub fn on_outcome(mut self, observe: impl Fn(&Relayed<'_>) + Send + Sync + 'static) -> Self {
        self.settings.hook = OutcomeHook::new(observe);
        self
    }
}
