//! What time it is, for stores that have no database to ask.

use std::{sync::Arc, time::SystemTime};

use tokio::time::Instant;

/// Tells a store in memory the time.
///
/// Leases and the retention are measured with it, so it should run as fast as time does. It may be
/// set back: a lease then lasts longer and an identity is remembered longer, but nothing is
/// forgotten early.
pub trait Clock: Send + Sync + 'static {
    /// The time.
    fn now(&self) -> SystemTime;
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> SystemTime {
        (**self).now()
    }
}

/// The system's time at its creation, and the monotonic time that has passed since: steps of the
/// system's clock do not show.
///
/// Tokio's monotonic clock, so that it stands still while tokio's time is paused.
pub(super) struct SteadyClock {
    system: SystemTime,
    monotonic: Instant,
}

impl SteadyClock {
    pub(super) fn new() -> Self {
        Self { system: SystemTime::now(), monotonic: Instant::now() }
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> SystemTime {
        self.system + self.monotonic.elapsed()
    }
}
