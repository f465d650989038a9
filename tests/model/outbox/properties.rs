//! What must hold in every state: the promise of the outbox, and O1 to O6.

use stateright::{Model, Property};

use super::{
    protocol::{Trouble, World},
    state::{Broken, Entry, Posted, Relay, Row, Stage, State},
};

type Condition = fn(&World, &State) -> bool;

fn always(name: &'static str, condition: Condition) -> Property<World> {
    Property::always(name, condition)
}

/// Shows that the world gets there at all.
fn sometimes(name: &'static str, condition: Condition) -> Property<World> {
    Property::sometimes(name, condition)
}

pub const COMMITTED: &str = "only what is committed is published (O2)";
pub const KEPT: &str = "a committed message is in the broker, in the table, or given up by an operator";
pub const REMOVED: &str = "a row is removed only after its own confirm, or by an operator (O1)";
pub const ONE_ID: &str = "all copies of a message carry one ID (O3)";
pub const ONE_IN_FLIGHT: &str = "at most one message of a key is in flight in one relay (O4)";
pub const ORDER: &str = "the first copies of a key reach the broker in the order of the table";
pub const GIVEN_UP_EMPTY: &str = "a lane is given up only with nothing in flight (O5)";
pub const ONE_OWNER: &str = "no two live relays have one lane";
pub const NOT_BEHIND: &str = "no read begins behind a row that may yet appear, or that nobody has (O6)";
pub const PARKED: &str = "nothing is parked but by its own fault, or behind what is parked";
pub const ONCE: &str = "if nothing goes wrong, each message reaches the broker once";
pub const END: &str = "in the end a committed message is published, parked, or given up by an operator";
pub const POISON: &str = "in the end a parked message has blocked nothing but its own key";

pub fn all(world: &World) -> Vec<Property<World>> {
    let mut all = vec![
        always(COMMITTED, |_, state| {
            state.messages.iter().all(|message| message.copies == 0 || message.is_committed())
        }),
        always(KEPT, |_, state| {
            let is_kept = |message: &Posted| {
                message.copies > 0 || message.row != Row::None || message.given_up || !message.is_committed()
            };
            state.messages.iter().all(is_kept)
        }),
        always(REMOVED, |_, state| !state.broken.contains(&Broken::RemovedUnconfirmed)),
        always(ONE_ID, |_, state| state.messages.iter().all(|message| message.ids.count_ones() <= 1)),
        always(ONE_IN_FLIGHT, |world, state| state.relays.iter().all(|relay| one_in_flight(world, relay))),
        always(ORDER, |_, state| !state.broken.contains(&Broken::OutOfOrder)),
        always(GIVEN_UP_EMPTY, |world, state| {
            let has_lane = |relay: &Relay, message: usize| relay.held[world.messages[message].lane].is_some();
            let is_right = |relay: &Relay| {
                let mut memory = relay.memory.iter().enumerate();
                memory.all(|(message, entry)| *entry == Entry::Unknown || has_lane(relay, message))
            };
            state.relays.iter().all(is_right)
        }),
        always(ONE_OWNER, |world, state| {
            let owners = |lane: usize| {
                state.relays.iter().filter(|relay| relay.live && relay.held[lane].is_some()).count()
            };
            (0..world.lanes).all(|lane| owners(lane) <= 1)
        }),
        always(PARKED, |_, state| !state.broken.contains(&Broken::ParkedForNothing)),
        always(ONCE, |world, state| {
            state.faults < world.faults || state.messages.iter().all(|message| message.copies <= 1)
        }),
        always(END, |world, state| {
            state.messages.iter().all(|message| message.row != Row::InLane) || !is_at_rest(world, state)
        }),
        always(POISON, |world, state| {
            (0..world.keys()).all(|key| blocks_no_other(world, state, key)) || !is_at_rest(world, state)
        }),
        sometimes("everything is published and removed", |_, state| {
            state.messages.iter().all(|message| message.copies > 0 && message.row == Row::None)
        }),
    ];
    if world.floor {
        all.push(always(NOT_BEHIND, |world, state| {
            let is_right = |relay: usize, lane: usize| {
                let held = state.relays[relay].held[lane].as_ref();
                held.is_none_or(|held| held.giving || !held.asked) || !world.passes_over(state, relay, lane)
            };
            (0..world.relays).all(|relay| (0..world.lanes).all(|lane| is_right(relay, lane)))
        }));
    }
    all.extend(examples(world));
    all
}

