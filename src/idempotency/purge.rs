//! Forgetting what is older than the retention (I7).

use std::{future::Future, time::Duration};

use futures_util::future::{self, Either};
use tokio::{sync::watch, task::JoinHandle, time::sleep};

use super::store::{IdempotencyStore, StoreError};
use crate::error::Chain;

/// Purges a store in the background, in small batches, from time to time.
///
/// It never forgets what is younger than the retention, by the store's clock. Choose the retention
/// longer than any copy of a message can still arrive: publish retries, the time in the queue,
/// redeliveries, and parked messages that are replayed.
///
/// Several processes may sweep one store: each batch is a short transaction. Every pause is varied
/// by a fifth, so that they do not meet each time.
///
/// ```
/// use std::time::Duration;
/// use lapin_idempotent::{MemoryStore, idempotency::Sweeper};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// const DAY: Duration = Duration::from_secs(86_400);
/// let store = MemoryStore::new(100_000);
/// let sweeper = Sweeper::new(store.clone(), 30 * DAY).every(Duration::from_secs(60)).spawn();
/// // A consumer works on `store`, until the service ends:
/// sweeper.stop().await;
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "a sweeper does nothing until it runs"]
pub struct Sweeper<S> {
    store: S,
    retention: Duration,
    every: Duration,
    batch: u32,
}

impl<S: IdempotencyStore> Sweeper<S> {
    /// A sweeper that forgets what was completed more than `retention` ago: every five minutes,
    /// 1,000 at a time.
    pub fn new(store: S, retention: Duration) -> Self {
        Self { store, retention, every: Duration::from_secs(300), batch: 1000 }
    }

    /// Sets the pause between two sweeps. Default: five minutes.
    pub fn every(mut self, pause: Duration) -> Self {
        self.every = pause;
        self
    }

    /// Sets how many are forgotten in one transaction, at least one. Default: 1,000.
    pub fn batch(mut self, limit: u32) -> Self {
        self.batch = limit.max(1);
        self
    }

    /// Sweeps once, until nothing is left that is older than the retention; returns how many were
    /// forgotten.
    ///
    /// # Errors
    ///
    /// The store's first error; some may have been forgotten.
    ///
    /// # Cancellation
    ///
    /// Dropping the future loses nothing: what was not purged is left for the next sweep.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let mut forgotten = 0;
        loop {
            let batch = self.store.purge(self.retention, self.batch).await?;
            forgotten += batch;
            if batch == 0 {
                return Ok(forgotten);
            }
            // The claims of consumers go first.
            tokio::task::yield_now().await;
        }
    }

    /// Sweeps until `shutdown` is ready. The batch that is under way then is finished, and no other
    /// is begun.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let pause = std::pin::pin!(sleep(self.pause()));
            if let Either::Left(_) = future::select(&mut shutdown, pause).await {
                return;
            }
            loop {
                match self.store.purge(self.retention, self.batch).await {
                    Ok(0) => break,
                    Ok(forgotten) => {
                        tracing::debug!(forgotten, "identities older than the retention forgotten");
                    }
                    Err(error) => {
                        tracing::warn!(error = %Chain(&error), "sweep failed; the next one tries again");
                        break;
                    }
                }
                if futures_util::FutureExt::now_or_never(&mut shutdown).is_some() {
                    return;
                }
            }
        }
    }

    /// Sweeps in a task of its own, until the handle is stopped or dropped.
    pub fn spawn(self) -> SweeperHandle
    where
        S: Send + Sync,
    {
        let (stop, mut stopped) = watch::channel(());
        let task = tokio::spawn(self.run_until(async move {
            // Ends with the sender.
            let _ = stopped.changed().await;
        }));
        SweeperHandle { stop, task }
    }

    fn pause(&self) -> Duration {
        // A longer pause would overflow.
        self.every.min(Duration::from_secs(31_536_000)).mul_f64(0.8 + 0.4 * fastrand::f64())
    }
}

/// A sweeper that runs in a task of its own. Dropping it stops the sweeper after the batch that is
/// under way.
#[derive(Debug)]
#[must_use = "dropping the handle stops the sweeper"]
pub struct SweeperHandle {
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl SweeperHandle {
    /// Stops the sweeper, and waits for the batch that is under way.
    pub async fn stop(self) {
        drop(self.stop);
        // An error is a panic of the store in the task; it was reported there.
        let _ = self.task.await;
    }
}
