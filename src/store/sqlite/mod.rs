//! Identities and effects in one SQLite transaction.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Pool, Row, Sqlite, Transaction,
    error::DatabaseError,
    sqlite::{
        SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous,
    },
};

use super::sql::{
    Cause, Dialect, Found, Limits, NewLease, ReplaySyntax, SqlDatabase, SqlStore, Statements, Syntax,
    TableName, begun, found, millis, runs_statements, which,
};
use crate::{
    idempotency::{ClaimRequest, Lease, Scope},
    message::MessageId,
};

mod outbox;
mod replies;
mod watch;

pub use self::outbox::SqliteOutbox;

/// Remembers identities in a SQLite table, in the transaction that the handler writes its effects
/// in. See [`SqlStore`] for what is guaranteed.
///
/// A transaction holds the database's write lock from the claim to the commit, so messages are
/// handled one at a time, in all processes together. `connect` takes `sqlite:orders.db`, a path, or
/// `sqlite::memory:`, creates the file if it is missing, and keeps one connection; read through a
/// pool of your own. It sets WAL mode with `synchronous=FULL`: a commit survives a power loss as
/// far as the disk keeps its word (with `NORMAL`, WAL mode may lose the last commits; SQLite,
/// "PRAGMA synchronous").
pub type SqliteStore = SqlStore<Sqlite>;

/// The session of a [`SqliteStore`]: the transaction that the handler writes its effects in.
///
/// Run statements on `&mut **tx`. Do not commit or roll back, nor use `OR ROLLBACK`: whatever is
/// written after that would not be in the guard's transaction.
pub type SqliteTransaction = Transaction<'static, Sqlite>;

const WORDS: Syntax = Syntax {
    value: |n| format!("?{n}"),
    now: "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    moment: "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
    micros: |time| format!("{time} * 1000"),
    later: |micros| format!("CAST(unixepoch('subsec') * 1000 AS INTEGER) + {micros} / 1000"),
    until: |time| format!("({time} - CAST(unixepoch('subsec') * 1000 AS INTEGER)) * 1000"),
};

impl SqlDatabase for Sqlite {
    // A transaction that writes is alone.
    const REPLAYS: ReplaySyntax =
        ReplaySyntax { words: &WORDS, share: "", schema: include_str!("../schema/replays_sqlite.sql") };

    fn statements(table: TableName, _: Option<u32>) -> Statements {
        let index = table.with_suffix("_processed_at").quoted('"');
        let name = format!("\"{}\"", table.name());
        let statements = Statements::new::<Self>(table, &WORDS);
        let (t, now) = (&statements.quoted, WORDS.now);
        Statements {
            insert: format!(
                "INSERT INTO {t} (scope, message_id, fingerprint, processed_at, token, leased_until) VALUES "
            ),
            purge: format!(
                "DELETE FROM {t} WHERE (scope, message_id) IN (SELECT scope, message_id FROM {t} \
                 WHERE processed_at < {now} - ?1 AND (leased_until IS NULL OR leased_until < {now} - ?1) \
                 ORDER BY processed_at LIMIT ?2)"
            ),
            schema: include_str!("../schema/sqlite.sql")
                .replace("{table}", t)
                .replace("{index}", &index)
                .replace("{name}", &name),
            index: format!("CREATE INDEX IF NOT EXISTS {index} ON {name} (processed_at)"),
            ..statements
        }
    }
}

impl Dialect for Sqlite {
    const QUOTE: char = '"';
    // COMMIT fails without a transaction: after some errors, and after `OR ROLLBACK`, SQLite has
    // ended it by itself.
    const COMMIT: &'static str = "COMMIT; BEGIN";
    const ROLLBACK: &'static str = "ROLLBACK; BEGIN";
    // The driver still counts the transaction that SQLite ended, and would refuse to begin another
    // one; it gets an empty one to roll back.
    const ONE_WRITER: bool = true;
    const AFTER_FAILURE: Option<&'static str> = Some("BEGIN");
    const VERSION: &'static str = "SELECT sqlite_version()";
    const COLUMNS: &'static str = "SELECT name FROM pragma_table_info(?1, NULLIF(?2, ''))";
    const KEY: &'static str = "SELECT name FROM pragma_table_info(?1, NULLIF(?2, '')) WHERE pk > 0";
    const INDEXES: &'static str = "SELECT 'btree' FROM pragma_index_list(?1, NULLIF(?2, '')) AS list, \
                                   pragma_index_info(list.name, NULLIF(?2, '')) AS info \
                                   WHERE info.seqno = 0 AND info.name = 'processed_at'";

    /// IMMEDIATE takes the write lock now: a transaction that starts as a reader may fail with
    /// `SQLITE_BUSY` at its first write, and waiting would not help it.
    fn begin(limits: &Limits) -> String {
        format!("PRAGMA busy_timeout = {}; BEGIN IMMEDIATE", millis(limits.lock))
    }

