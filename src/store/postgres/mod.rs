//! Identities and effects in one PostgreSQL transaction.

use std::time::Duration;

use sqlx::{
    AssertSqlSafe, Pool, Postgres, Row, Transaction,
    error::DatabaseError,
    postgres::{PgArguments, PgConnection, PgDatabaseError},
    query::Query,
};
use tokio::time::timeout;

use self::{codes::by_code, partitions::default_of};
use super::sql::{
    Cause, Dialect, Found, Limits, NewLease, ReplaySyntax, SqlDatabase, SqlStore, Statements, Syntax,
    TableName, begun, found, micros, millis, runs_statements, which,
};
use crate::{
    idempotency::{ClaimRequest, Lease, Scope},
    message::MessageId,
};

mod codes;
mod listen;
mod outbox;
mod partitions;
mod replies;

pub use self::outbox::PostgresOutbox;

/// Remembers identities in a PostgreSQL table, in the transaction that the handler writes its
/// effects in. See [`SqlStore`] for what is guaranteed.
///
/// A commit is as durable as the server's `synchronous_commit` makes it: with `off`, the last
/// commits before a crash of the server are lost after their messages were acked. Leave it on.
///
/// Behind PgBouncer in transaction mode it needs version 1.21 or later with
/// `max_prepared_statements` above 0 (and `extra_float_digits` among `ignore_startup_parameters`,
/// as the driver sends it); where prepared statements get lost, a consumer does not start. With
/// `pool_mode = session` any version does.
///
/// One identity, or a batch of 32 or more, is inserted in the expectation that all are new; one
/// alone in the round trip that begins its transaction, if scope and ID are printable ASCII without
/// quotes and backslashes. One that is not new leaves an error 23505 in the server's log, and is
/// claimed again with care, as are the next 32; 64 after the second such error, and so on up to
/// 4,096.
pub type PostgresStore = SqlStore<Postgres>;

/// The session of a [`PostgresStore`]: the transaction that the handler writes its effects in.
///
/// Run statements on `&mut **tx`. Do not commit or roll back; nested transactions (savepoints) are
/// fine.
pub type PostgresTransaction = Transaction<'static, Postgres>;

const WORDS: Syntax = Syntax {
    value: |n| format!("${n}"),
    now: "now()",
    moment: "clock_timestamp()",
    micros: |time| format!("(extract(epoch FROM {time}) * 1000000)::bigint"),
    later: |micros| format!("now() + {micros}::bigint * interval '1 microsecond'"),
    until: |time| format!("(extract(epoch FROM {time} - clock_timestamp()) * 1000000)::bigint"),
};

/// Sorted by the store, and inserted in that order: two batches never wait for each other in a
/// circle.
fn insert(table: &str, columns: (&str, &str), partitioned: bool, known: &str) -> String {
    let (id_time, values, array) =
        if partitioned { (", id_time", ", t", ", $4::bigint[]") } else { ("", "", "") };
    let (names, expressions) = columns;
    format!(
        "INSERT INTO {table} (scope, message_id, fingerprint, processed_at{names}{id_time}) \
         SELECT s, m, f, now(){expressions}{values} FROM UNNEST($1::text[], $2::text[], $3::bytea[]{array}) \
         AS new(s, m, f{values}) {known}"
    )
}

const BEGIN: &str = "BEGIN; ";

const SKIPPED: &str = "ON CONFLICT DO NOTHING RETURNING scope, message_id";

impl SqlDatabase for Postgres {
    const REPLAYS: ReplaySyntax = ReplaySyntax {
        words: &WORDS,
        share: "FOR SHARE",
        schema: include_str!("../schema/replays_postgres.sql"),
    };

