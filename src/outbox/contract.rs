//! What a relay asks of the table, and what it gets.

use std::{future::Future, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use uuid::Uuid;

use super::wake::Wake;
pub use super::{
    parked::{ParkedKey, ParkedRow, Select, TableStatus},
    rows::{Lane, NewRow, Route, Row, RowId},
};
use crate::{idempotency::StoreError, message::MessageId};

/// A relay, for the time that it runs: a restarted one is another. Its name is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub Uuid);

/// A lane, in the hands of a relay, and for the how-manieth time it was taken. A relay that has
/// lost its lane holds an old term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Term {
    /// The lane.
    pub lane: Lane,
    /// How often it was taken.
    pub term: i64,
}

/// Who is there, and who has what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Relays whose last beat is younger than the lease.
    pub relays: Vec<RelayId>,
    /// Every lane with its term, and its owner if it has one, alive or not.
    pub lanes: Vec<(Term, Option<RelayId>)>,
}

/// What to read.
#[derive(Debug, Clone, Copy)]
pub struct ReadRequest<'a> {
    /// Of which lanes, and behind which number of each.
    pub from: &'a [RowId],
    /// Which rows are left out, as the relay has them already: as many as three windows, and what
    /// is to be removed.
    pub without_rows: &'a [RowId],
    /// What is in order with one of these is left out.
    pub without_keys: &'a [String],
    /// What goes this way and is in order with nothing is left out. What has an order key is not:
    /// the relay has to know that it is the oldest of its key.
    pub without_routes: &'a [Route],
    /// At most so many rows of each lane.
    pub rows: u32,
    /// At most so many bytes of bodies of each lane, but at least one row.
    pub bytes: u64,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// In the order of lanes and numbers. A lane with fewer rows than asked for, and fewer bytes,
    /// has no others that this read could see.
    pub rows: Vec<Row>,
    /// The lanes whose rows were cut by the limit of rows or bytes.
    pub cut: Vec<Lane>,
    /// All transactions with an identity below this had ended when this was read; `None` where the
    /// database does not tell, and every read begins at the start of its lanes.
    pub ended_below: Option<u64>,
}

/// A row whose message was confirmed. The number alone would not do: a database that has lost
/// commits, in a crash or a failover, gives their numbers to other messages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Confirmed {
    /// Which.
    pub row: RowId,
    /// The message that was confirmed.
    pub message_id: MessageId,
}

impl From<&Row> for Confirmed {
    fn from(row: &Row) -> Self {
        Self { row: row.id, message_id: row.message_id.clone() }
    }
}

/// What became of rows that were to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Removed {
    /// How many were there, with these messages.
    pub rows: u64,
    /// The identity of the transaction that removed them; see [`Batch::ended_below`].
    pub transaction: Option<u64>,
}

/// A row that could not be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Failed {
    /// Which.
    pub row: RowId,
    /// The message that failed; see [`Confirmed`].
    pub message_id: MessageId,
    /// Whether that is counted as an attempt. What only follows a parked row of its key is not, and
    /// is parked only if one with a lower number still is: an operator may have put it back.
    pub counted: bool,
    /// What is done with it.
    pub next: Next,
    /// Why, at most 1,000 bytes.
    pub error: String,
}

/// What is done with a row that could not be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It is left alone for so long.
    Retry(Duration),
    /// It leaves its lane, with its number, until an operator puts it back.
    Park,
}

