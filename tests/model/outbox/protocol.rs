//! The world, and its steps. Each names the code that it stands for.

use stateright::{Model, Property};

use super::{
    mutants::Mutant,
    properties,
    state::{
        Answer, Entry, Floor, Key, Lane, Message, Owned, Posted, Producer, Relay, Row, Stage, State, has,
    },
};

/// What is enqueued.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    pub key: Key,
    pub lane: Lane,
    /// The broker returns it until an operator has seen to it.
    pub poison: bool,
}

pub const A: Spec = Spec { key: 0, lane: 0, poison: false };
pub const BAD_A: Spec = Spec { poison: true, ..A };
pub const B: Spec = Spec { key: 1, ..A };
pub const C: Spec = Spec { key: 2, ..A };

/// A bounded world.
#[derive(Debug, Clone)]
pub struct World {
    pub messages: &'static [Spec],
    /// So many of them are in the table from the beginning.
    pub committed: usize,
    /// The others: what each producer enqueues, in a transaction each.
    pub producers: &'static [&'static [Message]],
    pub lanes: usize,
    pub relays: usize,
    /// So many of them have started.
    pub started: usize,
    pub faults: u8,
    /// Which faults there are.
    pub trouble: &'static [Trouble],
    /// After so many failures of its own a message is parked.
    pub attempts: u8,
    /// Whether reads begin at a floor, and are cut by their limit.
    pub floor: bool,
    /// Whether things happen between a read and its answer.
    pub slow_reads: bool,
    pub mutant: Option<Mutant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Transactions are rolled back.
    Rollbacks,
    /// Relays die, or freeze for longer than their lease.
    Relays,
    /// Relays are stopped.
    Stops,
    /// Messages are nacked, returned, and lost; confirms are lost.
    Broker,
    /// Somebody puts back and discards what is parked.
    Operator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// `store/postgres/outbox.rs`, `put`: the producer's transaction has its identity.
    Begin(usize),
    /// The same: its row has its number.
    Enqueue(usize),
    Commit(usize),
    /// A fault.
    RollBack(usize),

    /// `Outbox::register`.
    Start(usize),
    /// A fault, unless its process is dead: its last beat is older than the lease. A live process
    /// is frozen, and goes on later with what it has in memory.
    LeaseRunsOut(usize),
    /// `Outbox::beat`, of one whose lease has run out: it drops everything, and is another relay.
    Beat(usize),
    /// A fault: the process is killed.
    Die(usize),
    /// A fault of sorts: it is stopped.
    Stop(usize),
    /// `Outbox::leave`.
    Leave(usize),
    /// `Outbox::ownership`.
    Look(usize),
    /// `Outbox::take`, by what was seen.
    Take(usize, Lane),
    /// `outbox/lanes.rs`, `Plan::give`: it is another's, by what was seen.
    Give(usize, Lane),
    /// `Outbox::release`.
    Release(usize, Lane),
    /// `Outbox::parked_keys`: of a lane that was just taken, and from time to time.
    AskParked(usize, Lane),

    /// `Outbox::read`; whether it is cut by its limit.
    Read(usize, Lane, bool),
    /// Its answer, where that takes time. Nothing else is asked meanwhile.
    ReadEnds(usize),
    /// `outbox/keys/`: what may be sent now.
    Send(usize, Message),
    /// The broker gets it, and answers.
    Arrive(usize, Message, Answer),
    /// `outbox/verdict.rs`: the answer is judged.
    Hear(usize, Message),
    /// A fault: the message is still on its way, or its answer, when the relay gives up waiting
    /// for it.
    GiveUp(usize, Message),
    /// What was given up reaches the broker.
    StrayArrives(Message),
    /// `Outbox::remove`.
    Remove(usize),
    /// `Outbox::fail`, with its fence.
    Fail(usize, Message),
    /// The same, for what follows a parked row of its key.
    Follow(usize, Message),

    /// `Outbox::unpark`, counted as a fault: a key, whose messages can be published now.
    UnparkKey(Key),
    /// The same for one row.
    UnparkRow(Message),
    /// `Outbox::discard`, counted as a fault.
    Discard(Message),
}

