//! Ways to get the outbox wrong, and by what each must be caught. Some are what other libraries
//! ship.

use super::{
    properties::{
        COMMITTED, END, GIVEN_UP_EMPTY, KEPT, NOT_BEHIND, ONCE, ONE_ID, ONE_IN_FLIGHT, ONE_OWNER, ORDER,
        PARKED, POISON, REMOVED,
    },
    protocol::{A, B, BAD_A, C, Spec, Trouble, World},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A read sees rows of open transactions.
    UncommittedRead,
    /// Rows are removed when their messages are sent.
    DeletedBeforeConfirm,
    /// `basic.nack` counts as a confirm.
    DeletedOnNack,
    /// `basic.return` and its ack count as a confirm.
    DeletedOnReturn,
    /// A read puts what it finds in the place of what was known, and so nobody waits for what is
    /// in flight.
    ReadReplacesInFlight,
    /// A message is sent while another one of its key is in flight.
    PipeliningInAKey,
    /// A message that was not confirmed is to be read again, and what waits behind it is kept.
    HeadForgottenAlone,
    /// What a read gives is taken although its key was forgotten since, so that older rows of it
    /// may be lacking.
    PartOfAKeyTaken,
    /// What a read gives is taken although its lane was lost since, and taken again.
    ReadOfAnEarlierTerm,
    /// What follows a message that was returned is sent while that is left alone for a while.
    OvertakenWhileItPauses,
    /// What follows a parked message of its key is sent.
    GoesOnBehindParked,
    /// Nothing of a lane is sent while a message of it is parked.
    PoisonBlocksItsLane,
    /// The relay gives messages an ID when it sends them.
    IdMadeByRelay,
    /// A lane is given back with messages in flight.
    LaneReleasedInFlight,
    /// A lane is taken from a relay that is alive, as it is another one's share.
    LaneTakenFromTheLiving,
    /// A lane is taken by whoever finds no beat of its owner, without a look at the term.
    LaneTakenWithoutItsTerm,
    /// A beat counts, however late it comes.
    BeatRevivesTheDead,
    /// A relay reads and sends as long as it has not heard that it has lost its lane.
    NoLookAtTheClock,
    /// Who takes a lane does not ask what is parked.
    ParkedKeysNotRead,
    /// Who takes a lane has asked what is parked before.
    ParkedKeysReadBeforeTaking,
    /// A row is parked by whoever had its lane once.
    ParkedWithoutFence,
    /// A key is blocked as long as anything of it is parked, also for what comes before that.
    BlockedByWhatComesLater,
    /// What follows a parked row is parked by what the relay remembers, although that row may have
    /// been put back.
    FollowedFromMemory,
    /// The floor is proven by the end of the read's snapshot.
    FloorByEndOfSnapshot,
    /// A transaction takes a number before it has an identity.
    NumberBeforeIdentity,
    /// A relay that takes a lane once more goes on from the floor that it had.
    FloorKeptAcrossTakeOver,
    /// The floor goes up to what is proven, although the read did not get so far.
    FloorAboveCutRead,
    /// What is put back from parking is expected above the floor.
    UnparkedBehindTheFloor,
}

/// The smallest worlds that show them begin with what they need in the table, and one relay.
const SMALL: World = World {
    messages: &[A],
    committed: 1,
    producers: &[],
    lanes: 1,
    relays: 1,
    started: 1,
    faults: 1,
    trouble: &[],
    attempts: 1,
    floor: false,
    slow_reads: false,
    mutant: None,
};

const BROKER: &[Trouble] = &[Trouble::Broker];
const RELAYS: &[Trouble] = &[Trouble::Relays];
const OPERATOR: &[Trouble] = &[Trouble::Operator];

impl Mutant {
    pub const ALL: [Self; 28] = [
        Self::UncommittedRead,
        Self::DeletedBeforeConfirm,
        Self::DeletedOnNack,
        Self::DeletedOnReturn,
        Self::ReadReplacesInFlight,
        Self::PipeliningInAKey,
        Self::HeadForgottenAlone,
        Self::PartOfAKeyTaken,
        Self::ReadOfAnEarlierTerm,
        Self::OvertakenWhileItPauses,
        Self::GoesOnBehindParked,
        Self::PoisonBlocksItsLane,
        Self::IdMadeByRelay,
        Self::LaneReleasedInFlight,
        Self::LaneTakenFromTheLiving,
        Self::LaneTakenWithoutItsTerm,
        Self::BeatRevivesTheDead,
        Self::NoLookAtTheClock,
        Self::ParkedKeysNotRead,
        Self::ParkedKeysReadBeforeTaking,
        Self::ParkedWithoutFence,
        Self::BlockedByWhatComesLater,
        Self::FollowedFromMemory,
        Self::FloorByEndOfSnapshot,
        Self::NumberBeforeIdentity,
        Self::FloorKeptAcrossTakeOver,
        Self::FloorAboveCutRead,
        Self::UnparkedBehindTheFloor,
    ];

