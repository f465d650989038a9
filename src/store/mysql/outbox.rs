//! An outbox in MySQL or MariaDB.

use std::{collections::BTreeMap, fmt::Write, iter};

use sqlx::{
    AssertSqlSafe, MySql, Pool,
    mysql::{MySqlArguments, MySqlConnection, MySqlRow},
    query::Query,
};

use super::WORDS;
use crate::{
    outbox::{Confirmed, Lane, NewRow, ReadRequest, Removed, Route, RowId},
    store::sql::{OutboxDialect, OutboxStatements, OutboxSyntax, SqlOutbox, TableName, cells, without},
};

/// Messages to be published, in MySQL 8 or MariaDB 10.6 and newer (InnoDB). See [`SqlOutbox`] for
/// what is guaranteed.
///
/// * Read and write one primary: the numbers of several, such as Galera's, are not in the order of
///   their commits.
/// * A message is as durable as `innodb_flush_log_at_trx_commit` and `sync_binlog` make its
///   transaction.
/// * Relays of other processes hear nothing of commits, and look into the table.
/// * `max_allowed_packet`, 16 MiB in MariaDB, must be above the largest message, or the server ends
///   the connection with the transaction; see [`max_message_bytes`](SqlOutbox::max_message_bytes).
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

/// There is a statement for each number of rows up to this one, and then for its doubles: what is
/// prepared must be kept, as the next packet behind the one that forgets a statement waits for 40
/// milliseconds (Nagle's algorithm, and an acknowledgement that is delayed).
const EACH: usize = 16;

/// How many values are bound to a statement at most, and to one that is kept; the protocol allows
/// 65,535.
const VALUES: usize = 60_000;
const KEPT: usize = 8_192;

cells!(MySqlRow);

impl OutboxDialect for MySql {
    const LANES: u16 = 16;
    const LEFT_OUT: (usize, usize) = (32_768, 8_192);
    const ROW_KEY: &'static [&'static str] = &["lane", "seq"];

    fn outbox(table: TableName) -> OutboxStatements {
        let statements = OutboxStatements::new::<Self>(table, &SYNTAX);
        let t = &statements.quoted;
        OutboxStatements {
            put: statements.put.clone() + "VALUES ",
            // One row after the other by its key; nothing else is locked. Without the index by
            // name, MariaDB reads all of a table that is small when it runs this for the second
            // time, and waits for what other transactions have not committed. IDs come as digits,
            // which mean the same in every character set.
            remove: format!(
                "DELETE o FROM JSON_TABLE(?, '$[*]' COLUMNS (l BIGINT PATH '$[0]', s BIGINT PATH '$[1]', \
                 m VARCHAR(510) PATH '$[2]')) AS d STRAIGHT_JOIN {t} AS o FORCE INDEX (PRIMARY) \
                 ON o.lane = d.l AND o.seq = d.s AND o.message_id = UNHEX(d.m)"
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
        mut rows: &[NewRow],
    ) -> Result<(), sqlx::Error> {
        while !rows.is_empty() {
            let (some, rest) = rows.split_at(kept_rows(rows.len()));
            let sql = statements.put.clone() + &vec!["(?, ?, ?, ?, ?, ?, ?)"; some.len()].join(", ");
            let mut put = sqlx::query(AssertSqlSafe(sql));
            for row in some {
                put = put
                    .bind(row.lane.0)
                    .bind(row.message_id.as_str().as_bytes())
                    .bind(row.exchange.as_bytes())
                    .bind(row.routing_key.as_bytes())
                    .bind(row.order_key.as_ref().map(String::as_bytes))
                    .bind(row.properties.as_ref().map(String::as_bytes))
                    .bind(&*row.body);
            }
            put.execute(&mut *connection).await?;
            rows = rest;
        }
        Ok(())
    }

    /// One query for all lanes, if the keys, which each of them needs, are not too many for it. No
    /// row is locked: a locking read would keep producers from the end of the table.
    fn read<'q>(
        statements: &OutboxStatements,
        request: &ReadRequest<'q>,
    ) -> Vec<Query<'q, Self, MySqlArguments>> {
        let (keys, routes) = left_out(request);
        let known = Known::of(request.without_rows);
        let lanes = (VALUES / (known.most() + kept(keys.len()) + 2 * kept(routes.len()) + 5)).max(1);
        request.from.chunks(lanes).map(|from| read(statements, request, &known, from)).collect()
    }

    async fn remove(
        pool: &Pool<Self>,
        statements: &OutboxStatements,
        confirmed: &[Confirmed],
    ) -> Result<Removed, sqlx::Error> {
        let rows = json(confirmed);
        let removed = sqlx::query(AssertSqlSafe(statements.remove.as_str())).bind(rows).execute(pool).await?;
        Ok(Removed { rows: removed.rows_affected(), transaction: None })
    }

    async fn lacks(connection: &mut MySqlConnection) -> Result<Option<&'static str>, sqlx::Error> {
        let table = "SELECT n FROM JSON_TABLE('[1]', '$[*]' COLUMNS (n INT PATH '$')) AS t";
        match sqlx::raw_sql(table).execute(connection).await {
            Ok(_) => Ok(None),
            Err(sqlx::Error::Database(_)) => {
                Ok(Some("an outbox needs MySQL 8 or MariaDB 10.6, or later (JSON_TABLE)"))
            }
            Err(error) => Err(error),
        }
    }
}

