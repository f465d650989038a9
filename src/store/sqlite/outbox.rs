//! An outbox in SQLite.

use futures_util::future::BoxFuture;
use serde::{Serialize, Serializer};
use sqlx::{
    AssertSqlSafe, Pool, Sqlite,
    query::Query,
    sqlite::{SqliteArguments, SqliteConnection, SqliteRow},
};

use super::{WORDS, watch};
use crate::{
    outbox::{Confirmed, NewRow, ReadRequest, Removed, RowId},
    store::sql::{Ear, OutboxDialect, OutboxStatements, OutboxSyntax, SqlOutbox, TableName, cells, without},
};

/// Messages to be published, in SQLite. See [`SqlOutbox`] for what is guaranteed.
///
/// It has one lane, so one relay works at a time; transactions exclude each other anyway. Relays,
/// also those of other processes, see within 20 milliseconds that something was committed to a
/// file.
pub type SqliteOutbox = SqlOutbox<Sqlite>;

const SYNTAX: OutboxSyntax = OutboxSyntax {
    words: &WORDS,
    lanes: <Sqlite as OutboxDialect>::LANES,
    integer: |expression| expression.to_owned(),
    upsert: "ON CONFLICT (relay) DO UPDATE SET name = excluded.name, beat_at = excluded.beat_at",
    // A transaction that writes is alone.
    share: "",
    by_key: "",
    schema: include_str!("../schema/outbox_sqlite.sql"),
};

/// Statements for more rows are not kept prepared: there would be one for each number of rows.
pub(super) const KEPT: usize = 16;

cells!(SqliteRow);

impl OutboxDialect for Sqlite {
    const LANES: u16 = 1;
    // SQLITE_MAX_VARIABLE_NUMBER is 32,766.
    const LEFT_OUT: (usize, usize) = (20_000, 5_000);
    const ROW_KEY: &'static [&'static str] = &["seq"];

    fn outbox(table: TableName) -> OutboxStatements {
        let statements = OutboxStatements::new::<Self>(table, &SYNTAX);
        let OutboxStatements { quoted: t, columns, .. } = &statements;
        OutboxStatements {
            put: statements.put.clone() + "VALUES ",
            read: format!(
                "SELECT {columns}, following, NULL FROM (SELECT of_seq, size, sum(size) OVER (ORDER BY of_seq) AS upto, \
                 row_number() OVER (ORDER BY of_seq) AS nth, lead(of_seq) OVER (ORDER BY of_seq) AS following \
                 FROM (SELECT seq AS of_seq, length(body) AS size FROM {t} NOT INDEXED \
                 WHERE lane = ? AND seq > ? AND seq NOT IN (SELECT value FROM json_each(?)) {{without}} ORDER BY seq LIMIT ?)) AS w \
                 CROSS JOIN {t} AS o ON o.seq = w.of_seq WHERE w.upto <= ? OR w.nth = 1"
            ),
            remove: format!(
                "DELETE FROM {t} WHERE seq IN (SELECT o.seq FROM json_each(?) AS d CROSS JOIN {t} AS o \
                 ON o.seq = CAST(d.key AS INTEGER) WHERE o.lane >= 0 AND o.message_id = d.value)"
            ),
            ..statements
        }
    }

    async fn fetch(
        connection: &mut SqliteConnection,
        query: Query<'_, Self, SqliteArguments>,
    ) -> Result<Vec<SqliteRow>, sqlx::Error> {
        query.fetch_all(connection).await
    }

    async fn put(
        connection: &mut SqliteConnection,
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
                .bind(i64::from(row.lane.0))
                .bind(row.message_id.as_str().to_owned())
                .bind(row.exchange.clone())
                .bind(row.routing_key.clone())
                .bind(row.order_key.clone())
                .bind(row.properties.clone())
                .bind(row.body.to_vec());
        }
        put.execute(connection).await.map(|_| ())
    }

    fn read<'q>(
        statements: &OutboxStatements,
        request: &ReadRequest<'q>,
    ) -> Vec<Query<'q, Self, SqliteArguments>> {
        let (keys, routes) = Self::LEFT_OUT;
        let keys = &request.without_keys[..request.without_keys.len().min(keys)];
        let routes = &request.without_routes[..request.without_routes.len().min(routes)];
        let sql = statements.read.replace("{without}", &without(keys.len(), routes.len(), "VALUES "));
        let queries = request.from.iter().map(|&RowId { lane, seq }| {
            let known = request.without_rows.iter().filter(|row| row.lane == lane).map(|row| row.seq);
            let mut query =
                sqlx::query(AssertSqlSafe(sql.clone())).persistent(keys.is_empty() && routes.is_empty());
            query = query.bind(i64::from(lane.0)).bind(seq).bind(json(&known.collect::<Vec<i64>>()));
            for key in keys {
                query = query.bind(key.as_str());
            }
            for route in routes {
                query = query.bind(route.exchange.as_str()).bind(route.routing_key.as_str());
            }
            query.bind(i64::from(request.rows)).bind(i64::try_from(request.bytes).unwrap_or(i64::MAX))
        });
        queries.collect()
    }

    async fn remove(
        pool: &Pool<Self>,
        statements: &OutboxStatements,
        confirmed: &[Confirmed],
    ) -> Result<Removed, sqlx::Error> {
        let remove = sqlx::query(AssertSqlSafe(statements.remove.as_str())).bind(json(&ByNumber(confirmed)));
        let removed = remove.execute(pool).await?;
        Ok(Removed { rows: removed.rows_affected(), transaction: None })
    }

    fn listen(ear: Ear<Self>) -> BoxFuture<'static, ()> {
        Box::pin(watch::listen(ear))
    }
}

/// What `json_each` takes.
fn json(of: &impl Serialize) -> String {
    // Numbers and texts never fail; and what is no JSON is refused.
    serde_json::to_string(of).unwrap_or_default()
}

/// An object of message IDs, which SQLite takes apart faster than an array of pairs.
struct ByNumber<'a>(&'a [Confirmed]);

impl Serialize for ByNumber<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|of| (of.row.seq, of.message_id.as_str())))
    }
}
