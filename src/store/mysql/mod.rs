//! Identities and effects in one MySQL or MariaDB transaction.

use std::{collections::HashSet, fmt::Write, time::Duration};

use sqlx::{
    AssertSqlSafe, MySql, Pool, Transaction,
    error::DatabaseError,
    mysql::{MySqlConnection, MySqlDatabaseError},
};

use super::sql::{
    Cause, Dialect, Found, Limits, NewLease, ReplaySyntax, SqlDatabase, SqlStore, Statements, Syntax,
    TableName, begun, found, micros, millis, runs_statements,
};
use crate::{
    idempotency::{ClaimRequest, Lease, Scope},
    message::MessageId,
};

mod outbox;
mod replies;

pub use self::outbox::MySqlOutbox;

/// Remembers identities in a MySQL or MariaDB table (InnoDB), in the transaction that the handler
/// writes its effects in. See [`SqlStore`] for what is guaranteed.
///
/// * The effects' tables must be transactional too: MyISAM, and any DDL statement in a handler
///   (MySQL commits before it), break the guarantee. A transaction that was ended that way fails to
///   complete.
/// * The store sets `innodb_lock_wait_timeout`, `lock_wait_timeout`, and the limits for statements
///   and idle transactions, on the sessions of the pool whenever it begins a transaction, and they
///   stay set.
/// * A commit is as durable as `innodb_flush_log_at_trx_commit` and `sync_binlog` make it: both
///   must be 1.
pub type MySqlStore = SqlStore<MySql>;

/// The session of a [`MySqlStore`]: the transaction that the handler writes its effects in.
///
/// Run statements on `&mut **tx`. Do not commit or roll back; nested transactions (savepoints) are
/// fine.
pub type MySqlTransaction = Transaction<'static, MySql>;

const WORDS: Syntax = Syntax {
    value: |_| "?".to_owned(),
    now: "UTC_TIMESTAMP(6)",
    moment: "UTC_TIMESTAMP(6)",
    micros: |time| format!("TIMESTAMPDIFF(MICROSECOND, '1970-01-01', {time})"),
    later: |micros| format!("UTC_TIMESTAMP(6) + INTERVAL {micros} MICROSECOND"),
    until: |time| format!("TIMESTAMPDIFF(MICROSECOND, UTC_TIMESTAMP(6), {time})"),
};

/// How often rows are inserted again of which a rival's was seen and then gone.
const TRIES: usize = 4;

impl SqlDatabase for MySql {
    // MySQL 8 takes it as FOR SHARE, which MariaDB does not know.
    const REPLAYS: ReplaySyntax = ReplaySyntax {
        words: &WORDS,
        share: "LOCK IN SHARE MODE",
        schema: include_str!("../schema/replays_mysql.sql"),
    };

    fn statements(table: TableName, _: Option<u32>) -> Statements {
        let index = table.with_suffix("_processed_at");
        let statements = Statements::new::<Self>(table, &WORDS);
        let t = &statements.quoted;
        let old = "UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND";
        Statements {
            insert: format!(
                "INSERT INTO {t} (scope, message_id, fingerprint, processed_at, token, leased_until) VALUES "
            ),
            purge: format!(
                "SELECT scope, message_id FROM {t} WHERE processed_at < {old} \
                 AND (leased_until IS NULL OR leased_until < {old}) ORDER BY processed_at LIMIT ? FOR UPDATE SKIP LOCKED"
            ),
            schema: include_str!("../schema/mysql.sql")
                .replace("{table}", t)
                .replace("{index}", &format!("`{}`", index.name())),
            index: format!(
                "ALTER TABLE {t} ADD KEY `{}` (processed_at), ALGORITHM=INPLACE, LOCK=NONE",
                index.name()
            ),
            ..statements
        }
    }
}

impl Dialect for MySql {
    const QUOTE: char = '`';
    // A deadlock ends the transaction on the server, and what the handler does afterwards is
    // committed statement by statement. The savepoint tells: it ends with the transaction, and
    // releasing what is not there is error 1305, after which nothing else is run.
    const COMMIT: &'static str = "RELEASE SAVEPOINT lapin_idempotent; COMMIT";
    const ROLLBACK: &'static str = "ROLLBACK";
    const ONE_WRITER: bool = false;
    const AFTER_FAILURE: Option<&'static str> = None;
    const VERSION: &'static str = "SELECT CAST(VERSION() AS CHAR)";
    const COLUMNS: &'static str = "SELECT CAST(column_name AS CHAR) FROM information_schema.columns WHERE table_name = ? \
                                   AND table_schema = COALESCE(NULLIF(?, ''), DATABASE())";
    const KEY: &'static str = "SELECT CAST(column_name AS CHAR) FROM information_schema.key_column_usage WHERE \
                               table_name = ? AND table_schema = COALESCE(NULLIF(?, ''), DATABASE()) \
                               AND constraint_name = 'PRIMARY'";

