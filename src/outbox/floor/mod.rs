//! From where a lane is read (O6).
//!
//! A low number may become visible after a higher one, when its transaction commits later. So a
//! read may begin behind a number only if nothing up to it can appear any more, and if what was
//! there is known. Reading from the start of the lane is always right, and slow where a database
//! keeps what was deleted for a while: a read walks over all of it.
//!
//! # Proof
//!
//! A producer has its transaction's identity before its first number. A read that sees number `h`
//! proves that whoever took a number up to `h` did so before; so their identities are below that of
//! any transaction that begins after the read, such as the relay's next removal. Once a later read
//! says that all transactions below *that* identity have ended, it has seen all that they left, and
//! the next read begins behind `h`.
//!
//! The snapshot of the first read would not do as the bound: its upper end is one above the last
//! transaction that *ended*, and one that still runs can be above it.
//!
//! # What a read leaves out
//!
//! Keys that are busy, routes that are held back, rows that are to be left alone. For each of them
//! it is kept where the first read began that left it out, and when it is let in again, the next
//! read begins there.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{contract::Route, keys::Key};

/// Older marks are merged into newer ones, which are as right, only later.
const MARKS: usize = 64;

/// Before the first number.
const START: i64 = 0;

/// What reads leave out, or rows that were read and are not in memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum LeftOut {
    Key(Key),
    Route(Arc<Route>),
    Row(i64),
}

/// All that has a number up to `seq` began before `transaction` did.
#[derive(Debug, Clone, Copy)]
struct Mark {
    seq: i64,
    transaction: u64,
}

/// From where one lane is read.
#[derive(Debug)]
pub(super) struct Floor {
    /// The next read begins behind it, or earlier if something is let in.
    behind: i64,
    /// Nothing up to here can appear any more.
    proven: i64,
    marks: VecDeque<Mark>,
    /// The highest number seen that has no mark yet.
    unmarked: Option<i64>,
    left_out: HashMap<LeftOut, i64>,
    /// Where the next read has to begin at the latest.
    let_in: Option<i64>,
}

impl Floor {
    /// Of a lane that was just taken: nothing is known of it.
    pub(super) fn new() -> Self {
        Self {
            behind: START,
            proven: START,
            marks: VecDeque::new(),
            unmarked: None,
            left_out: HashMap::new(),
            let_in: None,
        }
    }

    /// A read begins; gives the number behind which it does.
    pub(super) fn begin(&mut self) -> i64 {
        if let Some(seq) = self.let_in.take() {
            self.behind = self.behind.min(seq);
        }
        self.behind
    }

    /// A read has ended. `top`: the highest number it saw; `taken`: the highest number up to which
    /// all of it is known now, if it was cut; `ended_below`: see [`Batch`](super::Batch).
    pub(super) fn end(&mut self, top: Option<i64>, taken: Option<i64>, ended_below: Option<u64>) {
        while let (Some(mark), Some(ended)) = (self.marks.front(), ended_below) {
            if mark.transaction > ended {
                break;
            }
            self.proven = self.proven.max(mark.seq);
            self.marks.pop_front();
        }
        self.behind = self.behind.max(self.proven.min(taken.unwrap_or(i64::MAX)));
        self.unmarked = self.unmarked.max(top.filter(|top| *top > self.marked()));
    }

    /// The highest number that has a mark, or needs none.
    fn marked(&self) -> i64 {
        self.marks.back().map_or(self.proven, |mark| mark.seq)
    }

    /// Whether it could follow if the relay had a transaction of its own.
    pub(super) fn wants_mark(&self) -> bool {
        self.unmarked.is_some()
    }

    /// A transaction of the relay's own has begun, after the last read had ended and before the
    /// next begins.
    pub(super) fn mark(&mut self, transaction: u64) {
        let newest = self.marked();
        let Some(seq) = self.unmarked.take().filter(|seq| *seq > newest) else { return };
        if self.marks.len() == MARKS {
            self.marks.pop_back();
        }
        self.marks.push_back(Mark { seq, transaction });
    }

    /// From now on reads leave something out; or rows of it, the first one numbered `first`, are
    /// not in memory any more.
    pub(super) fn leave_out(&mut self, what: LeftOut, first: Option<i64>) {
        let before = first.map_or(i64::MAX, |seq| seq.saturating_sub(1));
        let since = before.min(self.behind).min(self.let_in.unwrap_or(i64::MAX));
        self.left_out.entry(what).and_modify(|known| *known = since.min(*known)).or_insert(since);
    }

    /// Reads have it again, from the next one on.
    pub(super) fn let_in(&mut self, what: &LeftOut) {
        if let Some(since) = self.left_out.remove(what) {
            self.read_again(since);
        }
    }

    /// The next read begins behind this number, or earlier.
    pub(super) fn read_again(&mut self, behind: i64) {
        self.let_in = Some(self.let_in.map_or(behind, |known| known.min(behind)));
    }

    /// The next read is of the whole lane: somebody may have put rows in by hand, or back from
    /// parking.
    pub(super) fn read_all(&mut self) {
        self.read_again(START);
        // They may be of what this read leaves out.
        for (what, since) in &mut self.left_out {
            if !matches!(what, LeftOut::Row(_)) {
                *since = START;
            }
        }
    }

    /// Whether something is to be read again.
    pub(super) fn is_lowered(&self) -> bool {
        self.let_in.is_some()
    }

    /// Whether it is left out.
    pub(super) fn leaves_out(&self, what: &LeftOut) -> bool {
        self.left_out.contains_key(what)
    }

    /// How much is left out.
    pub(super) fn left_out(&self) -> usize {
        self.left_out.len()
    }

    /// The transaction that it waits for: older ones have to end before it can follow.
    #[cfg(any(test, feature = "metrics"))]
    pub(super) fn waits_for(&self) -> Option<u64> {
        self.marks.front().map(|mark| mark.transaction)
    }
}

#[cfg(test)]
mod tests;
