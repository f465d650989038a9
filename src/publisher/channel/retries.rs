//! Jobs that wait for their next attempt.

use tokio::time::Instant;

use super::job::Job;

/// A job and when it is due; a heap of them gives the earliest first.
pub(crate) struct Delayed {
    pub(crate) due: Instant,
    pub(crate) job: Job,
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Delayed {}
