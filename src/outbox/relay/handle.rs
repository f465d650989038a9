//! A relay that runs in a task of its own.

use tokio::{sync::watch, task::JoinHandle};

use crate::outbox::status::RelayMonitor;

/// A relay that runs in a task of its own. Dropping it stops the relay, as [`stop`](Self::stop)
/// does, but waits for nothing.
#[derive(Debug)]
#[must_use = "dropping the handle stops the relay"]
pub struct RelayHandle {
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
    monitor: RelayMonitor,
}

impl RelayHandle {
    pub(super) fn new(stop: watch::Sender<()>, task: JoinHandle<()>, monitor: RelayMonitor) -> Self {
        Self { stop, task, monitor }
    }

    /// Stops the relay: it publishes nothing new, waits for what is in flight, removes what was
    /// confirmed, and gives its lanes to the others. At most a few seconds longer than its
    /// [`drain_timeout`](super::Relay::drain_timeout).
    ///
    /// # Cancellation
    ///
    /// Dropping the future takes nothing back.
    pub async fn stop(self) {
        drop(self.stop);
        // An error is a panic in the task; it was reported there.
        let _ = self.task.await;
    }

    /// Looks at the relay from outside.
    pub fn monitor(&self) -> RelayMonitor {
        self.monitor.clone()
    }
}
