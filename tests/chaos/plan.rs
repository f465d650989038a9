//! What goes wrong in a run, and when: all of it follows from the seed.

use std::time::Duration;

use fastrand::Rng;

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

impl Kind {
    pub const ALL: [Self; 19] = [
        Self::PublisherKilled,
        Self::PublisherFrozen,
        Self::PublisherDoubled,
        Self::PublisherCut,
        Self::ConfirmsLost,
        Self::ConsumerKilled,
        Self::ConsumerFrozen,
        Self::ConsumerCut,
        Self::AcksLost,
        Self::ConsumerStalled,
        Self::ConsumersScaled,
        Self::BackendsTerminated,
        Self::DatabaseKilled,
        Self::DatabaseFrozen,
        Self::LeaderKilled,
        Self::FollowerKilled,
        Self::NodeFrozen,
        Self::MemoryAlarm,
        Self::ConnectionsClosed,
    ];

    pub fn lane(self) -> Lane {
        self.about().0
    }

    pub fn name(self) -> &'static str {
        self.about().1
    }

    /// What is done, and what counts as seen.
    pub fn meaning(self) -> &'static str {
        self.about().2
    }

    #[rustfmt::skip] // a table
    fn about(self) -> (Lane, &'static str, &'static str) {
        use Lane::{Brokers, Consumers, Database, Publishers};
        match self {
            Self::PublisherKilled => (Publishers, "publisher killed",
                "`kill -9`; seen: it ended by that signal. It is started again and publishes what it has not noted as confirmed"),
            Self::PublisherFrozen => (Publishers, "publisher frozen",
                "SIGSTOP, later SIGCONT; seen: its state was `T`"),
            Self::PublisherDoubled => (Publishers, "publisher twice",
                "SIGSTOP, a second one is started for the same messages, then SIGCONT to the first; seen: both ran"),
            Self::PublisherCut => (Publishers, "publisher cut off",
                "its connections are cut; seen: it had some"),
            Self::ConfirmsLost => (Publishers, "confirms lost",
                "confirms vanish and the connection is cut before the next; seen: at least one"),
            Self::ConsumerKilled => (Consumers, "consumer killed",
                "`kill -9`; seen: it ended by that signal"),
            Self::ConsumerFrozen => (Consumers, "consumer frozen",
                "SIGSTOP, later SIGCONT, with transactions open or not; seen: its state was `T`"),
            Self::ConsumerCut => (Consumers, "consumer cut off",
                "its connections are cut; seen: it had some"),
            Self::AcksLost => (Consumers, "acks lost",
                "acks vanish and the connection is cut before the next; seen: at least one"),
            Self::ConsumerStalled => (Consumers, "network stalled",
                "its connections stay open and carry nothing; seen: a frame was held"),
            Self::ConsumersScaled => (Consumers, "consumers scaled",
                "consumers are asked to stop, or more are started; seen: another number runs"),
            Self::BackendsTerminated => (Database, "backends terminated",
                "`pg_terminate_backend` for about half of the consumers' sessions; seen: at least one"),
            Self::DatabaseKilled => (Database, "database killed",
                "`kill -9` to all of PostgreSQL, started again; seen: it was gone"),
            Self::DatabaseFrozen => (Database, "database frozen",
                "SIGSTOP to all of PostgreSQL, later SIGCONT; seen: it did not answer"),
            Self::LeaderKilled => (Brokers, "leader killed",
                "`kill -9` to the node that leads the queue, started again; seen: another one leads"),
            Self::FollowerKilled => (Brokers, "follower killed",
                "`kill -9` to another node, started again; seen: it was gone"),
            Self::NodeFrozen => (Brokers, "node frozen",
                "SIGSTOP to a node, later SIGCONT; seen: it did not answer"),
            Self::MemoryAlarm => (Brokers, "memory alarm",
                "a node's memory alarm, for which the cluster stops to read from publishers; seen: each node knew of it"),
            Self::ConnectionsClosed => (Brokers, "connections closed",
                "the operator closes all connections of a node; seen: there were some"),
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
            deck = Kind::ALL.into_iter().filter(|kind| kind.lane() == lane).collect::<Vec<_>>();
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
