//! Receiving: `consumer/runner.rs` takes, `idempotency/guard.rs` and `batch.rs` claim, handle and
//! complete.

use super::{
    mutants::Mutant,
    protocol::{Action, Limit, MAX_ATTEMPTS, Protocol, Store},
    state::{Broken, Consumer, Copy, Fate, Id, Item, Phase, Place, State},
};

impl Protocol {
    pub(super) fn consumer_actions(&self, state: &State, index: usize, actions: &mut Vec<Action>) {
        let consumer = &state.consumers[index];
        let faults = state.faults > 0;
        match consumer.phase {
            Phase::Idle => {
                let ready = state.copies.iter().filter(|copy| copy.place == Place::Ready).count();
                actions.extend((1..=ready.min(self.batch)).map(|count| Action::Deliver(index, count)));
            }
            // Or it gives up, holds the message and asks again, which comes to the same.
            Phase::Delivered if self.waits(state, consumer, index) => {}
            Phase::Delivered => actions.push(Action::Claim(index)),
            Phase::Claimed => {
                actions.push(Action::Handle(index));
                if faults {
                    let acquired = |item: &Item| matches!(item.fate, Fate::Acquired(_));
                    actions.extend(
                        (0..consumer.items.len())
                            .filter(|item| acquired(&consumer.items[*item]))
                            .map(|item| Action::Fail(index, item)),
                    );
                }
            }
            Phase::Handled | Phase::HalfCommitted => {
                actions.push(Action::Complete(index));
                if faults && consumer.phase == Phase::Handled && !state.away {
                    actions.push(Action::CompleteUnknown(index, true));
                    actions.push(Action::CompleteUnknown(index, false));
                }
            }
            Phase::Settling => {
                for (number, item) in consumer.items.iter().enumerate() {
                    if matches!(item.fate, Fate::Settled | Fate::Hold) {
                        continue;
                    }
                    actions.push(Action::Settle(index, number));
                    if faults && item.attached && item.fate != Fate::Requeue {
                        if self.may_lose_channel(state, index) {
                            actions.push(Action::SettleLost(index, number));
                        }
                        // A refused move changes nothing: it is tried again, and the message is not
                        // handled before.
                        if !matches!(item.fate, Fate::Ack | Fate::MoveOn) {
                            actions.push(Action::PassRefused(index, number));
                        }
                    }
                }
            }
        }
        if faults && consumer.phase != Phase::Idle && self.may_lose_channel(state, index) {
            if consumer.items.iter().chain(&consumer.alone).any(|item| item.attached) {
                actions.push(Action::Cut(index));
            }
            actions.push(Action::Die(index));
        }
    }

    /// Whether a rival holds one of its IDs. A transaction waits for it; a lease is told that it is
    /// in progress.
    pub(super) fn waits(&self, state: &State, consumer: &Consumer, index: usize) -> bool {
        self.store == Store::Transactions
            && consumer.items.iter().any(|item| {
                let record = &state.records[item.copy.id];
                !record.done && record.holder.is_some_and(|holder| holder != index)
            })
    }

    pub(super) fn deliver(&self, state: &mut State, index: usize, count: usize) {
        let (mut items, mut near) = (Vec::new(), Vec::new());
        for copy in state.copies.iter_mut().filter(|copy| copy.place == Place::Ready).take(count) {
            copy.place = Place::Unacked(index);
            if self.is_near_limit(copy) {
                near.push(Item::new(copy, Fate::MoveOn));
            } else {
                items.push(Item::new(copy, Fate::Undecided));
            }
        }
        state.consumers[index] = if near.is_empty() {
            Consumer { items, phase: Phase::Delivered, alone: Vec::new() }
        } else {
            Consumer { items: near, phase: Phase::Settling, alone: items }
        };
        if self.mutant(Mutant::AckFirst) {
            let numbers: Vec<u8> = state.consumers[index].items.iter().map(|item| item.copy.number).collect();
            state.copies.retain(|copy| !numbers.contains(&copy.number));
        }
    }