/// How many of so many rows go into one statement.
pub(super) fn kept_rows(rows: usize) -> usize {
    if rows <= EACH { rows } else { 1 << rows.ilog2() }
}

/// Rows with their messages, as the removal takes them.
fn json(confirmed: &[Confirmed]) -> String {
    let digit = |half: u8| char::from(b"0123456789ABCDEF"[usize::from(half)]);
    let mut json = String::from("[");
    for (index, Confirmed { row: RowId { lane, seq }, message_id }) in confirmed.iter().enumerate() {
        // Writing to a String never fails.
        let _ = write!(json, "{}[{}, {seq}, \"", if index == 0 { "" } else { ", " }, lane.0);
        json.extend(message_id.as_str().bytes().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        json.push_str("\"]");
    }
    json.push(']');
    json
}

/// What is left out by a query, of what is to be.
fn left_out<'q>(request: &ReadRequest<'q>) -> (&'q [String], &'q [Route]) {
    let (keys, routes) = <MySql as OutboxDialect>::LEFT_OUT;
    let ReadRequest { without_keys, without_routes, .. } = *request;
    (&without_keys[..without_keys.len().min(keys)], &without_routes[..without_routes.len().min(routes)])
}

/// The numbers that are left out, by lane.
struct Known(BTreeMap<Lane, Vec<i64>>);

impl Known {
    fn of(rows: &[RowId]) -> Self {
        let mut known: BTreeMap<Lane, Vec<i64>> = BTreeMap::new();
        for row in rows {
            known.entry(row.lane).or_default().push(row.seq);
        }
        Self(known)
    }

    /// How many values each lane binds.
    fn most(&self) -> usize {
        kept(self.0.values().map(Vec::len).max().unwrap_or_default())
    }

    fn sql(&self) -> String {
        match self.most() {
            0 => String::new(),
            values => format!("AND seq NOT IN ({}) ", vec!["?"; values].join(", ")),
        }
    }

    /// Those of one lane, filled up with a number that no row has.
    fn of_lane(&self, lane: Lane) -> impl Iterator<Item = i64> {
        let known = self.0.get(&lane).into_iter().flatten().copied();
        known.chain(iter::repeat(0)).take(self.most())
    }
}

/// To how many they are filled up, so that there are few statements.
fn kept(count: usize) -> usize {
    if count == 0 { 0 } else { count.next_power_of_two() }
}

/// All of them, and the last one again and again.
fn filled<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.iter().chain(all.last().into_iter().cycle()).take(kept(all.len()))
}

fn read<'q>(
    statements: &OutboxStatements,
    request: &ReadRequest<'q>,
    known: &Known,
    from: &[RowId],
) -> Query<'q, MySql, MySqlArguments> {
    let OutboxStatements { quoted: t, columns, .. } = statements;
    let (keys, routes) = left_out(request);
    let bound = known.most() + kept(keys.len()) + 2 * kept(routes.len());
    let without = known.sql() + &without(kept(keys.len()), kept(routes.len()), "");
    // The bodies are not in what is sorted and counted, which may be a table on a disk.
    let lane = format!(
        "(SELECT {columns}, following, NULL FROM (SELECT of_seq, size, SUM(size) OVER (ORDER BY of_seq) AS upto, \
         ROW_NUMBER() OVER (ORDER BY of_seq) AS nth, LEAD(of_seq) OVER (ORDER BY of_seq) AS following \
         FROM (SELECT seq AS of_seq, LENGTH(body) AS size FROM {t} FORCE INDEX (PRIMARY) \
         WHERE lane = ? AND seq > ? {without} ORDER BY seq LIMIT ?) AS c) AS w \
         STRAIGHT_JOIN {t} AS o ON o.lane = ? AND o.seq = w.of_seq WHERE w.upto <= ? OR w.nth = 1)"
    );
    let sql = vec![lane; from.len()].join(" UNION ALL ");
    let mut query = sqlx::query(AssertSqlSafe(sql)).persistent(from.len() * bound <= KEPT);
    for &RowId { lane, seq } in from {
        query = query.bind(lane.0).bind(seq);
        for known in known.of_lane(lane) {
            query = query.bind(known);
        }
        for key in filled(keys) {
            query = query.bind(key.as_bytes());
        }
        for route in filled(routes) {
            query = query.bind(route.exchange.as_bytes()).bind(route.routing_key.as_bytes());
        }
        query = query.bind(request.rows).bind(lane.0).bind(request.bytes);
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_are_kept_are_few() {
        let mut rows = std::collections::BTreeSet::new();
        for mut left in 1..=1024 {
            while left > 0 {
                rows.insert(kept_rows(left));
                left -= kept_rows(left);
            }
        }
        assert_eq!(rows.len(), 22);
        assert_eq!((0..=5).map(kept).collect::<Vec<_>>(), [0, 1, 2, 4, 4, 8]);
    }
}
