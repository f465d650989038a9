//! When the table is read, and how much of it.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::outbox::contract::Lane;

/// A relay that hears of commits polls only for what it was not told of.
const POLL_IF_HEARING: Duration = Duration::from_secs(5);

/// After a read of few rows the next one waits so long, whoever wakes it: commits come in numbers.
const BREATH: Duration = Duration::from_millis(2);

/// So few.
const FEW: usize = 32;

/// How much wider a read may become that sees nothing but what is left alone.
const WIDEST: u32 = 1_024;

/// How much fits into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) rows: usize,
    pub(super) bytes: u64,
    /// Nothing is in memory: one row is taken whatever its size.
    pub(super) is_all: bool,
}

/// Why a read begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Wake,
    Poll,
    /// There was more than the last one took, or something is let in again.
    More,
}

impl Cause {
    #[cfg(feature = "metrics")]
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Wake => "wake",
            Self::Poll => "poll",
            Self::More => "more",
        }
    }
}

/// How a read went.
#[derive(Debug, Default)]
pub(super) struct Took {
    /// Rows that are in memory now and were not before.
    pub(super) rows: usize,
    /// Lanes that have more.
    pub(super) cut: Vec<Lane>,
    /// Of one of them nothing was taken, as there was no room for its next row.
    pub(super) is_starved: bool,
}

#[derive(Debug)]
pub(super) struct Pace {
    poll: Duration,
    hears: bool,
    woken: bool,
    next_poll: Instant,
    /// Not before, unless memory is empty.
    not_before: Instant,
    more: BTreeSet<Lane>,
    widened: u32,
}

impl Pace {
    pub(super) fn new(poll: Duration, now: Instant) -> Self {
        Self {
            poll,
            hears: false,
            woken: false,
            next_poll: now,
            not_before: now,
            more: BTreeSet::new(),
            widened: 1,
        }
    }

    pub(super) fn hears(&mut self, hears: bool) {
        self.hears = hears;
    }

    /// Something was committed.
    pub(super) fn wake(&mut self) {
        self.woken = true;
    }

    /// There is something to be read in a lane.
    pub(super) fn more(&mut self, lane: Lane) {
        self.more.insert(lane);
    }

    /// All lanes are read as soon as there is room.
    pub(super) fn poll_now(&mut self, now: Instant) {
        self.next_poll = now;
    }

    /// Which of the lanes are to be read now, and why.
    pub(super) fn next(&mut self, lanes: &[Lane], now: Instant) -> Option<(Cause, Vec<Lane>)> {
        if now < self.not_before || lanes.is_empty() {
            return None;
        }
        let cause = match () {
            () if self.woken => Cause::Wake,
            () if self.next_poll <= now => Cause::Poll,
            () => {
                let more: Vec<Lane> = lanes.iter().filter(|lane| self.more.contains(lane)).copied().collect();
                self.more.clear();
                return (!more.is_empty()).then_some((Cause::More, more));
            }
        };
        self.woken = false;
        self.more.clear();
        Some((cause, lanes.to_vec()))
    }

    /// When [`next`](Self::next) may have an answer, if nothing else happens.
    pub(super) fn due(&self) -> Instant {
        let wants_now = self.woken || !self.more.is_empty();
        if wants_now { self.not_before } else { self.next_poll.max(self.not_before) }
    }

    /// How many rows and bytes to ask of each lane.
    pub(super) fn limits(&self, lanes: usize, room: Room) -> (u32, u64) {
        let rows = room.rows.div_ceil(lanes.max(1)).max(1).saturating_mul(self.widened as usize);
        let bytes = (room.bytes / lanes.max(1) as u64).max(1).saturating_mul(self.widened.into());
        (u32::try_from(rows).unwrap_or(u32::MAX), bytes)
    }

