//! What a relay knows of the table: the lanes it has, the rows that are here or under way, and what
//! is left out for now.
//!
//! Only rows that wait for nothing but their turn are kept. What has to wait for something else, a
//! pause or a route or the broker, is forgotten and read again, so the table is the only place that
//! says what is to be published, and in what order.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    holding::{Emptied, Holding},
    requests::Failure,
    settling::Settling,
};
use crate::{
    message::{MessageId, OutgoingMessage},
    outbox::{
        contract::{Lane, Route, RowId, Term},
        encode,
        floor::{Floor, LeftOut},
        keys::{Entry, Key, Keys},
        routes::{Admission, Routes},
        verdict::Patience,
    },
};

/// What follows a message of its key that cannot be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnPoison {
    /// It waits with it, until an operator puts it back or discards it: no message of a key
    /// overtakes an earlier one.
    #[default]
    BlockKey,
    /// It goes on without it.
    Skip,
}

/// A lane that is held.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) term: i64,
    /// Another one each time that all of the lane is forgotten. What a read gives for an earlier
    /// one may lack what was forgotten.
    pub(super) epoch: u64,
    /// It is to be given back.
    pub(super) gives: bool,
    pub(super) floor: Floor,
    /// Whether its parked keys are known.
    pub(super) is_loaded: bool,
}

/// What is left alone until some moment.
#[derive(Debug)]
pub(super) enum Alone {
    Row(RowId),
    Key(Key),
}

/// A message on its way.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) id: RowId,
    pub(super) term: i64,
    pub(super) message_id: MessageId,
    pub(super) key: Option<Key>,
    pub(super) route: Arc<Route>,
    pub(super) admission: Admission,
    pub(super) attempts: u32,
    pub(super) bytes: usize,
    /// How old its row was when it was read, and when that was.
    pub(super) age: Duration,
    pub(super) read: Instant,
}

/// What is to be sent next.
#[derive(Debug)]
pub(super) enum Outgoing {
    Message(Sent, Box<OutgoingMessage>),
    /// Its row cannot be read.
    Unreadable(Sent, String),
}

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) lanes: BTreeMap<Lane, Own>,
    pub(super) keys: Keys,
    pub(super) routes: Routes,
    pub(super) settling: Settling,
    pub(super) patience: Patience,
    pub(super) on_poison: OnPoison,
    /// Rows that are here, on their way, or whose verdict is not written yet. Reads leave them out.
    pub(super) known: HashSet<RowId>,
    /// How many of each lane.
    counts: HashMap<Lane, usize>,
    pub(super) under_way: usize,
    pub(super) under_way_bytes: usize,
    /// A lane of which nothing was taken for want of room, and the bytes of its next row.
    pub(super) starved: Option<(Lane, u64)>,
    /// What is left alone, by when that ends.
    pub(super) alone: BTreeMap<(Instant, u64), Alone>,
    pub(super) last_alone: u64,
    /// Order keys with parked rows, and the first of these. What has a lower number goes on: an
    /// operator has put it back.
    pub(super) parked: HashMap<Key, i64>,
    /// Rows of keys that are parked as far as is known. Whether they are is asked first.
    pub(super) followers: Vec<Entry>,
    /// Keys whose oldest row failed, until that is written. They stay blocked: reads give nothing
    /// new of that row, and what comes behind it would look like the oldest.
    pub(super) failing: HashSet<Key>,
    /// While a read is under way: keys that were let in since it began. What it has of them may
    /// lack their oldest rows.
    pub(super) let_in: Option<HashSet<Key>>,
    /// Terms that were lost, until the task that keeps the lanes knows.
    lost: HashSet<Term>,
    last_epoch: u64,
}

impl Memory {
    pub(super) fn new(patience: Patience, on_poison: OnPoison) -> Self {
        Self {
            lanes: BTreeMap::new(),
            keys: Keys::default(),
            routes: Routes::default(),
            settling: Settling::default(),
            patience,
            on_poison,
            known: HashSet::new(),
            counts: HashMap::new(),
            under_way: 0,
            under_way_bytes: 0,
            starved: None,
            alone: BTreeMap::new(),
            last_alone: 0,
            parked: HashMap::new(),
            followers: Vec::new(),
            failing: HashSet::new(),
            let_in: None,
            lost: HashSet::new(),
            last_epoch: 0,
        }
    }

    /// The lanes that may be read and sent from.
    pub(super) fn readable(&self) -> impl Iterator<Item = (Lane, &Own)> {
        self.lanes.iter().filter(|(_, own)| !own.gives).map(|(lane, own)| (*lane, own))
    }

    pub(super) fn terms(&self) -> Vec<Term> {
        self.lanes.iter().map(|(lane, own)| Term { lane: *lane, term: own.term }).collect()
    }

    /// Has exactly these lanes.
    pub(super) fn hold(&mut self, holding: &Holding) {
        self.lost.retain(|term| holding.terms.contains(term));
        let gone: Vec<Lane> =
            self.terms().iter().filter(|t| !holding.terms.contains(t)).map(|t| t.lane).collect();
        for lane in gone {
            self.drop_lane(lane);
        }
        for term in &holding.terms {
            if self.lost.contains(term) {
                continue;
            }
            let gives = holding.giving.contains(&term.lane);
            let known = self.lanes.get(&term.lane);
            if known.is_some_and(|own| own.gives == gives) {
                continue;
            }
            // What waits of it is forgotten. Should it stay after all, it is read as if new.
            let is_loaded = known.is_some_and(|own| own.is_loaded);
            self.forget_lane(term.lane);
            let own = self.new_own(term.term, gives, is_loaded);
            self.lanes.insert(term.lane, own);
        }
    }

