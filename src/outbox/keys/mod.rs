//! What may be sent now (O4).
//!
//! Rows without a key at once, and of each key the oldest. It stays the one until its verdict: what
//! is read meanwhile waits behind it, also what has a lower number. A key that is blocked has no
//! rows here: they are read again when it is not any more.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use tokio::time::Instant;

use super::contract::{Lane, Row};

/// An order key. Cheap to clone.
pub(super) type Key = Arc<str>;

/// So many rows of a key may wait; then reads leave it out, so that it starves nobody.
const HOT: usize = 64;

/// A row in memory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) row: Row,
    /// Its order key, for all that is remembered by it.
    pub(super) key: Option<Key>,
    /// When it was read.
    pub(super) read: Instant,
}

/// What became of a row that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It waits.
    Waits,
    /// It waits, and as its key has so many rows here now, reads leave the key out from now on.
    Hot,
    /// Its key has as many rows here as may be: it is not kept.
    Full,
    /// Its key is blocked: it is not kept.
    Blocked,
}

/// Whose turn it is.
#[derive(Debug)]
enum Turn {
    Row(Box<Entry>),
    /// The oldest of a key, unless that is under way already.
    Key(Key),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Head {
    Waits,
    UnderWay,
    Blocked,
}

#[derive(Debug)]
struct Queue {
    lane: Lane,
    head: Head,
    /// By number, those behind what is under way.
    rows: VecDeque<Entry>,
}

/// The rows that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Keys {
    turns: VecDeque<Turn>,
    queues: HashMap<Key, Queue>,
    /// Keys that reads leave out: hot ones and blocked ones.
    left_out: HashSet<Key>,
    rows: usize,
    bytes: usize,
}

impl Keys {
    /// The key under its one name.
    pub(super) fn intern(&self, key: &str) -> Key {
        self.queues.get_key_value(key).map_or_else(|| Key::from(key), |(key, _)| Arc::clone(key))
    }

    pub(super) fn insert(&mut self, entry: Entry) -> Inserted {
        let (id, bytes) = (entry.row.id, entry.row.body.len());
        let Some(key) = entry.key.clone() else {
            self.turns.push_back(Turn::Row(Box::new(entry)));
            self.count(1, bytes);
            return Inserted::Waits;
        };
        let queue = self.queues.entry(Arc::clone(&key)).or_insert_with(|| {
            self.turns.push_back(Turn::Key(Arc::clone(&key)));
            Queue { lane: id.lane, head: Head::Waits, rows: VecDeque::new() }
        });
        if queue.head == Head::Blocked {
            return Inserted::Blocked;
        }
        if queue.rows.len() >= HOT {
            return Inserted::Full;
        }
        // Mostly at the end.
        let at = queue.rows.iter().rposition(|other| other.row.id.seq < id.seq).map_or(0, |at| at + 1);
        queue.rows.insert(at, entry);
        let is_hot = queue.rows.len() >= HOT && self.left_out.insert(key);
        self.count(1, bytes);
        if is_hot { Inserted::Hot } else { Inserted::Waits }
    }

    /// Takes the next row that may be sent; if it has a key, nothing else of that key is given
    /// until one of [`done`](Self::done), [`block`](Self::block) or [`forget`](Self::forget) is
    /// called.
    pub(super) fn next(&mut self) -> Option<Entry> {
        loop {
            let entry = match self.turns.pop_front()? {
                Turn::Row(entry) => *entry,
                Turn::Key(key) => {
                    let Some(queue) = self.queues.get_mut(&key) else { continue };
                    if queue.head != Head::Waits {
                        continue;
                    }
                    let Some(entry) = queue.rows.pop_front() else { continue };
                    queue.head = Head::UnderWay;
                    entry
                }
            };
            self.rows -= 1;
            self.bytes -= entry.row.body.len();
            return Some(entry);
        }
    }

    /// What was under way of a key is done with: the next one may go. Gives whether reads may have
    /// the key again.
    pub(super) fn done(&mut self, key: &Key) -> bool {
        let Some(queue) = self.queues.get_mut(key) else { return false };
        let waiting = queue.rows.len();
        if waiting > 0 {
            queue.head = Head::Waits;
            self.turns.push_back(Turn::Key(Arc::clone(key)));
        } else {
            self.queues.remove(key);
        }
        waiting < HOT / 2 && self.left_out.remove(key)
    }

    /// Nothing of a key may go. Gives what waited of it; it is not here any more.
    pub(super) fn block(&mut self, key: &Key, lane: Lane) -> Vec<Entry> {
        self.left_out.insert(Arc::clone(key));
        let blocked = Queue { lane, head: Head::Blocked, rows: VecDeque::new() };
        let rows = self.queues.insert(Arc::clone(key), blocked).map(|queue| queue.rows);
        self.taken_out(rows)
    }

    /// Knows nothing of a key any more: neither what waited, which is given, nor that it was
    /// blocked.
    pub(super) fn forget(&mut self, key: &Key) -> Vec<Entry> {
        self.left_out.remove(key);
        let rows = self.queues.remove(key).map(|queue| queue.rows);
        self.taken_out(rows)
    }

    pub(super) fn is_blocked(&self, key: &Key) -> bool {
        self.queues.get(key).is_some_and(|queue| queue.head == Head::Blocked)
    }

    /// Forgets what waits in a lane, and which of its keys are blocked. What is under way stays so.
    pub(super) fn forget_lane(&mut self, lane: Lane) -> Vec<Entry> {
        let mut gone = Vec::new();
        let (mine, others): (VecDeque<Turn>, VecDeque<Turn>) = std::mem::take(&mut self.turns)
            .into_iter()
            .partition(|turn| matches!(turn, Turn::Row(entry) if entry.row.id.lane == lane));
        self.turns = others;
        gone.extend(mine.into_iter().filter_map(|turn| match turn {
            Turn::Row(entry) => Some(*entry),
            Turn::Key(_) => None,
        }));
        let left_out = &mut self.left_out;
        self.queues.retain(|key, queue| {
            if queue.lane != lane {
                return true;
            }
            left_out.remove(key);
            gone.extend(queue.rows.drain(..));
            queue.head == Head::UnderWay
        });
        self.count_out(&gone);
        gone
    }

    /// What reads leave out.
    pub(super) fn left_out(&self) -> impl ExactSizeIterator<Item = &Key> {
        self.left_out.iter()
    }

    /// How many rows wait, and how many bytes their bodies have.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.rows, self.bytes)
    }

    fn count(&mut self, rows: usize, bytes: usize) {
        self.rows += rows;
        self.bytes += bytes;
    }

    fn count_out(&mut self, gone: &[Entry]) {
        self.rows -= gone.len();
        self.bytes -= gone.iter().map(|entry| entry.row.body.len()).sum::<usize>();
    }

    fn taken_out(&mut self, rows: Option<VecDeque<Entry>>) -> Vec<Entry> {
        let gone: Vec<Entry> = rows.unwrap_or_default().into();
        self.count_out(&gone);
        gone
    }
}

#[cfg(test)]
mod tests;
