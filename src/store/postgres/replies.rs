//! Replies in PostgreSQL.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection, Pool, Postgres};

use super::WORDS;
use crate::store::sql::{
    Dialect, KeptRow, Limits, ReplyDialect, ReplyStatements, TableName, begun, micros, orphans,
};

impl ReplyDialect for Postgres {
    fn replies(table: TableName, identities: &str) -> ReplyStatements {
        let index = format!("\"{}_by_age\"", table.name());
        let statements = ReplyStatements::new::<Self>(table, WORDS.value);
        let t = &statements.quoted;
        let old = orphans(identities, "now() - $1::bigint * interval '1 microsecond'");
        ReplyStatements {
            keep: format!(
                "INSERT {}SELECT s, m, p, b, now() \
                     FROM UNNEST($1::text[], $2::text[], $3::text[], $4::bytea[]) AS new(s, m, p, b) \
                     ON CONFLICT (scope, message_id) DO UPDATE SET properties = EXCLUDED.properties, \
                     body = EXCLUDED.body, replied_at = EXCLUDED.replied_at",
                statements.keep
            ),
            purge: format!(
                "DELETE FROM {t} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {t} AS r WHERE {old} \
                 ORDER BY replied_at LIMIT $2 FOR UPDATE SKIP LOCKED))"
            ),
            schema: include_str!("../schema/replies_postgres.sql")
                .replace("{table}", t)
                .replace("{index}", &index),
            index: format!("CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON {t} (replied_at)"),
            ..statements
        }
    }

    async fn keep(
        connection: &mut PgConnection,
        statements: &ReplyStatements,
        rows: &[KeptRow<'_>],
    ) -> Result<(), sqlx::Error> {
        let identities = rows.iter().map(|row| &row.kept.identity);
        let scopes: Vec<&str> = identities.clone().map(|identity| identity.scope().as_str()).collect();
        let ids: Vec<&str> = identities.map(|identity| identity.message_id().as_str()).collect();
        let properties: Vec<Option<&str>> = rows.iter().map(|row| row.properties.as_deref()).collect();
        let bodies: Vec<&[u8]> = rows.iter().map(|row| &row.kept.reply.body()[..]).collect();
        let keep = sqlx::query(AssertSqlSafe(statements.keep.as_str()));
        keep.bind(scopes).bind(ids).bind(properties).bind(bodies).execute(connection).await.map(|_| ())
    }

    async fn forget_replies(
        pool: &Pool<Self>,
        statements: &ReplyStatements,
        limits: &Limits,
        age: Duration,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        let mut transaction = begun(pool, Self::begin(limits)).await?;
        let purged = sqlx::query(AssertSqlSafe(statements.purge.as_str()))
            .bind(micros(age))
            .bind(i64::from(limit))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(purged.rows_affected())
    }
}
