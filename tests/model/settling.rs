//! Settling: `consumer/settling.rs` and `onward.rs`; and what ends a channel or a process.

use super::{
    mutants::Mutant,
    protocol::{Protocol, Store},
    state::{Broken, Consumer, Copy, Fate, Item, Phase, Place, State},
};

impl Protocol {
    /// One step of settling. `heard`: the broker's confirm, or our ack, arrives.
    pub(super) fn settle(&self, state: &mut State, index: usize, number: usize, heard: bool) {
        let Item { copy, attached, fate } = state.consumers[index].items[number].clone();
        let gone = match fate {
            Fate::Delay | Fate::Park(_) => {
                // `consumer/onward.rs`: confirmed first, acked then.
                let early = self.mutant(Mutant::AckBeforePassedOn);
                if !early || heard {
                    let (place, failures) = match fate {
                        Fate::Park(failed) => (Place::Parked(failed), 0),
                        _ => (Place::Delayed, copy.failures),
                    };
                    state.add_copy(Copy { place, failures, redelivered: false, ..copy.clone() });
                }
                if heard {
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
                if attached && let Some(copy) = state.unacked_to(index, copy.number) {
                    copy.place = Place::Ready;
                    copy.redelivered = true;
                }
                false
            }
        };
        if gone {
            // What was to be heard is lost with the connection.
            state.cut(index);
        }
        state.consumers[index].items[number].fate = Fate::Settled;
        state.next(index);
    }

    pub(super) fn ack(&self, state: &mut State, index: usize, copy: &Copy, attached: bool) {
        if attached {
            state.copies.retain(|other| other.number != copy.number || other.place != Place::Unacked(index));
        } else if self.mutant(Mutant::SettledOnAnotherChannel) {
            // There the tag means what the broker has sent ahead: what was at the front of the queue.
            if let Some(at) = state.copies.iter().position(|other| other.place == Place::Ready) {
                state.copies.remove(at);
                state.broken(Broken::ForeignTag);
            }
        }
    }

    /// The session is dead: `complete` cannot do anything, and its error does not tell a lost commit from one that was never made.
    pub(super) fn lose_transaction(&self, state: &mut State, index: usize) {
        if matches!(state.consumers[index].phase, Phase::Claimed | Phase::Handled | Phase::HalfCommitted) {
            self.complete(state, index, false, false);
        }
    }

    pub(super) fn die(&self, state: &mut State, index: usize) {
        state.give_back_all(index);
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
    /// When all is settled: the next of those that are handled alone, or nothing.
    pub(super) fn next(&mut self, index: usize) {
        let consumer = &mut self.consumers[index];
        if consumer.items.iter().all(|item| item.fate == Fate::Settled) {
            if consumer.alone.is_empty() {
                *consumer = Consumer::default();
            } else {
                consumer.items = vec![consumer.alone.remove(0)];
                consumer.phase = Phase::Delivered;
            }
        }
    }

    pub(super) fn cut(&mut self, index: usize) {
        self.give_back_all(index);
        let Consumer { items, alone, .. } = &mut self.consumers[index];
        items.iter_mut().chain(alone).for_each(|item| item.attached = false);
    }
}
