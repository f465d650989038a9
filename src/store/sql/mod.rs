//! Identities and effects in one SQL transaction: what PostgreSQL, MySQL and SQLite share.
//!
//! Reads: `claim` (which of the identities are new), `optimistic` (all of them, it is assumed),
//! `begin`, `session` (the transaction, its guarded commit), `leased` (claims without a transaction
//! around the handler), `schema`, `inspect`, `replays`, `replies`, `outbox`. `dialect` is what a
//! database has to say for itself.

mod begin;
mod claim;
mod dialect;
mod driver_macros;
mod error;
mod inspect;
mod leased;
mod optimistic;
mod options;
mod outbox;
mod pool;
mod replays;
mod replies;
mod schema;
mod session;
mod statements;
mod table;

use std::{fmt, sync::Arc, time::Duration};

use sqlx::{Pool, pool::PoolOptions};

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) use self::claim::which;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(super) use self::outbox::Ear;
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(super) use self::outbox::without;
pub(super) use self::{
    begin::begun,
    dialect::{Cause, Dialect, Found, NewLease, Value},
    driver_macros::{found, runs_statements},
    options::{Limits, micros, millis},
    outbox::{Cells, OutboxDialect, OutboxStatements, OutboxSyntax, cells},
    replays::ReplaySyntax,
    replies::{KeptRow, ReplyDialect, ReplyStatements, orphans},
    statements::{Statements, Syntax},
    table::TableName,
};
pub use self::{
    leased::LeasedStore,
    outbox::SqlOutbox,
    replays::{ReplayOpening, ReplayOutlook, ReplayedMessage, Replays},
    replies::Replies,
    schema::SchemaMismatch,
    table::InvalidTableName,
};
use self::{
    optimistic::OptimisticInsert,
    pool::{connected, lazy},
    replays::ReplayStatements,
    replies::ReplyTable,
};
use crate::idempotency::StoreError;

/// A database that a [`SqlStore`] and a [`SqlOutbox`] can work with: `Postgres`, `MySql` or
/// `Sqlite` of sqlx, each behind its feature.
pub trait SqlDatabase: ReplyDialect {
    #[doc(hidden)]
    const REPLAYS: ReplaySyntax;

    #[doc(hidden)]
    fn statements(table: TableName, partition_hours: Option<u32>) -> Statements;
}

/// Remembers identities in a table, in the transaction that the handler writes its effects in.
///
/// Use it by the names [`PostgresStore`](super::PostgresStore), [`MySqlStore`](super::MySqlStore)
/// and [`SqliteStore`](super::SqliteStore).
///
/// What is guaranteed: identity and effect are committed together or not at all, so the effect is
/// committed at most once per (scope, message ID) within the retention, by however many consumers
/// and processes work on the table. What the handler does outside of the transaction is not
/// covered; for such handlers there is [`leased`](Self::leased).
///
/// * A rival for the same identity waits until the first transaction ends, at most for the lock
///   time-out, and is then told what became of it.
/// * The commit is guarded: it fails if the handler swallowed an error that aborted the
///   transaction, or ended the transaction by itself.
/// * An unknown outcome of the commit (a connection that breaks around COMMIT) is a failure: the
///   delivery comes again and finds out.
/// * Deadlocks and serialization failures are told from other errors, also when the handler gets
///   them, and the guard does the whole transaction again.
///
/// The age of an identity counts from the start of the transaction that claimed it, by the
/// database's clock.
///
/// Clones share the pool. Cheap to clone.
///
#[cfg_attr(feature = "postgres", doc = "```no_run")]
#[cfg_attr(feature = "postgres", doc = include_str!("../../docs/sql_store.rs"))]
#[cfg_attr(feature = "postgres", doc = "```")]
pub struct SqlStore<DB: SqlDatabase> {
    pool: Pool<DB>,
    statements: Arc<Statements>,
    limits: Limits,
    begin: Arc<str>,
    optimistic: Arc<OptimisticInsert>,
    replays: Arc<ReplayStatements>,
    replies: Option<Arc<ReplyTable>>,
}