    fn pool(limits: &Limits) -> SqlitePoolOptions {
        // A database in memory lives as long as its connection.
        let one = SqlitePoolOptions::new().max_connections(1).min_connections(1);
        // Whoever is cancelled while the pool tests a connection takes it with him.
        let one = one.test_before_acquire(false);
        one.acquire_timeout(limits.acquire).idle_timeout(None).max_lifetime(None)
    }

    fn settings(url: SqliteConnectOptions, limits: &Limits) -> SqliteConnectOptions {
        url.create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(limits.lock)
    }

    /// By result code (<https://www.sqlite.org/rescode.html>); the low byte is the primary one.
    fn cause(error: &dyn DatabaseError) -> Cause {
        let code = error.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or_default();
        match (code, code & 0xff) {
            // SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE
            (1555 | 2067, _) => Cause::Duplicate,
            // SQLITE_BUSY_SNAPSHOT: the reader would have to begin anew.
            (517, _) => Cause::Conflict,
            // SQLITE_TOOBIG, SQLITE_CONSTRAINT, SQLITE_MISMATCH
            (_, 18..=20) => Cause::Row,
            // SQLITE_BUSY, SQLITE_LOCKED
            (_, 5 | 6) => Cause::Busy,
            // SQLITE_IOERR, SQLITE_CORRUPT, SQLITE_FULL, SQLITE_CANTOPEN, SQLITE_PROTOCOL,
            // SQLITE_NOTADB
            (_, 10 | 11 | 13 | 14 | 15 | 26) => Cause::Unavailable,
            _ if error.message().starts_with("no such table") => Cause::Schema,
            _ if error.message().starts_with("no such column") => Cause::Schema,
            _ if error.message().contains("has no column named") => Cause::Schema,
            _ => Cause::Refused,
        }
    }

    async fn insert(
        connection: &mut SqliteConnection,
        statements: &Statements,
        rows: &[&ClaimRequest],
        lease: Option<NewLease>,
    ) -> Result<Vec<bool>, sqlx::Error> {
        let until = lease.map(|lease| (WORDS.later)(&lease.micros.to_string()));
        let last = match (lease, &until) {
            (Some(lease), Some(until)) => format!("{}, {}, {until})", WORDS.now, lease.token),
            _ => format!("{}, NULL, NULL)", WORDS.now),
        };
        let mut sql = statements.insert.clone();
        for index in 0..rows.len() {
            sql.push_str(if index == 0 { "(?, ?, ?, " } else { ", (?, ?, ?, " });
            sql.push_str(&last);
        }
        sql.push_str(" ON CONFLICT (scope, message_id) DO NOTHING RETURNING scope, message_id");
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for row in rows {
            query = query
                .bind(row.scope.as_str())
                .bind(row.message_id.as_str())
                .bind(row.fingerprint.as_bytes().as_slice());
        }
        let inserted = query.fetch_all(connection).await?;
        let mut new = Vec::with_capacity(inserted.len());
        for row in &inserted {
            new.push((row.try_get::<&str, _>(0)?, row.try_get::<&str, _>(1)?));
        }
        Ok(which(rows, new))
    }

    async fn select(
        connection: &mut SqliteConnection,
        statements: &Statements,
        identities: &[(&Scope, &MessageId)],
    ) -> Result<Vec<Found>, sqlx::Error> {
        let mut sql = statements.select.clone() + "WHERE (scope, message_id) IN (VALUES ";
        for index in 0..identities.len() {
            sql.push_str(if index == 0 { "(?, ?)" } else { ", (?, ?)" });
        }
        sql.push(')');
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for (scope, id) in identities {
            query = query.bind(scope.as_str()).bind(id.as_str());
        }
        let rows = query.fetch_all(connection).await?;
        rows.iter().map(|row| found!(row)).collect()
    }

    async fn complete(
        connection: &mut SqliteConnection,
        statements: &Statements,
        leases: &[&Lease],
    ) -> Result<u64, sqlx::Error> {
        let rows = vec!["(?, ?, ?)"; leases.len()].join(", ");
        let mut query = sqlx::query(AssertSqlSafe(format!("{}VALUES {rows})", statements.complete_all)));
        for lease in leases {
            let token = lease.token().cast_signed();
            query = query.bind(lease.scope().as_str()).bind(lease.message_id().as_str()).bind(token);
        }
        Ok(query.execute(connection).await?.rows_affected())
    }

    async fn purge(
        pool: &Pool<Self>,
        statements: &Statements,
        _: &Limits,
        retention: Duration,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        let millis = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX / 2);
        let purge = sqlx::query(AssertSqlSafe(statements.purge.as_str())).bind(millis).bind(i64::from(limit));
        Ok(purge.execute(pool).await?.rows_affected())
    }

    async fn create_missing(pool: &Pool<Self>, sql: &str, limits: &Limits) -> Result<(), sqlx::Error> {
        let mut transaction = begun(pool, Self::begin(limits)).await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    runs_statements!(str::to_owned);
}
