//! An outbox in a SQL database: what PostgreSQL, MySQL and SQLite share.
//!
//! Reads: `enqueue`, `put`, `read` (messages become rows; rows to be published; rows that were),
//! `failures`, `lanes` (who has which), `operators` (status, parked rows), `schema`, `notify`.
//! `dialect` is what a database has to say for itself.

mod contract;
mod dialect;
mod enqueue;
mod failures;
mod lanes;
mod notify;
mod operators;
mod put;
mod read;
mod rows;
mod schema;
mod statements;

use std::{
    fmt,
    future::Future,
    sync::{Arc, atomic::AtomicI64},
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, Pool, pool::PoolConnection, query::Query};
use tokio::time::timeout;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(in crate::store) use self::dialect::Ear;
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(in crate::store) use self::dialect::without;
use self::notify::Notifier;
pub(in crate::store) use self::{
    dialect::OutboxDialect,
    rows::{Cells, cells},
    statements::{OutboxStatements, OutboxSyntax},
};
use super::{
    InvalidTableName, SqlDatabase, TableName,
    begin::begun,
    dialect::{Cause, Value},
    error::{cause, failed},
    options::Limits,
    pool::{connected, lazy},
};
use crate::{
    idempotency::{StoreError, StoreErrorKind},
    outbox::{Placement, Wake},
};

/// Longer leases and pauses are cut: databases know no time for ever.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Messages to be published, in a table beside the data that they tell of.
///
/// Use it by the names [`PostgresOutbox`](crate::PostgresOutbox),
/// [`MySqlOutbox`](crate::MySqlOutbox) and [`SqliteOutbox`](crate::SqliteOutbox). What it
/// guarantees is the contract of [`Outbox`](crate::outbox::Outbox).
///
/// It has three tables: `outbox`, in which a row stands for a message until it is published,
/// `outbox_lanes`, which says what relay works on which share of them, and `outbox_relays`, which
/// says when each was last heard of.
///
/// Its own statements take a connection of the pool each, and none is held for longer than a
/// statement, or a short transaction, takes. A pool that producers use up makes the relay wait:
/// then give the relay an outbox with a pool of its own. What the server does not answer within 35
/// seconds is an error. What is put in with a transaction of the caller's has the caller's limits.
///
/// # Rights
///
/// Who enqueues needs INSERT on `outbox`. A relay needs SELECT, UPDATE and DELETE on `outbox`,
/// SELECT and UPDATE on `outbox_lanes`, and SELECT, INSERT, UPDATE and DELETE on `outbox_relays`;
/// operators SELECT, UPDATE and DELETE on `outbox`.
///
/// # Parked messages
///
/// They stay, with the reason, until an operator has mended it. Relays notice within seconds what
/// was put back.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn operate(outbox: lapin_idempotent::PostgresOutbox)
/// # -> Result<(), lapin_idempotent::BoxError> {
/// use lapin_idempotent::outbox::{Outbox, Select};
///
/// let mut behind = 0;
/// loop {
///     let page = outbox.list_parked(&Select::All, behind, 100).await?;
///     let Some(last) = page.last() else { break };
///     behind = last.row.id.seq;
///     for parked in page {
///         println!("{}: {:?}", parked.row.message_id, parked.error);
///     }
/// }
/// outbox.unpark(&Select::Key("order-42".to_owned())).await?; // in order, with its numbers
/// outbox.discard(&Select::Seq(behind)).await?; // never published
/// # Ok(())
/// # }
/// ```
///
/// Clones share the pool, and what wakes their relays. Cheap to clone.
pub struct SqlOutbox<DB: SqlDatabase> {
    pool: Pool<DB>,
    statements: Arc<OutboxStatements>,
    placement: Placement,
    limits: Limits,
    wake: Wake,
    notifier: Arc<Notifier>,
    /// The number of the last row that was told to be no message.
    told: Arc<AtomicI64>,
}

impl<DB: SqlDatabase> SqlOutbox<DB> {
    /// Works with your own pool, in the table `outbox`. SQLite: set WAL, `synchronous=FULL` and a
    /// busy time-out.
    pub fn new(pool: Pool<DB>) -> Self {
        let table = TableName { schema: None, table: "outbox".to_owned() };
        Self {
            pool,
            statements: Arc::new(DB::outbox(table)),
            placement: Placement::new(DB::LANES),
            limits: Limits::default(),
            wake: Wake::default(),
            notifier: Arc::default(),
            told: Arc::default(),
        }
    }

