//! Settling: `consumer/settling.rs` and `onward.rs`; and what ends a channel or a process.

use super::{
    mutants::Mutant,
    protocol::{Protocol, Store},
    state::{Broken, Consumer, Copy, Fate, Item, Phase, Place, State},
};

impl Protocol {
    /// One step of settling. `heard`: the broker's confirm, or the consumer's ack, arrives.
    pub(super) fn settle(&self, state: &mut State, index: usize, number: usize, heard: bool) {
        let Item { copy, attached, fate } = state.consumers[index].items[number].clone();
        let gone = match fate {
            Fate::MoveOn | Fate::Delay | Fate::Park(_) => {
                // `consumer/onward.rs`: confirmed first, acked then.
                let early = self.mutant(if fate == Fate::MoveOn {
                    Mutant::AckBeforeMovedOn
                } else {
                    Mutant::AckBeforePassedOn
                });
                if !early || heard {
                    let (place, failures) = match fate {
                        Fate::Park(failed) => (Place::Parked(failed), 0),
                        Fate::MoveOn => (Place::Ready, copy.failures),
                        _ => (Place::Delayed, copy.failures),
                    };
                    state.add_copy(Copy { place, failures, redelivered: false, ..copy.clone() });
                }
                if heard {
                    state.take_up(index, copy.number);
                    state.consumers[index].items[number].fate = Fate::Ack;
                    return;
                }
                if early {
                    self.ack(state, index, &copy, attached);
                }
                true
            }
            Fate::Ack if heard => {
                self.ack(state, index, &copy, attached);
                false
            }
            Fate::Ack => true,
            _ => {
                if attached {
                    self.give_back(state, index, |other| other.number == copy.number);
                }
                false
            }
        };
        if gone {
            // What was to be heard is lost with the connection.
            self.cut(state, index);
        }
        state.consumers[index].items[number].fate = Fate::Settled;
        state.next(index);
    }

    /// The broker has them back: it counts, and deletes what came back too often.
    fn give_back(&self, state: &mut State, index: usize, which: impl Fn(&Copy) -> bool) {
        for copy in &mut state.copies {
            if copy.place == Place::Unacked(index) && which(copy) {
                copy.place = Place::Ready;
                copy.redelivered = true;
                if self.limit.is_some() {
                    copy.returns += 1;
                    copy.losses += 1;
                }
            }
        }
        if let Some(limit) = self.limit {
            state.copies.retain(|copy| copy.returns <= limit.returns);
        }
    }

    /// Whether the environment keeps its part if it takes the consumer's deliveries away.
    pub(super) fn may_lose_channel(&self, state: &State, index: usize) -> bool {
        let mut copies = state.copies.iter().filter(|copy| copy.place == Place::Unacked(index));
        self.limit.is_none_or(|limit| copies.all(|copy| copy.losses < limit.losses))
    }

    /// The consumer's channel is gone: what it has not settled is delivered again.
    pub(super) fn cut(&self, state: &mut State, index: usize) {
        self.give_back(state, index, |_| true);
        let Consumer { items, alone, .. } = &mut state.consumers[index];
        items.iter_mut().chain(alone).for_each(|item| item.attached = false);
    }

    pub(super) fn ack(&self, state: &mut State, index: usize, copy: &Copy, attached: bool) {
        if attached {
            state.copies.retain(|other| other.number != copy.number || other.place != Place::Unacked(index));
        } else if self.mutant(Mutant::SettledOnAnotherChannel) {
            // There the tag means what the broker has sent ahead: what was at the front of the
            // queue.
            if let Some(at) = state.copies.iter().position(|other| other.place == Place::Ready) {
                state.copies.remove(at);
                state.broken(Broken::ForeignTag);
            }
        }
    }

    /// The session is dead: `complete` cannot do anything, and its error does not tell a lost
    /// commit from one that was never made.
    pub(super) fn lose_transaction(&self, state: &mut State, index: usize) {
        if matches!(state.consumers[index].phase, Phase::Claimed | Phase::Handled | Phase::HalfCommitted) {
            self.complete(state, index, false, false);
        }
    }

    pub(super) fn die(&self, state: &mut State, index: usize) {
        self.give_back(state, index, |_| true);
        for record in state.records.iter_mut().filter(|record| record.holder == Some(index)) {
            match self.store {
                // The database rolls back.
                Store::Transactions => record.holder = None,
                Store::Leases => record.orphaned = true,
            }
        }
        state.consumers[index] = Consumer::default();
    }
}

impl State {
    /// The consumer gets round to a copy that it has in hand: losses are counted anew.
    pub(super) fn take_up(&mut self, index: usize, number: u8) {
        if let Some(copy) = self.unacked_to(index, number) {
            copy.losses = 0;
        }
    }

    /// When all is settled or held: the next of those that are handled alone, or what is held once
    /// more, or nothing.
    pub(super) fn next(&mut self, index: usize) {
        let consumer = &mut self.consumers[index];
        if consumer.items.iter().any(|item| !matches!(item.fate, Fate::Settled | Fate::Hold)) {
            return;
        }
        let Consumer { mut items, mut alone, .. } = std::mem::take(consumer);
        // What the channel took along is delivered again.
        items.retain(|item| item.fate == Fate::Hold && item.attached);
        for item in &mut items {
            // As it was delivered: what the handler did with it is not known to the broker.
            if let Some(delivered) = self.unacked_to(index, item.copy.number) {
                *item = Item::new(delivered, Fate::Undecided);
            }
        }
        if !alone.is_empty() {
            alone.append(&mut items);
            items = vec![alone.remove(0)];
        }
        if !items.is_empty() {
            self.consumers[index] = Consumer { items, phase: Phase::Delivered, alone };
        }
    }
}
