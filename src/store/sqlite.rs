//! Identities and effects in one SQLite transaction.

use std::{
    collections::HashSet,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sqlx::{
    AssertSqlSafe, Row, Sqlite, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

use super::sql::{InvalidTableName, TableName};
use crate::{
    idempotency::{Claim, ClaimRequest, Claims, IdempotencyStore, StoreError, StoreErrorKind},
    message::Fingerprint,
};

/// The session of a [`SqliteStore`]: the transaction that the handler writes its effects in.
///
/// Run statements on `&mut **tx`. Do not commit or roll back, nor use `OR ROLLBACK`: whatever is written after that would not be in
/// the guard's transaction.
pub type SqliteTransaction = Transaction<'static, Sqlite>;

/// The longest wait for another writer. SQLite has one writer at a time.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The clock of the database, in milliseconds.
const NOW: &str = "CAST(unixepoch('subsec') * 1000 AS INTEGER)";

/// Remembers identities in a SQLite table, in the transaction that the handler writes its effects in.
///
/// What is guaranteed: identity and effect are committed together or not at all, so the effect is committed at most once per
/// (scope, message ID) within the retention. A transaction holds the database's write lock from the claim to the commit, so
/// messages are handled one at a time, in all processes together.
///
/// Opened by [`connect`](Self::connect), the database is in WAL mode with `synchronous=FULL`: a commit survives a power
/// loss as far as the disk keeps its word (with `NORMAL`, WAL mode may lose the last commits; SQLite, "PRAGMA synchronous").
#[derive(Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
    table: TableName,
    statements: Arc<Statements>,
}

struct Statements {
    insert: String,
    select: String,
    purge: String,
}

impl SqliteStore {
    /// Opens a database, and creates the file if it is missing: `sqlite:orders.db`, a path, or `sqlite::memory:`.
    ///
    /// The store keeps one connection, as SQLite has one writer; read through a pool of your own.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] for a URL that SQLite does not know, [`StoreErrorKind::Unavailable`] if the file cannot be
    /// opened.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|error| StoreError::new(StoreErrorKind::Configuration, error))?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            // A database in memory lives as long as its connection.
            .min_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options)
            .await
            .map_err(failed)?;
        Ok(Self::new(pool))
    }

    /// A store over your own pool. Set WAL, `synchronous=FULL` and a busy timeout on it.
    pub fn new(pool: SqlitePool) -> Self {
        Self::over(pool, TableName::default())
    }

    /// Keeps the identities in another table than `processed_messages`.
    ///
    /// # Errors
    ///
    /// [`InvalidTableName`] unless it matches `[a-z_][a-z0-9_]{0,62}`.
    pub fn with_table(self, table: &str) -> Result<Self, InvalidTableName> {
        Ok(Self::over(self.pool, TableName::new(table)?))
    }

    fn over(pool: SqlitePool, table: TableName) -> Self {
        let statements = Statements {
            insert: format!("INSERT INTO {table} (scope, message_id, fingerprint, processed_at) VALUES "),
            select: format!(
                "SELECT fingerprint, processed_at FROM {table} WHERE scope = ?1 AND message_id = ?2"
            ),
            purge: format!(
                "DELETE FROM {table} WHERE (scope, message_id) IN \
                 (SELECT scope, message_id FROM {table} WHERE processed_at < {NOW} - ?1 ORDER BY processed_at LIMIT ?2)"
            ),
        };
        Self { pool, table, statements: Arc::new(statements) }
    }

    /// The statements that create the table, for those who run their own migrations.
    pub fn schema_sql(&self) -> String {
        include_str!("schema/sqlite.sql").replace("{table}", self.table.as_str())
    }

    /// Creates the table if it is missing. Safe to run again, and from several processes.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Busy`] or [`StoreErrorKind::Unavailable`].
    pub async fn create_schema(&self) -> Result<(), StoreError> {
        // Built from our own text and a checked table name.
        sqlx::raw_sql(AssertSqlSafe(self.schema_sql())).execute(&self.pool).await.map_err(failed)?;
        Ok(())
    }

    /// The pool that the store uses.
    pub fn pool(&self) -> &SqlitePool {
        &self.pool
    }

    /// Inserts all requests at once; answers with those that were new.
    async fn insert(
        &self,
        tx: &mut SqliteTransaction,
        requests: &[ClaimRequest],
    ) -> Result<HashSet<(String, String)>, sqlx::Error> {
        let mut sql = self.statements.insert.clone();
        for index in 0..requests.len() {
            let comma = if index == 0 { "" } else { ", " };
            sql.push_str(comma);
            sql.push_str("(?, ?, ?, ");
            sql.push_str(NOW);
            sql.push(')');
        }
        sql.push_str(" ON CONFLICT (scope, message_id) DO NOTHING RETURNING scope, message_id");
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for request in requests {
            query = query
                .bind(request.scope.as_str())
                .bind(request.message_id.as_str())
                .bind(request.fingerprint.as_bytes().as_slice());
        }
        let rows = query.fetch_all(&mut **tx).await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    async fn find(&self, tx: &mut SqliteTransaction, request: &ClaimRequest) -> Result<Claim, sqlx::Error> {
        let row = sqlx::query(AssertSqlSafe(self.statements.select.as_str()))
            .bind(request.scope.as_str())
            .bind(request.message_id.as_str())
            .fetch_one(&mut **tx)
            .await?;
        completed(&row)
    }

    async fn claim_in(
        &self,
        tx: &mut SqliteTransaction,
        requests: &[ClaimRequest],
    ) -> Result<Vec<Claim>, sqlx::Error> {
        let new = self.insert(tx, requests).await?;
        let mut claims = Vec::with_capacity(requests.len());
        for request in requests {
            let identity = (request.scope.as_str().to_owned(), request.message_id.as_str().to_owned());
            claims.push(if new.contains(&identity) {
                Claim::Acquired
            } else {
                self.find(tx, request).await?
            });
        }
        Ok(claims)
    }
}

