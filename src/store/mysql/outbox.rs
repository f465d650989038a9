//! An outbox in MySQL or MariaDB.

use std::fmt::Write;

use sqlx::{
    AssertSqlSafe, MySql, Pool,
    mysql::{MySqlArguments, MySqlConnection, MySqlRow},
    query::Query,
};

use super::WORDS;
use crate::{
    outbox::{NewRow, ReadRequest, Removed, RowId},
    store::sql::{Limits, OutboxDialect, OutboxStatements, OutboxSyntax, SqlOutbox, TableName, cells},
};

/// Messages to be published, in MySQL 8 or MariaDB 10.6 and newer (InnoDB). See [`SqlOutbox`] for
/// what is guaranteed.
///
/// * Read and write one primary: the numbers of several, such as Galera's, are not in the order of
///   their commits.
/// * A message is as durable as `innodb_flush_log_at_trx_commit` and `sync_binlog` make its
///   transaction.
/// * Relays of other processes hear nothing of commits, and look into the table.
pub type MySqlOutbox = SqlOutbox<MySql>;

const SYNTAX: OutboxSyntax = OutboxSyntax {
    words: &WORDS,
    lanes: <MySql as OutboxDialect>::LANES,
    integer: |expression| format!("CAST({expression} AS SIGNED)"),
    upsert: "ON DUPLICATE KEY UPDATE name = VALUES(name), beat_at = VALUES(beat_at)",
    // MySQL 8 takes it as FOR SHARE, which MariaDB does not know.
    share: "LOCK IN SHARE MODE",
    by_key: "FORCE INDEX (PRIMARY)",
    schema: include_str!("../schema/outbox_mysql.sql"),
};

/// Statements for more rows are not kept prepared: there would be one for each number of rows.
const KEPT: usize = 16;

/// How many values are bound to a statement at most; the protocol allows 65,535.
const VALUES: usize = 60_000;

cells!(MySqlRow);

impl OutboxDialect for MySql {
    const LANES: u16 = 16;
    const ROW_KEY: &'static [&'static str] = &["lane", "seq"];

    fn outbox(table: TableName) -> OutboxStatements {
        let statements = OutboxStatements::new::<Self>(table, &SYNTAX);
        let t = &statements.quoted;
        OutboxStatements {
            put: statements.put.clone() + "VALUES ",
            // One row after the other by its key, whatever the statistics say; nothing else is
            // locked.
            remove: format!(
                "DELETE o FROM JSON_TABLE(?, '$[*]' COLUMNS (l BIGINT PATH '$[0]', s BIGINT PATH '$[1]')) AS d \
                 STRAIGHT_JOIN {t} AS o ON o.lane = d.l AND o.seq = d.s"
            ),
            ..statements
        }
    }

    async fn fetch(
        connection: &mut MySqlConnection,
        query: Query<'_, Self, MySqlArguments>,
    ) -> Result<Vec<MySqlRow>, sqlx::Error> {
        query.fetch_all(connection).await
    }

    async fn put(
        connection: &mut MySqlConnection,
        statements: &OutboxStatements,
        rows: &[NewRow],
    ) -> Result<(), sqlx::Error> {
        let mut sql = statements.put.clone();
        for index in 0..rows.len() {
            sql.push_str(if index == 0 { "(?, ?, ?, ?, ?, ?, ?)" } else { ", (?, ?, ?, ?, ?, ?, ?)" });
        }
        let mut put = sqlx::query(AssertSqlSafe(sql)).persistent(rows.len() <= KEPT);
        for row in rows {
            put = put
                .bind(row.lane.0)
                .bind(row.message_id.as_str().as_bytes())
                .bind(row.exchange.as_bytes())
                .bind(row.routing_key.as_bytes())
                .bind(row.order_key.as_ref().map(String::as_bytes))
                .bind(row.properties.as_ref().map(String::as_bytes))
                .bind(&*row.body);
        }
        put.execute(connection).await.map(|_| ())
    }

    /// One query for all lanes, if the keys, which each of them needs, are not too many for it. No
    /// row is locked: a locking read would keep producers from the end of the table.
    fn read<'q>(
        statements: &OutboxStatements,
        request: &ReadRequest<'q>,
    ) -> Vec<Query<'q, Self, MySqlArguments>> {
        let keys = request.without_keys.len();
        let lanes = (VALUES / (keys + 5)).max(1);
        request.from.chunks(lanes).map(|from| read(statements, request, from)).collect()
    }

    async fn remove(
        pool: &Pool<Self>,
        statements: &OutboxStatements,
        rows: &[RowId],
    ) -> Result<Removed, sqlx::Error> {
        let mut json = String::from("[");
        for (index, RowId { lane, seq }) in rows.iter().enumerate() {
            // Writing to a String never fails.
            let _ = write!(json, "{}[{}, {seq}]", if index == 0 { "" } else { ", " }, lane.0);
        }
        json.push(']');
        let removed = sqlx::query(AssertSqlSafe(statements.remove.as_str())).bind(json).execute(pool).await?;
        Ok(Removed { rows: removed.rows_affected(), transaction: None })
    }

    async fn create_outbox(
        pool: &Pool<Self>,
        statements: &OutboxStatements,
        _: &Limits,
    ) -> Result<(), sqlx::Error> {
        // The server's metadata lock makes concurrent callers wait for each other.
        sqlx::raw_sql(AssertSqlSafe(statements.schema.as_str())).execute(pool).await.map(|_| ())
    }
}

fn read<'q>(
    statements: &OutboxStatements,
    request: &ReadRequest<'q>,
    from: &[RowId],
) -> Query<'q, MySql, MySqlArguments> {
    let OutboxStatements { quoted: t, columns, .. } = statements;
    let keys = request.without_keys;
    let without = if keys.is_empty() {
        String::new()
    } else {
        format!("AND (order_key IS NULL OR order_key NOT IN ({}))", vec!["?"; keys.len()].join(", "))
    };
    // The bodies are not in what is sorted and counted, which may be a table on a disk.
    let lane = format!(
        "(SELECT {columns}, following, NULL FROM (SELECT of_seq, size, SUM(size) OVER (ORDER BY of_seq) AS upto, \
         ROW_NUMBER() OVER (ORDER BY of_seq) AS nth, LEAD(of_seq) OVER (ORDER BY of_seq) AS following \
         FROM (SELECT seq AS of_seq, LENGTH(body) AS size FROM {t} FORCE INDEX (PRIMARY) \
         WHERE lane = ? AND seq > ? {without} ORDER BY seq LIMIT ?) AS c) AS w \
         STRAIGHT_JOIN {t} AS o ON o.lane = ? AND o.seq = w.of_seq WHERE w.upto <= ? OR w.nth = 1)"
    );
    let sql = vec![lane; from.len()].join(" UNION ALL ");
    let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(keys.is_empty());
    for &RowId { lane, seq } in from {
        query = query.bind(lane.0).bind(seq);
        for key in keys {
            query = query.bind(key.as_bytes());
        }
        query = query.bind(request.rows).bind(lane.0).bind(request.bytes);
    }
    query
}