    fn new_own(&mut self, term: i64, gives: bool, is_loaded: bool) -> Own {
        let mut floor = Floor::new();
        self.routes.left_out().for_each(|route| floor.leave_out(LeftOut::Route(Arc::clone(route)), None));
        self.last_epoch += 1;
        Own { term, epoch: self.last_epoch, gives, floor, is_loaded }
    }

    /// Which of the lanes to be given back are empty.
    pub(super) fn emptied(&self, version: u64) -> Emptied {
        let is_empty = |lane: &Lane| self.counts.get(lane).is_none_or(|rows| *rows == 0);
        let giving = self.lanes.iter().filter(|(_, own)| own.gives).map(|(lane, _)| *lane);
        Emptied { version, lanes: giving.filter(is_empty).collect() }
    }

    /// A lane was lost: the table says so.
    pub(super) fn lose(&mut self, lane: Lane) {
        if let Some(own) = self.lanes.get(&lane) {
            self.lost.insert(Term { lane, term: own.term });
            self.drop_lane(lane);
        }
    }

    fn drop_lane(&mut self, lane: Lane) {
        self.lanes.remove(&lane);
        self.forget_lane(lane);
    }

    fn forget_lane(&mut self, lane: Lane) {
        let gone = self.keys.forget_lane(lane);
        self.forget_rows(gone);
        let (gone, rest) =
            std::mem::take(&mut self.followers).into_iter().partition(|entry| entry.row.id.lane == lane);
        self.followers = rest;
        self.forget_rows(gone);
        // Should the lane come back, a row whose failure is not written is as good as new.
        for failure in self.settling.forget_failures(lane) {
            self.forget_failure(&failure);
        }
    }

    pub(super) fn forget_failure(&mut self, failure: &Failure) {
        self.unknow(failure.failed.row);
        if let Some(key) = &failure.key {
            self.failing.remove(key);
        }
    }

    /// Sends nothing more of what is here.
    pub(super) fn forget_all(&mut self) {
        let lanes: Vec<Lane> = self.lanes.keys().copied().collect();
        for lane in lanes {
            self.forget_lane(lane);
        }
    }

    /// The rows are here no more, and are read again.
    pub(super) fn forget_rows(&mut self, rows: Vec<Entry>) {
        for entry in rows {
            self.forget_row(entry.row.id);
        }
    }

    pub(super) fn forget_row(&mut self, id: RowId) {
        self.unknow(id);
        if let Some(own) = self.lanes.get_mut(&id.lane) {
            own.floor.read_again(id.seq.saturating_sub(1));
        }
    }

    pub(super) fn knows(&self, id: RowId) -> bool {
        self.known.contains(&id)
    }

    pub(super) fn know(&mut self, id: RowId) {
        if self.known.insert(id) {
            *self.counts.entry(id.lane).or_default() += 1;
        }
    }

    pub(super) fn unknow(&mut self, id: RowId) {
        if self.known.remove(&id)
            && let Some(count) = self.counts.get_mut(&id.lane)
        {
            *count -= 1;
        }
    }

    /// So many bytes have to be free for the next row of a lane that had no room.
    pub(super) fn needs(&self) -> u64 {
        self.starved.filter(|(lane, _)| self.lanes.contains_key(lane)).map_or(0, |(_, bytes)| bytes)
    }

    /// Rows in memory, and the bytes of their bodies.
    pub(super) fn in_memory(&self) -> (usize, u64) {
        let (rows, bytes) = self.keys.waiting();
        let followers: usize = self.followers.iter().map(|entry| entry.row.body.len()).sum();
        let rows = rows + self.under_way + self.followers.len();
        (rows, (bytes + self.under_way_bytes + followers) as u64)
    }

    /// Takes the next message, if there is one that may be sent.
    pub(super) fn next(&mut self, now: Instant) -> Option<Outgoing> {
        loop {
            let entry = self.keys.next()?;
            let id = entry.row.id;
            let Some(term) = self.lanes.get(&id.lane).map(|own| own.term) else {
                // A row of this key in another lane than its own, put there by hand.
                self.give_up(entry);
                continue;
            };
            let due = entry.read + entry.row.retry_in;
            if due > now {
                self.leave_alone(&entry, due);
                continue;
            }
            let row = entry.row;
            let route = Route { exchange: row.exchange.clone(), routing_key: row.routing_key.clone() };
            let admission =
                if self.routes.is_quiet() { Admission::Free } else { self.routes.admit(&route, now) };
            if admission == Admission::Held {
                self.wait_for(route, id, entry.key);
                continue;
            }
            self.follow_routes();
            let bytes = row.body.len();
            let sent = Sent {
                id,
                term,
                message_id: row.message_id.clone(),
                key: entry.key,
                route: Arc::new(route),
                admission,
                attempts: row.attempts,
                bytes,
                age: row.age,
                read: entry.read,
            };
            self.under_way += 1;
            self.under_way_bytes += bytes;
            return Some(match encode::message(row) {
                Ok(message) => Outgoing::Message(sent, Box::new(message)),
                Err(error) => Outgoing::Unreadable(sent, format!("the row cannot be read: {error}")),
            });
        }
    }

    fn give_up(&mut self, entry: Entry) {
        self.unknow(entry.row.id);
        if let Some(key) = entry.key {
            self.forget_key(&key);
        }
    }

    /// What waits of a key is read again, from its oldest on.
    pub(super) fn forget_key(&mut self, key: &Key) {
        let gone = self.keys.forget(key);
        self.forget_rows(gone);
        self.let_key_in(key);
    }
}