    fn statements(table: TableName, partition_hours: Option<u32>) -> Statements {
        let partitioned = partition_hours.is_some();
        let schema = if partitioned {
            include_str!("../schema/postgres_partitioned.sql")
        } else {
            include_str!("../schema/postgres.sql")
        };
        let default = default_of(&table);
        // Earlier versions had a block range index of the name `.._processed_at`.
        let index = format!("\"{}_by_age\"", table.name());
        let statements = Statements::new::<Self>(table, &WORDS);
        let leased = if partitioned { ("$5", "$6") } else { ("$4", "$5") };
        let values = format!(", {}::bigint, {}", leased.0, (WORDS.later)(leased.1));
        // A row address is unique within one table, not within all partitions.
        let swept = if partitioned { default.quoted('"') } else { statements.quoted.clone() };
        let old = "now() - $1::bigint * interval '1 microsecond'";
        Statements {
            insert: insert(&statements.quoted, ("", ""), partitioned, SKIPPED),
            insert_new: insert(&statements.quoted, ("", ""), partitioned, ""),
            insert_leased: insert(
                &statements.quoted,
                (", token, leased_until", &values),
                partitioned,
                SKIPPED,
            ),
            purge: format!(
                "DELETE FROM {swept} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {swept} WHERE processed_at < {old} \
                 AND (leased_until IS NULL OR leased_until < {old}) ORDER BY processed_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
            ),
            index: if partitioned {
                format!("CREATE INDEX IF NOT EXISTS {index} ON {} (processed_at)", statements.quoted)
            } else {
                format!(
                    "CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON {} (processed_at)",
                    statements.quoted
                )
            },
            schema: schema
                .replace("{table}", &statements.quoted)
                .replace("{index}", &index)
                .replace("{default}", &default.quoted('"')),
            partition_hours,
            ..statements
        }
    }
}

impl Dialect for Postgres {
    const QUOTE: char = '"';
    // COMMIT answers "ROLLBACK", and the driver Ok, in a transaction that an error aborted; SELECT
    // fails there with 25P02, and what follows is not run. A setting that is local to the
    // transaction shows whether it is still the one that was begun: afterwards it is '', which is
    // no boolean, and in a session that never had it, which a pooler may have put in its place, it
    // is an error to ask for it.
    const COMMIT: &'static str =
        "SELECT current_setting('lapin_idempotent.transaction')::bool; COMMIT AND CHAIN";
    const ROLLBACK: &'static str = "ROLLBACK; BEGIN";
    const ONE_WRITER: bool = false;
    const AFTER_FAILURE: Option<&'static str> = None;
    const OPTIMISTIC: bool = true;
    const VERSION: &'static str = "SELECT current_setting('server_version')";
    const COLUMNS: &'static str = "SELECT attname::text FROM pg_attribute WHERE attnum > 0 AND NOT attisdropped AND \
                                   attrelid = to_regclass(CASE $2 WHEN '' THEN quote_ident($1) \
                                   ELSE quote_ident($2) || '.' || quote_ident($1) END)";
    const KEY: &'static str = "SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid \
                               AND attnum = ANY(indkey) WHERE indisprimary AND indrelid = \
                               to_regclass(CASE $2 WHEN '' THEN quote_ident($1) \
                               ELSE quote_ident($2) || '.' || quote_ident($1) END)";

    const INDEXES: &'static str = "SELECT amname::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid \
                                   JOIN pg_am ON pg_am.oid = relam JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0] \
                                   WHERE indisvalid AND attname = 'processed_at' AND indrelid = \
                                   to_regclass(CASE $2 WHEN '' THEN quote_ident($1) \
                                   ELSE quote_ident($2) || '.' || quote_ident($1) END)";
    const LEAVE: Option<&'static str> = Some("ROLLBACK; SELECT pg_terminate_backend(pg_backend_pid())");
    const GOES_STALE: bool = true;

    fn begin(limits: &Limits) -> String {
        format!(
            "{BEGIN}SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL lapin_idempotent.transaction = on",
            millis(limits.lock),
            millis(limits.statement),
            millis(limits.idle)
        )
    }

