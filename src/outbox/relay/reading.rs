//! What a read asks for, and what is taken of what it gives.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio::time::Instant;

use super::{
    memory::Memory,
    pace::{Room, Took},
    requests::Reading,
};
use crate::outbox::{
    contract::{Batch, Lane, Row, RowId},
    floor::LeftOut,
    keys::{Entry, Inserted, Key},
};

/// A read names no more keys than these to be left out. Rows of others are read in vain.
const KEYS: usize = 1_024;

/// With so many keys left out nothing is read: their heads are here only, and must not be
/// forgotten.
const TOO_MANY_KEYS: usize = 16 * 1_024;

impl Memory {
    /// Whether something may be read at all.
    pub(super) fn may_read(&self) -> bool {
        self.keys.left_out().len() < TOO_MANY_KEYS
    }

    /// Begins a read of some lanes.
    pub(super) fn begin_read(&mut self, lanes: &[Lane], limits: (u32, u64)) -> Reading {
        self.let_in = Some(HashSet::new());
        let (mut epochs, mut from) = (Vec::new(), Vec::new());
        for lane in lanes {
            if let Some(own) = self.lanes.get_mut(lane) {
                epochs.push((*lane, own.epoch));
                from.push(RowId { lane: *lane, seq: own.floor.begin() });
            }
        }
        let begins: HashMap<Lane, i64> = from.iter().map(|row| (row.lane, row.seq)).collect();
        let is_of_read = |row: &&RowId| begins.get(&row.lane).is_some_and(|behind| row.seq > *behind);
        let without_rows = self.known.iter().filter(is_of_read).copied().collect();
        let without_keys = self.keys.left_out().take(KEYS).map(|key| key.to_string()).collect();
        let without_routes = self.routes.left_out().map(|route| (**route).clone()).collect();
        Reading {
            lanes: epochs,
            from,
            without_rows,
            without_keys,
            without_routes,
            rows: limits.0,
            bytes: limits.1,
        }
    }

    /// A read has failed. It changed nothing: the next one begins where it did.
    pub(super) fn read_failed(&mut self) {
        self.let_in = None;
    }

    /// Takes what a read gave, as far as there is room.
    pub(super) fn end_read(&mut self, reading: &Reading, batch: Batch, room: Room, now: Instant) -> Took {
        let let_in = self.let_in.take().unwrap_or_default();
        let mut by_lane: BTreeMap<Lane, Vec<Row>> = BTreeMap::new();
        for row in batch.rows {
            by_lane.entry(row.id.lane).or_default().push(row);
        }
        let new = by_lane.values().flatten().filter(|row| !self.knows(row.id)).count();
        let fair = if new <= room.rows { room.rows } else { room.rows.div_ceil(reading.lanes.len().max(1)) };
        let mut left = Room { is_all: room.is_all && new > 0, ..room };
        let mut took = Took::default();
        // Which of them had no room last time comes first, or the others would leave it none again.
        let first =
            self.starved.and_then(|(starved, _)| reading.lanes.iter().position(|own| own.0 == starved));
        if first.is_some() {
            self.starved = None;
        }
        let (others, in_turn) = reading.lanes.split_at(first.unwrap_or_default());
        for (lane, epoch) in in_turn.iter().chain(others) {
            let rows = by_lane.remove(lane).unwrap_or_default();
            if self.lanes.get(lane).is_none_or(|own| own.epoch != *epoch || own.gives) {
                continue;
            }
            let (top, more) = (rows.last().map(|row| row.id.seq), batch.cut.contains(lane));
            let of_lane = self.take(rows, fair, &mut left, &let_in, now);
            let is_cut = more || of_lane.needs.is_some();
            if let (0, Some(bytes)) = (of_lane.new, of_lane.needs) {
                self.starved.get_or_insert((*lane, bytes));
                took.is_starved = true;
            }
            if let Some(own) = self.lanes.get_mut(lane) {
                own.floor.end(top, is_cut.then(|| of_lane.taken.unwrap_or(i64::MIN)), batch.ended_below);
                if let Some(seq) = of_lane.again {
                    own.floor.read_again(seq.saturating_sub(1));
                }
                for (key, first) in of_lane.hot {
                    own.floor.leave_out(LeftOut::Key(key), first);
                }
            }
            took.rows += of_lane.new;
            if is_cut {
                took.cut.push(*lane);
            }
        }
        took
    }

    /// Takes rows of one lane, in their order, up to the first one without room.
    fn take(
        &mut self,
        rows: Vec<Row>,
        fair: usize,
        left: &mut Room,
        let_in: &HashSet<Key>,
        now: Instant,
    ) -> LaneTook {
        let mut took = LaneTook::default();
        for row in rows {
            let (id, bytes) = (row.id, row.body.len());
            let key = row.order_key.as_deref().map(|key| self.keys.intern(key));
            if self.knows(id) || (key.is_none() && self.is_left_alone(&row, now)) {
                // Nothing new.
            } else if key.as_ref().is_some_and(|key| let_in.contains(key)) {
                // It is read again, with what came before it.
                took.again.get_or_insert(id.seq);
            } else {
                let fits = left.is_all || bytes as u64 <= left.bytes;
                if took.new >= fair || left.rows == 0 || !fits {
                    took.needs = Some(bytes as u64);
                    break;
                }
                if self.insert(Entry { row, key, read: now }, &mut took) {
                    self.know(id);
                    took.new += 1;
                    let rest = left.bytes.saturating_sub(bytes as u64);
                    *left = Room { rows: left.rows - 1, bytes: rest, is_all: false };
                }
            }
            took.taken = Some(id.seq);
        }
        took
    }

    /// Whether a row without a key is left alone. It is as good as known.
    fn is_left_alone(&mut self, row: &Row, now: Instant) -> bool {
        let Some(own) = self.lanes.get(&row.id.lane) else { return true };
        if own.floor.leaves_out(&LeftOut::Row(row.id.seq)) {
            return true;
        }
        let is_alone = !row.retry_in.is_zero();
        if is_alone {
            self.leave_row_alone(row.id, now + row.retry_in);
        }
        is_alone
    }

    /// Whether it is in memory now.
    fn insert(&mut self, entry: Entry, took: &mut LaneTook) -> bool {
        if let Some(key) = entry.key.as_ref().filter(|key| self.follows(key, entry.row.id)) {
            if !self.keys.is_blocked(key) {
                self.followers.push(entry);
                return true;
            }
            return false;
        }
        let (key, seq) = (entry.key.clone(), entry.row.id.seq);
        match (self.keys.insert(entry), key) {
            (Inserted::Hot, Some(key)) => {
                took.hot.entry(key).or_insert(None);
            }
            (Inserted::Full, Some(key)) => {
                // In the order of the rows, so the first one stays.
                took.hot.entry(key).or_insert(None).get_or_insert(seq);
                return false;
            }
            (Inserted::Blocked, _) => return false,
            _ => {}
        }
        true
    }
}

/// What was taken of one lane.
#[derive(Debug, Default)]
struct LaneTook {
    /// Up to which number all of it is known.
    taken: Option<i64>,
    /// The bytes of the first row without room.
    needs: Option<u64>,
    new: usize,
    /// The first row that is to be read again.
    again: Option<i64>,
    /// Keys that reads leave out from now on, with the first row that was not taken of each.
    hot: HashMap<Key, Option<i64>>,
}
