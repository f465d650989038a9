//! What the table is asked, and what follows from its answers.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    pace::Room,
    requests::{Done, Failure, Request},
    worker::{Away, Worker},
};
use crate::{
    error::Chain,
    idempotency::StoreError,
    outbox::contract::{Lane, Next},
};

/// So many windows are in memory at most: one is in flight, and others are there to be sent while
/// the table is read.
const AHEAD: usize = 3;

/// Without removals for so long, and with rows that were not removed, an empty one is made.
const MARK: Duration = Duration::from_secs(1);

impl Worker<'_> {
    /// What to ask the table next, of which one thing is asked at a time.
    pub(super) fn next_request(&mut self, now: Instant) -> Option<Request> {
        if self.table.until.is_some_and(|until| now < until) {
            return None;
        }
        let is_stopping = self.stops_at.is_some();
        if let Some(failures) = self.memory.settling.next_failures(now, is_stopping) {
            return Some(Request::Fail(self.memory.terms(), failures));
        }
        if let Some(rows) = self.memory.settling.next_removals(now, is_stopping) {
            return Some(Request::Remove(rows));
        }
        if is_stopping || self.broker_pause.is_some() || !self.is_valid(now) {
            return None;
        }
        if let Some(lanes) = self.memory.to_be_loaded() {
            return Some(Request::ParkedKeys(lanes));
        }
        if self.wants_mark(now) {
            return Some(Request::Remove(Vec::new()));
        }
        let room = self.room()?;
        let lanes: Vec<Lane> = self.memory.readable().map(|(lane, _)| lane).collect();
        for (lane, own) in self.memory.readable() {
            if own.floor.is_lowered() {
                self.pace.more(lane);
            }
        }
        if self.pace.due() > now || lanes.is_empty() {
            return None;
        }
        if let Some(rows) = self.memory.settling.removals_before_read(now) {
            return Some(Request::Remove(rows));
        }
        let (cause, lanes) = self.pace.next(&lanes, now)?;
        let limits = self.pace.limits(lanes.len(), room);
        self.reading = Some((cause, room));
        #[cfg(feature = "metrics")]
        crate::outbox::metrics::read(cause.name());
        Some(Request::Read(self.memory.begin_read(&lanes, limits)))
    }

    /// Whether reads could begin later if there had been a transaction. Without confirms there is
    /// none to wait for.
    fn wants_mark(&self, now: Instant) -> bool {
        let is_over = self.marked.is_some_and(|marked| marked + MARK <= now);
        is_over && self.memory.lanes.values().any(|own| own.floor.wants_mark())
    }

    /// How much may be read, if it is worth a read.
    fn room(&self) -> Option<Room> {
        let (rows, bytes) = self.memory.in_memory();
        let most = self.settings.window.saturating_mul(AHEAD);
        let free = most.saturating_sub(rows);
        let free_bytes = self.settings.window_bytes.saturating_sub(bytes);
        let bytes = self.memory.needs().max(self.settings.window_bytes / 2);
        let is_half = free >= most.div_ceil(2) && free_bytes >= bytes;
        let room = Room { rows: free, bytes: free_bytes, is_all: rows == 0 };
        (self.memory.may_read() && (is_half || rows == 0)).then_some(room)
    }

    /// The table has answered.
    pub(super) fn done(&mut self, done: Done, now: Instant) {
        let failed = match done {
            Done::Read(reading, Ok(batch)) => {
                if let Some((cause, room)) = self.reading.take() {
                    let ended_below = batch.ended_below;
                    match ended_below {
                        Some(_) => {
                            self.marked.get_or_insert(now);
                        }
                        None => self.marked = None,
                    }
                    let took = self.memory.end_read(&reading, batch, room, now);
                    self.pace.read(cause, &took, room, now);
                    #[cfg(feature = "metrics")]
                    self.see_horizon(ended_below, now);
                }
                None
            }
            Done::Read(_, Err(error)) => {
                self.reading = None;
                self.memory.read_failed();
                self.pace.poll_now(now);
                Some(error)
            }
            Done::Removed(rows, Ok(removed)) => {
                #[cfg(feature = "metrics")]
                if !rows.is_empty() {
                    crate::outbox::metrics::removed(rows.len());
                }
                self.memory.removed(&rows, &removed);
                self.marked = self.marked.map(|_| now);
                None
            }
            Done::Removed(rows, Err(error)) => {
                self.memory.settling.remove_again(rows, now);
                Some(error)
            }
            Done::Failed(failures, Ok(lost)) => {
                let is_parked = |Failure { failed, .. }: &&Failure| {
                    failed.next == Next::Park && !lost.contains(&failed.row.lane)
                };
                self.counted.parked += failures.iter().filter(is_parked).count() as u64;
                self.memory.failed(failures, &lost, now);
                None
            }
            Done::Failed(failures, Err(error)) => {
                self.memory.fail_again(failures, now);
                Some(error)
            }
            Done::ParkedKeys(lanes, Ok(keys)) => {
                self.memory.loaded(&lanes, keys, now);
                None
            }
            Done::ParkedKeys(_, Err(error)) => Some(error),
        };
        match failed {
            None => self.table = Away::default(),
            Some(error) => self.table_failed(&error, now),
        }
    }

    fn table_failed(&mut self, error: &StoreError, now: Instant) {
        let told = Chain(error).to_string();
        tracing::warn!(error = told, "the outbox does not answer; it is asked again");
        self.monitor.failed(&told);
        self.table.until = Some(now + self.table.failed(Duration::from_millis(200)));
    }

    /// When the loop has something to do, if nothing happens until then.
    pub(super) fn due(&self, now: Instant, is_idle: bool) -> Option<Instant> {
        let asks = if is_idle { self.asks_at(now) } else { None };
        [asks, self.memory.next_tick(), self.stops_at].into_iter().flatten().min()
    }

    /// When the table has to be asked for something.
    fn asks_at(&self, now: Instant) -> Option<Instant> {
        let may_read = self.stops_at.is_none()
            && self.broker_pause.is_none()
            && self.is_valid(now)
            && self.memory.readable().next().is_some()
            && self.room().is_some();
        let reads = may_read.then(|| self.pace.due().min(self.next_read_all));
        let asks = [self.memory.settling.due(), reads].into_iter().flatten().min()?;
        Some(self.table.until.map_or(asks, |until| until.max(asks)))
    }

    #[cfg(feature = "metrics")]
    fn see_horizon(&mut self, ended_below: Option<u64>, now: Instant) {
        let waited_for = self.memory.lanes.values().filter_map(|own| own.floor.waits_for()).min();
        let waited_for = waited_for.filter(|_| ended_below.is_some());
        self.horizon = waited_for.map(|transaction| match self.horizon {
            Some((known, since)) if known == transaction => (known, since),
            _ => (transaction, now),
        });
        let held = self.horizon.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
        crate::outbox::metrics::horizon_held(held);
    }
}
