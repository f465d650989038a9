//! Relays that come and go, and who has which lane: `outbox/lanes.rs`, `store/sql/outbox/lanes.rs`.

use super::{
    mutants::Mutant,
    protocol::{Action, Trouble, World},
    state::{Entry, Floor, Held, Lane, Seen, State, has},
};

impl World {
    pub fn process_actions(&self, state: &State, relay: usize, actions: &mut Vec<Action>) {
        let there = &state.relays[relay];
        match (there.up, there.live) {
            (false, false) => actions.push(Action::Start(relay)),
            (false, true) => actions.push(Action::LeaseRunsOut(relay)),
            (true, false) => actions.push(Action::Beat(relay)),
            (true, true) => {}
        }
        let has_any = there.held.iter().any(Option::is_some);
        let knows_any = there.memory.iter().any(|entry| *entry != Entry::Unknown);
        if !there.up || !has_any && !knows_any && there.seen.is_none() {
            return;
        }
        if self.may(state, Trouble::Relays) {
            actions.push(Action::Die(relay));
            if there.live {
                actions.push(Action::LeaseRunsOut(relay));
            }
        }
        if self.may(state, Trouble::Stops) && there.live && !there.stopping {
            actions.push(Action::Stop(relay));
        }
    }

    pub fn lane_actions(&self, state: &State, relay: usize, actions: &mut Vec<Action>) {
        let there = &state.relays[relay];
        if !there.live {
            return;
        }
        if there.stopping {
            if there.held.iter().all(Option::is_none) {
                actions.push(Action::Leave(relay));
            }
        } else {
            let now = self.look(state);
            let is_useful =
                |lane| self.may_take(state, relay, lane, &now) || Self::may_give(state, relay, lane, &now);
            if there.seen.as_ref() != Some(&now) && (0..self.lanes).any(is_useful) {
                actions.push(Action::Look(relay));
            }
            for lane in 0..self.lanes {
                if there.seen.as_ref().is_some_and(|seen| self.may_take(state, relay, lane, seen)) {
                    actions.push(Action::Take(relay, lane));
                }
                if there.seen.as_ref().is_some_and(|seen| Self::may_give(state, relay, lane, seen)) {
                    actions.push(Action::Give(relay, lane));
                }
            }
        }
        for (lane, held) in there.held.iter().enumerate() {
            let Some(held) = held else { continue };
            let is_empty = self.of_lane(lane).all(|message| there.memory[message] == Entry::Unknown);
            if held.giving && (is_empty || self.mutant(Mutant::LaneReleasedInFlight)) {
                actions.push(Action::Release(relay, lane));
            }
            let asks_again = !held.asked || self.parks() && held.blocked != self.blocked(state, lane);
            if asks_again && !held.giving && there.reading.is_none() {
                actions.push(Action::AskParked(relay, lane));
            }
        }
    }

    /// What the table says about relays and lanes.
    pub fn look(&self, state: &State) -> Seen {
        let parked =
            if self.mutant(Mutant::ParkedKeysReadBeforeTaking) { self.blocked(state, 0) } else { Vec::new() };
        Seen { live: state.live(), lanes: state.lanes.clone(), parked }
    }

    /// `lanes.rs`, `entitled`.
    fn is_entitled(relay: usize, lane: Lane, seen: &Seen) -> bool {
        let relays: Vec<usize> = (0..8).filter(|other| *other == relay || has(seen.live, *other)).collect();
        relays[lane % relays.len()] == relay
    }

    /// It wants to, by what it has seen, and its statement finds the lane free. The statement goes
    /// by that old a snapshot of the beats, too: so it does if it waits for a rival's.
    fn may_take(&self, state: &State, relay: usize, lane: Lane, seen: &Seen) -> bool {
        let is_free = |owner: Option<usize>| {
            owner.is_none_or(|owner| !has(seen.live, owner)) || self.mutant(Mutant::LaneTakenFromTheLiving)
        };
        let (then, now) = (seen.lanes[lane], state.lanes[lane]);
        let same_term = then.term == now.term || self.mutant(Mutant::LaneTakenWithoutItsTerm);
        let is_held = state.relays[relay].held[lane].is_some();
        !is_held
            && Self::is_entitled(relay, lane, seen)
            && now.owner != Some(relay)
            && is_free(then.owner)
            && is_free(now.owner)
            && same_term
    }

