//! What a relay reads, and from where: `outbox/floor/`, `outbox/relay/reading.rs`.

use super::{
    mutants::Mutant,
    protocol::{Action, World},
    state::{Bits, Entry, Floor, Key, Lane, Mark, Message, Reading, Row, Stage, State, has, set},
};

/// What a read sees of a lane.
struct View {
    /// By number.
    rows: Vec<Message>,
    /// Those that the relay has not in memory.
    unknown: Vec<Message>,
}

impl World {
    pub fn read_actions(&self, state: &State, relay: usize, lane: Lane, actions: &mut Vec<Action>) {
        let there = &state.relays[relay];
        // By its own clock the lease is over: what it reads now, it would not send.
        let may_read = there.live || self.mutant(Mutant::NoLookAtTheClock);
        let Some(held) = there.held[lane].as_ref().filter(|held| held.asked && !held.giving && may_read)
        else {
            return;
        };
        let view = self.view(state, relay, lane);
        let floor = &there.floors[lane];
        if !view.unknown.is_empty() || self.floor && floor.is_moved_by(state.top(&view.rows)) {
            actions.push(Action::Read(relay, lane, false));
        }
        if self.floor && view.unknown.len() > 1 {
            actions.push(Action::Read(relay, lane, true));
        }
        for message in self.of_lane(lane) {
            let posted = &state.messages[message];
            let first = held.blocked[self.messages[message].key];
            let is_met = there.memory[message] == Entry::Unknown && posted.row == Row::InLane;
            let follows = is_met && first != 0 && posted.seq > first && there.live;
            // The statement looks again whether there is something that it follows.
            let looks = self.parked_before(state, message) || self.mutant(Mutant::FollowedFromMemory);
            if follows && looks && Self::is_fenced(state, relay, lane) {
                actions.push(Action::Follow(relay, message));
            }
        }
    }

    /// What a read of the lane sees now, from where it begins.
    fn view(&self, state: &State, relay: usize, lane: Lane) -> View {
        let there = &state.relays[relay];
        let from = if self.floor { there.floors[lane].from() } else { 0 };
        let is_there = |message: &Message| {
            let posted = &state.messages[*message];
            let is_visible = posted.row == Row::InLane
                || self.mutant(Mutant::UncommittedRead) && posted.stage == Stage::Open;
            is_visible && posted.seq > from && !self.is_blocked(state, relay, *message)
        };
        let mut rows: Vec<Message> = self.of_lane(lane).filter(is_there).collect();
        rows.sort_unstable_by_key(|message| state.messages[*message].seq);
        let unknown = rows.iter().filter(|message| there.memory[**message] == Entry::Unknown).copied();
        View { unknown: unknown.collect(), rows }
    }

    /// Whether it waits for an operator, as far as the relay knows.
    pub fn is_blocked(&self, state: &State, relay: usize, message: Message) -> bool {
        let spec = self.messages[message];
        let held = state.relays[relay].held[spec.lane].as_ref();
        let first = held.map_or(0, |held| held.blocked[spec.key]);
        first != 0 && state.messages[message].seq >= first
    }

    /// The table takes what is there, and answers.
    pub fn begin_read(&self, state: &mut State, relay: usize, lane: Lane, is_cut: bool) {
        let View { mut rows, unknown } = self.view(state, relay, lane);
        if is_cut {
            rows.truncate(rows.iter().position(|row| *row == unknown[0]).map_or(0, |at| at + 1));
        }
        let (top, snapshot) = (state.top(&rows), state.open_below_end_of_snapshot());
        let floor = &mut state.relays[relay].floors[lane];
        floor.begin();
        let (proves, rows) = (floor.proves(), set(rows));
        state.relays[relay].reading =
            Some(Reading { lane, rows, top, is_cut, proves, forgotten: 0, snapshot });
    }

    /// The answer arrives.
    pub fn end_read(&self, state: &mut State, relay: usize) {
        let there = &mut state.relays[relay];
        let Some(reading) = there.reading.take() else { return };
        let Reading { lane, rows, top, is_cut, proves, forgotten, snapshot } = reading;
        if there.held[lane].as_ref().is_none_or(|held| held.giving) {
            return;
        }
        if self.mutant(Mutant::ReadReplacesInFlight) {
            there.forgotten |= set(self.of_lane(lane).filter(|row| there.memory[*row].is_in_flight()));
        }
        let is_partial = |row: Message| has(forgotten, row) && !self.mutant(Mutant::PartOfAKeyTaken);
        for row in self.of_lane(lane).filter(|row| has(rows, *row) && !is_partial(*row)) {
            if there.memory[row] == Entry::Unknown {
                there.memory[row] = Entry::Waiting;
            }
        }
        if self.floor {
            let is_cut = is_cut && !self.mutant(Mutant::FloorAboveCutRead);
            there.floors[lane].end(top, proves, is_cut.then_some(top));
            if self.mutant(Mutant::FloorByEndOfSnapshot) {
                there.floors[lane].mark(snapshot);
            }
        }
    }

