//! What the model knows: publishers, the broker's copies, consumers and their store.

use super::replays::{Opening, Replay};

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
    /// One for each message, where there are any.
    pub replays: Vec<Replay>,
    /// Whether their epoch is open.
    pub opening: Opening,
    /// The publishing channel's generation: all messages of the publisher are sent on one channel
    /// at a time.
    pub generation: u8,
    /// The delivery tag of the next attempt in this generation.
    pub next_tag: u8,
    /// Answers to attempts that were given up, still on their way.
    pub late: Vec<Late>,
    /// Attempts of a frozen publisher, whose successor is at work: they reach the broker some time,
    /// under these IDs.
    pub zombies: Vec<(Message, Id)>,
    /// Faults that may still happen.
    pub faults: u8,
    /// Whether the store is away: what asks it is told so, and nothing becomes of it.
    pub away: bool,
    /// Whether every message is older than the retention.
    pub old: bool,
    /// What must never happen, noted by the transition that did it.
    pub broken: Option<Broken>,
}

/// A broker's answer that comes after its attempt was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Late {
    pub generation: u8,
    pub tag: u8,
    pub answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// I4: a token that was not the last one given out changed a record.
    StaleLeaseChanged,
    /// I5: a publish was reported that the broker never stored.
    ConfirmedWithoutCopy,
    /// A publish was reported as surely not done, and the broker has stored it.
    DeniedWithCopy,
    /// I7: an ID was forgotten that is younger than the retention.
    PurgedTooEarly,
    /// A handler was started for an ID whose record said that it took effect.
    RanAfterDone,
    /// A replay took effect while its epoch was not open.
    EffectOfClosedEpoch,
    /// A tag was settled on a channel that had not delivered it.
    ForeignTag,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Publisher {
    /// 2 for two and more.
    pub attempts: u8,
    /// Whether its process is a successor's.
    pub restarted: bool,
    /// The broker's answer to the attempt in flight.
    pub answer: Option<Answer>,
    /// The delivery tag of the attempt in flight.
    pub tag: u8,
    /// `Job::uncertain`: an attempt of this process has an unknown outcome.
    pub uncertain: bool,
    /// Whether the broker has stored a copy for this process.
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
    /// An error, with the message handed back; it says whether it may have been published.
    Failed(bool),
}

/// A copy of a message in the broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Copy {
    pub number: u8,
    pub message: Message,
    pub id: Id,
    /// Whether it is of a replay.
    pub epoch: bool,
    pub place: Place,
    pub redelivered: bool,
    /// `x-delivery-count`: how often it was given back, where the broker has a limit for that.
    pub returns: u8,
    /// How often of these in a row its channel was lost, and no consumer had taken it up.
    pub losses: u8,
    /// The header `x-idempotency-failures`.
    pub failures: u8,
    /// The header `x-idempotency-unparked`: within the retention, it was known not to have taken
    /// effect.
    pub vouched: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    Ready,
    /// Delivered on the present channel of a consumer, and not settled.
    Unacked(usize),
    /// In a delay queue.
    Delayed,
    /// In the parking queue; whether its handler had failed within the retention, so that it had
    /// not taken effect.
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

impl Item {
    /// Of a copy that is delivered. Its counts are the broker's.
    pub fn new(copy: &Copy, fate: Fate) -> Self {
        Self { copy: Copy { returns: 0, losses: 0, ..copy.clone() }, attached: true, fate }
    }
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
    /// To be kept, and asked about again.
    Hold,
    /// A mutant's: to be given back.
    Requeue,
    /// To be published anew to its own queue, where its count begins at 0, then acked.
    MoveOn,
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
        let items = self.consumers.iter().flat_map(|consumer| consumer.items.iter().chain(&consumer.alone));
        let taken: Vec<u8> =
            self.copies.iter().chain(items.map(|item| &item.copy)).map(|copy| copy.number).collect();
        // The smallest that is free: states that differ in a name only are one.
        copy.number = (0..=u8::MAX).find(|number| !taken.contains(number)).unwrap_or_default();
        self.copies.push(copy);
    }

    /// Forgets what makes no difference any more: states that differ in nothing else are one.
    pub fn tidy(&mut self) {
        for publisher in &mut self.publishers {
            if publisher.answer.is_none() {
                publisher.tag = 0;
            }
            if publisher.verdict.is_some() {
                *publisher = Publisher { verdict: publisher.verdict, ..Publisher::default() };
            }
        }
        if self.publishers.iter().all(|publisher| publisher.verdict.is_some()) {
            self.late.clear();
        }
        if self.publishers.iter().all(|publisher| publisher.answer.is_none()) {
            self.next_tag = 0;
            if self.late.is_empty() {
                self.generation = 0;
            }
        }
        self.late.sort_unstable();
        self.zombies.sort_unstable();
        for (id, record) in self.records.iter_mut().enumerate() {
            let mut items = self.consumers.iter().flat_map(|consumer| &consumer.items);
            if !items.any(|item| item.copy.id == id && matches!(item.fate, Fate::Acquired(_))) {
                record.token = 0;
            }
        }
    }

    /// Without late answers nobody looks at these, and without zombies at the processes.
    pub fn forget_tags(&mut self) {
        (self.generation, self.next_tag) = (0, 0);
        for publisher in &mut self.publishers {
            (publisher.tag, publisher.restarted) = (0, false);
        }
    }

    /// Nobody looks at this flag but a mutant.
    pub fn forget_redelivered(&mut self) {
        self.all_copies().for_each(|copy| copy.redelivered = false);
    }

    /// The broker's, and what consumers have of them in hand.
    pub fn all_copies(&mut self) -> impl Iterator<Item = &mut Copy> {
        let consumers = self.consumers.iter_mut();
        let items = consumers.flat_map(|consumer| consumer.items.iter_mut().chain(&mut consumer.alone));
        self.copies.iter_mut().chain(items.map(|item| &mut item.copy))
    }

    pub fn broken(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }
}