    const INDEXES: &'static str = "SELECT CAST(LOWER(index_type) AS CHAR) FROM information_schema.statistics WHERE \
                                   table_name = ? AND table_schema = COALESCE(NULLIF(?, ''), DATABASE()) \
                                   AND column_name = 'processed_at' AND seq_in_index = 1";
    const LEAVE: Option<&'static str> = Some("KILL CONNECTION_ID()");

    fn begin(limits: &Limits) -> String {
        let seconds = |limit: Duration| limit.as_secs().clamp(1, 1_000_000);
        let lock = seconds(limits.lock);
        // The comments are run by MariaDB and by MySQL 8 only.
        format!(
            "SET SESSION innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock} /*M! , max_statement_time = {}, idle_transaction_timeout = {} */ \
             /*!80000 , max_execution_time = {} */; START TRANSACTION; SAVEPOINT lapin_idempotent",
            limits.statement.as_secs_f64(),
            seconds(limits.idle),
            millis(limits.statement)
        )
    }

    /// By error number (MySQL Server Error Message Reference; MariaDB Error Codes).
    fn cause(error: &dyn DatabaseError) -> Cause {
        let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() else { return Cause::Refused };
        by_number(error.number())
    }

    /// Inserts plainly, and looks only when a row is there already: `INSERT IGNORE` would hide
    /// other errors, and with `ON DUPLICATE KEY UPDATE` the server does not tell which rows were
    /// new.
    async fn insert(
        connection: &mut MySqlConnection,
        statements: &Statements,
        rows: &[&ClaimRequest],
        lease: Option<NewLease>,
    ) -> Result<Vec<bool>, sqlx::Error> {
        let mut missing: Vec<usize> = (0..rows.len()).collect();
        let mut tries = 0;
        while !missing.is_empty() {
            let sql = insert(&statements.insert, missing.iter().map(|&index| rows[index]), lease);
            match sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await {
                Ok(_) => break,
                Err(sqlx::Error::Database(error))
                    if Self::cause(&*error) == Cause::Duplicate && tries < TRIES =>
                {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
            let asked: Vec<_> =
                missing.iter().map(|&index| (&rows[index].scope, &rows[index].message_id)).collect();
            let found = Self::select(connection, statements, &asked).await?;
            let found: HashSet<_> = found.iter().map(Found::identity).collect();
            missing.retain(|&index| {
                !found.contains(&(rows[index].scope.as_str(), rows[index].message_id.as_str()))
            });
        }
        let mut new = vec![false; rows.len()];
        for index in missing {
            new[index] = true;
        }
        Ok(new)
    }

    /// A locking read: the newest committed rows, whatever the transaction's snapshot is.
    async fn select(
        connection: &mut MySqlConnection,
        statements: &Statements,
        identities: &[(&Scope, &MessageId)],
    ) -> Result<Vec<Found>, sqlx::Error> {
        let pairs = identities.iter().map(|(scope, id)| (scope.as_str().as_bytes(), id.as_str().as_bytes()));
        let sql = format!(
            "{}WHERE (scope, message_id) IN ({}) LOCK IN SHARE MODE",
            statements.select,
            rows_of(pairs.map(|(scope, id)| (scope, id, None)))
        );
        let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await?;
        rows.iter().map(|row| found!(row)).collect()
    }

    async fn complete(
        connection: &mut MySqlConnection,
        statements: &Statements,
        leases: &[&Lease],
    ) -> Result<u64, sqlx::Error> {
        let held = leases.iter().map(|lease| {
            let (scope, id) = (lease.scope().as_str().as_bytes(), lease.message_id().as_str().as_bytes());
            (scope, id, Some(lease.token()))
        });
        let sql = format!("{}{})", statements.complete_all, rows_of(held));
        Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?.rows_affected())
    }

    async fn purge(
        pool: &Pool<Self>,
        statements: &Statements,
        limits: &Limits,
        retention: Duration,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        let old = [micros(retention), micros(retention), i64::from(limit)];
        forget(pool, limits, (&statements.purge, &old), (&statements.quoted, "")).await
    }

    async fn create_missing(pool: &Pool<Self>, sql: &str, _: &Limits) -> Result<(), sqlx::Error> {
        // The server's metadata lock makes concurrent callers wait for each other.
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.map(|_| ())
    }

    runs_statements!(|text: &str| text.as_bytes().to_vec());
}

/// Deletes the rows of a table whose identities a query gives, those alone that meet a condition
/// besides; how many.
async fn forget(
    pool: &Pool<MySql>,
    limits: &Limits,
    (select, values): (&str, &[i64]),
    (table, besides): (&str, &str),
) -> Result<u64, sqlx::Error> {
    let mut transaction = begun(pool, MySql::begin(limits)).await?;
    let mut old = sqlx::query_as(AssertSqlSafe(select));
    for value in values {
        old = old.bind(*value);
    }
    let old: Vec<(Vec<u8>, Vec<u8>)> = old.fetch_all(&mut *transaction).await?;
    if old.is_empty() {
        transaction.rollback().await?;
        return Ok(0);
    }
    let old = rows_of(old.iter().map(|(scope, id)| (scope.as_slice(), id.as_slice(), None)));
    let sql = format!("DELETE FROM {table} WHERE (scope, message_id) IN ({old}){besides}");
    let deleted = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(deleted.rows_affected())
}

/// By error number (MySQL Server Error Message Reference; MariaDB Error Codes).
fn by_number(number: u16) -> Cause {
    match number {
        1062 => Cause::Duplicate,
        // A deadlock (Galera's failed certification is one, too), a write conflict with a snapshot
        // (MariaDB 11), a table that was altered since the transaction began, a member of a group
        // that was rolled back at its commit.
        1213 | 1020 | 1412 | 3101 => Cause::Conflict,
        // The lock waits, for rows and for tables, and the statement time-outs of MariaDB and
        // MySQL.
        1205 | 1969 | 3024 => Cause::Busy,
        1146 | 1054 | 1049 => Cause::Schema,
        // --read-only and --super-read-only, a server that is set to read only, a transaction that
        // is.
        1290 | 1836 | 1792 => Cause::ReadOnly,
        // The server shuts down, the connection was killed, or was idle for too long.
        1053 | 1317 | 1927 | 4030 | 4031 | 1040 | 1077 | 1079 => Cause::Unavailable,
        // A node without its Galera cluster. The commit, or a replication plugin's part in it,
        // failed in the server: what became of it shows at the next claim.
        1047 | 1180 | 3100 => Cause::Unavailable,
        // NULL, out of range, truncated, wrong value, no default, a character that the column
        // lacks, too long, a foreign key, CHECK OPTION, no partition, SIGNAL, CHECK of MySQL and of
        // MariaDB.
        1048 | 1264 | 1265 | 1292 | 1364 | 1366 | 1406 | 1216 | 1452 | 1369 | 1526 | 1644 | 1690 | 3819
        | 4025 => Cause::Row,
        _ => Cause::Refused,
    }
}

/// The rows as literals: one round trip, where bound values would be prepared anew for every size
/// of a batch. Hexadecimal, so that no byte of an ID can be anything else than data.
fn insert<'a>(prefix: &str, rows: impl Iterator<Item = &'a ClaimRequest>, lease: Option<NewLease>) -> String {
    let mut sql = prefix.to_owned();
    for (index, row) in rows.enumerate() {
        sql.push_str(if index == 0 { "(" } else { ", (" });
        for bytes in
            [row.scope.as_str().as_bytes(), row.message_id.as_str().as_bytes(), row.fingerprint.as_bytes()]
        {
            hex(&mut sql, bytes);
            sql.push_str(", ");
        }
        sql.push_str(WORDS.now);
        match lease {
            None => sql.push_str(", NULL, NULL)"),
            Some(lease) => {
                let until = (WORDS.later)(&lease.micros.to_string());
                // Writing to a String never fails.
                let _ = write!(sql, ", {}, {until})", lease.token);
            }
        }
    }
    sql
}

