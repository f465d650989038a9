//! The protocol as a model, checked exhaustively: every order of steps, and every choice of faults up to a budget.
//!
//! `cargo test --test model`; with `-- --nocapture` it prints the number of states, and how each mutant goes wrong. `MODEL_FAULTS=4` allows one
//! fault more than the three of the default run (two in the worlds with two messages): ten times the states and the time.

#![allow(unreachable_pub, missing_debug_implementations, clippy::expect_used, clippy::unwrap_used)]

mod consumer;
mod mutants;
mod properties;
mod protocol;
mod publisher;
mod settling;
mod state;

use std::num::NonZeroUsize;

use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model};

use mutants::Mutant;
use protocol::{Protocol, Store};

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Checks all states of a world, and says how many there are.
fn holds(world: Protocol) -> usize {
    let checker = world.checker().threads(threads()).spawn_bfs().join();
    checker.assert_properties();
    assert!(checker.is_done());
    println!("{} states, at most {} steps deep", checker.unique_state_count(), checker.max_depth());
    checker.unique_state_count()
}

fn world() -> Protocol {
    let faults = std::env::var("MODEL_FAULTS").map_or(3, |faults| faults.parse().expect("a number"));
    Protocol {
        store: Store::Transactions,
        messages: 1,
        consumers: 2,
        batch: 1,
        faults,
        late: false,
        mutant: None,
    }
}

#[test]
fn one_message_and_two_consumers_with_transactions() {
    assert!(holds(world()) > 1000);
}

#[test]
fn one_message_and_two_consumers_with_leases() {
    assert!(holds(Protocol { store: Store::Leases, ..world() }) > 1000);
}

#[test]
fn copies_in_one_batch() {
    assert!(holds(Protocol { consumers: 1, batch: 2, ..world() }) > 1000);
}

#[test]
fn two_messages_in_one_batch() {
    let faults = world().faults - 1;
    assert!(holds(Protocol { messages: 2, consumers: 1, batch: 2, faults, ..world() }) > 1000);
}

#[test]
fn attempts_that_outlive_their_publisher() {
    assert!(holds(Protocol { late: true, ..world() }) > 1000);
}

#[test]
fn late_answers_of_two_messages() {
    let faults = world().faults - 1;
    assert!(holds(Protocol { messages: 2, consumers: 1, faults, late: true, ..world() }) > 1000);
}

#[test]
fn every_mutant_is_caught() {
    for mutant in Mutant::ALL {
        let checker = mutant.world().checker().finish_when(HasDiscoveries::AnyFailures);
        let checker = checker.threads(threads()).spawn_bfs().join();
        let mut caught = Vec::new();
        for (property, trace) in checker.discoveries() {
            if matches!(checker.discovery_classification(property), DiscoveryClassification::Counterexample) {
                let steps: Vec<String> =
                    trace.into_actions().iter().map(|step| format!("{step:?}")).collect();
                println!("{mutant:?} breaks \"{property}\":\n    {}", steps.join("\n    "));
                caught.push(property);
            }
        }
        assert!(!caught.is_empty(), "{mutant:?} was not caught");
    }
}

/// Copies that come when all seems over are what frozen publishers leave behind, and nothing else here.
#[test]
fn only_late_attempts_catch_a_record_that_is_forgotten_too_soon() {
    let world = Protocol { late: false, ..Mutant::ForgottenOnceQuiet.world() };
    let checker = world.checker().threads(threads()).spawn_bfs().join();
    checker.assert_properties();
}
