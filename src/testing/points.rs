//! Where a process may end, and what may fail.

use std::{
    collections::BTreeSet,
    fmt,
    future::pending,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// A point at which a process ends, or something fails once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Point {
    /// The process ends when a publisher is about to send.
    Send,
    /// The process ends when the broker has a message and its publisher does not know.
    Sent,
    /// The process ends when a publisher knows of a confirm, before its caller does.
    Confirmed,
    /// Every attempt of a publish is nacked, and the caller has an error.
    PublishRefused,
    /// A confirm is lost: the publisher sends the message again.
    ConfirmLost,
    /// The process ends before a message is claimed.
    Claim,
    /// The store cannot be asked for a claim.
    ClaimFails,
    /// The process ends when a message is claimed, before its handler runs.
    Claimed,
    /// The process ends at the k-th await of a handler that is not ready at once, counted from 1.
    Await(u32),
    /// Each statement that a handler makes in its session fails. For sessions of SQLite:
    /// PostgreSQL rolls back a transaction of which a statement has failed, whatever the handler
    /// makes of it.
    StatementsFail,
    /// A handler that has done its work fails: as if one more statement had.
    HandlerFails,
    /// The process ends when a handler is done, before the commit.
    Commit,
    /// The commit is refused: nothing took effect.
    CommitRefused,
    /// The commit is done, and its answer is lost.
    CommitAnswerLost,
    /// The process ends after the commit.
    Committed,
    /// The process ends before a session is released whose handler failed.
    Release,
    /// The process ends before a delivery is passed on, to a delay queue or to parking.
    Copy,
    /// The process ends when the copy is there, and the original is not acked.
    Copied,
    /// The process ends before an ack.
    Ack,
    /// An ack is lost: the message comes again.
    AckLost,
    /// The process ends after an ack.
    Acked,
    /// The process ends when a relay has read.
    HasRead,
    /// The process ends before a relay removes what was confirmed.
    Remove,
    /// The process ends when that is removed.
    Removed,
}

impl Point {
    /// Whether the process ends there. Otherwise something fails, and it goes on.
    pub fn is_crash(self) -> bool {
        !matches!(
            self,
            Self::PublishRefused
                | Self::ConfirmLost
                | Self::ClaimFails
                | Self::StatementsFail
                | Self::HandlerFails
                | Self::CommitRefused
                | Self::CommitAnswerLost
                | Self::AckLost
        )
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Send => "crash before a message is sent",
            Self::Sent => "crash after a message is sent, before its confirm",
            Self::Confirmed => "crash after a confirm",
            Self::PublishRefused => "a publish is refused",
            Self::ConfirmLost => "a confirm is lost",
            Self::Claim => "crash before the claim",
            Self::ClaimFails => "the claim fails",
            Self::Claimed => "crash after the claim, before the handler",
            Self::Await(count) => return write!(f, "crash at await {count} of the handler"),
            Self::StatementsFail => "the statements of the handler fail",
            Self::HandlerFails => "the handler fails after its work",
            Self::Commit => "crash after the handler, before the commit",
            Self::CommitRefused => "the commit is refused",
            Self::CommitAnswerLost => "the answer of the commit is lost",
            Self::Committed => "crash after the commit, before the ack",
            Self::Release => "crash after the handler failed, before the rollback",
            Self::Copy => "crash before a copy is published",
            Self::Copied => "crash after a copy is published, before the ack",
            Self::Ack => "crash before the ack",
            Self::AckLost => "an ack is lost",
            Self::Acked => "crash after the ack",
            Self::HasRead => "crash after the relay has read",
            Self::Remove => "crash after a confirm, before the relay deletes",
            Self::Removed => "crash after the relay has deleted",
        };
        f.write_str(what)
    }
}

/// A point, when it is passed for the n-th time in a run, from 0. What a run passes in all differs
/// from run to run, as the awaits of a handler do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Passage {
    pub(crate) point: Point,
    pub(crate) nth: usize,
}

/// Counts the points that are passed, and acts at those that were chosen.
#[derive(Debug)]
pub(crate) struct Points {
    passing: Mutex<Passing>,
    crashed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Passing {
    passed: Vec<Passage>,
    chosen: BTreeSet<Passage>,
    hit: Vec<Passage>,
    is_suspended: bool,
}

impl Points {
    pub(crate) fn new(chosen: &[Passage]) -> Self {
        let passing = Passing { chosen: chosen.iter().copied().collect(), ..Passing::default() };
        Self { passing: Mutex::new(passing), crashed: watch::Sender::new(false) }
    }

    /// What is chosen, happens.
    fn passes(&self, point: Point) -> bool {
        let mut passing = self.passing();
        if passing.is_suspended {
            return false;
        }
        let nth = passing.passed.iter().filter(|passage| passage.point == point).count();
        let passage = Passage { point, nth };
        passing.passed.push(passage);
        let is_chosen = passing.chosen.contains(&passage);
        if is_chosen {
            passing.hit.push(passage);
        }
        is_chosen
    }

    /// Whether something fails here.
    pub(crate) fn fails_at(&self, point: Point) -> bool {
        // After a crash nothing else happens until the process is gone.
        !*self.crashed.borrow() && self.passes(point)
    }

    /// Ends the process, if this is where it ends: the future never does then.
    pub(crate) async fn crash_at(&self, point: Point) {
        if self.crashes_at(point) {
            pending::<()>().await;
        }
    }

    /// The same for what is polled. Also if the process has just ended.
    pub(crate) fn crashes_at(&self, point: Point) -> bool {
        if !*self.crashed.borrow() && self.passes(point) {
            self.crashed.send_replace(true);
        }
        *self.crashed.borrow()
    }

    /// Waits until the process is to end; gives it another life.
    pub(crate) async fn crashed(&self) {
        // The sender is here.
        let _ = self.crashed.subscribe().wait_for(|crashed| *crashed).await;
    }

    pub(crate) fn lives_again(&self) {
        self.crashed.send_replace(false);
    }

    /// Nothing else happens while what was disturbed has to be mended before anything ends.
    pub(crate) fn suspend(&self, is_suspended: bool) {
        self.passing().is_suspended = is_suspended;
    }

    /// All points that were passed so far.
    pub(crate) fn passed(&self) -> Vec<Passage> {
        self.passing().passed.clone()
    }

    /// How many they are.
    pub(crate) fn count(&self) -> usize {
        self.passing().passed.len()
    }

    /// How many acks there were.
    pub(crate) fn acked(&self) -> usize {
        self.passing().passed.iter().filter(|passage| passage.point == Point::Acked).count()
    }

    /// Those at which something happened.
    pub(crate) fn hit(&self) -> Vec<Passage> {
        self.passing().hit.clone()
    }

    fn passing(&self) -> MutexGuard<'_, Passing> {
        self.passing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
