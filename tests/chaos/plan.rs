//! What goes wrong in a run, and when: all of it follows from the seed.

use std::time::Duration;

use fastrand::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    PublisherKilled,
    PublisherFrozen,
    PublisherDoubled,
    PublisherCut,
    ConfirmsLost,
    ConsumerKilled,
    ConsumerFrozen,
    ConsumerCut,
    AcksLost,
    ConsumerStalled,
    ConsumersScaled,
    BackendsTerminated,
    DatabaseKilled,
    DatabaseFrozen,
    LeaderKilled,
    FollowerKilled,
    NodeFrozen,
    MemoryAlarm,
    ConnectionsClosed,
}

use Kind::{
    AcksLost, BackendsTerminated, ConfirmsLost, ConnectionsClosed, ConsumerCut, ConsumerFrozen,
    ConsumerKilled, ConsumerStalled, ConsumersScaled, DatabaseFrozen, DatabaseKilled, FollowerKilled,
    LeaderKilled, MemoryAlarm, NodeFrozen, PublisherCut, PublisherDoubled, PublisherFrozen, PublisherKilled,
};

impl Kind {
    pub const ALL: [Self; 19] = [
        PublisherKilled,
        PublisherFrozen,
        PublisherDoubled,
        PublisherCut,
        ConfirmsLost,
        ConsumerKilled,
        ConsumerFrozen,
        ConsumerCut,
        AcksLost,
        ConsumerStalled,
        ConsumersScaled,
        BackendsTerminated,
        DatabaseKilled,
        DatabaseFrozen,
        LeaderKilled,
        FollowerKilled,
        NodeFrozen,
        MemoryAlarm,
        ConnectionsClosed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            PublisherKilled => "publisher killed",
            PublisherFrozen => "publisher frozen",
            PublisherDoubled => "publisher twice",
            PublisherCut => "publisher cut off",
            ConfirmsLost => "confirms lost",
            ConsumerKilled => "consumer killed",
            ConsumerFrozen => "consumer frozen",
            ConsumerCut => "consumer cut off",
            AcksLost => "acks lost",
            ConsumerStalled => "network stalled",
            ConsumersScaled => "consumers scaled",
            BackendsTerminated => "backends terminated",
            DatabaseKilled => "database killed",
            DatabaseFrozen => "database frozen",
            LeaderKilled => "leader killed",
            FollowerKilled => "follower killed",
            NodeFrozen => "node frozen",
            MemoryAlarm => "memory alarm",
            ConnectionsClosed => "connections closed",
        }
    }

    /// What is done, and what counts as seen.
    pub fn meaning(self) -> &'static str {
        match self {
            PublisherKilled => {
                "`kill -9`; seen: it ended by that signal. It is started again and publishes what it has not noted as confirmed"
            }
            PublisherFrozen => "SIGSTOP, later SIGCONT; seen: its state was `T`",
            PublisherDoubled => {
                "SIGSTOP, a second one is started for the same messages, then SIGCONT to the first; seen: both ran"
            }
            PublisherCut => "its connections are cut; seen: it had some",
            ConfirmsLost => "confirms vanish and the connection is cut before the next; seen: at least one",
            ConsumerKilled => "`kill -9`; seen: it ended by that signal",
            ConsumerFrozen => {
                "SIGSTOP, later SIGCONT, with transactions open or not; seen: its state was `T`"
            }
            ConsumerCut => "its connections are cut; seen: it had some",
            AcksLost => "acks vanish and the connection is cut before the next; seen: at least one",
            ConsumerStalled => "its connections stay open and carry nothing; seen: a frame was held",
            ConsumersScaled => "consumers are asked to stop, or more are started; seen: another number runs",
            BackendsTerminated => {
                "`pg_terminate_backend` for about half of the consumers' sessions; seen: at least one"
            }
            DatabaseKilled => "`kill -9` to all of PostgreSQL, started again; seen: it was gone",
            DatabaseFrozen => "SIGSTOP to all of PostgreSQL, later SIGCONT; seen: it did not answer",
            LeaderKilled => {
                "`kill -9` to the node that leads the queue, started again; seen: another one leads"
            }
            FollowerKilled => "`kill -9` to another node, started again; seen: it was gone",
            NodeFrozen => "SIGSTOP to a node, later SIGCONT; seen: it did not answer",
            MemoryAlarm => {
                "a node's memory alarm, for which the cluster stops to read from publishers; seen: each node knew of it"
            }
            ConnectionsClosed => "the operator closes all connections of a node; seen: there were some",
        }
    }
}

/// Faults that come one after the other; those of different lanes overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Publishers,
    Consumers,
    Database,
    Brokers,
}

impl Lane {
    pub const ALL: [Self; 4] = [Self::Publishers, Self::Consumers, Self::Database, Self::Brokers];

    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Publishers => &Kind::ALL[..5],
            Self::Consumers => &Kind::ALL[5..11],
            Self::Database => &Kind::ALL[11..14],
            Self::Brokers => &Kind::ALL[14..],
        }
    }

    /// Seconds between faults, at least and at most.
    fn pause(self) -> (u64, u64) {
        match self {
            Self::Publishers | Self::Consumers => (2, 7),
            Self::Database => (6, 16),
            // The cluster gets its third node back first, and catches up.
            Self::Brokers => (8, 20),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub kind: Kind,
    /// Since the one before it has ended.
    pub after: Duration,
    /// Of what there is: this one, modulo their number.
    pub whom: usize,
    /// If it lasts.
    pub lasts: Duration,
}

/// The faults of a lane, without end. Each kind comes once before any comes again.
pub fn faults(seed: u64, lane: Lane) -> impl Iterator<Item = Fault> {
    // Not another lane's, nor the next seed's.
    let mut random = Rng::with_seed(seed.wrapping_mul(4).wrapping_add(lane as u64));
    let mut deck = Vec::new();
    std::iter::from_fn(move || {
        if deck.is_empty() {
            deck = lane.kinds().to_vec();
            random.shuffle(&mut deck);
        }
        let (least, most) = lane.pause();
        Some(Fault {
            kind: deck.pop()?,
            after: Duration::from_millis(random.u64(least * 1000..=most * 1000)),
            whom: random.usize(0..1000),
            lasts: Duration::from_millis(random.u64(500..=9_000)),
        })
    })
}