    fn is_near_limit(&self, copy: &Copy) -> bool {
        let near = |limit: Limit| copy.returns + limit.margin >= limit.returns;
        let blind = self.mutant(Mutant::LimitNotWatched) || self.mutant(Mutant::NackWhileStoreAway);
        self.limit.is_some_and(near) && !blind
    }

    /// `guard.rs` and `batch.rs`: what the claim says of each message, and what follows from it.
    pub(super) fn claim(&self, state: &mut State, index: usize) {
        let numbers: Vec<u8> = state.consumers[index].items.iter().map(|item| item.copy.number).collect();
        for number in numbers {
            state.take_up(index, number);
        }
        if state.away {
            let nacks = self.mutant(Mutant::NackWhileStoreAway);
            let fate = if nacks { Fate::Requeue } else { Fate::Hold };
            state.consumers[index].items.iter_mut().for_each(|item| item.fate = fate);
            return state.settling(index);
        }
        let mut consumer = std::mem::take(&mut state.consumers[index]);
        let mut seen: Vec<Id> = Vec::new();
        for item in &mut consumer.items {
            let Copy { id, redelivered, vouched, epoch, .. } = item.copy;
            let recorded = self.is_recorded(state, &item.copy);
            let refused = self.is_refused(state, &item.copy);
            let blind = self.mutant(Mutant::FirstDeliveryTakenAsNew) && !redelivered;
            let record = &mut state.records[id];
            item.fate = if seen.contains(&id) {
                // A copy of an earlier one in the same batch: it has that one's fate, in the end.
                Fate::Undecided
            } else if (record.done || recorded) && !blind {
                Fate::Ack
            } else if record.holder.is_some_and(|holder| holder != index) {
                Fate::Hold
            } else if refused {
                Fate::Park(false)
            } else if state.old && !vouched && !epoch && !self.mutant(Mutant::NoAgeGate) {
                // `Guard::too_old`: a missing record says nothing any more.
                Fate::Park(false)
            } else {
                if record.done {
                    state.broken.get_or_insert(Broken::RanAfterDone);
                }
                record.holder = Some(index);
                record.orphaned = false;
                record.token += 1;
                Fate::Acquired(record.token)
            };
            seen.push(id);
        }
        let acquired = consumer.items.iter().any(|item| matches!(item.fate, Fate::Acquired(_)));
        state.consumers[index] = consumer;
        if acquired {
            state.consumers[index].phase = Phase::Claimed;
        } else {
            state.settling(index);
        }
    }

    /// Effects that are not part of a transaction happen in the handler.
    pub(super) fn handle(&self, state: &mut State, index: usize) {
        if self.store == Store::Leases {
            self.take_effect(state, index);
        }
        state.consumers[index].phase = Phase::Handled;
    }

    pub(super) fn take_effect(&self, state: &mut State, index: usize) {
        for item in state.consumers[index].items.clone() {
            match item.fate {
                Fate::Acquired(_) if item.copy.epoch => self.take_effect_again(state, item.copy.message),
                Fate::Acquired(_) => {
                    let effects = &mut state.effects[item.copy.message];
                    *effects = effects.saturating_add(1);
                }
                _ => {}
            }
        }
    }

    /// `IdempotencyStore::release`: a rollback, or a compare-and-delete on the token. While the
    /// store is away, a lease is left to run out.
    pub(super) fn release(&self, state: &mut State, index: usize) {
        for item in state.consumers[index].items.clone() {
            if let Fate::Acquired(token) = item.fate {
                let record = &mut state.records[item.copy.id];
                let ours = record.holder == Some(index) && record.token == token;
                if ours && state.away {
                    record.orphaned = true;
                } else if ours {
                    record.holder = None;
                } else if self.mutant(Mutant::ReleaseWithoutToken) && record.holder.is_some() {
                    record.holder = None;
                    state.broken(Broken::StaleLeaseChanged);
                }
            }
        }
    }

