//! An outbox in PostgreSQL.

use futures_util::future::BoxFuture;
use sqlx::{
    AssertSqlSafe, Pool, Postgres, Row,
    postgres::{PgArguments, PgConnection, PgRow},
    query::Query,
};
use uuid::Uuid;

use super::{WORDS, listen};
use crate::{
    outbox::{Confirmed, NewRow, ReadRequest, Removed, RowId},
    store::sql::{Ear, OutboxDialect, OutboxStatements, OutboxSyntax, SqlOutbox, TableName, begun, cells},
};

/// Messages to be published, in PostgreSQL 13 or later. See [`SqlOutbox`] for what is guaranteed.
///
/// With `synchronous_commit` off, or after a failover to a server that lags behind, a message may
/// have been published whose transaction is lost. Read and write one primary. Deletions wait for no
/// disk and no replica, whatever the setting: what a crash brings back is published once more.
///
/// Relays of other processes are told of commits by NOTIFY; see [`wake`](SqlOutbox::wake). Behind
/// PgBouncer in transaction mode a relay hears nothing, notices, and looks into the table instead.
pub type PostgresOutbox = SqlOutbox<Postgres>;

const SYNTAX: OutboxSyntax = OutboxSyntax {
    words: &WORDS,
    lanes: <Postgres as OutboxDialect>::LANES,
    integer: |expression| format!("({expression})::bigint"),
    upsert: "ON CONFLICT (relay) DO UPDATE SET name = excluded.name, beat_at = excluded.beat_at",
    share: "FOR SHARE",
    by_key: "",
    schema: include_str!("../schema/outbox_postgres.sql"),
};

/// Each takes its rows by the index, one by one. The statistics of a table that is empty one minute
/// and full in the next are always wrong, and a plan that goes by them reads all of it.
///
/// Nobody waits for the disk: if the server crashes within the next moments, rows are there again
/// that were removed, and are published once more. That can happen to a row whose confirm has just
/// come as well, and no other row depends on it.
const REMOVING: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off; SET LOCAL enable_seqscan = off; \
                        SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL jit = off";

cells!(PgRow);

