//! Replays: `store/sql/replays`. A copy with an epoch has an identity of its own; who opens and
//! closes the epoch does so once.

use stateright::Property;

use super::{
    mutants::Mutant,
    properties::{always, is_terminal, sometimes},
    protocol::{Action, Protocol},
    state::{Broken, Consumer, Copy, Fate, Message, Phase, Place, State},
};

/// How often a message is sent again.
const COPIES: u8 = 2;

/// The row of the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Opening {
    #[default]
    None,
    Open,
    Closed,
}

/// What is known of the replays of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Replay {
    /// Copies that were sent.
    pub sent: u8,
    /// Committed effects.
    pub effects: u8,
    /// The row that is committed with the effect, and never purged.
    pub recorded: bool,
}

impl Protocol {
    pub(super) fn replay_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !self.replays {
            return;
        }
        match state.opening {
            Opening::None => actions.push(Action::Open),
            // By hand: as a fault.
            Opening::Open if state.faults > 0 && self.may_close(state) => actions.push(Action::Close),
            Opening::Open | Opening::Closed => {}
        }
        let sends = |message: &Message| state.effects[*message] > 0 && state.replays[*message].sent < COPIES;
        actions.extend((0..self.messages).filter(sends).map(Action::Replay));
    }

    /// Who closes waits for the sessions that have read that it is open.
    fn may_close(&self, state: &State) -> bool {
        let works = |consumer: &Consumer| {
            matches!(consumer.phase, Phase::Claimed | Phase::Handled | Phase::HalfCommitted)
                && (consumer.items.iter())
                    .any(|item| item.copy.epoch && matches!(item.fate, Fate::Acquired(_)))
        };
        self.mutant(Mutant::CloseDoesNotWait) || !state.consumers.iter().any(works)
    }

    /// `OutgoingMessage::replay`: also before somebody has opened the epoch, as anyone can.
    pub(super) fn replay(&self, state: &mut State, message: Message) {
        state.replays[message].sent += 1;
        let epoch_is_identity = !self.mutant(Mutant::EpochNoPartOfIdentity);
        state.add_copy(Copy {
            number: 0,
            message,
            id: if epoch_is_identity { 2 * self.messages + message } else { message },
            epoch: true,
            place: Place::Ready,
            redelivered: false,
            returns: 0,
            losses: 0,
            failures: 0,
            vouched: false,
        });
    }

    /// Whether the row of an earlier effect is there.
    pub(super) fn is_recorded(&self, state: &State, copy: &Copy) -> bool {
        copy.epoch && state.replays[copy.message].recorded && !self.mutant(Mutant::ReplayKnownByIdentityOnly)
    }

    /// Whether a copy of an epoch is not to be handled.
    pub(super) fn is_refused(&self, state: &State, copy: &Copy) -> bool {
        copy.epoch && state.opening != Opening::Open && !self.mutant(Mutant::HeaderWithoutRow)
    }

    /// Its effect, and what is recorded of it.
    pub(super) fn take_effect_again(&self, state: &mut State, message: Message) {
        let replay = &mut state.replays[message];
        replay.effects = replay.effects.saturating_add(1);
        replay.recorded = !self.mutant(Mutant::ReplayUnrecorded);
        if state.opening != Opening::Open {
            state.broken(Broken::EffectOfClosedEpoch);
        }
    }
}

pub(super) fn properties() -> Vec<Property<Protocol>> {
    vec![
        always("at most one committed effect in an epoch", |_, state| {
            state.replays.iter().all(|replay| replay.effects <= 1)
        }),
        always("nothing takes effect in an epoch that is not open", |_, state| {
            state.broken != Some(Broken::EffectOfClosedEpoch)
        }),
        always("in the end a replay has taken effect, or is parked", |model, state| {
            let parked = |message| {
                let is_parked = |copy: &&Copy| copy.epoch && matches!(copy.place, Place::Parked(_));
                state.copies.iter().filter(is_parked).any(|copy| copy.message == message)
            };
            let done = |(message, replay): (Message, &Replay)| {
                replay.sent == 0 || replay.effects == 1 || parked(message)
            };
            !is_terminal(model, state) || state.replays.iter().enumerate().all(done)
        }),
        sometimes("a replay takes effect beside its original", |_, state| {
            state.effects[0] == 1 && state.replays[0].effects == 1
        }),
        sometimes("a replay is refused", |_, state| {
            state.replays[0].effects == 0
                && state.copies.iter().any(|copy| copy.epoch && copy.place == Place::Parked(false))
        }),
        sometimes("a replay outlives the record of its identity", |_, state| {
            state.old && state.replays[0].effects == 1 && state.copies.iter().any(|copy| copy.epoch)
        }),
    ]
}