    /// By SQLSTATE (PostgreSQL manual, appendix A).
    fn cause(error: &dyn DatabaseError) -> Cause {
        let code = error.code().unwrap_or_default();
        let routine = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine);
        by_code(&code, routine)
    }

    async fn insert(
        connection: &mut PgConnection,
        statements: &Statements,
        rows: &[&ClaimRequest],
        lease: Option<NewLease>,
    ) -> Result<Vec<bool>, sqlx::Error> {
        let sql = if lease.is_some() { &statements.insert_leased } else { &statements.insert };
        let mut query = bound(sql, statements, rows);
        if let Some(lease) = lease {
            query = query.bind(lease.token).bind(lease.micros);
        }
        let inserted = query.fetch_all(connection).await?;
        if inserted.len() == rows.len() {
            return Ok(vec![true; rows.len()]);
        }
        let mut new = Vec::with_capacity(inserted.len());
        for row in &inserted {
            new.push((row.try_get::<&str, _>(0)?, row.try_get::<&str, _>(1)?));
        }
        Ok(which(rows, new))
    }

    async fn insert_new(
        connection: &mut PgConnection,
        statements: &Statements,
        rows: &[&ClaimRequest],
    ) -> Result<(), sqlx::Error> {
        bound(&statements.insert_new, statements, rows).execute(connection).await.map(|_| ())
    }

    /// Statements that are sent together are one transaction, which BEGIN keeps open (PostgreSQL
    /// manual, "Multiple Statements in a Simple Query"): what fails before it leaves none.
    fn begin_with_new(begin: &str, statements: &Statements, request: &ClaimRequest) -> Option<String> {
        let (settings, insert) = (begin.strip_prefix(BEGIN)?, literal(statements, request)?);
        Some(format!("{settings}; {insert}; BEGIN"))
    }

    async fn select(
        connection: &mut PgConnection,
        statements: &Statements,
        identities: &[(&Scope, &MessageId)],
    ) -> Result<Vec<Found>, sqlx::Error> {
        let scopes: Vec<&str> = identities.iter().map(|(scope, _)| scope.as_str()).collect();
        let ids: Vec<&str> = identities.iter().map(|(_, id)| id.as_str()).collect();
        let mut sql = statements.select.clone();
        let rows = if statements.partition_hours.is_some() {
            sql.push_str("JOIN UNNEST($1::text[], $2::text[], $3::bigint[]) AS asked(s, m, t) ");
            sql.push_str("ON scope = s AND message_id = m AND id_time = t");
            let times: Vec<i64> = identities.iter().map(|(_, id)| partitions::id_time(id)).collect();
            sqlx::query(AssertSqlSafe(sql)).bind(scopes).bind(ids).bind(times).fetch_all(connection).await?
        } else {
            sql.push_str(
                "JOIN UNNEST($1::text[], $2::text[]) AS asked(s, m) ON scope = s AND message_id = m",
            );
            sqlx::query(AssertSqlSafe(sql)).bind(scopes).bind(ids).fetch_all(connection).await?
        };
        rows.iter().map(|row| found!(row)).collect()
    }

    async fn complete(
        connection: &mut PgConnection,
        statements: &Statements,
        leases: &[&Lease],
    ) -> Result<u64, sqlx::Error> {
        let sql =
            statements.complete_all.clone() + "SELECT * FROM UNNEST($1::text[], $2::text[], $3::bigint[]))";
        let completed = sqlx::query(AssertSqlSafe(sql))
            .bind(leases.iter().map(|lease| lease.scope().as_str()).collect::<Vec<_>>())
            .bind(leases.iter().map(|lease| lease.message_id().as_str()).collect::<Vec<_>>())
            .bind(leases.iter().map(|lease| lease.token().cast_signed()).collect::<Vec<_>>());
        Ok(completed.execute(connection).await?.rows_affected())
    }

    async fn purge(
        pool: &Pool<Self>,
        statements: &Statements,
        limits: &Limits,
        retention: Duration,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        let dropped = match statements.partition_hours {
            Some(hours) => partitions::maintain(pool, statements, limits, hours, Some(retention)).await?,
            None => 0,
        };
        let mut transaction = begun(pool, Self::begin(limits)).await?;
        let purged = sqlx::query(AssertSqlSafe(statements.purge.as_str()))
            .bind(micros(retention))
            .bind(i64::from(limit))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(dropped + purged.rows_affected())
    }

    async fn tend(pool: &Pool<Self>, statements: &Statements, limits: &Limits) -> Result<(), sqlx::Error> {
        let Some(hours) = statements.partition_hours else { return Ok(()) };
        let default = default_of(&statements.table).quoted('"');
        let there = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(default).fetch_one(pool);
        if there.await? {
            partitions::maintain(pool, statements, limits, hours, None).await.map(|_| ())
        } else {
            Self::create(pool, statements, limits).await
        }
    }

    /// Uses a prepared statement again after somebody else took the server session that a pooler
    /// would give next.
    async fn keeps_prepared(pool: &Pool<Self>) -> Result<(), sqlx::Error> {
        if pool.options().get_max_connections() < 2 {
            return Ok(());
        }
        let mut connection = pool.acquire().await?;
        let ask = "SELECT $1::bigint";
        sqlx::query(ask).bind(1_i64).execute(&mut *connection).await?;
        // The trial is worth no wait for a connection that others hold.
        let Ok(other) = timeout(Duration::from_secs(1), begun(pool, "BEGIN")).await else { return Ok(()) };
        let other = other?;
        let kept = sqlx::query(ask).bind(1_i64).execute(&mut *connection).await;
        other.rollback().await?;
        kept.map(|_| ())
    }

    async fn create_missing(pool: &Pool<Self>, sql: &str, limits: &Limits) -> Result<(), sqlx::Error> {
        // IF NOT EXISTS is no protection from a second session that creates the same table at the
        // same time.
        let locked = format!("{}; SELECT pg_advisory_xact_lock({LOCK})", Self::begin(limits));
        let mut transaction = begun(pool, locked).await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *transaction).await?;
        transaction.commit().await
    }

    async fn create(pool: &Pool<Self>, statements: &Statements, limits: &Limits) -> Result<(), sqlx::Error> {
        Self::create_missing(pool, &statements.schema, limits).await?;
        if let Some(hours) = statements.partition_hours {
            partitions::maintain(pool, statements, limits, hours, None).await?;
        }
        Ok(())
    }

    runs_statements!(str::to_owned);
}

