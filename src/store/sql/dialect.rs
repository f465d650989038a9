//! What differs between the databases, and nothing else does.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use sqlx::{
    Connection, Database, Pool, database::HasStatementCache, error::DatabaseError, pool::PoolOptions,
    query::Query,
};

use super::{options::Limits, statements::Statements};
use crate::{
    idempotency::{ClaimRequest, Lease, Record, Scope},
    message::{Fingerprint, MessageId},
};

/// How the driver of a database connects.
pub(super) type ConnectOptions<DB> = <<DB as Database>::Connection as Connection>::Options;

/// How long a connection that was fit for use is taken to be so.
const TRUSTED: Duration = Duration::from_secs(1);

/// One of the databases. Public only so that `SqlDatabase` can rest on it; its path is private.
pub trait Dialect: Database + HasStatementCache + Sized {
    /// The quotation mark of names.
    const QUOTE: char;
    /// Commits if the transaction is still the one that [`begin`](Self::begin) opened and can be
    /// committed, and fails otherwise. Leaves an empty transaction open where the driver's ROLLBACK
    /// would complain without one.
    const COMMIT: &'static str;
    /// Undoes the transaction; the same remark.
    const ROLLBACK: &'static str;
    /// Whether transactions exclude each other, so that the wait for the store's one connection is
    /// a wait for a rival.
    const ONE_WRITER: bool;
    /// To be run after one of them failed, before the driver's ROLLBACK.
    const AFTER_FAILURE: Option<&'static str>;
    /// Whether [`insert_new`](Self::insert_new) is there, and cheaper than
    /// [`insert`](Self::insert).
    const OPTIMISTIC: bool = false;

    /// The version of the server.
    const VERSION: &'static str;
    /// The columns of a table (1st value) in a schema (2nd value, may be empty).
    const COLUMNS: &'static str;
    /// The columns of its primary key.
    const KEY: &'static str;
    /// The methods of its indexes whose first column is `processed_at`, in small letters.
    const INDEXES: &'static str;

    /// Ends its own connection on the server, so that no pool keeps it.
    const LEAVE: Option<&'static str> = None;
    /// Whether a statement that was prepared before can fail because something changed since, and
    /// has to be prepared anew.
    const GOES_STALE: bool = false;

    /// Opens a transaction with the limits set, and marks it as the store's.
    fn begin(limits: &Limits) -> String;