    /// A read has ended.
    pub(super) fn read(&mut self, cause: Cause, took: &Took, room: Room, now: Instant) {
        self.not_before = if took.rows < FEW { now + BREATH } else { now };
        self.more.extend(took.cut.iter().copied());
        if took.rows > 0 {
            // What filled the last one may fill the next one as well.
            self.widened = (self.widened / 2).max(1);
        } else if !took.cut.is_empty() && !took.is_starved {
            // What is left alone fills it.
            if self.widened == WIDEST || !room.is_all {
                self.not_before = now + self.poll.min(Duration::from_millis(50));
            }
            self.widened = (self.widened * 2).min(WIDEST);
        }
        if cause != Cause::More {
            self.next_poll = now + self.pause(took.rows, room.rows);
        }
    }

    /// The pause until the next poll: the shorter the more the last one found.
    fn pause(&self, rows: usize, limit: usize) -> Duration {
        let poll = if self.hears { self.poll.max(POLL_IF_HEARING) } else { self.poll };
        #[allow(clippy::cast_precision_loss)]
        let rest = 1.0 - rows as f64 / limit.max(1) as f64;
        poll.mul_f64(rest.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLL: Duration = Duration::from_millis(250);
    const ROOM: Room = Room { rows: 100, bytes: 1_000, is_all: true };

    fn lanes(numbers: &[u16]) -> Vec<Lane> {
        numbers.iter().copied().map(Lane).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn polls_come_sooner_the_more_they_find() {
        let now = Instant::now();
        let mut pace = Pace::new(POLL, now);
        let all = lanes(&[0, 1]);
        assert_eq!(pace.next(&all, now), Some((Cause::Poll, all.clone())));
        let found = |rows| Took { rows, ..Took::default() };
        pace.read(Cause::Poll, &found(0), ROOM, now);
        assert_eq!((pace.next(&all, now + POLL / 2), pace.due()), (None, now + POLL));
        pace.read(Cause::Poll, &found(50), ROOM, now);
        assert_eq!(pace.due(), now + POLL / 2);
        pace.read(Cause::Poll, &found(100), ROOM, now);
        assert_eq!(pace.due(), now);
        pace.hears(true);
        pace.read(Cause::Poll, &found(0), ROOM, now);
        assert_eq!(pace.due(), now + POLL_IF_HEARING);
        pace.wake();
        assert_eq!((pace.next(&all, now), pace.due()), (None, now + BREATH));
        assert_eq!(pace.next(&all, now + BREATH).map(|next| next.0), Some(Cause::Wake));
        assert_eq!(pace.next(&[], now + POLL_IF_HEARING), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_lanes_that_have_more_are_read_at_once() {
        let now = Instant::now();
        let mut pace = Pace::new(POLL, now);
        let all = lanes(&[0, 1, 2]);
        pace.read(Cause::Poll, &Took { rows: 40, cut: lanes(&[1, 7]), ..Took::default() }, ROOM, now);
        assert_eq!(pace.next(&all, now), Some((Cause::More, lanes(&[1]))));
        assert_eq!(pace.next(&all, now), None);
        pace.more(Lane(2));
        assert_eq!(pace.due(), now);
        pace.poll_now(now);
        assert_eq!(pace.next(&all, now), Some((Cause::Poll, all)));
    }

    #[tokio::test(start_paused = true)]
    async fn reads_widen_until_they_see_something_new() {
        let now = Instant::now();
        let mut pace = Pace::new(POLL, now);
        assert_eq!(pace.limits(4, ROOM), (25, 250));
        let nothing = Took { cut: lanes(&[0]), ..Took::default() };
        pace.read(Cause::More, &nothing, ROOM, now);
        assert_eq!((pace.limits(4, ROOM), pace.due()), ((50, 500), now + BREATH));
        let full = Room { is_all: false, ..ROOM };
        pace.read(Cause::More, &nothing, full, now);
        assert_eq!(pace.due(), now + Duration::from_millis(50), "what is in memory goes first");
        pace.read(Cause::More, &Took { rows: 1, ..Took::default() }, ROOM, now);
        assert_eq!(pace.limits(1, Room { rows: 0, bytes: 0, is_all: false }), (2, 2));
    }
}