/// What the worlds are there for.
fn examples(world: &World) -> Vec<Property<World>> {
    let mut all = Vec::new();
    if world.has(Trouble::Relays) && world.relays > 1 {
        all.extend([
            sometimes("a relay sends that has lost its lane to another one", |_, state| {
                let sends = |relay: &Relay| {
                    relay.memory.contains(&Entry::Sent)
                        && !relay.live
                        && relay
                            .held
                            .iter()
                            .zip(&state.lanes)
                            .any(|(held, owned)| held.as_ref().is_some_and(|held| held.term < owned.term))
                };
                state.relays.iter().any(sends)
            }),
            sometimes("two relays have one message in flight", |world, state| {
                let in_flight = |message: usize| {
                    state.relays.iter().filter(|relay| relay.memory[message].is_in_flight()).count()
                };
                (0..world.messages.len()).any(|message| in_flight(message) == 2)
            }),
        ]);
    }
    if world.has(Trouble::Broker) {
        all.extend([
            sometimes("an attempt that was given up comes after the next one", |_, state| {
                state.messages[0].strays != 0
                    && state.relays.iter().any(|relay| relay.memory[0] == Entry::Sent)
            }),
            sometimes("a message is published after a failure", |_, state| {
                state.messages[0].copies > 0 && state.messages[0].attempts > 0
            }),
        ]);
    }
    if world.producers.len() > 1 {
        all.push(sometimes("a low number appears after a higher one is published", |_, state| {
            let is_late = |late: &Posted, early: &Posted| {
                late.stage == Stage::Open && early.copies > 0 && early.seq > late.seq
            };
            state.messages.iter().any(|late| state.messages.iter().any(|early| is_late(late, early)))
        }));
    }
    if world.messages.iter().any(|spec| spec.poison) {
        all.push(sometimes("others are published while a message is parked", |_, state| {
            state.messages[0].row == Row::Parked
                && state.messages.iter().any(|message| message.copies > 0 && message.row == Row::None)
        }));
    }
    if world.has(Trouble::Operator) {
        all.extend([
            sometimes("what was parked is published", |world, state| {
                world.messages[0].poison && state.messages[0].copies > 0
            }),
            sometimes("what was parked is given up, and what follows is published", |world, state| {
                let follows = |message: usize| message > 0 && world.messages[message].key == 0;
                state.messages[0].given_up
                    && state
                        .messages
                        .iter()
                        .enumerate()
                        .any(|(at, message)| follows(at) && message.copies > 0)
            }),
        ]);
    }
    if world.floor {
        all.push(sometimes("a read begins behind what is gone", |_, state| {
            let is_high = |relay: &Relay| relay.floors.iter().any(|floor| floor.behind > 0);
            state.relays.iter().any(is_high) && state.messages.iter().any(|message| message.row != Row::None)
        }));
    }
    if world.lanes > 1 {
        all.push(sometimes("a lane has gone to a newcomer, and nothing went wrong", |world, state| {
            state.faults == world.faults && state.lanes.iter().any(|lane| lane.term > 1)
        }));
    }
    all
}

fn one_in_flight(world: &World, relay: &Relay) -> bool {
    let of_key = |key: usize| world.of_key(key).filter(|message| relay.memory[*message].is_in_flight());
    (0..world.keys()).all(|key| of_key(key).count() <= 1)
}

/// Nothing is left to do but what goes wrong.
fn is_at_rest(world: &World, state: &State) -> bool {
    // Found without asking for all steps: these have one each.
    let has_a_step = |entry: &Entry| !matches!(entry, Entry::Unknown | Entry::Waiting);
    let is_busy = |relay: &Relay| !relay.up || !relay.live || relay.memory.iter().any(has_a_step);
    if state.relays.iter().any(is_busy) {
        return false;
    }
    let mut actions = Vec::new();
    world.actions(state, &mut actions);
    actions.iter().all(|action| World::is_fault(state, *action))
}

fn blocks_no_other(world: &World, state: &State, key: usize) -> bool {
    let rows = || world.of_key(key).map(|message| state.messages[message].row);
    rows().any(|row| row == Row::Parked) || rows().all(|row| row == Row::None)
}
