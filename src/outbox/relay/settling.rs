//! What is to be written to the table: rows to be removed, and failures.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

use super::requests::Failure;
use crate::outbox::{
    contract::{Confirmed, Lane, Next},
    keys::Key,
    verdict::shortened,
};

/// So many confirmed rows are removed at once. What a removal costs is mostly its commit.
const FULL: usize = 512;

/// No statement has more of them.
const MOST: usize = 1_024;

/// A removal goes ahead of a read if it has so many rows, which the read would have to leave out.
const SOME: usize = 128;

/// Nothing waits longer for others to be written with it.
const PATIENCE: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct Settling {
    removals: Vec<Confirmed>,
    first_removal: Option<Instant>,
    failures: VecDeque<Failure>,
    first_failure: Option<Instant>,
}

impl Settling {
    /// A row whose message was confirmed (O1).
    pub(super) fn remove(&mut self, confirmed: Confirmed, now: Instant) {
        self.removals.push(confirmed);
        self.first_removal.get_or_insert(now);
    }

    /// A removal whose outcome is not known is made again.
    pub(super) fn remove_again(&mut self, rows: Vec<Confirmed>, now: Instant) {
        self.removals.extend(rows);
        if !self.removals.is_empty() {
            self.first_removal.get_or_insert(now);
        }
    }

    pub(super) fn fail(&mut self, mut failure: Failure, now: Instant) {
        failure.failed.error = shortened(&failure.failed.error);
        self.failures.push_back(failure);
        self.first_failure.get_or_insert(now);
    }

    pub(super) fn fail_again(&mut self, failures: Vec<Failure>, now: Instant) {
        for failure in failures.into_iter().rev() {
            self.failures.push_front(failure);
            self.first_failure.get_or_insert(now);
        }
    }

    /// Failures in a lane that is another's, or as if new: what failed is tried again.
    pub(super) fn forget_failures(&mut self, lane: Lane) -> VecDeque<Failure> {
        let (gone, rest): (VecDeque<Failure>, VecDeque<Failure>) = std::mem::take(&mut self.failures)
            .into_iter()
            .partition(|failure| failure.failed.row.lane == lane);
        self.failures = rest;
        if self.failures.is_empty() {
            self.first_failure = None;
        }
        gone
    }

    /// The failures to be written now.
    pub(super) fn next_failures(&mut self, now: Instant, at_once: bool) -> Option<Vec<Failure>> {
        let is_due = at_once || self.failures.len() >= SOME || is_over(self.first_failure, now);
        if self.failures.is_empty() || !is_due {
            return None;
        }
        let rest = self.failures.split_off(self.failures.len().min(FULL));
        let failures = std::mem::replace(&mut self.failures, rest);
        self.first_failure = (!self.failures.is_empty()).then_some(now);
        Some(failures.into())
    }

    /// The rows to be removed now.
    pub(super) fn next_removals(&mut self, now: Instant, at_once: bool) -> Option<Vec<Confirmed>> {
        let is_due = at_once || self.removals.len() >= FULL || is_over(self.first_removal, now);
        if self.removals.is_empty() || !is_due {
            return None;
        }
        let rest = self.removals.split_off(self.removals.len().min(MOST));
        let mut rows = std::mem::replace(&mut self.removals, rest);
        // In the order of the index, so that relays that remove the same rows do not deadlock.
        rows.sort_unstable();
        self.first_removal = (!self.removals.is_empty()).then_some(now);
        Some(rows)
    }

    /// The same ahead of a read.
    pub(super) fn removals_before_read(&mut self, now: Instant) -> Option<Vec<Confirmed>> {
        self.next_removals(now, self.removals.len() >= SOME)
    }

    /// The keys that are parked as soon as it is written, with the numbers of the rows.
    pub(super) fn parking(&self) -> impl Iterator<Item = (&Key, i64)> {
        self.failures
            .iter()
            .filter(|failure| failure.failed.next == Next::Park)
            .filter_map(|failure| Some((failure.key.as_ref()?, failure.failed.row.seq)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.removals.is_empty() && self.failures.is_empty()
    }

    /// When something is to be written at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        let firsts = [self.first_removal, self.first_failure];
        firsts.into_iter().flatten().min().map(|first| first + PATIENCE)
    }
}

fn is_over(first: Option<Instant>, now: Instant) -> bool {
    first.is_some_and(|first| first + PATIENCE <= now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        message::MessageId,
        outbox::contract::{Failed, RowId},
    };

    fn id() -> MessageId {
        MessageId::new("m").unwrap()
    }

    fn row(seq: i64) -> Confirmed {
        Confirmed { row: RowId { lane: Lane(0), seq }, message_id: id() }
    }

    #[tokio::test(start_paused = true)]
    async fn removals_wait_for_others_but_not_long() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        assert!(settling.next_removals(now, true).is_none() && settling.due().is_none());
        settling.remove(row(2), now);
        settling.remove(row(1), now + PATIENCE / 2);
        assert!(settling.next_removals(now + PATIENCE / 2, false).is_none());
        assert_eq!(settling.due(), Some(now + PATIENCE));
        assert_eq!(settling.next_removals(now + PATIENCE, false), Some(vec![row(1), row(2)]));
        assert!(settling.is_empty() && settling.due().is_none());
        let full = i64::try_from(FULL).unwrap();
        (0..full).for_each(|seq| settling.remove(row(seq), now));
        settling.remove_again((full..3 * full).map(row).collect(), now);
        assert_eq!(settling.next_removals(now, false).map(|rows| rows.len()), Some(MOST));
        assert_eq!(settling.removals_before_read(now).map(|rows| rows.len()), Some(FULL));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_written_in_their_order() {
        let (mut settling, now) = (Settling::default(), Instant::now());
        let failure = |seq, key: Option<&str>| {
            let Confirmed { row, message_id } = row(seq);
            let failed = Failed { row, message_id, counted: true, next: Next::Park, error: "é".repeat(900) };
            Failure { failed, key: key.map(Key::from), epoch: 0 }
        };
        settling.fail(failure(1, Some("a")), now);
        settling.fail(failure(2, None), now);
        assert!(settling.next_failures(now, false).is_none());
        let first = settling.next_failures(now, true).unwrap();
        assert!(first.len() == 2 && first[0].failed.error.len() <= 1_000);
        settling.fail(failure(3, None), now);
        settling.fail_again(first, now);
        assert_eq!(settling.parking().count(), 1);
        let again = settling.next_failures(now + PATIENCE, false).unwrap();
        assert_eq!(again.iter().map(|failure| failure.failed.row.seq).collect::<Vec<i64>>(), [1, 2, 3]);
        settling.fail_again(again, now);
        assert!(settling.forget_failures(Lane(1)).is_empty());
        assert_eq!(settling.forget_failures(Lane(0)).len(), 3);
        settling.fail_again(Vec::new(), now);
        settling.remove_again(Vec::new(), now);
        assert_eq!(settling.due(), None, "nothing is to be written");
    }
}
