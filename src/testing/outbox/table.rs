//! The rows, lanes and relays.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    message::MessageId,
    outbox::{
        Batch, Confirmed, Failed, Lane, NewRow, Next, Ownership, ParkedKey, ParkedRow, ReadRequest, RelayId,
        Row, RowId, Select, TableStatus, Term,
    },
};

/// A relay whose last beat is older is not counted any more.
const SEEN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Stored {
    row: NewRow,
    enqueued: Instant,
    attempts: u32,
    retry_at: Option<Instant>,
    error: Option<String>,
    parked: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) rows: BTreeMap<RowId, Stored>,
    parked: BTreeMap<i64, Stored>,
    lanes: BTreeMap<Lane, (i64, Option<RelayId>)>,
    beats: BTreeMap<RelayId, Instant>,
    last_seq: i64,
    last_transaction: u64,
    running: BTreeSet<u64>,
    pub(super) calls: BTreeMap<&'static str, u64>,
}

impl Table {
    pub(super) fn new(lanes: u16) -> Self {
        Self {
            rows: BTreeMap::new(),
            parked: BTreeMap::new(),
            lanes: (0..lanes).map(|lane| (Lane(lane), (0, None))).collect(),
            beats: BTreeMap::new(),
            last_seq: 0,
            last_transaction: 0,
            running: BTreeSet::new(),
            calls: BTreeMap::new(),
        }
    }