    /// The handler failed for one item.
    pub(super) fn fail(&self, state: &mut State, index: usize, failed: usize) {
        self.release(state, index);
        let consumer = &mut state.consumers[index];
        if consumer.items.len() > 1 {
            if self.mutant(Mutant::BatchAckedWhenOneFailed) {
                consumer.items.iter_mut().for_each(|item| item.fate = Fate::Ack);
                consumer.phase = Phase::Settling;
                return;
            }
            // `Guard::batch`: rolled back, and run again one by one.
            let mut items = std::mem::take(&mut consumer.items);
            for item in &mut items {
                item.fate = Fate::Undecided;
            }
            consumer.items = vec![items.remove(0)];
            consumer.alone.extend(items);
            consumer.phase = Phase::Delivered;
            return;
        }
        let item = &mut consumer.items[failed];
        item.copy.failures += 1;
        item.fate = match item.copy.failures {
            _ if self.mutant(Mutant::FailureCountedAsHandled) => Fate::Ack,
            failures if failures >= MAX_ATTEMPTS => Fate::Park(true),
            _ => Fate::Delay,
        };
        consumer.phase = Phase::Settling;
    }

    /// The commit, or completing a lease.
    pub(super) fn complete(&self, state: &mut State, index: usize, happens: bool, answered: bool) {
        let half = state.consumers[index].phase == Phase::HalfCommitted;
        let mut lost = false;
        if happens {
            // Mutants that commit twice stop in between.
            let (ids, effects) = match (self.mutant, half) {
                (Some(Mutant::IdThenEffect), false) => (true, false),
                (Some(Mutant::IdThenEffect), true) => (false, true),
                (Some(Mutant::EffectThenId), false) => (false, true),
                (Some(Mutant::EffectThenId), true) => (true, false),
                _ => (true, true),
            };
            if ids {
                lost = self.complete_ids(state, index);
            }
            if effects && self.store == Store::Transactions {
                self.take_effect(state, index);
            }
            let two = matches!(self.mutant, Some(Mutant::IdThenEffect | Mutant::EffectThenId));
            if two && !half {
                state.consumers[index].phase = Phase::HalfCommitted;
                return;
            }
        } else {
            self.release(state, index);
        }
        let known = answered || self.mutant(Mutant::UnknownCommitTakenAsDone);
        let consumer = &mut state.consumers[index];
        for item in &mut consumer.items {
            if matches!(item.fate, Fate::Acquired(_)) {
                // I1: an ack follows a commit that is known.
                item.fate = if known && !lost { Fate::Ack } else { Fate::Hold };
            }
        }
        state.settling(index);
    }

    /// Whether the claim was lost before.
    pub(super) fn complete_ids(&self, state: &mut State, index: usize) -> bool {
        let mut lost = false;
        for item in state.consumers[index].items.clone() {
            let Fate::Acquired(token) = item.fate else { continue };
            let record = &mut state.records[item.copy.id];
            let last = record.token == token;
            let fenced = match self.mutant {
                Some(Mutant::CompleteWithoutToken) => record.holder.is_some(),
                Some(Mutant::NoFence) => true,
                _ => last && record.holder == Some(index),
            };
            if fenced {
                record.done = !(item.copy.epoch && self.mutant(Mutant::ReplayUnrecorded));
                record.holder = None;
                if !last {
                    state.broken(Broken::StaleLeaseChanged);
                }
            } else {
                lost = true;
            }
        }
        lost
    }
}

impl State {
    /// The fates are known. `Guard::copy_of`: copies inside a batch follow the first one.
    fn settling(&mut self, index: usize) {
        let consumer = &mut self.consumers[index];
        consumer.phase = Phase::Settling;
        for at in 0..consumer.items.len() {
            if consumer.items[at].fate == Fate::Undecided {
                let id = consumer.items[at].copy.id;
                let first = consumer.items.iter().find(|item| item.copy.id == id).map(|item| item.fate);
                consumer.items[at].fate = match first {
                    Some(Fate::Ack) => Fate::Ack,
                    _ => Fate::Hold,
                };
            }
        }
        self.next(index);
    }
}