impl World {
    pub fn mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub fn has(&self, trouble: Trouble) -> bool {
        self.trouble.contains(&trouble)
    }

    pub fn may(&self, state: &State, trouble: Trouble) -> bool {
        state.faults > 0 && self.has(trouble)
    }

    pub fn keys(&self) -> usize {
        self.messages.iter().map(|spec| spec.key + 1).max().unwrap_or_default()
    }

    pub fn of_lane(&self, lane: Lane) -> impl Iterator<Item = Message> {
        let messages = self.messages;
        (0..messages.len()).filter(move |message| messages[*message].lane == lane)
    }

    pub fn of_key(&self, key: Key) -> impl Iterator<Item = Message> {
        let messages = self.messages;
        (0..messages.len()).filter(move |message| messages[*message].key == key)
    }

    /// What counts against the budget.
    pub fn is_fault(state: &State, action: Action) -> bool {
        match action {
            Action::RollBack(_)
            | Action::Die(_)
            | Action::Stop(_)
            | Action::GiveUp(..)
            | Action::UnparkKey(_)
            | Action::UnparkRow(_)
            | Action::Discard(_) => true,
            Action::LeaseRunsOut(relay) => state.relays[relay].up,
            Action::Arrive(_, message, answer) => match answer {
                Answer::Ack => false,
                Answer::Nack => true,
                Answer::Return => !state.messages[message].poison,
            },
            _ => false,
        }
    }

