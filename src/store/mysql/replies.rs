//! Replies in MySQL or MariaDB.

use std::time::Duration;

use sqlx::{AssertSqlSafe, MySql, Pool, mysql::MySqlConnection};

use super::{WORDS, forget, outbox::kept_rows};
use crate::store::sql::{KeptRow, Limits, ReplyDialect, ReplyStatements, TableName, micros, orphans};

const OLD: &str = "UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND";

/// A row that is left of an earlier request of the same identity is replaced.
const INSTEAD: &str = " ON DUPLICATE KEY UPDATE properties = VALUES(properties), body = VALUES(body), \
                 replied_at = VALUES(replied_at)";

impl ReplyDialect for MySql {
    fn replies(table: TableName, identities: &str) -> ReplyStatements {
        let index = format!("`{}`", table.with_suffix("_replied_at").name());
        let statements = ReplyStatements::new::<Self>(table, WORDS.value);
        let t = &statements.quoted;
        ReplyStatements {
            keep: format!("INSERT {}VALUES ", statements.keep),
            // Locks nothing, so that it is in nobody's way: what it finds is looked at again when
            // it is deleted.
            purge: format!(
                "SELECT scope, message_id FROM {t} AS r WHERE {} ORDER BY replied_at LIMIT ?",
                orphans(identities, OLD)
            ),
            schema: include_str!("../schema/replies_mysql.sql")
                .replace("{table}", t)
                .replace("{index}", &index),
            index: format!("ALTER TABLE {t} ADD KEY {index} (replied_at), ALGORITHM=INPLACE, LOCK=NONE"),
            ..statements
        }
    }

    async fn keep(
        connection: &mut MySqlConnection,
        statements: &ReplyStatements,
        mut rows: &[KeptRow<'_>],
    ) -> Result<(), sqlx::Error> {
        while !rows.is_empty() {
            let (some, rest) = rows.split_at(kept_rows(rows.len()));
            let values = vec!["(?, ?, ?, ?, UTC_TIMESTAMP(6))"; some.len()].join(", ");
            let mut keep = sqlx::query(AssertSqlSafe(format!("{}{values}{INSTEAD}", statements.keep)));
            for KeptRow { kept, properties } in some {
                keep = keep
                    .bind(kept.identity.scope().as_str().as_bytes())
                    .bind(kept.identity.message_id().as_str().as_bytes())
                    .bind(properties.as_ref().map(String::as_bytes))
                    .bind(&kept.reply.body()[..]);
            }
            keep.execute(&mut *connection).await?;
            rows = rest;
        }
        Ok(())
    }

    async fn forget_replies(
        pool: &Pool<Self>,
        statements: &ReplyStatements,
        limits: &Limits,
        age: Duration,
        limit: u32,
    ) -> Result<u64, sqlx::Error> {
        // A request of the same identity may have been answered meanwhile.
        let besides = format!(" AND replied_at < UTC_TIMESTAMP(6) - INTERVAL {} MICROSECOND", micros(age));
        let old = [micros(age), i64::from(limit)];
        forget(pool, limits, (&statements.purge, &old), (&statements.quoted, &besides)).await
    }
}
