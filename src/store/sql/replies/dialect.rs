//! What differs between the databases for replies.

use std::{future::Future, time::Duration};

use sqlx::Pool;

use crate::{
    idempotency::KeptReply,
    store::sql::{OutboxDialect, dialect::Dialect, options::Limits, table::TableName},
};

/// One of the databases. Public only so that `SqlDatabase` can rest on it; its path is private.
pub trait ReplyDialect: OutboxDialect {
    /// The statements for a table of replies, beside the identities in a table of this quoted name.
    fn replies(table: TableName, identities: &str) -> ReplyStatements;

    /// Writes a few replies, in place of those of the same identities.
    fn keep(
        connection: &mut Self::Connection,
        statements: &ReplyStatements,
        rows: &[KeptRow<'_>],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Forgets at most `limit` replies that are older than `age` and whose identity is gone.
    fn forget_replies(
        pool: &Pool<Self>,
        statements: &ReplyStatements,
        limits: &Limits,
        age: Duration,
        limit: u32,
    ) -> impl Future<Output = Result<u64, sqlx::Error>> + Send;
}

/// Everything that a store says of its replies.
#[derive(Debug, Clone)]
pub struct ReplyStatements {
    pub(in crate::store) table: TableName,
    pub(in crate::store) quoted: String,
    /// With the arrays that hold the rows, or up to the rows.
    pub(in crate::store) keep: String,
    /// Properties and body of an identity.
    pub(in crate::store) find: String,
    pub(in crate::store) purge: String,
    pub(in crate::store) schema: String,
    /// Makes the index that the purge wants.
    pub(in crate::store) index: String,
}

/// A reply as it is written.
#[derive(Debug)]
pub struct KeptRow<'a> {
    pub(in crate::store) kept: &'a KeptReply,
    pub(in crate::store) properties: Option<String>,
}

impl ReplyStatements {
    /// The statements for a table; `keep`, `purge`, `schema` and `index` are left to the database.
    pub(in crate::store) fn new<DB: Dialect>(table: TableName, value: fn(usize) -> String) -> Self {
        let quoted = table.quoted(DB::QUOTE);
        Self {
            keep: format!("INTO {quoted} (scope, message_id, properties, body, replied_at) "),
            find: format!(
                "SELECT properties, body FROM {quoted} WHERE scope = {} AND message_id = {}",
                value(1),
                value(2)
            ),
            purge: String::new(),
            schema: String::new(),
            index: String::new(),
            quoted,
            table,
        }
    }
}

/// Which replies of a table `r` may go: the old ones (`replied_at` before this time) whose identity
/// is gone. One look by the key for each; a join might read all identities.
pub(in crate::store) fn orphans(identities: &str, before: &str) -> String {
    format!(
        "replied_at < {before} AND (SELECT 1 FROM {identities} AS i \
         WHERE i.scope = r.scope AND i.message_id = r.message_id LIMIT 1) IS NULL"
    )
}