impl<DB: SqlDatabase> SqlStore<DB> {
    /// Opens a pool of ten connections (SQLite: one) and keeps the identities in the table
    /// `processed_messages`.
    ///
    /// Every message in hand, or batch of messages, holds a connection: see
    /// [`connect_with`](Self::connect_with) for more than ten workers.
    ///
    /// # Errors
    ///
    /// `Configuration` for a URL that cannot be used, `Unavailable` if the database cannot be
    /// reached. The URL is in no error.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::connect_with(url, |pool| pool).await
    }

    /// The same, with a pool that is set up otherwise, such as `|pool| pool.max_connections(32)`.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub async fn connect_with(
        url: &str,
        set_up: impl FnOnce(PoolOptions<DB>) -> PoolOptions<DB>,
    ) -> Result<Self, StoreError> {
        Ok(Self::new(connected(url, &Limits::default(), set_up).await?))
    }

    /// As [`connect`](Self::connect), but does not connect before the first call: for a service
    /// that may start before its database.
    ///
    /// Whatever is wrong beyond the URL is told by the calls, then: the database cannot be reached,
    /// refuses the login or lacks the table. A consumer whose database cannot be reached, or
    /// refuses the login, waits for it ([`StoreAway`](crate::consumer::ConsumerState::StoreAway));
    /// then it looks at the table, and does not start without it.
    ///
    /// # Errors
    ///
    /// `Configuration` for a URL that cannot be used. The URL is in no error.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect_lazy(url: &str) -> Result<Self, StoreError> {
        Self::connect_lazy_with(url, |pool| pool)
    }

    /// The same, with a pool that is set up otherwise, such as `|pool| pool.max_connections(32)`.
    ///
    /// # Errors
    ///
    /// As [`connect_lazy`](Self::connect_lazy).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect_lazy_with(
        url: &str,
        set_up: impl FnOnce(PoolOptions<DB>) -> PoolOptions<DB>,
    ) -> Result<Self, StoreError> {
        Ok(Self::new(lazy(url, &Limits::default(), set_up)?))
    }

    /// A store over your own pool: its size and its limit for the wait for a connection are yours.
    /// The limits of a transaction are set by the store.
    ///
    /// Every message in hand holds a connection; with fewer connections than that, claims wait for
    /// one and fail as `Unavailable` when the pool's limit is over. SQLite: set WAL,
    /// `synchronous=FULL` and a busy time-out.
    pub fn new(pool: Pool<DB>) -> Self {
        Self::over(pool, DB::statements(TableName::default(), None), Limits::default())
    }

    pub(super) fn with_statements(self, statements: Statements) -> Self {
        let replies = self.replies.map(|table| Arc::new(table.beside::<DB>(&statements)));
        let replays = Arc::new(ReplayStatements::new::<DB>(&statements.table, &DB::REPLAYS));
        Self { statements: Arc::new(statements), replays, replies, ..self }
    }

    #[cfg(feature = "postgres")]
    pub(super) fn table_name(&self) -> &TableName {
        &self.statements.table
    }

    fn over(pool: Pool<DB>, statements: Statements, limits: Limits) -> Self {
        let begin = DB::begin(&limits).into();
        let replays = Arc::new(ReplayStatements::new::<DB>(&statements.table, &DB::REPLAYS));
        let statements = Arc::new(statements);
        Self { pool, statements, limits, begin, optimistic: Arc::default(), replays, replies: None }
    }

    /// Keeps the identities in another table than `processed_messages`: `table` or `schema.table`.
    ///
    /// # Errors
    ///
    /// [`InvalidTableName`] unless both match `[a-z_][a-z0-9_]{0,39}`.
    pub fn table(self, table: &str) -> Result<Self, InvalidTableName> {
        let statements = DB::statements(TableName::new(table)?, self.statements.partition_hours);
        Ok(self.with_statements(statements))
    }

    /// Sets the longest wait for a lock that a rival holds, in the store's statements and the
    /// handler's. Default: 5 seconds; MySQL and MariaDB count whole seconds.
    #[must_use]
    pub fn lock_timeout(self, limit: Duration) -> Self {
        let limits = Limits { lock: limit, ..self.limits };
        self.limited(limits)
    }

    /// Sets the longest run of one statement, the store's or the handler's. Default: 30 seconds.
    /// SQLite has no such limit; MySQL only for SELECT, MariaDB for all.
    #[must_use]
    pub fn statement_timeout(self, limit: Duration) -> Self {
        let limits = Limits { statement: limit, ..self.limits };
        self.limited(limits)
    }

    /// Sets the longest pause between two statements of a handler: then the server ends the
    /// transaction, because its owner may be gone with the locks. Default: 60 seconds. PostgreSQL
    /// and MariaDB.
    #[must_use]
    pub fn idle_timeout(self, limit: Duration) -> Self {
        let limits = Limits { idle: limit, ..self.limits };
        self.limited(limits)
    }

    fn limited(self, limits: Limits) -> Self {
        Self { limits, begin: DB::begin(&limits).into(), ..self }
    }

    /// The same table for handlers whose effect is outside of the database: the session is a
    /// [`Lease`](crate::idempotency::Lease) instead of a transaction, so that none stays open
    /// during the handler's call. See [`LeasedStore`].
    ///
    /// # Errors
    ///
    /// `Configuration` for a lease of zero.
    pub fn leased(self, lease: Duration) -> Result<LeasedStore<DB>, StoreError> {
        LeasedStore::new(self, lease)
    }

    /// The pool that the store uses.
    pub fn pool(&self) -> &Pool<DB> {
        &self.pool
    }
}

impl<DB: SqlDatabase> Clone for SqlStore<DB> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            statements: Arc::clone(&self.statements),
            limits: self.limits,
            begin: Arc::clone(&self.begin),
            optimistic: Arc::clone(&self.optimistic),
            replays: Arc::clone(&self.replays),
            replies: self.replies.clone(),
        }
    }
}

impl<DB: SqlDatabase> fmt::Debug for SqlStore<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore")
            .field("database", &DB::NAME)
            .field("table", &self.statements.table)
            .field("replies", &self.replies.as_ref().map(|table| &table.statements.table))
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