fn completed(row: &SqliteRow) -> Result<Claim, sqlx::Error> {
    let bytes: &[u8] = row.try_get(0)?;
    let fingerprint = Fingerprint::try_from(bytes).map_err(|error| sqlx::Error::Decode(error.into()))?;
    let millis: i64 = row.try_get(1)?;
    let since_epoch = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
    Ok(Claim::Completed { fingerprint, processed_at: SystemTime::UNIX_EPOCH + since_epoch })
}

/// SQLite's result codes (<https://www.sqlite.org/rescode.html>); the low byte is the primary one.
fn failed(error: sqlx::Error) -> StoreError {
    const BUSY: i32 = 5;
    const LOCKED: i32 = 6;
    let kind = match &error {
        sqlx::Error::PoolTimedOut => StoreErrorKind::Busy,
        sqlx::Error::Configuration(_) => StoreErrorKind::Configuration,
        sqlx::Error::Database(database) => {
            let code = database.code().and_then(|code| code.parse::<i32>().ok()).map(|code| code & 0xff);
            match code {
                Some(BUSY | LOCKED) => StoreErrorKind::Busy,
                _ if database.message().starts_with("no such table") => StoreErrorKind::Schema,
                _ if database.message().starts_with("no such column") => StoreErrorKind::Schema,
                _ => StoreErrorKind::Unavailable,
            }
        }
        _ => StoreErrorKind::Unavailable,
    };
    StoreError::new(kind, error)
}

/// Ends a transaction with `statement`, and leaves its connection fit for the next one.
///
/// After some errors, and after `OR ROLLBACK`, SQLite has ended the transaction by itself: COMMIT then fails, as it must. But
/// sqlx would go on counting the transaction, and refuse to begin another one on this connection. So `statement` is ours, and
/// sqlx gets an empty transaction to roll back.
async fn end(mut tx: SqliteTransaction, statement: &'static str) -> Result<(), sqlx::Error> {
    let ended = sqlx::raw_sql(statement).execute(&mut *tx).await.map(|_| ());
    if ended.is_err() {
        // Fails, and does no harm, if the transaction is still there.
        let _ = sqlx::raw_sql("BEGIN").execute(&mut *tx).await;
        let _ = tx.rollback().await;
    }
    ended
}

impl IdempotencyStore for SqliteStore {
    type Session = SqliteTransaction;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<SqliteTransaction>, StoreError> {
        // IMMEDIATE takes the write lock now: a transaction that starts as a reader may fail with SQLITE_BUSY
        // at its first write, and waiting would not help it.
        let mut tx = match self.pool.begin_with("BEGIN IMMEDIATE").await {
            // A cancelled handler left a connection behind on which SQLite had ended the transaction (see `end`).
            Err(sqlx::Error::InvalidSavePointStatement) => {
                self.pool.acquire().await.map_err(failed)?.close().await.map_err(failed)?;
                self.pool.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?
            }
            begun => begun.map_err(failed)?,
        };
        let claims = self.claim_in(&mut tx, requests).await.map_err(failed)?;
        if claims.contains(&Claim::Acquired) {
            return Ok(Claims { session: Some(tx), claims });
        }
        tx.rollback().await.map_err(failed)?;
        Ok(Claims { session: None, claims })
    }

    async fn complete(&self, session: SqliteTransaction) -> Result<(), StoreError> {
        let committed = end(session, "COMMIT; BEGIN").await;
        committed.map_err(|error| StoreError::new(StoreErrorKind::OutcomeUnknown, error))
    }

    async fn release(&self, session: SqliteTransaction) -> Result<(), StoreError> {
        end(session, "ROLLBACK; BEGIN").await.map_err(failed)
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        let millis = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let done = sqlx::query(AssertSqlSafe(self.statements.purge.as_str()))
            .bind(millis)
            .bind(i64::from(limit))
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(done.rows_affected())
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("table", &self.table.as_str()).finish_non_exhaustive()
    }
}