    pub(super) fn lanes(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn begin(&mut self) -> u64 {
        self.last_transaction += 1;
        self.running.insert(self.last_transaction);
        self.last_transaction
    }

    pub(super) fn end(&mut self, transaction: u64) {
        self.running.remove(&transaction);
    }

    pub(super) fn next_seq(&mut self) -> i64 {
        self.last_seq += 1;
        self.last_seq
    }

    pub(super) fn commit(&mut self, rows: Vec<(i64, NewRow)>) {
        for (seq, row) in rows {
            let stored = Stored {
                enqueued: Instant::now(),
                attempts: 0,
                retry_at: None,
                error: None,
                parked: None,
                row,
            };
            self.rows.insert(RowId { lane: stored.row.lane, seq }, stored);
        }
    }

    pub(super) fn beats(&mut self, relay: RelayId, lease: Duration) -> bool {
        let lives = self.lives(relay, lease);
        if lives {
            self.register(relay);
        }
        lives
    }

    pub(super) fn register(&mut self, relay: RelayId) {
        self.beats.insert(relay, Instant::now());
    }

    fn lives(&self, relay: RelayId, lease: Duration) -> bool {
        self.beats.get(&relay).is_some_and(|beat| beat.elapsed() < lease)
    }

    pub(super) fn ownership(&self, lease: Duration) -> Ownership {
        let relays = self.beats.keys().filter(|relay| self.lives(**relay, lease)).copied();
        let lanes =
            self.lanes.iter().map(|(lane, (term, owner))| (Term { lane: *lane, term: *term }, *owner));
        Ownership { relays: relays.collect(), lanes: lanes.collect() }
    }

    pub(super) fn take(&mut self, relay: RelayId, lanes: &[Term], lease: Duration) -> Vec<Term> {
        let mut taken = Vec::new();
        for wanted in lanes {
            let Some((term, owner)) = self.lanes.get(&wanted.lane).copied() else { continue };
            if term == wanted.term && owner.is_none_or(|owner| !self.lives(owner, lease)) {
                self.lanes.insert(wanted.lane, (term + 1, Some(relay)));
                taken.push(Term { lane: wanted.lane, term: term + 1 });
            }
        }
        taken
    }

    pub(super) fn release(&mut self, lanes: &[Term]) {
        for given in lanes {
            if let Some((term, owner)) = self.lanes.get_mut(&given.lane)
                && *term == given.term
            {
                *owner = None;
            }
        }
    }

    pub(super) fn leave(&mut self, relay: RelayId) {
        self.beats.remove(&relay);
        let lanes = self.lanes.values_mut().filter(|(_, owner)| *owner == Some(relay));
        lanes.for_each(|(_, owner)| *owner = None);
    }

    pub(super) fn read(&self, request: &ReadRequest<'_>) -> Batch {
        let mut batch = Batch { ended_below: Some(self.ended_below()), ..Batch::default() };
        for from in request.from {
            let (mut rows, mut bytes) = (0, 0);
            let behind = RowId { seq: from.seq.saturating_add(1), ..*from };
            let end = RowId { seq: i64::MAX, ..*from };
            for (id, stored) in
                self.rows.range(behind..=end).filter(|(id, stored)| is_wanted(**id, stored, request))
            {
                bytes += stored.row.body.len() as u64;
                if rows == request.rows || (rows > 0 && bytes > request.bytes) {
                    batch.cut.push(from.lane);
                    break;
                }
                rows += 1;
                batch.rows.push(stored.read(*id));
            }
        }
        batch
    }

    fn ended_below(&self) -> u64 {
        self.running.first().copied().unwrap_or(self.last_transaction + 1)
    }

    pub(super) fn parked_keys(&self, lanes: &[Lane]) -> Vec<ParkedKey> {
        let mut keys: BTreeMap<&String, i64> = BTreeMap::new();
        // Lowest numbers first.
        for (seq, stored) in self.parked.iter().filter(|(_, stored)| lanes.contains(&stored.row.lane)) {
            if let Some(key) = &stored.row.order_key {
                keys.entry(key).or_insert(*seq);
            }
        }
        keys.into_iter().map(|(key, first)| ParkedKey { key: key.clone(), first }).collect()
    }

    /// Whether a row of its key with a lower number is parked.
    fn follows(&self, row: RowId) -> bool {
        let key = self.rows.get(&row).and_then(|stored| stored.row.order_key.as_ref());
        key.is_some_and(|key| {
            self.parked.range(..row.seq).any(|(_, stored)| stored.row.order_key.as_ref() == Some(key))
        })
    }

    /// A row, if it holds this message.
    fn holds(&self, row: RowId, message_id: &MessageId) -> bool {
        self.rows.get(&row).is_some_and(|stored| stored.row.message_id == *message_id)
    }

    pub(super) fn remove(&mut self, confirmed: &[Confirmed]) -> u64 {
        let mut removed = 0;
        for Confirmed { row, message_id } in confirmed {
            if self.holds(*row, message_id) {
                self.rows.remove(row);
                removed += 1;
            }
        }
        removed
    }

    /// Whatever has one of the last numbers was never there.
    pub(super) fn lose_last(&mut self, numbers: u32) {
        self.last_seq = self.last_seq.saturating_sub(numbers.into()).max(0);
        let last = self.last_seq;
        self.rows.retain(|id, _| id.seq <= last);
        self.parked.retain(|seq, _| *seq <= last);
    }

    pub(super) fn fail(&mut self, held: &[Term], failed: &[Failed]) -> Vec<Lane> {
        let is_held = |term: &&Term| {
            self.lanes.get(&term.lane).is_some_and(|(now, owner)| *now == term.term && owner.is_some())
        };
        let (held, lost): (Vec<&Term>, Vec<&Term>) = held.iter().partition(is_held);
        for failure in failed.iter().filter(|failure| held.iter().any(|term| term.lane == failure.row.lane)) {
            let is_there = self.holds(failure.row, &failure.message_id);
            let only_follows = failure.next == Next::Park && !failure.counted;
            if !is_there || (only_follows && !self.follows(failure.row)) {
                continue;
            }
            let Some(stored) = self.rows.get_mut(&failure.row) else { continue };
            stored.attempts += u32::from(failure.counted);
            stored.error = Some(failure.error.clone());
            match failure.next {
                Next::Retry(pause) => stored.retry_at = Some(Instant::now() + pause),
                Next::Park => {
                    stored.parked = Some(Instant::now());
                    self.parked
                        .extend(self.rows.remove(&failure.row).map(|stored| (failure.row.seq, stored)));
                }
            }
        }
        lost.iter().map(|term| term.lane).collect()
    }

    pub(super) fn status(&self) -> TableStatus {
        let seen = self.beats.values().filter(|beat| beat.elapsed() < SEEN);
        TableStatus {
            backlog: self.rows.len() as u64,
            oldest: self.rows.values().map(|stored| stored.enqueued.elapsed()).max(),
            parked: self.parked.len() as u64,
            relays: seen.count() as u64,
        }
    }

    pub(super) fn list_parked(&self, select: &Select, behind: i64, limit: u32) -> Vec<ParkedRow> {
        let parked =
            self.parked.iter().filter(|(seq, stored)| **seq > behind && is_selected(**seq, stored, select));
        parked.take(limit as usize).map(|(seq, stored)| stored.parked_row(*seq)).collect()
    }

    pub(super) fn take_parked(&mut self, select: &Select) -> Vec<(i64, Stored)> {
        let parked = std::mem::take(&mut self.parked);
        let (chosen, rest): (Vec<_>, Vec<_>) =
            parked.into_iter().partition(|(seq, stored)| is_selected(*seq, stored, select));
        self.parked = rest.into_iter().collect();
        chosen
    }

    pub(super) fn unpark(&mut self, select: &Select) -> u64 {
        let back = self.take_parked(select);
        let rows = back.len() as u64;
        for (seq, stored) in back {
            let stored = Stored { attempts: 0, retry_at: None, error: None, parked: None, ..stored };
            self.rows.insert(RowId { lane: stored.row.lane, seq }, stored);
        }
        rows
    }
}

fn is_wanted(id: RowId, stored: &Stored, request: &ReadRequest<'_>) -> bool {
    if request.without_rows.contains(&id) {
        return false;
    }
    match &stored.row.order_key {
        Some(key) => !request.without_keys.contains(key),
        None => !request.without_routes.iter().any(|route| {
            route.exchange == stored.row.exchange && route.routing_key == stored.row.routing_key
        }),
    }
}

fn is_selected(seq: i64, stored: &Stored, select: &Select) -> bool {
    match select {
        Select::All => true,
        Select::Key(key) => stored.row.order_key.as_ref() == Some(key),
        Select::Seq(chosen) => seq == *chosen,
    }
}

impl Stored {
    fn read(&self, id: RowId) -> Row {
        let row = self.row.clone();
        let retry_in =
            self.retry_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        Row {
            id,
            message_id: row.message_id,
            exchange: row.exchange,
            routing_key: row.routing_key,
            order_key: row.order_key,
            properties: row.properties,
            body: row.body,
            age: self.enqueued.elapsed(),
            attempts: self.attempts,
            retry_in,
        }
    }

    fn parked_row(&self, seq: i64) -> ParkedRow {
        ParkedRow {
            row: self.read(RowId { lane: self.row.lane, seq }),
            error: self.error.clone(),
            parked: self.parked.map_or(Duration::ZERO, |at| at.elapsed()),
        }
    }
}