    /// A message was not confirmed, and cannot be sent at once: it is forgotten with all that waits
    /// behind it, and read again.
    pub fn forget_key(&self, state: &mut State, relay: usize, message: Message) {
        let spec = self.messages[message];
        let there = &mut state.relays[relay];
        for other in self.of_key(spec.key) {
            if there.memory[other] == Entry::Waiting && !self.mutant(Mutant::HeadForgottenAlone) {
                there.memory[other] = Entry::Unknown;
            }
        }
        there.memory[message] = Entry::Unknown;
        if self.floor {
            there.floors[spec.lane].read_all = true;
        }
        if let Some(reading) = &mut there.reading {
            reading.forgotten |= set(self.of_key(spec.key));
        }
    }

    /// Whether the next read of a lane begins behind a row that may yet appear, or that is there
    /// and that the relay does not know of.
    pub fn passes_over(&self, state: &State, relay: usize, lane: Lane) -> bool {
        let there = &state.relays[relay];
        let from = there.floors[lane].from();
        self.of_lane(lane).filter(|message| (1..=from).contains(&state.messages[*message].seq)).any(
            |message| {
                let posted = &state.messages[message];
                let is_unknown = there.memory[message] == Entry::Unknown;
                let is_missed = is_unknown && !self.is_blocked(state, relay, message);
                posted.stage == Stage::Open || posted.row == Row::InLane && is_missed
            },
        )
    }

    /// Which keys are blocked by one that is parked.
    pub fn blocks(&self, key: Key, lane: Lane) -> Vec<Key> {
        match self.mutant {
            Some(Mutant::GoesOnBehindParked) => Vec::new(),
            Some(Mutant::PoisonBlocksItsLane) => (0..self.keys())
                .filter(|key| self.of_key(*key).any(|m| self.messages[m].lane == lane))
                .collect(),
            _ => vec![key],
        }
    }

    /// What is parked, by the table: of each key the first number.
    pub fn blocked(&self, state: &State, lane: Lane) -> Vec<usize> {
        let mut blocked = vec![0; self.keys()];
        if self.mutant(Mutant::ParkedKeysNotRead) {
            return blocked;
        }
        for message in self.of_lane(lane).filter(|message| state.messages[*message].row == Row::Parked) {
            let seq =
                if self.mutant(Mutant::BlockedByWhatComesLater) { 1 } else { state.messages[message].seq };
            for key in self.blocks(self.messages[message].key, lane) {
                let first: &mut usize = &mut blocked[key];
                *first = if *first == 0 { seq } else { seq.min(*first) };
            }
        }
        blocked
    }

    pub fn ask_parked(&self, state: &mut State, relay: usize, lane: Lane) {
        let blocked = self.blocked(state, lane);
        let Some(held) = &mut state.relays[relay].held[lane] else { return };
        (held.asked, held.blocked) = (true, blocked);
        // What was put back has the number that it had.
        if self.floor && !self.mutant(Mutant::UnparkedBehindTheFloor) {
            state.relays[relay].floors[lane].read_all = true;
        }
    }
}

impl State {
    /// The highest number of some rows, or 0.
    fn top(&self, rows: &[Message]) -> usize {
        rows.iter().map(|row| self.messages[*row].seq).max().unwrap_or_default()
    }
}

impl Floor {
    fn from(&self) -> usize {
        if self.read_all { 0 } else { self.behind }
    }

    /// Whether a read that sees nothing new would still move it.
    fn is_moved_by(&self, top: usize) -> bool {
        let mut after = self.clone();
        after.begin();
        after.end(top, self.proves(), None);
        after != *self
    }

    /// Up to where nothing can appear any more, by a snapshot that is taken now.
    fn proves(&self) -> usize {
        let proven = self.marks.iter().take_while(|mark| mark.open == 0).last();
        proven.map_or(self.proven, |mark| mark.seq)
    }

    fn begin(&mut self) {
        self.behind = self.from();
        self.read_all = false;
    }

    fn end(&mut self, top: usize, proves: usize, taken: Option<usize>) {
        self.proven = self.proven.max(proves);
        self.marks.retain(|mark| mark.seq > self.proven);
        self.behind = self.behind.max(self.proven.min(taken.unwrap_or(usize::MAX)));
        let newest = self.marks.last().map_or(self.proven, |mark| mark.seq);
        let unmarked = top.max(self.unmarked);
        self.unmarked = if unmarked > newest { unmarked } else { 0 };
    }

    /// A transaction has begun, above those that are open.
    pub fn mark(&mut self, open: Bits) {
        if self.unmarked != 0 {
            self.marks.push(Mark { seq: self.unmarked, open });
            self.unmarked = 0;
        }
    }
}
