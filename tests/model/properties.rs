//! What must hold in every state: the invariants of `idempotency/mod.rs`, and that nothing is lost.

use stateright::{Model, Property};

use super::{
    protocol::{Protocol, Store},
    replays,
    state::{Broken, Consumer, Copy, Fate, Place, State, Verdict},
};

pub(super) type Condition = fn(&Protocol, &State) -> bool;

pub(super) fn always(name: &'static str, condition: Condition) -> Property<Protocol> {
    Property::always(name, condition)
}

/// Shows that the model gets there at all.
pub(super) fn sometimes(name: &'static str, condition: Condition) -> Property<Protocol> {
    Property::sometimes(name, condition)
}

pub fn all(world: &Protocol) -> Vec<Property<Protocol>> {
    let mut all = vec![
        always("a confirmed message has taken effect, or a copy of it is in the broker (I1)", |_, state| {
            nothing_lost(state)
        }),
        always("at most one committed effect (I2)", |model, state| {
            model.store == Store::Leases || state.effects.iter().all(|effects| *effects <= 1)
        }),
        always("no claim is left behind, so that all can be claimed again (I3)", |model, state| {
            !is_terminal(model, state) || state.records.iter().all(|record| record.holder.is_none())
        }),
        always("a stale lease changes nothing (I4)", |_, state| {
            state.broken != Some(Broken::StaleLeaseChanged)
        }),
        always("a publish is Ok only if the broker took the message (I5)", |_, state| {
            state.broken != Some(Broken::ConfirmedWithoutCopy)
        }),
        always("an error that does not say \"may have been published\" left no copy", |_, state| {
            state.broken != Some(Broken::DeniedWithCopy)
        }),
        always("all copies of a message carry one ID (I6)", |_, state| {
            state.copies.iter().all(|copy| copy.id == copy.message || copy.epoch)
        }),
        always("nothing young is purged (I7)", |_, state| state.broken != Some(Broken::PurgedTooEarly)),
        always("no handler is started for what has taken effect", |_, state| {
            state.broken != Some(Broken::RanAfterDone)
        }),
        always("no tag is settled on another channel", |_, state| state.broken != Some(Broken::ForeignTag)),
        always("in the end a confirmed message has exactly one effect, or is parked", |model, state| {
            !is_terminal(model, state) || all_done(model, state)
        }),
        sometimes("there is another copy of what has taken effect", |_, state| {
            state.effects[0] == 1 && state.copies.iter().filter(|copy| copy.message == 0).count() > 1
        }),
        sometimes("a message is parked", |_, state| {
            state.copies.iter().any(|copy| matches!(copy.place, Place::Parked(_)))
        }),
        sometimes("a message takes effect after a failure", |_, state| {
            state.effects[0] == 1 && state.copies.iter().any(|copy| copy.failures > 0)
        }),
    ];
    if world.limit.is_some() {
        all.extend([
            sometimes("a copy is moved on, and its original not acked yet", |_, state| {
                let on_the_way = |copy: &Copy| {
                    copy.failures == 0 && matches!(copy.place, Place::Ready | Place::Unacked(_))
                };
                // There is nothing else to ack an original for.
                let acks = |consumer: &Consumer| consumer.items.iter().any(|item| item.fate == Fate::Ack);
                state.effects[0] == 0
                    && state.copies.iter().all(on_the_way)
                    && state.consumers.iter().any(acks)
            }),
            sometimes("another loss would have the broker delete a copy", |model, state| {
                let full = |copy: &Copy| model.limit.is_some_and(|limit| copy.returns == limit.returns);
                state.copies.iter().any(|copy| match copy.place {
                    Place::Unacked(index) => full(copy) && model.may_lose_channel(state, index),
                    _ => false,
                })
            }),
        ]);
    }
    if world.replays {
        all.extend(replays::properties());
    }
    if world.late {
        all.extend([
            sometimes("a message that the publisher failed with takes effect", |_, state| {
                state.publishers[0].verdict == Some(Verdict::Failed(true)) && state.effects[0] == 1
            }),
            sometimes("a zombie's copy comes after the effect", |_, state| {
                state.copies.is_empty() && state.effects[0] == 1 && !state.zombies.is_empty()
            }),
            sometimes("a late answer meets another generation", |_, state| {
                (state.late.iter())
                    .any(|late| late.generation < state.generation && late.tag <= state.next_tag)
            }),
        ]);
    }
    all
}

fn nothing_lost(state: &State) -> bool {
    (state.publishers.iter().enumerate()).all(|(message, publisher)| {
        publisher.verdict != Some(Verdict::Confirmed)
            || state.effects[message] > 0
            || state.copies.iter().any(|copy| copy.message == message)
    })
}

pub(super) fn is_terminal(model: &Protocol, state: &State) -> bool {
    let mut actions = Vec::new();
    model.actions(state, &mut actions);
    actions.is_empty()
}

fn all_done(model: &Protocol, state: &State) -> bool {
    (state.publishers.iter().enumerate()).all(|(message, publisher)| {
        let parked =
            state.copies.iter().any(|copy| copy.message == message && matches!(copy.place, Place::Parked(_)));
        let effects = state.effects[message];
        let right = match model.store {
            Store::Transactions => effects == 1,
            // Outside of a transaction a crash repeats an effect; that is what effect keys are for.
            Store::Leases => effects >= 1,
        };
        let settled = state.copies.iter().all(|copy| matches!(copy.place, Place::Parked(_)));
        settled && (publisher.verdict != Some(Verdict::Confirmed) || right || parked && effects == 0)
    })
}
