//! What a table of messages can do, as far as the contract leaves it open.

use std::time::Duration;

use crate::testing::conformance::capabilities::Need;

/// What an [`Outbox`](crate::outbox::Outbox) can do, as far as its contract leaves it open: says
/// which cases apply, and what they expect.
///
/// By itself: several transactions are open at the same time, as in most databases, and the table
/// does not tell which of them have ended.
#[derive(Debug, Clone)]
#[must_use]
pub struct OutboxCapabilities {
    has: Vec<Need>,
    limit: Duration,
}

impl OutboxCapabilities {
    /// Several transactions at a time, and it is not told which have ended.
    pub fn new() -> Self {
        Self { has: vec![Need::Concurrency], limit: Duration::from_secs(30) }
    }

    /// States that the table tells which transactions have ended, as
    /// [`Batch::ended_below`](crate::outbox::Batch::ended_below) and
    /// [`Removed::transaction`](crate::outbox::Removed::transaction). If not stated, it must not.
    pub fn tells_ended(mut self) -> Self {
        self.has.push(Need::Ended);
        self
    }

    /// States that one transaction that puts something in is open at a time, as SQLite has one
    /// writer.
    pub fn exclusive(mut self) -> Self {
        self.has.retain(|need| *need != Need::Concurrency);
        self
    }

    /// Sets the longest time for one case. Default: 30 seconds.
    ///
    /// A third of it is how long [`tells_ended`](Self::tells_ended) waits until the transactions of
    /// others have ended: give it more on a server that others use, too.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub(super) fn all(&self) -> Vec<Need> {
        self.has.clone()
    }

    pub(super) fn has(&self, need: Need) -> bool {
        self.has.contains(&need)
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// How long to ask again for what must come about by itself.
    pub(super) fn patience(&self) -> Duration {
        self.limit / 3
    }
}

impl Default for OutboxCapabilities {
    fn default() -> Self {
        Self::new()
    }
}
