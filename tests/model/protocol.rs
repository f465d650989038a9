//! The transitions. Each names the code that it stands for.

use stateright::{Model, Property};

use super::{
    mutants::Mutant,
    properties,
    replays::{Opening, Replay},
    state::{Answer, Broken, Consumer, Fate, Id, Message, Phase, Place, Publisher, Record, State, Verdict},
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

/// A queue that deletes what was given back too often: quorum queues have a delivery limit.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// What is given back once more is deleted.
    pub returns: u8,
    /// A copy whose count is as near to that is moved on.
    pub margin: u8,
    /// The environment's part: how many channels in a row may take a copy away before a consumer
    /// has taken it up. The protocol can promise something up to `margin + 1`.
    pub losses: u8,
}

pub(super) const LIMIT: Limit = Limit { returns: 2, margin: 1, losses: 2 };

/// A bounded world.
#[derive(Debug, Clone)]
pub struct Protocol {
    pub store: Store,
    pub messages: usize,
    pub consumers: usize,
    pub batch: usize,
    pub faults: u8,
    /// Whether attempts outlive their time: late answers, deadlines, frozen publishers.
    pub late: bool,
    /// Without one, the broker counts nothing.
    pub limit: Option<Limit>,
    /// Whether messages are sent again, in an epoch.
    pub replays: bool,
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
    /// A fault: the publisher's process dies before it hears the answer, and publishes again after
    /// its restart.
    PublisherDies(Message),
    /// A fault: the process freezes with an attempt under way that the broker has not seen, and its
    /// successor publishes the same message.
    PublisherFreezes(Message),
    /// The frozen process's attempt reaches the broker.
    ZombieArrives(usize),
    /// A fault, `lane.rs`, `End::Retired` and `End::Lost`: confirms do not come in time, the
    /// channel is given up, and all that is in flight on it is to be sent again.
    Retire,
    /// The broker's answer to an attempt that was given up arrives.
    LateAnswer(usize),
    /// A fault, `confirms.rs`, `Window::sweep_deadlines`: the caller's time is up before the answer
    /// comes.
    DeadlineComes(Message),

    /// `consumer/runner.rs`: takes what is there, up to the batch.
    Deliver(usize, usize),
    /// `IdempotencyStore::claim`; of what is held, once more.
    Claim(usize),
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
    /// A fault: a delay queue or the parking queue refuses it, and so it is held.
    PassRefused(usize, usize),
    /// A fault: the connection is cut while the consumer works on.
    Cut(usize),
    /// A fault: the process is killed, and starts again.
    Die(usize),
    /// A fault: every connection ends, those of the publisher too; what is confirmed is still
    /// there.
    BrokerRestarts,
    /// A fault: every transaction that is open is rolled back, and the store answers nobody.
    StoreGoesAway,
    StoreComesBack,

    /// The TTL of a delay queue is over.
    Return(u8),
    /// `consumer/unpark.rs`; counted as a fault, for it is done by hand.
    Unpark(u8),
    /// A lease runs out. Free for a dead holder; a fault for a live one, which is frozen then.
    Expire(Id),
    /// `Replays::open` and `close`.
    Open,
    Close,
    /// `OutgoingMessage::replay`, of a message that took effect.
    Replay(Message),
    /// A fault of sorts: the retention passes, and `IdempotencyStore::purge` forgets what was
    /// completed.
    Purge,
}

impl Protocol {
    pub(super) fn mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn ids(&self) -> usize {
        // A second ID for each message is what a mutant may invent; the third is that of its
        // replay.
        if self.replays { 3 * self.messages } else { 2 * self.messages }
    }

    fn purge(&self, state: &mut State) {
        // A mutant's time has not passed: its messages are as young as they were.
        if self.mutant(Mutant::PurgeTooEarly) {
            state.broken(Broken::PurgedTooEarly);
        } else {
            state.old = true;
            // What was known when a message was parked, or put back, is as old.
            for copy in state.all_copies() {
                copy.vouched = false;
                if let Place::Parked(failed) = &mut copy.place {
                    *failed = false;
                }
            }
        }
        state.records.iter_mut().for_each(|record| record.done = false);
    }
}

