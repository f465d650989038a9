//! A clock that is set by hand.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use crate::store::Clock;

/// A clock that stands still until it is advanced. Clones show the same time.
///
/// ```
/// # use std::time::Duration;
/// use lapin_idempotent::{IdempotencyStore, MemoryStore, testing::ManualClock};
/// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
/// let clock = ManualClock::default();
/// let store = MemoryStore::new(1000).clock(clock.clone());
/// clock.advance(Duration::from_secs(7 * 24 * 3600));
/// store.purge(Duration::from_secs(24 * 3600), 1000).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<SystemTime>>);

impl ManualClock {
    /// A clock that shows `time`.
    pub fn new(time: SystemTime) -> Self {
        Self(Arc::new(Mutex::new(time)))
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        *self.time() += by;
    }

    /// Sets the clock, forwards or backwards.
    pub fn set(&self, time: SystemTime) {
        *self.time() = time;
    }

    fn time(&self) -> MutexGuard<'_, SystemTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    /// A clock that shows the system's time of now.
    fn default() -> Self {
        Self::new(SystemTime::now())
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.time()
    }
}
