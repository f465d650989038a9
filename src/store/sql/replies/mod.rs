//! What requests were answered with: in a table of its own, in the transaction of their identity.

mod dialect;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sqlx::AssertSqlSafe;

pub(in crate::store) use self::dialect::{KeptRow, ReplyDialect, ReplyStatements, orphans};
use super::{
    Cells, SqlDatabase, SqlStore,
    dialect::Value,
    error::failed,
    schema::Wanted,
    statements::Statements,
    table::{InvalidTableName, TableName},
};
use crate::{
    error::BoxError,
    idempotency::{Identity, KeptReply, ReplyStore, Sealed, StoreError, StoreErrorKind},
    message::Reply,
};

/// How many replies go into one statement, and how many bytes of bodies if there is more than one:
/// servers bound what they take at once (`max_allowed_packet`: 16 MiB by default in MariaDB).
const ROWS: usize = 256;
const BYTES: usize = 4 << 20;

/// As the check of the schema wants them.
const COLUMNS: [&str; 5] = ["scope", "message_id", "properties", "body", "replied_at"];

/// Where a [`SqlStore`] keeps the replies of an RPC consumer, and how large they may be; see
/// [`SqlStore::with_replies`].
///
/// ```
/// use lapin_idempotent::store::Replies;
///
/// let replies = Replies::table("billing.replies").max_bytes(64 << 10);
/// # let _ = replies;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replies {
    table: Option<String>,
    max_bytes: usize,
}

impl Replies {
    /// In a table that is named like that of the identities, with `_replies` behind.
    pub fn new() -> Self {
        Self { table: None, max_bytes: 1 << 20 }
    }

    /// In this table: `table` or `schema.table`, in the database of the identities.
    ///
    /// It is of one table of identities: a store with another one takes the replies of these for
    /// left over, and forgets them, as soon as they are older than its retention.
    pub fn table(name: impl Into<String>) -> Self {
        Self { table: Some(name.into()), ..Self::new() }
    }

    /// Sets how large the body of a reply may be; a request with a larger one is rejected, and its
    /// effect rolled back. Default: 1 MiB.
    ///
    /// A body has to fit into what the broker takes (`max_message_size`: 16 MiB in RabbitMQ 4), and
    /// MySQL (`max_allowed_packet`, 16 MiB in MariaDB).
    #[must_use]
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }
}

impl Default for Replies {
    fn default() -> Self {
        Self::new()
    }
}

/// A table of replies, as its store knows it.
#[derive(Debug)]
pub(super) struct ReplyTable {
    replies: Replies,
    pub(super) statements: ReplyStatements,
}

impl ReplyTable {
    pub(super) fn new<DB: SqlDatabase>(
        replies: Replies,
        beside: &Statements,
    ) -> Result<Self, InvalidTableName> {
        let table = match &replies.table {
            Some(name) => TableName::new(name)?,
            None => beside.table.with_suffix("_replies"),
        };
        Ok(Self { replies, statements: DB::replies(table, &beside.quoted) })
    }

    pub(super) fn wanted(&self) -> Wanted<'_> {
        let ReplyStatements { table, index, .. } = &self.statements;
        Wanted { table, columns: &COLUMNS, time: "replied_at", index }
    }

    /// The same beside another table of identities.
    pub(super) fn beside<DB: SqlDatabase>(&self, identities: &Statements) -> Self {
        let table = match &self.replies.table {
            Some(_) => self.statements.table.clone(),
            None => identities.table.with_suffix("_replies"),
        };
        Self { replies: self.replies.clone(), statements: DB::replies(table, &identities.quoted) }
    }
}

/// A consumer that answers needs a store that keeps what it answers.
#[derive(Debug, thiserror::Error)]
#[error("the store keeps no replies: say with `with_replies` which table it has for them")]
struct NoReplies;