impl OutboxDialect for Postgres {
    const LANES: u16 = 16;
    const ROW_KEY: &'static [&'static str] = &["lane", "seq"];
    const READING: Option<&'static str> = Some(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
         SET LOCAL jit = off",
    );
    const TELLS_ENDED: bool = true;
    const NOTIFIES: bool = true;

    fn outbox(table: TableName) -> OutboxStatements {
        let statements = OutboxStatements::new::<Self>(table, &SYNTAX);
        let OutboxStatements { quoted: t, columns, put, .. } = &statements;
        OutboxStatements {
            // The transaction has its identity before a row has its number: whoever sees all
            // transactions ended below an identity that is younger than a number then knows that
            // nothing is to come below that number.
            put: format!(
                "WITH x AS MATERIALIZED (SELECT pg_current_xact_id() AS xid) {put}SELECT l, m, e, r, k, p, b \
                 FROM x, unnest($1::smallint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[]) \
                 WITH ORDINALITY AS n(l, m, e, r, k, p, b, i) WHERE xid IS NOT NULL ORDER BY i"
            ),
            // In the same order, and without what arrays cost.
            put_one: format!(
                "{put}SELECT $1::smallint, $2::text, $3::text, $4::text, $5::text, $6::text, $7::bytea \
                 FROM (SELECT pg_current_xact_id() AS xid OFFSET 0) AS x WHERE xid IS NOT NULL"
            ),
            // The snapshot is that of the statement, so it is the one that the rows are read with.
            read: format!(
                "SELECT o.*, s.ended FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text AS ended) AS s \
                 LEFT JOIN (unnest($1::smallint[], $2::bigint[]) AS f(of_lane, behind) CROSS JOIN LATERAL \
                 (SELECT {columns}, following FROM (SELECT c.*, sum(octet_length(body)) OVER (ORDER BY seq) AS upto, \
                 row_number() OVER (ORDER BY seq) AS nth, lead(seq) OVER (ORDER BY seq) AS following \
                 FROM (SELECT * FROM {t} WHERE lane = of_lane AND seq > behind \
                 AND (order_key IS NULL OR order_key <> ALL ($3::text[])) AND (order_key IS NOT NULL OR \
                 (exchange, routing_key) NOT IN (SELECT e, r FROM unnest($6::text[], $7::text[]) AS g(e, r))) \
                 AND (lane, seq) NOT IN (SELECT l, s FROM unnest($8::smallint[], $9::bigint[]) AS k(l, s)) \
                 ORDER BY seq LIMIT $4) AS c) AS w \
                 WHERE upto <= $5 OR nth = 1) AS o) ON true"
            ),
            remove: format!(
                "WITH gone AS (DELETE FROM {t} USING unnest($1::smallint[], $2::bigint[], $3::text[]) AS d(l, s, m) \
                 WHERE lane = l AND seq = s AND message_id = m RETURNING 1) SELECT count(*), pg_current_xact_id()::text FROM gone"
            ),
            notify: format!("SELECT pg_notify(channel, $1) FROM ({}) AS c", listen::channel(t)),
            ..statements
        }
    }

    async fn fetch(
        connection: &mut PgConnection,
        query: Query<'_, Self, PgArguments>,
    ) -> Result<Vec<PgRow>, sqlx::Error> {
        query.fetch_all(connection).await
    }

    async fn put(
        connection: &mut PgConnection,
        statements: &OutboxStatements,
        rows: &[NewRow],
    ) -> Result<(), sqlx::Error> {
        if let [row] = rows {
            let put = sqlx::query(AssertSqlSafe(statements.put_one.as_str()))
                .bind(row.lane.0.cast_signed())
                .bind(row.message_id.as_str())
                .bind(row.exchange.as_str())
                .bind(row.routing_key.as_str())
                .bind(row.order_key.as_deref())
                .bind(row.properties.as_deref())
                .bind(&*row.body);
            return put.execute(connection).await.map(|_| ());
        }
        let put = sqlx::query(AssertSqlSafe(statements.put.as_str()))
            .bind(rows.iter().map(|row| row.lane.0.cast_signed()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.message_id.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.exchange.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.routing_key.as_str()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.order_key.as_deref()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| row.properties.as_deref()).collect::<Vec<_>>())
            .bind(rows.iter().map(|row| &*row.body).collect::<Vec<_>>());
        put.execute(connection).await.map(|_| ())
    }

    fn read<'q>(
        statements: &OutboxStatements,
        request: &ReadRequest<'q>,
    ) -> Vec<Query<'q, Self, PgArguments>> {
        let ((lanes, behind), (known_lanes, known)) = (arrays(request.from), arrays(request.without_rows));
        let read = sqlx::query(AssertSqlSafe(statements.read.as_str()))
            .bind(lanes)
            .bind(behind)
            .bind(request.without_keys)
            .bind(i64::from(request.rows))
            .bind(i64::try_from(request.bytes).unwrap_or(i64::MAX))
            .bind(request.without_routes.iter().map(|route| route.exchange.as_str()).collect::<Vec<_>>())
            .bind(request.without_routes.iter().map(|route| route.routing_key.as_str()).collect::<Vec<_>>())
            .bind(known_lanes)
            .bind(known);
        vec![read]
    }

    async fn remove(
        pool: &Pool<Self>,
        statements: &OutboxStatements,
        confirmed: &[Confirmed],
    ) -> Result<Removed, sqlx::Error> {
        let mut transaction = begun(pool, REMOVING).await?;
        let (lanes, seqs) = arrays(confirmed.iter().map(|confirmed| &confirmed.row));
        let remove = sqlx::query(AssertSqlSafe(statements.remove.as_str()))
            .bind(lanes)
            .bind(seqs)
            .bind(confirmed.iter().map(|confirmed| confirmed.message_id.as_str()).collect::<Vec<_>>());
        let gone = remove.fetch_one(&mut *transaction).await?;
        transaction.commit().await?;
        let own: &str = gone.try_get(1)?;
        let own = own.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let rows = u64::try_from(gone.try_get::<i64, _>(0)?).unwrap_or_default();
        Ok(Removed { rows, transaction: Some(own) })
    }

    async fn lacks(connection: &mut PgConnection) -> Result<Option<&'static str>, sqlx::Error> {
        let version = "SELECT current_setting('server_version_num')::bigint";
        let version: i64 = sqlx::query_scalar(version).fetch_one(connection).await?;
        Ok((version < 130_000).then_some("an outbox needs PostgreSQL 13 or later"))
    }

    async fn notify(pool: &Pool<Self>, statements: &OutboxStatements, from: Uuid) -> Result<(), sqlx::Error> {
        listen::notify(pool, statements, &listen::wake_from(from)).await
    }

    fn listen(ear: Ear<Self>) -> BoxFuture<'static, ()> {
        Box::pin(listen::listen(ear))
    }
}

fn arrays<'r>(rows: impl IntoIterator<Item = &'r RowId>) -> (Vec<i16>, Vec<i64>) {
    rows.into_iter().map(|row| (row.lane.0.cast_signed(), row.seq)).unzip()
}
