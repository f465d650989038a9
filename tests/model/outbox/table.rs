//! Producers and their transactions: `store/sql/outbox/put.rs` and its dialects.

use super::{
    mutants::Mutant,
    protocol::{Action, Trouble, World},
    state::{Bits, Broken, Message, Phase, Row, Stage, State, has, set},
};

impl World {
    pub fn producer_actions(&self, state: &State, producer: usize, actions: &mut Vec<Action>) {
        let there = &state.producers[producer];
        if there.ended == self.producers[producer].len() {
            return;
        }
        match there.phase {
            Phase::Idle if self.floor => actions.push(Action::Begin(producer)),
            Phase::Idle | Phase::Identified | Phase::Numbered => actions.push(Action::Enqueue(producer)),
            Phase::Enqueued => {
                actions.push(Action::Commit(producer));
                if self.may(state, Trouble::Rollbacks) {
                    actions.push(Action::RollBack(producer));
                }
            }
        }
    }

    fn message_of(&self, state: &State, producer: usize) -> Message {
        self.producers[producer][state.producers[producer].ended]
    }

    /// The first half of enqueueing: the transaction has its identity.
    pub fn begin(&self, state: &mut State, producer: usize) {
        if self.mutant(Mutant::NumberBeforeIdentity) {
            self.insert(state, producer);
            state.producers[producer].phase = Phase::Numbered;
        } else {
            state.identities.push(producer);
            state.producers[producer].phase = Phase::Identified;
        }
    }

    /// The second half, or all of it: its row has its number.
    pub fn enqueue(&self, state: &mut State, producer: usize) {
        if state.producers[producer].phase == Phase::Numbered {
            state.identities.push(producer);
        } else {
            self.insert(state, producer);
        }
        state.producers[producer].phase = Phase::Enqueued;
    }

    fn insert(&self, state: &mut State, producer: usize) {
        let message = self.message_of(state, producer);
        let before =
            self.of_key(self.messages[message].key).filter(|other| state.messages[*other].is_committed());
        let before = set(before);
        let seq = state.next_seq;
        state.next_seq += 1;
        let message = &mut state.messages[message];
        (message.stage, message.seq, message.before) = (Stage::Open, seq, before);
    }

    pub fn end(&self, state: &mut State, producer: usize, stage: Stage) {
        let message = self.message_of(state, producer);
        state.messages[message].stage = stage;
        if stage == Stage::Committed {
            state.messages[message].row = Row::InLane;
        }
        let there = &mut state.producers[producer];
        there.ended += 1;
        there.phase = Phase::Idle;
        there.below = false;
        if let Some(at) = state.identities.iter().position(|other| *other == producer) {
            state.identities.remove(at);
            state.identities.iter().take(at).for_each(|older| state.producers[*older].below = true);
        }
        for relay in &mut state.relays {
            let marks = relay.floors.iter_mut().flat_map(|floor| &mut floor.marks);
            marks.for_each(|mark| mark.open &= !(1 << producer));
            relay.reading.iter_mut().for_each(|reading| reading.snapshot &= !(1 << producer));
        }
    }
}

impl State {
    /// The producers whose transactions are open and have an identity. A transaction that begins
    /// now has a higher one.
    pub fn open(&self) -> Bits {
        let is_open = |phase: Phase| matches!(phase, Phase::Identified | Phase::Enqueued);
        set((0..self.producers.len()).filter(|producer| is_open(self.producers[*producer].phase)))
    }

    /// The same of those below the end of a snapshot that is taken now: it is above the highest
    /// identity of a transaction that has ended, and not of one that has begun.
    pub fn open_below_end_of_snapshot(&self) -> Bits {
        self.open() & set((0..self.producers.len()).filter(|producer| self.producers[*producer].below))
    }

    /// A copy reaches the broker.
    pub fn arrive(&mut self, message: Message, id: usize) {
        let before = self.messages[message].before;
        let missing = |other: usize| {
            has(before, other) && self.messages[other].copies == 0 && !self.messages[other].given_up
        };
        if self.messages[message].copies == 0 && (0..self.messages.len()).any(missing) {
            self.broken(Broken::OutOfOrder);
        }
        let message = &mut self.messages[message];
        message.copies = (message.copies + 1).min(2);
        message.ids |= 1 << id;
    }
}

impl super::state::Posted {
    pub fn is_committed(&self) -> bool {
        self.stage == Stage::Committed
    }
}