    /// Opens a pool of ten connections (SQLite: one), as
    /// [`SqlStore::connect`](super::SqlStore::connect) does.
    ///
    /// # Errors
    ///
    /// `Configuration` for a URL that cannot be used, `Unavailable` if the database cannot be
    /// reached. The URL is in no error.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Ok(Self::new(connected(url, &Limits::default(), |pool| pool).await?))
    }

    /// As [`connect`](Self::connect), but does not connect before the first call: for a service
    /// that may start before its database.
    ///
    /// # Errors
    ///
    /// `Configuration` for a URL that cannot be used. The URL is in no error.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect_lazy(url: &str) -> Result<Self, StoreError> {
        Ok(Self::new(lazy(url, &Limits::default(), |pool| pool)?))
    }

    /// Keeps the messages in another table than `outbox`: `table` or `schema.table`. The two others
    /// are beside it, with `_lanes` and `_relays` behind its name.
    ///
    /// # Errors
    ///
    /// [`InvalidTableName`] unless both match `[a-z_][a-z0-9_]{0,39}`.
    pub fn table(self, table: &str) -> Result<Self, InvalidTableName> {
        let statements = Arc::new(DB::outbox(TableName::new(table)?));
        // Nobody waits yet for what is committed to another table.
        Ok(Self { statements, placement: self.placement, ..Self::new(self.pool) })
    }

    /// The pool that the outbox uses.
    pub fn pool(&self) -> &Pool<DB> {
        &self.pool
    }

    /// Bounds what asks the server something, so that one that is frozen or unreachable is an error
    /// and not a hang.
    async fn answered<T>(
        &self,
        late: StoreErrorKind,
        asking: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        // The wait for a connection of the pool has its own limit.
        let limit = self.limits.answer().saturating_add(self.pool.options().get_acquire_timeout());
        timeout(limit, asking).await.unwrap_or_else(|elapsed| Err(StoreError::new(late, elapsed)))
    }

    async fn connection(&self) -> Result<PoolConnection<DB>, StoreError> {
        self.pool.acquire().await.map_err(failed::<DB>)
    }

    /// What became of a statement on a connection, which is given up if others would fail on it
    /// too: what was prepared on it is lost, or its server takes no writes any more.
    fn done<T>(mut connection: PoolConnection<DB>, result: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        result.map_err(|error| {
            if matches!(cause::<DB>(&error), Some(Cause::Stale | Cause::ReadOnly)) {
                connection.close_on_drop();
            }
            failed::<DB>(error)
        })
    }

    /// Runs a statement by itself; how many rows were changed.
    async fn changed(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        let changing = async {
            let mut connection = self.connection().await?;
            let result = DB::execute(&mut connection, sql, values).await;
            Self::done(connection, result)
        };
        self.answered(StoreErrorKind::Unavailable, changing).await
    }

    /// Reads, as the database reads the table best.
    async fn fetched(&self, queries: Vec<Query<'_, DB, DB::Arguments>>) -> Result<Vec<DB::Row>, StoreError> {
        let fetching = async {
            let mut rows = Vec::new();
            if let Some(begin) = DB::READING {
                let mut transaction = begun(&self.pool, begin).await.map_err(failed::<DB>)?;
                for query in queries {
                    match DB::fetch(&mut transaction, query).await {
                        Ok(more) => rows.extend(more),
                        Err(error) => {
                            if cause::<DB>(&error) == Some(Cause::Stale) {
                                transaction.clear_cached_statements().await.map_err(failed::<DB>)?;
                            }
                            return Err(failed::<DB>(error));
                        }
                    }
                }
                transaction.rollback().await.map_err(failed::<DB>)?;
                return Ok(rows);
            }
            let mut connection = self.connection().await?;
            for query in queries {
                match DB::fetch(&mut connection, query).await {
                    Ok(more) => rows.extend(more),
                    Err(error) => return Self::done(connection, Err(error)),
                }
            }
            Ok(rows)
        };
        self.answered(StoreErrorKind::Unavailable, fetching).await
    }

    async fn selected(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<DB::Row>, StoreError> {
        self.fetched(vec![DB::bound(sqlx::query(AssertSqlSafe(sql)), values)]).await
    }
}

impl<DB: SqlDatabase> Clone for SqlOutbox<DB> {
    fn clone(&self) -> Self {
        Self {
            pool: self.pool.clone(),
            statements: Arc::clone(&self.statements),
            placement: self.placement.clone(),
            limits: self.limits,
            wake: self.wake.clone(),
            notifier: Arc::clone(&self.notifier),
            told: Arc::clone(&self.told),
        }
    }
}

impl<DB: SqlDatabase> fmt::Debug for SqlOutbox<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlOutbox")
            .field("database", &DB::NAME)
            .field("table", &self.statements.table)
            .finish_non_exhaustive()
    }
}