impl State {
    /// A mutant's: the publisher has its confirm, and no copy is left anywhere.
    fn forget_once_quiet(&mut self) {
        for (message, publisher) in self.publishers.iter().enumerate() {
            let quiet = self.copies.iter().all(|copy| copy.message != message);
            if quiet && publisher.verdict == Some(Verdict::Confirmed) {
                self.records[message].done = false;
            }
        }
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
            replays: vec![Replay::default(); if self.replays { self.messages } else { 0 }],
            opening: Opening::None,
            generation: 0,
            next_tag: 0,
            late: Vec::new(),
            zombies: Vec::new(),
            faults: self.faults,
            away: false,
            old: false,
            broken: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.publisher_actions(state, actions);
        for consumer in 0..state.consumers.len() {
            self.consumer_actions(state, consumer, actions);
        }
        self.replay_actions(state, actions);
        for copy in &state.copies {
            match copy.place {
                Place::Delayed => actions.push(Action::Return(copy.number)),
                Place::Parked(_) if state.faults > 0 => actions.push(Action::Unpark(copy.number)),
                _ => {}
            }
        }
        if state.faults > 0
            && state.copies.iter().any(|copy| matches!(copy.place, Place::Unacked(_)))
            && (0..self.consumers).all(|index| self.may_lose_channel(state, index))
        {
            actions.push(Action::BrokerRestarts);
        }
        let asks = |consumer: &Consumer| !matches!(consumer.phase, Phase::Idle | Phase::Settling);
        if state.away {
            actions.push(Action::StoreComesBack);
        } else if state.faults > 0 && state.consumers.iter().any(asks) {
            actions.push(Action::StoreGoesAway);
        }
        if self.store == Store::Leases {
            for (id, record) in state.records.iter().enumerate() {
                if record.holder.is_some() && (record.orphaned || state.faults > 0) {
                    actions.push(Action::Expire(id));
                }
            }
        }
        if state.faults > 0 && !state.away && !state.old && state.records.iter().any(|record| record.done) {
            actions.push(Action::Purge);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let free = match action {
            Action::PublishBadly(..)
            | Action::PublisherDies(_)
            | Action::PublisherFreezes(_)
            | Action::Retire
            | Action::DeadlineComes(_)
            | Action::BrokerRestarts
            | Action::StoreGoesAway
            | Action::Fail(..)
            | Action::CompleteUnknown(..)
            | Action::SettleLost(..)
            | Action::PassRefused(..)
            | Action::Cut(_)
            | Action::Die(_)
            | Action::Unpark(_)
            | Action::Close
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
            Action::PublisherDies(message) => Self::restart(&mut state, message),
            Action::PublisherFreezes(message) => self.freeze(&mut state, message),
            Action::ZombieArrives(index) => Self::zombie_arrives(&mut state, index),
            Action::Retire => Self::retire(&mut state),
            Action::LateAnswer(index) => self.late_answer(&mut state, index),
            Action::DeadlineComes(message) => self.deadline_comes(&mut state, message),
            Action::Deliver(index, count) => self.deliver(&mut state, index, count),
            Action::Claim(index) => self.claim(&mut state, index),
            Action::Handle(index) => self.handle(&mut state, index),
            Action::Fail(index, item) => self.fail(&mut state, index, item),
            Action::Complete(index) => {
                let there = !state.away;
                self.complete(&mut state, index, there, there);
            }
            Action::CompleteUnknown(index, happens) => self.complete(&mut state, index, happens, false),
            Action::Settle(index, item) => self.settle(&mut state, index, item, true),
            Action::SettleLost(index, item) => self.settle(&mut state, index, item, false),
            Action::PassRefused(index, item) => {
                state.consumers[index].items[item].fate = Fate::Hold;
                state.next(index);
            }
            Action::Cut(index) => self.cut(&mut state, index),
            Action::Die(index) => self.die(&mut state, index),
            Action::BrokerRestarts => {
                (0..self.consumers).for_each(|index| self.cut(&mut state, index));
                Self::retire(&mut state);
                state.late.clear();
            }
            Action::StoreGoesAway => {
                if self.store == Store::Transactions {
                    (0..self.consumers).for_each(|index| self.lose_transaction(&mut state, index));
                }
                state.away = true;
            }
            Action::StoreComesBack => state.away = false,
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
            Action::Open => state.opening = Opening::Open,
            Action::Close => state.opening = Opening::Closed,
            Action::Replay(message) => self.replay(&mut state, message),
            Action::Purge => self.purge(&mut state),
        }
        if self.mutant(Mutant::ForgottenOnceQuiet) {
            state.forget_once_quiet();
        }
        if !self.mutant(Mutant::FirstDeliveryTakenAsNew) {
            state.forget_redelivered();
        }
        if !self.late && self.mutant.is_none() {
            state.forget_tags();
        }
        state.tidy();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }
}
