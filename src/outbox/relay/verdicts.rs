//! What becomes of a row when its message has its verdict, and when that is written.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    memory::{Memory, OnPoison, Sent},
    requests::Failure,
};
use crate::{
    outbox::{
        contract::{Confirmed, Failed, Lane, Next, ParkedKey, Removed, Row, RowId},
        keys::{Entry, Key},
        routes::Went,
        verdict::Verdict,
    },
    publisher::PublishErrorKind,
};

/// A nacked row is left alone for so long if its route cannot be held back, as too many are.
const ALONE: Duration = Duration::from_secs(5);

/// What a row is parked with that only follows one.
const FOLLOWS: &str = "an earlier message of its order key is parked";

/// Why a message was not confirmed.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) kind: PublishErrorKind,
    pub(super) reason: String,
    /// Whether the publisher has a connection now.
    pub(super) is_ready: bool,
}

impl Memory {
    /// A message has its verdict; gives what that means for its row.
    pub(super) fn verdict(&mut self, sent: &Sent, result: Result<(), Refusal>, now: Instant) -> Verdict {
        self.under_way -= 1;
        self.under_way_bytes -= sent.bytes;
        let of = result.as_ref().copied().map_err(|refusal| refusal.kind);
        let is_ready = result.as_ref().err().is_some_and(|refusal| refusal.is_ready);
        let verdict = self.patience.verdict(of, sent.attempts, is_ready);
        let is_watched = self.tell_route(sent, of, verdict, now);
        let is_held = self.lanes.get(&sent.id.lane).is_some_and(|own| own.term == sent.term);
        match (verdict, result) {
            (Verdict::Delete, _) => self.confirmed(sent, now),
            // Its next owner finds out by itself.
            _ if !is_held => self.forget_sent(sent),
            (Verdict::Fault(next), Err(refusal)) => self.at_fault(sent, next, refusal.reason, now),
            (Verdict::HoldRoute, _) if self.routes.leaves_out(&sent.route) => {
                self.wait_for((*sent.route).clone(), sent.id, sent.key.clone());
            }
            // It is being tried again meanwhile.
            (Verdict::HoldRoute, _) if is_watched => self.forget_sent(sent),
            (Verdict::HoldRoute, _) => match &sent.key {
                Some(key) => self.block(key, sent.id, Some(now + ALONE)),
                None => self.leave_row_alone(sent.id, now + ALONE),
            },
            (Verdict::BrokerAway | Verdict::Fault(_), _) => self.forget_sent(sent),
        }
        self.follow_routes();
        verdict
    }

    /// Tells the route how the message went. Gives `false` if it should be held back and cannot be.
    fn tell_route(
        &mut self,
        sent: &Sent,
        result: Result<(), PublishErrorKind>,
        verdict: Verdict,
        now: Instant,
    ) -> bool {
        let went = match (verdict, result) {
            (Verdict::Delete, _) if self.routes.is_quiet() => return true,
            (Verdict::Delete, _) => Went::Confirmed,
            (Verdict::HoldRoute, _) => Went::Nacked,
            (Verdict::Fault(_), Err(PublishErrorKind::Invalid)) | (Verdict::BrokerAway, _) => Went::Unknown,
            (Verdict::Fault(_), _) => Went::Fault,
        };
        let is_watched = self.routes.went(&sent.route, sent.admission, went, now);
        // Before its row is left out with it.
        self.follow_routes();
        is_watched
    }

    fn confirmed(&mut self, sent: &Sent, now: Instant) {
        let confirmed = Confirmed { row: sent.id, message_id: sent.message_id.clone() };
        self.settling.remove(confirmed, now);
        if let Some(key) = &sent.key {
            self.go_on(key);
        }
    }

    /// The next one of a key may go.
    fn go_on(&mut self, key: &Key) {
        if self.keys.done(key) {
            self.let_key_in(key);
        }
    }

    /// The row is read again, with what waits behind it.
    fn forget_sent(&mut self, sent: &Sent) {
        self.forget_row(sent.id);
        if let Some(key) = &sent.key {
            self.forget_key(key);
        }
    }

    fn at_fault(&mut self, sent: &Sent, next: Next, error: String, now: Instant) {
        let message_id = sent.message_id.clone();
        let failed = Failed { row: sent.id, message_id, counted: true, next, error };
        self.fail(failed, sent.key.clone(), now);
        let Some(key) = &sent.key else { return };
        match next {
            Next::Retry(_) => {
                // Until the failure is written, and then for the rest of the pause.
                self.block(key, sent.id, None);
                self.know(sent.id);
                self.failing.insert(Arc::clone(key));
            }
            Next::Park if self.on_poison == OnPoison::Skip => self.go_on(key),
            Next::Park => {
                let first = self.parked.entry(Arc::clone(key)).or_insert(sent.id.seq);
                *first = sent.id.seq.min(*first);
                for follower in self.keys.forget(key) {
                    self.park_follower(&follower.row, key, now);
                }
                self.let_key_in(key);
            }
        }
    }