    /// The properties that it breaks.
    pub fn caught_by(self) -> &'static [&'static str] {
        match self {
            Self::UncommittedRead => &[COMMITTED],
            Self::DeletedBeforeConfirm | Self::DeletedOnNack | Self::DeletedOnReturn => &[REMOVED, KEPT],
            Self::ReadReplacesInFlight | Self::PipeliningInAKey => &[ONE_IN_FLIGHT, ORDER],
            Self::HeadForgottenAlone
            | Self::PartOfAKeyTaken
            | Self::ReadOfAnEarlierTerm
            | Self::OvertakenWhileItPauses
            | Self::GoesOnBehindParked
            | Self::NoLookAtTheClock
            | Self::ParkedKeysNotRead
            | Self::ParkedKeysReadBeforeTaking
            | Self::ParkedWithoutFence => &[ORDER],
            Self::PoisonBlocksItsLane => &[POISON],
            Self::IdMadeByRelay => &[ONE_ID],
            Self::LaneReleasedInFlight => &[GIVEN_UP_EMPTY, ONCE],
            Self::LaneTakenFromTheLiving | Self::LaneTakenWithoutItsTerm => &[ONE_OWNER, ONCE],
            Self::BeatRevivesTheDead => &[ONE_OWNER],
            Self::BlockedByWhatComesLater => &[END],
            Self::FollowedFromMemory => &[PARKED],
            Self::FloorByEndOfSnapshot
            | Self::NumberBeforeIdentity
            | Self::FloorKeptAcrossTakeOver
            | Self::FloorAboveCutRead => &[NOT_BEHIND, END],
            Self::UnparkedBehindTheFloor => &[NOT_BEHIND, END, ORDER],
        }
    }

    /// The smallest world that shows it.
    pub fn world(self) -> World {
        let world = match self {
            Self::UncommittedRead => World { committed: 0, producers: &[&[0]], ..SMALL },
            Self::DeletedBeforeConfirm => SMALL,
            Self::DeletedOnNack | Self::DeletedOnReturn => World { trouble: BROKER, ..SMALL },
            Self::ReadReplacesInFlight => {
                World { messages: &[A, A], committed: 1, producers: &[&[1]], ..SMALL }
            }
            Self::PipeliningInAKey => World { messages: &[A, A], committed: 2, ..SMALL },
            Self::HeadForgottenAlone => World { messages: &[A, A], committed: 2, trouble: BROKER, ..SMALL },
            Self::PartOfAKeyTaken | Self::ReadOfAnEarlierTerm => World {
                messages: &[A, B, A],
                committed: 2,
                producers: &[&[2]],
                trouble: &[Trouble::Relays, Trouble::Broker],
                floor: true,
                slow_reads: true,
                ..SMALL
            },
            Self::OvertakenWhileItPauses => {
                World { messages: &[A, A], committed: 2, trouble: BROKER, attempts: 2, ..SMALL }
            }
            Self::GoesOnBehindParked => World { messages: &[BAD_A, A], committed: 2, ..SMALL },
            Self::PoisonBlocksItsLane => World { messages: &[BAD_A, B], committed: 2, ..SMALL },
            Self::IdMadeByRelay | Self::BeatRevivesTheDead => {
                World { relays: 2, started: 2, trouble: RELAYS, ..SMALL }
            }
            Self::LaneReleasedInFlight | Self::LaneTakenFromTheLiving => {
                World { messages: &[A, Spec { lane: 1, ..B }], committed: 2, lanes: 2, relays: 2, ..SMALL }
            }
            Self::LaneTakenWithoutItsTerm => World { relays: 2, started: 0, ..SMALL },
            Self::NoLookAtTheClock | Self::ParkedKeysReadBeforeTaking | Self::ParkedWithoutFence => {
                World { messages: &[BAD_A, A], committed: 2, relays: 2, started: 2, trouble: RELAYS, ..SMALL }
            }
            Self::ParkedKeysNotRead => {
                World { messages: &[BAD_A, A], committed: 1, producers: &[&[1]], trouble: RELAYS, ..SMALL }
            }
            Self::BlockedByWhatComesLater | Self::FollowedFromMemory => {
                World { messages: &[BAD_A, A], committed: 2, trouble: OPERATOR, ..SMALL }
            }
            Self::FloorByEndOfSnapshot | Self::NumberBeforeIdentity => World {
                messages: &[A, B, C],
                committed: 0,
                producers: &[&[0], &[1, 2]],
                floor: true,
                ..SMALL
            },
            Self::FloorKeptAcrossTakeOver => {
                World { messages: &[A, B], committed: 2, trouble: RELAYS, floor: true, ..SMALL }
            }
            Self::FloorAboveCutRead => World {
                messages: &[A, B, C],
                committed: 0,
                producers: &[&[0], &[1], &[2]],
                floor: true,
                ..SMALL
            },
            Self::UnparkedBehindTheFloor => World {
                messages: &[BAD_A, B, A],
                committed: 2,
                producers: &[&[2]],
                trouble: OPERATOR,
                floor: true,
                ..SMALL
            },
        };
        World { mutant: Some(self), ..world }
    }
}
