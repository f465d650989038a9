//! The outbox: producers whose transactions commit late or never, the table, relays that have its
//! lanes for as long as they beat, and the broker.
//!
//! Time is left out. A lease may run out at any moment, and then its relay goes on with what it has
//! in memory, whatever becomes of the lane, until it hears of it at its next beat. All that its own
//! clock keeps it from is to send what it has *read* since; [`Mutant::NoLookAtTheClock`] shows what
//! that is for.

mod lanes;
mod mutants;
mod properties;
mod protocol;
mod reading;
mod relay;
mod state;
mod table;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
};

use stateright::{Checker, DiscoveryClassification, Expectation, HasDiscoveries, Model};

use super::{holds, threads};
use mutants::Mutant;
use protocol::{A, B, BAD_A, C, Spec, Trouble, World};
use state::State;

/// Messages of one key; every fault of relays and of the broker.
fn key() -> World {
    World {
        messages: &[A, A, A],
        committed: 1,
        producers: &[&[1], &[2]],
        lanes: 1,
        relays: 2,
        started: 2,
        faults: super::world().faults.saturating_sub(1),
        trouble: &[Trouble::Rollbacks, Trouble::Relays, Trouble::Broker],
        attempts: 2,
        floor: false,
        slow_reads: false,
        mutant: None,
    }
}

/// A message that cannot be published, one behind it, and one of another key.
fn poison() -> World {
    World {
        messages: &[BAD_A, A, B],
        committed: 1,
        producers: &[&[1, 2]],
        trouble: &[Trouble::Relays, Trouble::Operator],
        attempts: 1,
        ..key()
    }
}

/// Reads that begin at a floor, and are cut by their limit.
fn floor() -> World {
    World {
        messages: &[A, B, C],
        committed: 0,
        producers: &[&[0, 1], &[2]],
        relays: 1,
        started: 1,
        trouble: &[Trouble::Rollbacks, Trouble::Relays],
        floor: true,
        ..key()
    }
}

/// The same with what is put back from parking.
fn floor_and_poison() -> World {
    World { messages: &[BAD_A, B, A], relays: 1, started: 1, floor: true, ..poison() }
}

/// Reads that take their time, while the broker does not answer and the lane is lost.
fn slow_reads() -> World {
    World {
        messages: &[A, B, A],
        committed: 2,
        producers: &[&[2]],
        relays: 1,
        started: 1,
        trouble: &[Trouble::Relays, Trouble::Broker],
        floor: true,
        slow_reads: true,
        ..key()
    }
}

/// Two lanes, and relays that come and go.
fn lanes() -> World {
    World {
        messages: &[A, Spec { lane: 1, ..B }],
        producers: &[&[1]],
        lanes: 2,
        started: 1,
        trouble: &[Trouble::Relays, Trouble::Stops],
        ..key()
    }
}

#[test]
fn messages_of_a_key_stay_in_order_whoever_has_their_lane() {
    assert!(holds(key()) > 10_000);
}

#[test]
fn poison_is_parked_and_put_back() {
    assert!(holds(poison()) > 10_000);
}

#[test]
fn reads_begin_behind_nothing_that_may_yet_appear() {
    assert!(holds(floor()) > 10_000);
    let two_relays = World { messages: &[A, A], producers: &[&[0], &[1]], relays: 2, started: 2, ..floor() };
    assert!(holds(two_relays) > 10_000);
}

#[test]
fn what_is_put_back_is_read_though_it_is_below_the_floor() {
    assert!(holds(floor_and_poison()) > 5_000);
}

#[test]
fn what_is_forgotten_is_read_again_from_its_oldest_row_on() {
    assert!(holds(slow_reads()) > 10_000);
}

#[test]
fn lanes_go_to_relays_that_come_and_from_those_that_go() {
    assert!(holds(lanes()) > 10_000);
}

#[test]
fn every_mutant_of_the_outbox_is_caught() {
    for mutant in Mutant::ALL {
        let expected: BTreeSet<&str> = mutant.caught_by().iter().copied().collect();
        let checker = mutant.world().checker().finish_when(HasDiscoveries::AllOf(expected.clone()));
        let checker = checker.threads(threads()).spawn_bfs().join();
        let mut caught = BTreeSet::new();
        for (property, trace) in checker.discoveries() {
            if matches!(checker.discovery_classification(property), DiscoveryClassification::Counterexample) {
                let steps: Vec<String> =
                    trace.into_actions().iter().map(|step| format!("{step:?}")).collect();
                println!("{mutant:?} breaks \"{property}\":\n    {}", steps.join("\n    "));
                caught.insert(property);
            }
        }
        assert!(caught.is_superset(&expected), "{mutant:?} was caught by {caught:?} only");
        // What was wrong is the mutant, and not its world.
        holds_but_for_examples(World { mutant: None, ..mutant.world() });
    }
}

/// None that holds whatever is done.
#[test]
fn every_property_of_the_outbox_catches_a_mutant() {
    let caught_by: BTreeSet<&str> =
        Mutant::ALL.iter().flat_map(|mutant| mutant.caught_by()).copied().collect();
    let properties = floor().properties();
    let always = properties.iter().filter(|property| property.expectation == Expectation::Always);
    assert_eq!(always.map(|property| property.name).collect::<BTreeSet<&str>>(), caught_by);
}

/// A small world need not get everywhere.
fn holds_but_for_examples(world: World) {
    let checker = world.checker().threads(threads()).spawn_bfs().join();
    for property in checker.discoveries().keys() {
        let kind = checker.discovery_classification(property);
        assert!(matches!(kind, DiscoveryClassification::Example), "{property}");
    }
}

/// What holds in the end would hold for nothing if there were no end: nothing goes on for ever but
/// what goes wrong.
#[test]
fn what_is_let_run_comes_to_rest() {
    for world in [key(), poison(), floor_and_poison(), slow_reads(), lanes()] {
        let steps = free_steps(&World { faults: 1, ..world });
        let mut before = vec![0; steps.len()];
        steps.iter().flatten().for_each(|next| before[*next] += 1);
        let mut first: Vec<usize> = (0..steps.len()).filter(|state| before[*state] == 0).collect();
        let mut seen = 0;
        while let Some(state) = first.pop() {
            seen += 1;
            for next in &steps[state] {
                before[*next] -= 1;
                if before[*next] == 0 {
                    first.push(*next);
                }
            }
        }
        assert!(seen > 1000);
        assert_eq!(seen, steps.len(), "the others go round in circles");
    }
}

/// For each state, by number, those that come next if nothing goes wrong.
fn free_steps(world: &World) -> Vec<Vec<usize>> {
    let (mut numbers, mut todo, mut steps) = (HashMap::new(), VecDeque::new(), Vec::new());
    for state in world.init_states() {
        numbers.insert(hash_of(&state), numbers.len());
        todo.push_back(state);
    }
    while let Some(state) = todo.pop_front() {
        let mut actions = Vec::new();
        world.actions(&state, &mut actions);
        let mut free = Vec::new();
        for action in actions {
            let next = world.next_state(&state, action).expect("a step");
            let new = numbers.len();
            let number = *numbers.entry(hash_of(&next)).or_insert(new);
            if number == new {
                todo.push_back(next);
            }
            if !World::is_fault(&state, action) {
                free.push(number);
            }
        }
        steps.push(free);
    }
    steps
}

fn hash_of(state: &State) -> u64 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    hasher.finish()
}