/// # Replies
impl<DB: SqlDatabase> SqlStore<DB> {
    /// Keeps what requests are answered with in a table beside the identities, for
    /// [`run_rpc_until`](crate::IdempotentConsumer::run_rpc_until).
    ///
    /// A reply is committed with the effect and the identity of its request, and is there as long
    /// as the identity: [`purge`](crate::IdempotencyStore::purge) forgets a reply only after its
    /// identity, and counts identities only. In a [partitioned](crate::PostgresStore::partitioned)
    /// store it does so a partition later.
    ///
    /// [`create_schema`](Self::create_schema), [`check_schema`](Self::check_schema) and
    /// [`schema_sql`](Self::schema_sql) are about both tables from here on, so that no consumer of
    /// this store starts without them.
    ///
    /// # Errors
    ///
    /// [`InvalidTableName`], as of [`table`](Self::table).
    pub fn with_replies(self, replies: Replies) -> Result<Self, InvalidTableName> {
        let table = ReplyTable::new::<DB>(replies, &self.statements)?;
        Ok(Self { replies: Some(Arc::new(table)), ..self })
    }

    fn reply_table(&self) -> Result<&ReplyTable, StoreError> {
        self.replies.as_deref().ok_or_else(|| StoreError::new(StoreErrorKind::Configuration, NoReplies))
    }

    /// Forgets a batch of replies whose identity is gone; all of them if `all`, one batch after the
    /// other.
    pub(super) async fn forget_replies(
        &self,
        retention: Duration,
        limit: u32,
        all: bool,
    ) -> Result<(), StoreError> {
        let Some(table) = &self.replies else { return Ok(()) };
        // A partition is dropped when all of it is old: until then its replies, old or not, are not
        // worth a look.
        let hours = self.statements.partition_hours.unwrap_or_default();
        let age = retention.saturating_add(Duration::from_secs(3600) * hours);
        loop {
            let forgetting = async {
                DB::forget_replies(&self.pool, &table.statements, &self.limits, age, limit)
                    .await
                    .map_err(failed::<DB>)
            };
            let forgotten = self.answered(StoreErrorKind::Unavailable, forgetting).await?;
            if !all || forgotten < u64::from(limit.max(1)) {
                return Ok(());
            }
            // The claims of consumers go first.
            tokio::task::yield_now().await;
        }
    }
}

impl<DB: SqlDatabase> Sealed for SqlStore<DB> {}

impl<DB: SqlDatabase> ReplyStore for SqlStore<DB> {
    fn max_reply_bytes(&self) -> Result<usize, StoreError> {
        Ok(self.reply_table()?.replies.max_bytes)
    }

    async fn keep(&self, session: &mut Self::Session, replies: &[KeptReply]) -> Result<(), StoreError> {
        let statements = &self.reply_table()?.statements;
        let unreadable = |error: serde_json::Error| StoreError::new(StoreErrorKind::Configuration, error);
        let mut rows = Vec::with_capacity(replies.len());
        for kept in replies {
            let properties = kept.reply.stored_properties().map_err(unreadable)?;
            rows.push(KeptRow { kept, properties });
        }
        // No limit of time beyond the transaction's own.
        let mut rows = rows.as_slice();
        while !rows.is_empty() {
            let (some, rest) = rows.split_at(fitting(rows));
            DB::keep(session, statements, some).await.map_err(failed::<DB>)?;
            rows = rest;
        }
        Ok(())
    }

    async fn reply_of(&self, identity: &Identity) -> Result<Option<Reply>, StoreError> {
        let statements = &self.reply_table()?.statements;
        let finding = async {
            let mut connection = self.pool.acquire().await.map_err(failed::<DB>)?;
            let values =
                [Value::Text(identity.scope().as_str()), Value::Text(identity.message_id().as_str())];
            let find = DB::bound(sqlx::query(AssertSqlSafe(statements.find.as_str())), &values);
            let rows = DB::fetch(&mut connection, find).await.map_err(failed::<DB>)?;
            rows.first().map(read).transpose().map_err(failed::<DB>)
        };
        self.answered(StoreErrorKind::Unavailable, finding).await
    }
}

fn read(cells: &impl Cells) -> Result<Reply, sqlx::Error> {
    let (properties, body) = (cells.text(0)?, Bytes::from(cells.bytes(1)?));
    let unreadable = |error: serde_json::Error| sqlx::Error::Decode(BoxError::from(error));
    Reply::stored(properties.as_deref(), body).map_err(unreadable)
}

/// How many of the first rows go into one statement: at least one.
fn fitting(rows: &[KeptRow<'_>]) -> usize {
    let mut bytes = 0;
    let fit = rows.iter().take(ROWS).take_while(|row| {
        bytes += row.kept.reply.body().len() + row.properties.as_ref().map_or(0, String::len);
        bytes <= BYTES
    });
    fit.count().max(1)
}