    /// What a pool of the store's own is like.
    fn pool(limits: &Limits) -> PoolOptions<Self> {
        let pool = PoolOptions::new().max_connections(limits.connections).acquire_timeout(limits.acquire);
        // The pool tries a connection when it comes back; to try it again at once would be a round
        // trip of each transaction.
        pool.test_before_acquire(false).before_acquire(|connection: &mut Self::Connection, met| {
            Box::pin(async move {
                if met.idle_for >= TRUSTED {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
    }

    /// What the connections of that pool are like, beyond what the URL says.
    fn settings(url: ConnectOptions<Self>, limits: &Limits) -> ConnectOptions<Self> {
        let _ = limits;
        url
    }

    /// What an error of the server means.
    fn cause(error: &dyn DatabaseError) -> Cause;

    /// Inserts what is not there yet; `true` for each row that was new. With a lease, the rows are
    /// in progress.
    ///
    /// Waits for rivals that have inserted one of them and not yet committed.
    fn insert(
        connection: &mut Self::Connection,
        statements: &Statements,
        rows: &[&ClaimRequest],
        lease: Option<NewLease>,
    ) -> impl Future<Output = Result<Vec<bool>, sqlx::Error>> + Send;

    /// Inserts rows of which none is there, and fails with [`Cause::Duplicate`] if one is: then the
    /// transaction is lost. Waits for rivals like [`insert`](Self::insert).
    fn insert_new(
        connection: &mut Self::Connection,
        statements: &Statements,
        rows: &[&ClaimRequest],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        let _ = (connection, statements, rows);
        std::future::ready(Err(sqlx::Error::Protocol("insert_new is not supported".to_owned())))
    }

    /// What [`begin`](Self::begin) gave, with the INSERT of a new identity: one round trip for
    /// both. If it fails, no transaction is left open. `None` where that cannot be had.
    fn begin_with_new(begin: &str, statements: &Statements, request: &ClaimRequest) -> Option<String> {
        let _ = (begin, statements, request);
        None
    }

    /// The rows of some identities, in any order.
    fn select(
        connection: &mut Self::Connection,
        statements: &Statements,
        identities: &[(&Scope, &MessageId)],
    ) -> impl Future<Output = Result<Vec<Found>, sqlx::Error>> + Send;

    /// Binds values in their order.
    fn bound<'q>(
        query: Query<'q, Self, Self::Arguments>,
        values: &[Value<'_>],
    ) -> Query<'q, Self, Self::Arguments>;

    /// Completes leases in one statement; how many of them were still held.
    fn complete(
        connection: &mut Self::Connection,
        statements: &Statements,
        leases: &[&Lease],
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Runs a statement, or several if nothing is bound; how many rows were changed.
    fn execute(
        connection: &mut Self::Connection,
        sql: &str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// The one integer that a query gives.
    fn integer(
        connection: &mut Self::Connection,
        sql: &str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;

    /// The first column of what a query gives, as text.
    fn strings(
        connection: &mut Self::Connection,
        sql: &str,
        values: &[Value<'_>],
    ) -> impl Future<Output = Result<Vec<String>, sqlx::Error>> + Send;

    /// Forgets at most `limit` identities that are older than `retention`.
    fn purge(
        pool: &Pool<Self>,
        statements: &Statements,
        limits: &Limits,
        retention: Duration,
        limit: u32,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;

    /// Runs statements that create what is missing, so that concurrent callers do no harm.
    fn create_missing(
        pool: &Pool<Self>,
        sql: &str,
        limits: &Limits,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Creates the table of the identities with all that it needs.
    fn create(
        pool: &Pool<Self>,
        statements: &Statements,
        limits: &Limits,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        Self::create_missing(pool, &statements.schema, limits)
    }

    /// What a table that is complete may need all the same.
    fn tend(
        pool: &Pool<Self>,
        statements: &Statements,
        limits: &Limits,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        let _ = (pool, statements, limits);
        std::future::ready(Ok(()))
    }

    /// Whether the connections of a pool keep what was prepared on them.
    fn keeps_prepared(pool: &Pool<Self>) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        let _ = pool;
        std::future::ready(Ok(()))
    }
}

/// A value to be bound.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Integer(i64),
}

/// A lease to be written.
#[derive(Debug, Clone, Copy)]
pub struct NewLease {
    /// Its fencing token.
    pub token: i64,
    /// How long it runs, in microseconds.
    pub micros: i64,
}

/// A row of the table.
#[derive(Debug)]
pub struct Found {
    pub(in crate::store) scope: String,
    pub(in crate::store) message_id: String,
    pub(in crate::store) fingerprint: Fingerprint,
    /// Microseconds since 1970.
    pub(in crate::store) processed_at: i64,
    pub(in crate::store) token: Option<i64>,
    /// Microseconds that the lease still runs, negative if it ran out; `None` if the identity is
    /// completed.
    pub(in crate::store) remaining: Option<i64>,
}

impl Found {
    /// The token of a lease that ran out or was released.
    pub(super) fn free_token(&self) -> Option<i64> {
        if self.remaining? <= 0 { Some(self.token.unwrap_or_default()) } else { None }
    }

    /// What the row says; `None` if it is a lease that ran out.
    pub(super) fn record(&self) -> Option<Record> {
        let micros = |micros: i64| Duration::from_micros(u64::try_from(micros).unwrap_or_default());
        match self.remaining {
            None => Some(Record::Completed {
                fingerprint: self.fingerprint,
                processed_at: SystemTime::UNIX_EPOCH + micros(self.processed_at),
            }),
            Some(remaining) if remaining > 0 => Some(Record::InProgress { remaining: micros(remaining) }),
            Some(_) => None,
        }
    }

    pub(in crate::store) fn identity(&self) -> (&str, &str) {
        (&self.scope, &self.message_id)
    }
}

/// What an error of the server means to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The unique key: the identity is there.
    Duplicate,
    /// A deadlock or serialization failure: the transaction is gone, the same work may succeed.
    Conflict,
    /// A rival held a lock for longer than the claim waits.
    Busy,
    /// A table or column is missing.
    Schema,
    /// The server is going away, or cannot tell what became of the transaction.
    Unavailable,
    /// The server takes no writes: after a failover it may be another one that does.
    ReadOnly,
    /// The statement was prepared before, and has to be prepared anew.
    Stale,
    /// Perhaps only this row: a constraint, a trigger, a policy, an encoding, a column that is too
    /// short.
    Row,
    /// The statement was refused; nothing of it was done.
    Refused,
}