/// The plain INSERT of a row with its values in it. `None` of an identity with characters that a
/// server might read as anything else than data, whatever it is set to.
fn literal(statements: &Statements, request: &ClaimRequest) -> Option<String> {
    let plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\'' | b'\\'));
    let (scope, id) = (request.scope.as_str(), request.message_id.as_str());
    if !plain(scope) || !plain(id) {
        return None;
    }
    let (id_time, value) = match statements.partition_hours {
        Some(_) => (", id_time", format!(", {}", partitions::id_time(&request.message_id))),
        None => ("", String::new()),
    };
    Some(format!(
        "INSERT INTO {} (scope, message_id, fingerprint, processed_at{id_time}) \
         VALUES ('{scope}', '{id}', decode('{}', 'hex'), now(){value})",
        statements.quoted, request.fingerprint
    ))
}

/// An INSERT with its rows, as arrays.
fn bound<'q>(
    sql: &'q str,
    statements: &Statements,
    rows: &[&'q ClaimRequest],
) -> Query<'q, Postgres, PgArguments> {
    let scopes: Vec<&str> = rows.iter().map(|row| row.scope.as_str()).collect();
    let ids: Vec<&str> = rows.iter().map(|row| row.message_id.as_str()).collect();
    let fingerprints: Vec<&[u8]> = rows.iter().map(|row| row.fingerprint.as_bytes().as_slice()).collect();
    let query = sqlx::query(AssertSqlSafe(sql)).bind(scopes).bind(ids).bind(fingerprints);
    if statements.partition_hours.is_none() {
        return query;
    }
    query.bind(rows.iter().map(|row| partitions::id_time(&row.message_id)).collect::<Vec<_>>())
}

/// The advisory lock of changes to the tables: an arbitrary number, the same in every process.
const LOCK: i64 = 0x6c61_7069_6e69_6431;

impl PostgresStore {
    /// Keeps the identities in partitions by the time inside their message IDs, so that retention
    /// drops whole partitions instead of deleting rows: for many messages with UUIDv7 or ULID as
    /// IDs. Call it before [`create_schema`](Self::create_schema); a table that is there already is
    /// not changed into a partitioned one.
    ///
    /// Each partition spans `hours`; the sweeper makes the next ones ahead and drops those in which
    /// everything is older than the retention (by the time of processing, so a late message keeps
    /// its partition). IDs without a time, and IDs whose time no partition covers, are in the
    /// default partition, from which rows are deleted. A purge drops all partitions that are due,
    /// whatever its limit, and counts their rows by the server's statistics. Uniqueness holds over
    /// all partitions, because the ID decides which one it is in.
    ///
    /// The hours may be changed later, and processes with different ones may work side by side: the
    /// partitions that are there stay as they are, and new ones fill the gaps between them.
    #[must_use]
    pub fn partitioned(self, hours: std::num::NonZero<u16>) -> Self {
        let statements = Postgres::statements(self.table_name().clone(), Some(u32::from(hours.get())));
        self.with_statements(statements)
    }
}
