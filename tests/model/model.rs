//! The protocol as a model, checked exhaustively: every order of steps, and every choice of faults
//! up to a budget.
//!
//! `cargo test -p lapin-idempotent-model`; with `-- --nocapture` it prints the number of states,
//! and how each mutant goes wrong. `MODEL_FAULTS=4` allows one fault more than the three of the
//! default run (two in the worlds with two messages): ten times the states and the time. Two
//! consumers with a delivery limit stay at three, for that world did not end within eight minutes,
//! and two with replays at one. The outbox has worlds, properties and mutants of its own, in
//! `outbox/`, with one fault less.
//!
//! # The delivery limit
//!
//! In worlds with a [`Limit`] the broker counts how often it has a copy back, and deletes it at one
//! time too many, as quorum queues do. Only a channel that is lost, or a consumer that dies, gives
//! anything back: what cannot be handled now is held. A copy whose count is within the margin of
//! the limit is not handled but moved on. That saves every message as long as channels are not lost
//! faster than a consumer gets round to anything: at most `margin + 1` in a row may take a copy
//! away before a consumer has taken it up, that is, asked the store about it or had it moved on. So
//! faults are bounded here: the environment loses no channel beyond that
//! ([`Protocol::may_lose_channel`]). With one more the message is lost, which a test shows. Where
//! the earlier count goes (a header of the moved copy) decides nothing, and is left out.

#![allow(unreachable_pub, missing_debug_implementations, clippy::expect_used, clippy::unwrap_used)]

mod consumer;
mod mutants;
mod outbox;
mod properties;
mod protocol;
mod publisher;
mod replays;
mod settling;
mod state;

use std::{fmt::Debug, hash::Hash, num::NonZeroUsize};

use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model};

use mutants::Mutant;
use protocol::{LIMIT, Limit, Protocol, Store};

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Checks all states of a world, and says how many there are.
fn holds<M>(world: M) -> usize
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq,
{
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
        limit: None,
        replays: false,
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
fn replays_of_one_message_and_two_consumers() {
    // With two of them it did not end within ten minutes.
    assert!(holds(Protocol { replays: true, faults: 1, ..world() }) > 1000);
}

#[test]
fn replays_in_one_batch() {
    let faults = world().faults - 1;
    assert!(holds(Protocol { replays: true, consumers: 1, batch: 2, faults, ..world() }) > 1000);
}

#[test]
fn delivery_limit_and_two_consumers() {
    let faults = world().faults.min(3);
    assert!(
        holds(Protocol { faults, limit: Some(Limit { returns: 1, margin: 0, losses: 1 }), ..world() }) > 1000
    );
}

#[test]
fn delivery_limit_and_copies_in_one_batch() {
    assert!(holds(Protocol { consumers: 1, batch: 2, limit: Some(LIMIT), ..world() }) > 1000);
}

#[test]
fn delivery_limit_and_one_fault_more() {
    for store in [Store::Transactions, Store::Leases] {
        let faults = world().faults + 1;
        assert!(holds(Protocol { store, consumers: 1, faults, limit: Some(LIMIT), ..world() }) > 1000);
    }
}

/// The margin is what keeps a message whose channels are lost again and again, and it keeps it no
/// longer.
#[test]
fn one_lost_channel_more_than_the_margin_allows_loses_a_message() {
    let limit = Some(Limit { losses: LIMIT.losses + 1, ..LIMIT });
    let world = Protocol { consumers: 1, limit, ..world() };
    let checker = world.checker().threads(threads()).spawn_bfs().join();
    checker
        .assert_any_discovery("a confirmed message has taken effect, or a copy of it is in the broker (I1)");
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

/// Copies that come when all seems over are what frozen publishers leave behind, and nothing else
/// here.
#[test]
fn only_late_attempts_catch_a_record_that_is_forgotten_too_soon() {
    let world = Protocol { late: false, ..Mutant::ForgottenOnceQuiet.world() };
    let checker = world.checker().threads(threads()).spawn_bfs().join();
    checker.assert_properties();
}
