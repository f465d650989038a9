//! What the world knows: transactions, the table, relays, and the broker.

use std::collections::BTreeSet;

/// A message of the application, by number: its place in all lists.
pub type Message = usize;

/// By number: messages that are in order with each other.
pub type Key = usize;

pub type Lane = usize;

/// A set of small numbers.
pub type Bits = u8;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub messages: Vec<Posted>,
    pub producers: Vec<Producer>,
    /// The table of lanes.
    pub lanes: Vec<Owned>,
    pub relays: Vec<Relay>,
    pub next_seq: usize,
    /// Producers with a transaction identity, the oldest first. Nobody looks but a mutant.
    pub identities: Vec<usize>,
    /// Faults that may still happen.
    pub faults: u8,
    /// What must never happen, noted by the transition that did it.
    pub broken: BTreeSet<Broken>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// Before it, a message of its key was committed that no copy of has reached the broker.
    OutOfOrder,
    /// O1: a row was removed, and the broker had not confirmed it.
    RemovedUnconfirmed,
    /// A row was parked that had not failed, and nothing before it in its key was parked.
    ParkedForNothing,
}

/// A message: its row, and its copies in the broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Posted {
    pub stage: Stage,
    pub seq: usize,
    /// Messages of its key that were committed when it was enqueued, and have neither reached the
    /// broker nor been given up.
    pub before: Bits,
    pub row: Row,
    /// Failures that are written in its row.
    pub attempts: u8,
    /// The broker returns it, whoever sends it.
    pub poison: bool,
    /// An operator has discarded it.
    pub given_up: bool,
    /// Copies that have reached the broker; 2 for two and more.
    pub copies: u8,
    /// The IDs that they carry.
    pub ids: Bits,
    /// Whether the broker has confirmed a copy.
    pub confirmed: bool,
    /// Attempts that nobody waits for any more, by the ID that they carry: they reach the broker
    /// some time.
    pub strays: Bits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Stage {
    #[default]
    Unborn,
    /// Its transaction is open.
    Open,
    Committed,
    RolledBack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Row {
    /// None, or none yet.
    #[default]
    None,
    InLane,
    Parked,
}

/// A process that runs one transaction after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Producer {
    /// How many of its transactions have ended.
    pub ended: usize,
    pub phase: Phase,
    /// Whether a transaction with a higher identity has ended. Nobody looks but a mutant.
    pub below: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Phase {
    #[default]
    Idle,
    /// The transaction has its identity, and no row.
    Identified,
    /// A mutant's: it has a number, and no identity.
    Numbered,
    /// It has both, and may end.
    Enqueued,
}

/// A lane in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Owned {
    /// By number; a relay whose lease has run out owns nothing.
    pub owner: Option<usize>,
    pub term: u8,
}

/// A relay's process, or the place where one may start.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Relay {
    pub up: bool,
    /// Whether the table has a beat of it within the lease. A process without one does not know it
    /// yet, but for its own clock.
    pub live: bool,
    /// It is asked to stop.
    pub stopping: bool,
    /// Who had what when it looked last.
    pub seen: Option<Seen>,
    /// By lane: those that it has, as far as it knows.
    pub held: Vec<Option<Held>>,
    /// By message: what it has in memory.
    pub memory: Vec<Entry>,
    /// By lane.
    pub floors: Vec<Floor>,
    /// The read that is under way.
    pub reading: Option<Reading>,
    /// A mutant's: what it has in flight and knows nothing of.
    pub forgotten: Bits,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Seen {
    pub live: Bits,
    pub lanes: Vec<Owned>,
    /// A mutant's: by key, the first number that was parked.
    pub parked: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Held {
    pub term: u8,
    /// Whether it has asked which keys are parked.
    pub asked: bool,
    /// It is to be given back: nothing new is sent.
    pub giving: bool,
    /// By key: the first number that was parked, or 0. What has a greater one waits behind it.
    pub blocked: Vec<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reading {
    pub lane: Lane,
    pub rows: Bits,
    /// The highest number of them, or 0.
    pub top: usize,
    pub is_cut: bool,
    /// What its snapshot proves for the floor.
    pub proves: usize,
    /// Messages whose key was forgotten since: it may lack others of them.
    pub forgotten: Bits,
    /// A mutant's: the transactions that are open, below the snapshot's end.
    pub snapshot: Bits,
}

/// A row in a relay's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Entry {
    #[default]
    Unknown,
    Waiting,
    /// On its way to the broker.
    Sent,
    /// The broker's answer is on its way back.
    Answered(Answer),
    /// Its failure is to be written, and the row left alone for a while.
    Failed,
    /// Its failure is to be written, and the row parked.
    Hopeless,
    /// To be removed.
    Done,
}

impl Entry {
    pub fn is_in_flight(self) -> bool {
        matches!(self, Self::Sent | Self::Answered(_))
    }

    /// Its key waits for it.
    pub fn is_under_way(self) -> bool {
        self.is_in_flight() || matches!(self, Self::Failed | Self::Hopeless)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    Ack,
    Nack,
    /// `basic.return`, and the ack that follows it.
    Return,
}

/// `outbox/floor/`: from where a lane is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Floor {
    /// Reads begin behind this number.
    pub behind: usize,
    pub proven: usize,
    pub marks: Vec<Mark>,
    /// The highest number seen that has no mark yet, or 0.
    pub unmarked: usize,
    /// The next read is of the whole lane.
    pub read_all: bool,
}

/// All that has a number up to `seq` has an identity below that of a later transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark {
    pub seq: usize,
    /// The producers whose transactions were open below that identity, and are still.
    pub open: Bits,
}

impl State {
    pub fn broken(&mut self, broken: Broken) {
        self.broken.insert(broken);
    }

    /// The relays with a beat within the lease.
    pub fn live(&self) -> Bits {
        set((0..self.relays.len()).filter(|relay| self.relays[*relay].live))
    }

    /// Forgets what makes no difference any more: states that differ in nothing else are one.
    pub fn tidy(&mut self) {
        let settled = set((0..self.messages.len()).filter(|message| {
            let Posted { copies, given_up, .. } = self.messages[*message];
            copies > 0 || given_up
        }));
        for (number, message) in self.messages.iter_mut().enumerate() {
            message.before &= !settled;
            if message.poison {
                message.strays = 0;
            }
            let is_over = match message.stage {
                Stage::Committed => message.row == Row::None && (message.copies > 0 || message.given_up),
                Stage::RolledBack => true,
                Stage::Unborn | Stage::Open => false,
            };
            if is_over && self.relays.iter().all(|relay| relay.memory[number] == Entry::Unknown) {
                (message.seq, message.attempts, message.confirmed) = (0, 0, false);
                message.poison = false;
            }
        }
        for relay in &mut self.relays {
            for floor in &mut relay.floors {
                // A read that is under way may yet move it.
                floor.read_all &= floor.behind != 0 || relay.reading.is_some();
                // What is proven together is one.
                let marks = std::mem::take(&mut floor.marks);
                for mark in marks {
                    floor.marks.retain(|earlier| earlier.open != mark.open);
                    floor.marks.push(mark);
                }
            }
        }
    }
}

pub fn set(members: impl IntoIterator<Item = usize>) -> Bits {
    members.into_iter().fold(0, |bits, member| bits | 1 << member)
}

pub fn has(bits: Bits, member: usize) -> bool {
    bits & 1 << member != 0
}