    fn park_follower(&mut self, row: &Row, key: &Key, now: Instant) {
        let (message_id, error) = (row.message_id.clone(), FOLLOWS.to_owned());
        let failed = Failed { row: row.id, message_id, counted: false, next: Next::Park, error };
        self.fail(failed, Some(Arc::clone(key)), now);
    }

    fn fail(&mut self, failed: Failed, key: Option<Key>, now: Instant) {
        let epoch = self.lanes.get(&failed.row.lane).map_or(0, |own| own.epoch);
        self.settling.fail(Failure { failed, key, epoch }, now);
    }

    /// These rows were removed, those that were there. The database may have lost one and given its
    /// number to another message, which reads have left out: their places are read again.
    pub(super) fn removed(&mut self, rows: &[Confirmed], removed: &Removed) {
        let are_all = removed.rows >= rows.len() as u64;
        for Confirmed { row, .. } in rows {
            if are_all { self.unknow(*row) } else { self.forget_row(*row) }
        }
        if let Some(transaction) = removed.transaction {
            self.lanes.values_mut().for_each(|own| own.floor.mark(transaction));
        }
    }

    /// Failures may not have been written.
    pub(super) fn fail_again(&mut self, failures: Vec<Failure>, now: Instant) {
        // Of a lane that was forgotten meanwhile, all rows are as good as new.
        let is_held = |failure: &Failure| {
            self.lanes.get(&failure.failed.row.lane).is_some_and(|own| own.epoch == failure.epoch)
        };
        let (again, gone): (Vec<Failure>, Vec<Failure>) = failures.into_iter().partition(is_held);
        for failure in &gone {
            self.forget_failure(failure);
        }
        self.settling.fail_again(again, now);
    }

    /// Failures were written, but for those of lanes that are lost.
    pub(super) fn failed(&mut self, failures: Vec<Failure>, lost: &[Lane], now: Instant) {
        for lane in lost {
            self.lose(*lane);
        }
        for failure in failures {
            self.forget_failure(&failure);
            let Failure { failed, key, .. } = failure;
            match (failed.next, key) {
                // Another message may have its number by now, as after a removal.
                (Next::Park, _) => self.forget_row(failed.row),
                (Next::Retry(pause), Some(key)) => self.unblock_at(&key, now + pause),
                (Next::Retry(pause), None) => self.leave_row_alone(failed.row, now + pause),
            }
        }
    }

    /// The lanes whose parked keys are not known yet, or all if it is to be asked again.
    pub(super) fn to_be_loaded(&self) -> Option<Vec<Lane>> {
        let is_needed = !self.followers.is_empty() || self.lanes.values().any(|own| !own.is_loaded);
        (is_needed && self.on_poison == OnPoison::BlockKey).then(|| self.lanes.keys().copied().collect())
    }

    /// Whether a row has to wait for one of its key that is parked, as far as is known.
    pub(super) fn follows(&self, key: &Key, row: RowId) -> bool {
        self.parked.get(key).is_some_and(|first| *first < row.seq)
    }

    /// The parked keys of the lanes are known.
    pub(super) fn loaded(&mut self, lanes: &[Lane], keys: Vec<ParkedKey>, now: Instant) {
        let mut parked: HashMap<Key, i64> =
            keys.into_iter().map(|parked| (Key::from(parked.key), parked.first)).collect();
        for (key, seq) in self.settling.parking() {
            parked.entry(Arc::clone(key)).and_modify(|first| *first = seq.min(*first)).or_insert(seq);
        }
        let known = std::mem::replace(&mut self.parked, parked);
        // An operator has put some back: they are where nobody looks, and nothing of their keys may
        // go before them.
        let is_back = |(key, first): (&Key, &i64)| self.parked.get(key).is_none_or(|now| now > first);
        if known.iter().any(is_back) {
            self.lanes.values_mut().for_each(|own| own.floor.read_all());
        }
        for lane in lanes {
            if let Some(own) = self.lanes.get_mut(lane) {
                own.is_loaded = true;
            }
        }
        let followers = std::mem::take(&mut self.followers);
        let (follow, free): (Vec<Entry>, Vec<Entry>) = followers
            .into_iter()
            .partition(|entry| entry.key.as_ref().is_some_and(|key| self.follows(key, entry.row.id)));
        for entry in follow {
            if let Some(key) = &entry.key {
                self.park_follower(&entry.row, key, now);
            }
        }
        // An operator has put the key back: its older rows are where nobody looks.
        for entry in free {
            self.forget_row(entry.row.id);
            if let Some(own) = self.lanes.get_mut(&entry.row.id.lane) {
                own.floor.read_all();
            }
        }
    }

    /// Everything is read once more, from the start of the lanes.
    pub(super) fn read_all(&mut self) {
        for own in self.lanes.values_mut() {
            own.is_loaded = false;
            own.floor.read_all();
        }
    }
}