/// Identities, or leases, as a list for IN.
fn rows_of<'a>(rows: impl Iterator<Item = (&'a [u8], &'a [u8], Option<u64>)>) -> String {
    let mut sql = String::new();
    for (index, (scope, id, token)) in rows.enumerate() {
        sql.push_str(if index == 0 { "(" } else { ", (" });
        hex(&mut sql, scope);
        sql.push_str(", ");
        hex(&mut sql, id);
        if let Some(token) = token {
            let _ = write!(sql, ", {token}");
        }
        sql.push(')');
    }
    sql
}

fn hex(sql: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    sql.push_str("x'");
    for byte in bytes {
        sql.push(char::from(DIGITS[usize::from(byte >> 4)]));
        sql.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    sql.push('\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_mean_what_the_manuals_say() {
        let numbers: [(&[u16], Cause); 7] = [
            (&[1062], Cause::Duplicate),
            (&[1213, 1020, 1412, 3101], Cause::Conflict),
            (&[1205, 1969, 3024], Cause::Busy),
            (&[1146, 1054, 1049], Cause::Schema),
            (&[1290, 1836, 1792], Cause::ReadOnly),
            (&[1047, 1180, 3100, 1053, 1317, 1927, 4030, 4031], Cause::Unavailable),
            (&[1366, 1406, 1644, 3819, 4025], Cause::Row),
        ];
        for (number, cause) in numbers.iter().flat_map(|(of, cause)| of.iter().map(move |of| (*of, *cause))) {
            assert_eq!(by_number(number), cause, "{number}");
        }
        assert_eq!(by_number(1142), Cause::Refused, "a right that lacks is no row's fault");
    }
}
