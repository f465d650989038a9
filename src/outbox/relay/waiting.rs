//! What has to wait: for a pause to pass, or for a route to be open. None of it is kept; its place
//! is remembered, and it is read again.

use std::sync::Arc;

use tokio::time::Instant;

use super::memory::{Alone, Memory};
use crate::outbox::{
    contract::{Lane, Route, RowId},
    floor::LeftOut,
    keys::{Entry, Key},
};

/// So many rows of a lane are remembered one by one while they are left alone. Others are found by
/// the next read of the whole lane.
const ALONE: usize = 4_096;

impl Memory {
    pub(super) fn leave_alone(&mut self, entry: &Entry, due: Instant) {
        match &entry.key {
            Some(key) => self.block(key, entry.row.id, Some(due)),
            None => self.leave_row_alone(entry.row.id, due),
        }
    }

    /// A row without a key is left alone. It is not known any more.
    pub(super) fn leave_row_alone(&mut self, id: RowId, due: Instant) {
        self.unknow(id);
        let Some(own) = self.lanes.get_mut(&id.lane) else { return };
        if own.floor.left_out() < ALONE {
            own.floor.leave_out(LeftOut::Row(id.seq), Some(id.seq));
            self.set_alarm(due, Alone::Row(id));
        }
    }

    /// Nothing of a key is sent before `due`, or before [`unblock`](Self::unblock). Its oldest row,
    /// and what waits behind it, is not here any more.
    pub(super) fn block(&mut self, key: &Key, oldest: RowId, due: Option<Instant>) {
        let gone = self.keys.block(key, oldest.lane);
        let first = gone.iter().map(|entry| entry.row.id.seq).fold(oldest.seq, i64::min);
        self.unknow(oldest);
        self.forget_rows_of(gone, oldest.lane);
        if let Some(own) = self.lanes.get_mut(&oldest.lane) {
            own.floor.leave_out(LeftOut::Key(Arc::clone(key)), Some(first));
        }
        if let Some(due) = due {
            self.unblock_at(key, due);
        }
    }

    /// Those of one lane need not be read again for themselves.
    fn forget_rows_of(&mut self, rows: Vec<Entry>, lane: Lane) {
        for entry in rows {
            if entry.row.id.lane == lane { self.unknow(entry.row.id) } else { self.forget_row(entry.row.id) }
        }
    }

    pub(super) fn unblock_at(&mut self, key: &Key, due: Instant) {
        self.set_alarm(due, Alone::Key(Arc::clone(key)));
    }

    /// A key may be sent from again: its rows are read.
    fn unblock(&mut self, key: &Key) {
        if self.keys.is_blocked(key) && !self.failing.contains(key) {
            self.keys.forget(key);
            self.let_key_in(key);
        }
    }

    /// Reads have a key again.
    pub(super) fn let_key_in(&mut self, key: &Key) {
        if let Some(keys) = &mut self.let_in {
            keys.insert(Arc::clone(key));
        }
        let left_out = LeftOut::Key(Arc::clone(key));
        self.lanes.values_mut().for_each(|own| own.floor.let_in(&left_out));
    }

    /// The row cannot go now, as its route is held back.
    pub(super) fn wait_for(&mut self, route: Route, id: RowId, key: Option<Key>) {
        if let Some(key) = key {
            self.block(&key, id, None);
            self.routes.wait(&route, key);
            return;
        }
        self.unknow(id);
        if let Some(own) = self.lanes.get_mut(&id.lane) {
            own.floor.leave_out(LeftOut::Route(Arc::new(route)), Some(id.seq));
        }
    }

    /// Lets reads leave routes out or have them again, as they are held back or tried.
    pub(super) fn follow_routes(&mut self) {
        if self.routes.is_quiet() && !self.routes.has_changed() {
            return;
        }
        for change in self.routes.changes() {
            let left_out = LeftOut::Route(change.route);
            for own in self.lanes.values_mut() {
                if change.is_left_out {
                    own.floor.leave_out(left_out.clone(), None);
                } else {
                    own.floor.let_in(&left_out);
                }
            }
            change.keys.iter().for_each(|key| self.unblock(key));
        }
    }

    fn set_alarm(&mut self, due: Instant, alone: Alone) {
        self.last_alone += 1;
        self.alone.insert((due, self.last_alone), alone);
    }

    /// Time has passed: what was left alone may be sent again.
    pub(super) fn tick(&mut self, now: Instant) {
        self.routes.tick(now);
        self.follow_routes();
        while let Some(first) = self.alone.first_entry().filter(|first| first.key().0 <= now) {
            match first.remove() {
                Alone::Key(key) => self.unblock(&key),
                Alone::Row(id) => {
                    if let Some(own) = self.lanes.get_mut(&id.lane) {
                        own.floor.let_in(&LeftOut::Row(id.seq));
                    }
                }
            }
        }
    }

    /// When [`tick`](Self::tick) has something to do.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        let alone = self.alone.first_key_value().map(|((due, _), _)| *due);
        [alone, self.routes.next_tick()].into_iter().flatten().min()
    }
}