    fn operator_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.may(state, Trouble::Operator) {
            return;
        }
        let is_parked = |message: &Message| state.messages[*message].row == Row::Parked;
        for key in 0..self.keys() {
            let parked: Vec<Message> = self.of_key(key).filter(is_parked).collect();
            if !parked.is_empty() {
                actions.push(Action::UnparkKey(key));
            }
            for message in &parked {
                if parked.len() > 1 {
                    actions.push(Action::UnparkRow(*message));
                }
                actions.push(Action::Discard(*message));
            }
        }
    }

    fn unpark(state: &mut State, message: Message) {
        let message = &mut state.messages[message];
        if message.row == Row::Parked {
            (message.row, message.attempts, message.poison) = (Row::InLane, 0, false);
        }
    }

    /// Forgets what only some worlds need.
    fn tidy(&self, state: &mut State) {
        for relay in 0..self.relays {
            self.tidy_lanes(state, relay);
        }
        if !self.mutant(Mutant::FloorByEndOfSnapshot) {
            state.identities.clear();
            state.producers.iter_mut().for_each(|producer| producer.below = false);
            let readings = state.relays.iter_mut().flat_map(|relay| &mut relay.reading);
            readings.for_each(|reading| reading.snapshot = 0);
        }
        for message in &mut state.messages {
            if !self.mutant(Mutant::IdMadeByRelay) {
                message.ids = 0;
                if message.copies > 0 {
                    message.strays = 0;
                }
            }
            // How many there are matters only where nothing has gone wrong.
            if state.faults < self.faults {
                message.copies = message.copies.min(1);
            }
        }
        if state.relays.iter().all(|relay| relay.memory.iter().all(|entry| !entry.is_in_flight())) {
            state.relays.iter_mut().for_each(|relay| relay.forgotten = 0);
        }
        state.tidy();
    }
}

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let messages = self.messages.iter().enumerate().map(|(number, spec)| {
            let posted = Posted { poison: spec.poison, ..Posted::default() };
            if number < self.committed {
                let before = self.of_key(spec.key).filter(|other| *other < number);
                let before = super::state::set(before);
                Posted { stage: Stage::Committed, seq: number + 1, before, row: Row::InLane, ..posted }
            } else {
                posted
            }
        });
        let relay = |number: usize| Relay {
            up: number < self.started,
            live: number < self.started,
            stopping: false,
            seen: None,
            held: vec![None; self.lanes],
            memory: vec![Entry::Unknown; self.messages.len()],
            floors: vec![Floor::default(); self.lanes],
            reading: None,
            forgotten: 0,
        };
        vec![State {
            messages: messages.collect(),
            producers: vec![Producer::default(); self.producers.len()],
            lanes: vec![Owned::default(); self.lanes],
            relays: (0..self.relays).map(relay).collect(),
            next_seq: self.committed + 1,
            identities: Vec::new(),
            faults: self.faults,
            broken: std::collections::BTreeSet::new(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for producer in 0..state.producers.len() {
            self.producer_actions(state, producer, actions);
        }
        for relay in 0..self.relays {
            self.process_actions(state, relay, actions);
            if state.relays[relay].up {
                self.lane_actions(state, relay, actions);
                self.row_actions(state, relay, actions);
            }
        }
        let strays = |message: &Message| state.messages[*message].strays != 0;
        actions.extend((0..self.messages.len()).filter(strays).map(Action::StrayArrives));
        self.operator_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        if Self::is_fault(last, action) {
            state.faults -= 1;
        }
        match action {
            Action::Begin(producer) => self.begin(&mut state, producer),
            Action::Enqueue(producer) => self.enqueue(&mut state, producer),
            Action::Commit(producer) => self.end(&mut state, producer, Stage::Committed),
            Action::RollBack(producer) => self.end(&mut state, producer, Stage::RolledBack),
            Action::Start(relay) => {
                (state.relays[relay].up, state.relays[relay].live) = (true, true);
            }
            Action::LeaseRunsOut(relay) => Self::run_out(&mut state, relay),
            Action::Beat(relay) => {
                if !self.mutant(Mutant::BeatRevivesTheDead) {
                    self.drop_all(&mut state, relay);
                }
                state.relays[relay].live = true;
            }
            Action::Die(relay) => {
                self.drop_all(&mut state, relay);
                state.relays[relay].up = false;
            }
            Action::Stop(relay) => self.stop(&mut state, relay),
            Action::Leave(relay) => {
                self.drop_all(&mut state, relay);
                Self::run_out(&mut state, relay);
                state.relays[relay].up = false;
            }
            Action::Look(relay) => state.relays[relay].seen = Some(self.look(&state)),
            Action::Take(relay, lane) => self.take(&mut state, relay, lane),
            Action::Give(relay, lane) => Self::give(&mut state, relay, lane),
            Action::Release(relay, lane) => Self::release(&mut state, relay, lane),
            Action::AskParked(relay, lane) => self.ask_parked(&mut state, relay, lane),
            Action::Read(relay, lane, is_cut) => {
                self.begin_read(&mut state, relay, lane, is_cut);
                if !self.slow_reads {
                    self.end_read(&mut state, relay);
                }
            }
            Action::ReadEnds(relay) => self.end_read(&mut state, relay),
            Action::Send(relay, message) => state.relays[relay].memory[message] = Entry::Sent,
            Action::Arrive(relay, message, answer) => {
                if answer == Answer::Ack {
                    state.arrive(message, self.id(relay));
                    state.messages[message].confirmed = true;
                }
                state.relays[relay].memory[message] = Entry::Answered(answer);
            }
            Action::Hear(relay, message) => self.hear(&mut state, relay, message),
            Action::GiveUp(relay, message) => {
                self.abandon(&mut state, relay, message);
                self.forget_key(&mut state, relay, message);
            }
            Action::StrayArrives(message) => {
                let id = (0..8).find(|id| has(state.messages[message].strays, *id))?;
                state.messages[message].strays &= !(1 << id);
                state.arrive(message, id);
            }
            Action::Remove(relay) => self.remove(&mut state, relay),
            Action::Fail(relay, message) => self.fail(&mut state, relay, message),
            Action::Follow(_, message) => self.follow(&mut state, message),
            Action::UnparkKey(key) => {
                self.of_key(key).for_each(|message| Self::unpark(&mut state, message));
            }
            Action::UnparkRow(message) => Self::unpark(&mut state, message),
            Action::Discard(message) => {
                state.messages[message].row = Row::None;
                state.messages[message].given_up = true;
            }
        }
        self.tidy(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::all(self)
    }
}
