//! The transitions. Each names the code that it stands for.

use stateright::{Model, Property};

use super::{
    mutants::Mutant,
    properties,
    state::{Answer, Broken, Consumer, Fate, Id, Message, Phase, Place, Publisher, Record, State},
};

/// How often a handler may fail before its message is parked.
pub(super) const MAX_ATTEMPTS: u8 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// `store/sql`: identity and effect in one transaction.
    Transactions,
    /// `store/lease.rs`: a claim that expires, and effects outside of it.
    Leases,
}

/// A bounded world.
#[derive(Debug, Clone)]
pub struct Protocol {
    pub store: Store,
    pub messages: usize,
    pub consumers: usize,
    pub batch: usize,
    pub faults: u8,
    pub mutant: Option<Mutant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// `publisher/lane.rs`: an attempt is on the wire; the broker stores it and confirms.
    Publish(Message),
    /// A fault: as the broker does with it, and what it answers.
    PublishBadly(Message, bool, Answer),
    /// `publisher/confirms.rs`, `job.rs`: the answer is judged.
    Judge(Message),
    /// A fault: the publisher's process dies before it hears the answer, and publishes again after its restart.
    PublisherDies(Message),

    /// `consumer/runner.rs`: takes what is there, up to the batch.
    Deliver(usize, usize),
    /// `IdempotencyStore::claim`.
    Claim(usize),
    /// `guard.rs`, `StoreErrorKind::Busy`: a rival's transaction was waited for in vain.
    Busy(usize),
    /// `IdempotentHandler::handle` returns `Ok`.
    Handle(usize),
    /// A fault: it returns an error, for this item.
    Fail(usize, usize),
    /// `IdempotencyStore::complete`: done, and the answer comes.
    Complete(usize),
    /// A fault: the answer is lost, and the commit happened or not.
    CompleteUnknown(usize, bool),
    /// `consumer/settling.rs`: the next step of settling an item.
    Settle(usize, usize),
    /// A fault: the ack, or the confirm of a passed-on copy, is lost with its connection.
    SettleLost(usize, usize),
    /// A fault: the connection is cut while the consumer works on.
    Cut(usize),
    /// A fault: the process is killed, and starts again.
    Die(usize),

    /// The TTL of a delay queue is over.
    Return(u8),
    /// `consumer/unpark.rs`; counted as a fault, for it is done by hand.
    Unpark(u8),
    /// A lease runs out. Free for a dead holder; a fault for a live one, which is frozen then.
    Expire(Id),
    /// A fault of sorts: the retention passes, and `IdempotencyStore::purge` forgets what was completed.
    Purge,
}

impl Protocol {
    pub(super) fn mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn ids(&self) -> usize {
        // A second ID for each message is what a mutant may invent.
        2 * self.messages
    }

    fn purge(&self, state: &mut State) {
        // A mutant's time has not passed: its messages are as young as they were.
        if self.mutant(Mutant::PurgeTooEarly) {
            state.broken(Broken::PurgedTooEarly);
        } else {
            state.old = true;
            // What was known when a message was parked, or put back, is as old.
            for copy in &mut state.copies {
                copy.vouched = false;
                if let Place::Parked(failed) = &mut copy.place {
                    *failed = false;
                }
            }
        }
        state.records.iter_mut().for_each(|record| record.done = false);
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            publishers: vec![Publisher::default(); self.messages],
            copies: Vec::new(),
            consumers: vec![Consumer::default(); self.consumers],
            records: vec![Record::default(); self.ids()],
            effects: vec![0; self.messages],
            faults: self.faults,
            old: false,
            broken: None,
            next_copy: 0,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        Self::publisher_actions(state, actions);
        for consumer in 0..state.consumers.len() {
            self.consumer_actions(state, consumer, actions);
        }
        for copy in &state.copies {
            match copy.place {
                Place::Delayed => actions.push(Action::Return(copy.number)),
                Place::Parked(_) if state.faults > 0 => actions.push(Action::Unpark(copy.number)),
                _ => {}
            }
        }
        if self.store == Store::Leases {
            for (id, record) in state.records.iter().enumerate() {
                if record.holder.is_some() && (record.orphaned || state.faults > 0) {
                    actions.push(Action::Expire(id));
                }
            }
        }
        if state.faults > 0 && !state.old && state.records.iter().any(|record| record.done) {
            actions.push(Action::Purge);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let free = match action {
            Action::PublishBadly(..)
            | Action::PublisherDies(_)
            | Action::Fail(..)
            | Action::CompleteUnknown(..)
            | Action::SettleLost(..)
            | Action::Cut(_)
            | Action::Die(_)
            | Action::Unpark(_)
            | Action::Purge => false,
            Action::Expire(id) => last.records[id].orphaned,
            _ => true,
        };
        if !free {
            state.faults -= 1;
        }
        match action {
            Action::Publish(message) => self.publish(&mut state, message, true, Answer::Ack),
            Action::PublishBadly(message, stored, answer) => {
                self.publish(&mut state, message, stored, answer);
            }
            Action::Judge(message) => self.judge(&mut state, message),
            Action::PublisherDies(message) => state.publishers[message].answer = None,
            Action::Deliver(index, count) => self.deliver(&mut state, index, count),
            Action::Claim(index) => self.claim(&mut state, index),
            Action::Busy(index) => {
                let consumer = &mut state.consumers[index];
                consumer.items.iter_mut().for_each(|item| item.fate = Fate::Requeue);
                consumer.phase = Phase::Settling;
            }
            Action::Handle(index) => self.handle(&mut state, index),
            Action::Fail(index, item) => self.fail(&mut state, index, item),
            Action::Complete(index) => self.complete(&mut state, index, true, true),
            Action::CompleteUnknown(index, happens) => self.complete(&mut state, index, happens, false),
            Action::Settle(index, item) => self.settle(&mut state, index, item, true),
            Action::SettleLost(index, item) => self.settle(&mut state, index, item, false),
            Action::Cut(index) => state.cut(index),
            Action::Die(index) => self.die(&mut state, index),
            Action::Return(number) => {
                state.copies.iter_mut().find(|copy| copy.number == number)?.place = Place::Ready;
            }
            Action::Unpark(number) => {
                let effects = state.effects.clone();
                let copy = state.copies.iter_mut().find(|copy| copy.number == number)?;
                // `Unpark::assume_unprocessed` is said by somebody who has looked.
                copy.vouched = copy.place == Place::Parked(true)
                    || effects[copy.message] == 0
                    || self.mutant(Mutant::UnparkVouchesBlindly);
                copy.place = Place::Ready;
            }
            Action::Expire(id) => {
                let record = &mut state.records[id];
                record.holder = None;
                record.orphaned = false;
            }
            Action::Purge => self.purge(&mut state),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all()
    }
}
