//! What the model knows: publishers, the broker's copies, consumers and their store.

/// A message of the application, by number.
pub type Message = usize;

/// A message ID. The right one of a message is its number; anything else is a mutant's invention.
pub type Id = usize;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct State {
    /// One for each message.
    pub publishers: Vec<Publisher>,
    pub copies: Vec<Copy>,
    pub consumers: Vec<Consumer>,
    /// By ID.
    pub records: Vec<Record>,
    /// Committed effects of each message.
    pub effects: Vec<u8>,
    /// Faults that may still happen.
    pub faults: u8,
    /// Whether every message is older than the retention.
    pub old: bool,
    /// What must never happen, noted by the transition that did it.
    pub broken: Option<Broken>,
    /// Counts up, so that copies can be told apart.
    pub next_copy: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// I4: a token that was not the last one given out changed a record.
    StaleLeaseChanged,
    /// I5: a publish was reported that the broker never stored.
    ConfirmedWithoutCopy,
    /// I7: an ID was forgotten that is younger than the retention.
    PurgedTooEarly,
    /// A handler was started for an ID whose record said that it took effect.
    RanAfterDone,
    /// A tag was settled on a channel that had not delivered it.
    ForeignTag,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Publisher {
    pub attempts: u8,
    /// The broker's answer to the attempt in flight.
    pub answer: Option<Answer>,
    /// Whether the broker has ever stored a copy.
    pub stored: bool,
    pub verdict: Option<Verdict>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    Ack,
    Nack,
    /// `basic.return`, and the ack that follows it.
    Return,
    /// None will come: the connection is cut.
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Confirmed,
    /// An error, with the message handed back.
    Failed,
}

/// A copy of a message in the broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Copy {
    pub number: u8,
    pub message: Message,
    pub id: Id,
    pub place: Place,
    pub redelivered: bool,
    /// The header `x-idempotency-failures`.
    pub failures: u8,
    /// The header `x-idempotency-unparked`: within the retention, it was known not to have taken effect.
    pub vouched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    Ready,
    /// Delivered on the present channel of a consumer, and not settled.
    Unacked(usize),
    /// In a delay queue.
    Delayed,
    /// In the parking queue; whether its handler had failed within the retention, so that it had not taken effect.
    Parked(bool),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Consumer {
    /// The batch in hand.
    pub items: Vec<Item>,
    pub phase: Phase,
    /// Its batch failed: each of these is handled alone now.
    pub alone: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Item {
    pub copy: Copy,
    /// Whether the channel that delivered it is still there.
    pub attached: bool,
    pub fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Phase {
    #[default]
    Idle,
    Delivered,
    /// A session is open.
    Claimed,
    /// The handler has returned `Ok`.
    Handled,
    /// A mutant's: one of its two transactions is committed.
    HalfCommitted,
    Settling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fate {
    Undecided,
    /// Acquired, under this token.
    Acquired(u8),
    Ack,
    Requeue,
    /// To be passed on to a delay queue, then acked.
    Delay,
    /// To be passed on to the parking queue, then acked; whether because its handler failed.
    Park(bool),
    Settled,
}

/// What the store knows of an ID.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Record {
    pub done: bool,
    /// Who has it: a transaction that is open, or a lease.
    pub holder: Option<usize>,
    /// The holder's process has died; of a lease nobody hears before it runs out.
    pub orphaned: bool,
    /// The last token that was given out.
    pub token: u8,
}

impl State {
    pub fn unacked_to(&mut self, consumer: usize, number: u8) -> Option<&mut Copy> {
        let place = Place::Unacked(consumer);
        self.copies.iter_mut().find(|copy| copy.number == number && copy.place == place)
    }

    /// Adds a copy, under a number of its own.
    pub fn add_copy(&mut self, mut copy: Copy) {
        copy.number = self.next_copy;
        self.copies.push(copy);
        self.next_copy += 1;
    }

    /// The consumer's channel is gone: what it has not settled is delivered again.
    pub fn give_back_all(&mut self, consumer: usize) {
        for copy in &mut self.copies {
            if copy.place == Place::Unacked(consumer) {
                copy.place = Place::Ready;
                copy.redelivered = true;
            }
        }
    }

    pub fn broken(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }
}
