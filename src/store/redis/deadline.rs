//! Until when a call waits.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

#[derive(Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    pub(super) limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// `None` if it took too long.
    pub(super) async fn wait<F: Future>(self, work: F) -> Option<F::Output> {
        timeout_at(self.at, work).await.ok()
    }
}