/// A table of messages that are to be published, in the database of those who enqueue them.
///
/// With the feature `testing`, `testing::conformance::run_outbox` tries a table of your own against
/// all of this.
///
/// # Contract
///
/// 1. A row that was put in with a connection is there if, and only if, that connection's
///    transaction commits; nothing else is ever read.
/// 2. Numbers grow: of two rows of a lane, what was put in after the other's transaction had
///    committed has the greater number.
/// 3. What was put in is read as it was: every byte of message ID, names, key, properties, body.
/// 4. `read` sees all rows of its lanes behind the given numbers that were committed before it
///    began, but for what is to be left out; up to its limits, which count what it gives; lowest
///    numbers first, and those that are to be left alone too.
///    It locks nothing that a producer waits for.
/// 5. Of several relays that take a lane, one has it; nobody has it whose last beat is older than
///    the lease, once another one has taken it. Each taking has a greater term.
/// 6. `fail` changes nothing for a lane whose term is not the holder's any more, nor a row that
///    holds another message than the one that failed, byte by byte of its ID.
/// 7. `remove` needs no term: it is told what the broker has confirmed. It removes no row that
///    holds another message than that.
pub trait Outbox: Send + Sync + 'static {
    /// What rows are put in with: the connection of the transaction they belong to.
    type Connection: Send;

    /// How many lanes the table has; always the same number.
    fn lanes(&self) -> u16;

    /// Puts rows in, in their order.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`]; the transaction can then not be committed, on most databases.
    fn put(
        &self,
        connection: &mut Self::Connection,
        rows: &[NewRow],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Makes a relay known, with a first beat. Relays whose last beat is very old are forgotten.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn register(&self, relay: RelayId, name: &str) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Shows that a relay is alive. `false` if its last beat is older than the lease already, or it
    /// is not known: its lanes may be another one's.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`]; whether the beat counts is then not known.
    fn beat(&self, relay: RelayId, lease: Duration) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Who is alive, and who has which lane.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn ownership(&self, lease: Duration) -> impl Future<Output = Result<Ownership, StoreError>> + Send;

    /// Takes lanes that nobody has, or whose owner has no beat within the lease, if their term is
    /// still the given one. Returns those it got, with their new terms.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn take(
        &self,
        relay: RelayId,
        lanes: &[Term],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Term>, StoreError>> + Send;

    /// Gives lanes back, those of the given terms. What is free already, or has another term, stays
    /// as it is.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`]; they are then free when the lease has run out.
    fn release(&self, lanes: &[Term]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets a relay. Its lanes are free at once. A relay that got no answer asks again: that it
    /// is forgotten already is no error, and the lanes of others stay theirs.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn leave(&self, relay: RelayId) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Reads rows.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn read(&self, request: &ReadRequest<'_>) -> impl Future<Output = Result<Batch, StoreError>> + Send;

    /// The order keys of parked rows that come from these lanes.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn parked_keys(&self, lanes: &[Lane]) -> impl Future<Output = Result<Vec<ParkedKey>, StoreError>> + Send;

    /// Removes rows whose messages were confirmed. With no rows it removes nothing, in a
    /// transaction of its own all the same. The places of a removal that found fewer rows than it
    /// was given are read again.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`]; whether they are gone may then be unknown.
    fn remove(&self, confirmed: &[Confirmed]) -> impl Future<Output = Result<Removed, StoreError>> + Send;

    /// Notes failures of messages, those of lanes that are held with these terms. Returns the
    /// lanes that are not any more.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn fail(
        &self,
        held: &[Term],
        failed: &[Failed],
    ) -> impl Future<Output = Result<Vec<Lane>, StoreError>> + Send;

    /// What the table holds.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn status(&self) -> impl Future<Output = Result<TableStatus, StoreError>> + Send;

    /// Parked rows, oldest numbers first, at most `limit`, behind a number.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn list_parked(
        &self,
        select: &Select,
        behind: i64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<ParkedRow>, StoreError>> + Send;

    /// Puts parked rows back into their lanes, with their numbers and no attempts. Returns how
    /// many.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn unpark(&self, select: &Select) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Deletes parked rows, unpublished. Returns how many.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn discard(&self, select: &Select) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Whether the tables are there, as a relay needs them.
    ///
    /// # Errors
    ///
    /// As [`IdempotencyStore::check`](crate::IdempotencyStore::check).
    fn check(&self) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// What wakes the relays of this process when something was committed.
    fn waker(&self) -> &Wake;

    /// Wakes the relays of this process, and those of others where the table can tell them. Never
    /// waits and never fails.
    fn wake(&self) {
        self.waker().wake();
    }

    /// For tables that tell of what other processes commit: a future that a relay runs beside its
    /// work. It calls [`Wake::wake`] on [`waker`](Self::waker) for what it hears, and sends whether
    /// it hears at all; it never ends.
    fn listen(&self, hears: watch::Sender<bool>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            hears.closed().await;
            std::future::pending::<()>().await;
        })
    }
}
