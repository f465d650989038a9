//! What a relay does with the rows that it has: `outbox/keys/`, `verdict.rs`, `relay/verdicts.rs`.

use super::{
    mutants::Mutant,
    protocol::{Action, Trouble, World},
    state::{Answer, Broken, Entry, Lane, Message, Row, State, has},
};

impl World {
    pub fn row_actions(&self, state: &State, relay: usize, actions: &mut Vec<Action>) {
        let there = &state.relays[relay];
        let may_fault = self.may(state, Trouble::Broker);
        let asks = there.reading.is_some();
        if asks {
            actions.push(Action::ReadEnds(relay));
        } else {
            (0..self.lanes).for_each(|lane| self.read_actions(state, relay, lane, actions));
        }
        for (message, entry) in there.memory.iter().enumerate() {
            match entry {
                Entry::Waiting if self.may_send(state, relay, message) => {
                    actions.push(Action::Send(relay, message));
                }
                Entry::Sent if state.messages[message].poison => {
                    actions.push(Action::Arrive(relay, message, Answer::Return));
                }
                Entry::Sent => {
                    actions.push(Action::Arrive(relay, message, Answer::Ack));
                    if may_fault {
                        actions.push(Action::Arrive(relay, message, Answer::Nack));
                        actions.push(Action::Arrive(relay, message, Answer::Return));
                    }
                }
                Entry::Answered(_) => actions.push(Action::Hear(relay, message)),
                Entry::Failed | Entry::Hopeless if !asks => actions.push(Action::Fail(relay, message)),
                _ => {}
            }
            if entry.is_in_flight() && may_fault {
                actions.push(Action::GiveUp(relay, message));
            }
        }
        if !asks && there.memory.iter().any(|entry| self.is_removable(*entry)) {
            actions.push(Action::Remove(relay));
        }
    }

    /// `Keys::next`: of each key the oldest, and nothing while one is under way.
    fn may_send(&self, state: &State, relay: usize, message: Message) -> bool {
        let (there, spec) = (&state.relays[relay], self.messages[message]);
        let goes_first = |other: Message| {
            let entry = there.memory[other];
            let is_remembered = !has(there.forgotten, other);
            entry.is_under_way() && is_remembered && !self.lets_pass(entry)
                || entry == Entry::Waiting && state.messages[other].seq < state.messages[message].seq
        };
        there.held[spec.lane].as_ref().is_some_and(|held| !held.giving)
            && (self.mutant(Mutant::PipeliningInAKey)
                || !self.of_key(spec.key).any(|other| other != message && goes_first(other)))
    }

    /// A mutant's.
    fn lets_pass(&self, entry: Entry) -> bool {
        entry == Entry::Failed && self.mutant(Mutant::OvertakenWhileItPauses)
            || entry == Entry::Hopeless && self.mutant(Mutant::GoesOnBehindParked)
    }

    /// The ID that a relay sends under: the one that was committed with the row.
    pub fn id(&self, relay: usize) -> usize {
        if self.mutant(Mutant::IdMadeByRelay) { relay + 1 } else { 0 }
    }

    /// Nobody waits for an attempt any more, if there is one.
    pub fn abandon(&self, state: &mut State, relay: usize, message: Message) {
        if state.relays[relay].memory[message] == Entry::Sent {
            state.messages[message].strays |= 1 << self.id(relay);
        }
        state.relays[relay].forgotten &= !(1 << message);
    }

    pub fn hear(&self, state: &mut State, relay: usize, message: Message) {
        let Entry::Answered(answer) = state.relays[relay].memory[message] else { return };
        let is_last = state.messages[message].attempts + 1 >= self.attempts;
        state.relays[relay].forgotten &= !(1 << message);
        state.relays[relay].memory[message] = match answer {
            Answer::Ack => Entry::Done,
            Answer::Nack if self.mutant(Mutant::DeletedOnNack) => Entry::Done,
            Answer::Return if self.mutant(Mutant::DeletedOnReturn) => Entry::Done,
            // Its route is held back for a while; not counted.
            Answer::Nack => return self.forget_key(state, relay, message),
            Answer::Return if is_last => Entry::Hopeless,
            Answer::Return => Entry::Failed,
        };
    }

    fn is_removable(&self, entry: Entry) -> bool {
        entry == Entry::Done || entry == Entry::Sent && self.mutant(Mutant::DeletedBeforeConfirm)
    }

    /// By lane and number, and so nothing that is parked.
    pub fn remove(&self, state: &mut State, relay: usize) {
        for message in 0..self.messages.len() {
            if !self.is_removable(state.relays[relay].memory[message]) {
                continue;
            }
            self.abandon(state, relay, message);
            state.relays[relay].memory[message] = Entry::Unknown;
            let posted = &mut state.messages[message];
            if posted.row == Row::InLane {
                posted.row = Row::None;
                if !posted.confirmed {
                    state.broken(Broken::RemovedUnconfirmed);
                }
            }
        }
        if self.floor {
            // It has an identity of its own, above that of all that are open, and has ended.
            let open = state.open();
            state.producers.iter_mut().enumerate().for_each(|(producer, there)| {
                there.below |= has(open, producer);
            });
            let by_snapshot = self.mutant(Mutant::FloorByEndOfSnapshot);
            if !by_snapshot {
                state.relays[relay].floors.iter_mut().for_each(|floor| floor.mark(open));
            }
        }
    }

    /// The lane is still the one that the relay has taken.
    pub fn is_fenced(state: &State, relay: usize, lane: Lane) -> bool {
        state.relays[relay].held[lane].as_ref().is_some_and(|held| held.term == state.lanes[lane].term)
    }

    pub fn fail(&self, state: &mut State, relay: usize, message: Message) {
        let (lane, key) = (self.messages[message].lane, self.messages[message].key);
        if !Self::is_fenced(state, relay, lane) && !self.mutant(Mutant::ParkedWithoutFence) {
            return self.drop_lane(state, relay, lane);
        }
        let is_hopeless = state.relays[relay].memory[message] == Entry::Hopeless;
        let posted = &mut state.messages[message];
        let seq = posted.seq;
        if !is_hopeless {
            posted.attempts += 1;
            return self.forget_key(state, relay, message);
        }
        if posted.row == Row::InLane {
            posted.row = Row::Parked;
        }
        let blocks = self.blocks(key, lane);
        let there = &mut state.relays[relay];
        there.memory[message] = Entry::Unknown;
        let Some(held) = &mut there.held[lane] else { return };
        for key in blocks {
            let first = &mut held.blocked[key];
            *first = if *first == 0 { seq } else { seq.min(*first) };
        }
        for other in self.of_lane(lane) {
            if there.memory[other] == Entry::Waiting {
                let first =
                    there.held[lane].as_ref().map_or(0, |held| held.blocked[self.messages[other].key]);
                if first != 0 && state.messages[other].seq >= first {
                    there.memory[other] = Entry::Unknown;
                }
            }
        }
    }

    /// Whether something of its key is parked that has a lower number.
    pub fn parked_before(&self, state: &State, message: Message) -> bool {
        self.of_key(self.messages[message].key).any(|other| {
            let other = &state.messages[other];
            other.row == Row::Parked && other.seq < state.messages[message].seq
        })
    }

    pub fn follow(&self, state: &mut State, message: Message) {
        if !self.parked_before(state, message) {
            state.broken(Broken::ParkedForNothing);
        }
        state.messages[message].row = Row::Parked;
    }
}
