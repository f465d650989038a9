//! Replies in SQLite.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Pool, Sqlite, sqlite::SqliteConnection};

use super::{WORDS, outbox::KEPT};
use crate::store::sql::{KeptRow, Limits, ReplyDialect, ReplyStatements, TableName, orphans};

/// A row that is left of an earlier request of the same identity is replaced.
const INSTEAD: &str = " ON CONFLICT (scope, message_id) DO UPDATE SET properties = excluded.properties, \
                 body = excluded.body, replied_at = excluded.replied_at";

impl ReplyDialect for Sqlite {
    fn replies(table: TableName, identities: &str) -> ReplyStatements {
        let index = table.with_suffix("_replied_at").quoted('"');
        let name = format!("\"{}\"", table.name());
        let statements = ReplyStatements::new::<Self>(table, WORDS.value);
        let t = &statements.quoted;
        let old = orphans(identities, &format!("{} - ?1", WORDS.now));
        ReplyStatements {
            keep: format!("INSERT {}VALUES ", statements.keep),
            purge: format!(
                "DELETE FROM {t} WHERE rowid IN (SELECT rowid FROM {t} AS r WHERE {old} ORDER BY replied_at LIMIT ?2)"
            ),
            schema: include_str!("../schema/replies_sqlite.sql")
                .replace("{table}", t)
                .replace("{index}", &index)
                .replace("{name}", &name),
            index: format!("CREATE INDEX IF NOT EXISTS {index} ON {name} (replied_at)"),
            ..statements
        }
    }

    async fn keep(
        connection: &mut SqliteConnection,
        statements: &ReplyStatements,
        rows: &[KeptRow<'_>],
    ) -> Result<(), sqlx::Error> {
        let values = vec![format!("(?, ?, ?, ?, {})", WORDS.now); rows.len()].join(", ");
        let sql = format!("{}{values}{INSTEAD}", statements.keep);
        let mut keep = sqlx::query(AssertSqlSafe(sql)).persistent(rows.len() <= KEPT);
        for KeptRow { kept, properties } in rows {
            keep = keep
                .bind(kept.identity.scope().as_str().to_owned())
                .bind(kept.identity.message_id().as_str().to_owned())
                .bind(properties.clone())
                .bind(kept.reply.body().to_vec());
        }
        keep.execute(connection).await.map(|_| ())
    }

    async fn forget_replies(
        pool: &Pool<Self>,
        statements: &ReplyStatements,
        _: &Limits,
        age: Duration,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        let millis = i64::try_from(age.as_millis()).unwrap_or(i64::MAX / 2);
        let purge = sqlx::query(AssertSqlSafe(statements.purge.as_str())).bind(millis).bind(i64::from(limit));
        Ok(purge.execute(pool).await?.rows_affected())
    }
}