    fn may_give(state: &State, relay: usize, lane: Lane, seen: &Seen) -> bool {
        let held = state.relays[relay].held[lane].as_ref();
        held.is_some_and(|held| !held.giving) && !Self::is_entitled(relay, lane, seen)
    }

    pub fn take(&self, state: &mut State, relay: usize, lane: Lane) {
        let owned = &mut state.lanes[lane];
        owned.owner = Some(relay);
        owned.term += 1;
        let there = &mut state.relays[relay];
        if !self.mutant(Mutant::FloorKeptAcrossTakeOver) {
            there.floors[lane] = Floor::default();
        }
        let mut held = Held {
            term: owned.term,
            // Where nothing is ever parked, there is nothing to ask for.
            asked: !self.parks() || self.mutant(Mutant::ParkedKeysNotRead),
            giving: false,
            blocked: vec![0; self.keys()],
        };
        if let Some(seen) = there.seen.as_ref().filter(|seen| !seen.parked.is_empty()) {
            (held.asked, held.blocked) = (true, seen.parked.clone());
        }
        there.held[lane] = Some(held);
    }

    fn parks(&self) -> bool {
        self.has(Trouble::Broker) || self.messages.iter().any(|spec| spec.poison)
    }

    /// Nothing new is sent; what is in flight is waited for.
    pub fn give(state: &mut State, relay: usize, lane: Lane) {
        if let Some(held) = &mut state.relays[relay].held[lane] {
            held.giving = true;
        }
    }

    pub fn stop(&self, state: &mut State, relay: usize) {
        state.relays[relay].stopping = true;
        (0..self.lanes).for_each(|lane| Self::give(state, relay, lane));
    }

    pub fn release(state: &mut State, relay: usize, lane: Lane) {
        let there = &mut state.relays[relay];
        let term = there.held[lane].take().map(|held| held.term);
        there.reading.take_if(|reading| reading.lane == lane);
        if Some(state.lanes[lane].term) == term {
            state.lanes[lane].owner = None;
        }
    }

    /// Its beat is older than the lease now, or gone.
    pub fn run_out(state: &mut State, relay: usize) {
        state.relays[relay].live = false;
        for owned in &mut state.lanes {
            if owned.owner == Some(relay) {
                owned.owner = None;
            }
        }
    }

    /// The lane is lost: nothing of it is known any more.
    pub fn drop_lane(&self, state: &mut State, relay: usize, lane: Lane) {
        for message in self.of_lane(lane) {
            self.abandon(state, relay, message);
            state.relays[relay].memory[message] = Entry::Unknown;
        }
        let there = &mut state.relays[relay];
        there.held[lane] = None;
        if !self.mutant(Mutant::ReadOfAnEarlierTerm) {
            there.reading.take_if(|reading| reading.lane == lane);
        }
    }

    pub fn drop_all(&self, state: &mut State, relay: usize) {
        (0..self.lanes).for_each(|lane| self.drop_lane(state, relay, lane));
        let there = &mut state.relays[relay];
        (there.seen, there.stopping, there.forgotten) = (None, false, 0);
    }

    /// What waits in a lane that is given back is not kept, and what was seen is of no use when
    /// nothing is left to do by it.
    pub fn tidy_lanes(&self, state: &mut State, relay: usize) {
        let there = &mut state.relays[relay];
        for (message, entry) in there.memory.iter_mut().enumerate() {
            let held = there.held[self.messages[message].lane].as_ref();
            if *entry == Entry::Waiting && held.is_some_and(|held| held.giving) {
                *entry = Entry::Unknown;
            }
        }
        let of_use = state.relays[relay].seen.as_ref().is_some_and(|seen| {
            (0..self.lanes).any(|lane| {
                self.may_take(state, relay, lane, seen) || Self::may_give(state, relay, lane, seen)
            })
        });
        let there = &mut state.relays[relay];
        if !of_use || !there.live || there.stopping {
            there.seen = None;
        }
        for (floor, held) in there.floors.iter_mut().zip(&there.held) {
            if held.is_none() && !self.mutant(Mutant::FloorKeptAcrossTakeOver) {
                *floor = Floor::default();
            }
        }
    }
}
