//! The table: created on request, printed for those who run their own migrations, checked at
//! start-up.

use super::{
    SqlDatabase, SqlStore,
    dialect::Value,
    error::failed,
    statements::{COLUMNS, Statements},
    table::TableName,
};
use crate::idempotency::{StoreError, StoreErrorKind};

/// What a store's table lacks, and the statements that create it: the source of an error of kind
/// [`StoreErrorKind::Schema`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{missing}; create_schema() makes the table, or run:\n{sql}")]
pub struct SchemaMismatch {
    missing: String,
    sql: String,
}

impl SchemaMismatch {
    pub(super) fn new(missing: String, sql: String) -> Self {
        Self { missing, sql }
    }

    /// What is missing.
    pub fn missing(&self) -> &str {
        &self.missing
    }

    /// The statements that create a whole table.
    pub fn sql(&self) -> &str {
        &self.sql
    }
}

impl<DB: SqlDatabase> SqlStore<DB> {
    /// The statements that create the table, and that of the [replies](Self::with_replies), for
    /// those who run their own migrations. They can be run again, and do nothing then.
    pub fn schema_sql(&self) -> String {
        match &self.replies {
            None => self.statements.schema.clone(),
            Some(replies) => format!("{}{}", self.statements.schema, replies.statements.schema),
        }
    }

    /// Creates the table if it is missing. Safe to run again, and by several processes together:
    /// where nothing is missing it only reads the catalog, and takes no lock on the table. A schema
    /// that the table's name has must be there.
    ///
    /// An index that [`check_schema`](Self::check_schema) warns of is not made here, as that would
    /// stop all claims on a large table meanwhile.
    ///
    /// The crate never touches the table in which sqlx's migrator keeps its versions.
    ///
    /// # Errors
    ///
    /// `Unavailable`, with the database's reason, such as a missing right.
    pub async fn create_schema(&self) -> Result<(), StoreError> {
        let creating = async {
            // Even CREATE INDEX IF NOT EXISTS waits for every transaction that has the table open,
            // and all claims behind it.
            if self.look(&self.identities()).await?.is_complete() {
                DB::tend(&self.pool, &self.statements, &self.limits).await.map_err(failed::<DB>)?;
            } else {
                DB::create(&self.pool, &self.statements, &self.limits).await.map_err(failed::<DB>)?;
            }
            match &self.replies {
                Some(replies) if !self.look(&replies.wanted()).await?.is_complete() => {
                    let sql = &replies.statements.schema;
                    DB::create_missing(&self.pool, sql, &self.limits).await.map_err(failed::<DB>)
                }
                _ => Ok(()),
            }
        };
        self.answered(StoreErrorKind::Unavailable, creating).await?;
        self.check_schema().await
    }

    fn identities(&self) -> Wanted<'_> {
        let Statements { table, index, .. } = &*self.statements;
        Wanted { table, columns: &COLUMNS, time: "processed_at", index }
    }

    async fn look(&self, wanted: &Wanted<'_>) -> Result<Seen, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(failed::<DB>)?;
        let indexes = DB::INDEXES.replace("processed_at", wanted.time);
        let mut ask = async |sql: &str| catalog::<DB>(&mut connection, sql, wanted.table).await;
        Ok(Seen {
            columns: ask(DB::COLUMNS).await?,
            key: ask(DB::KEY).await?,
            indexes: ask(&indexes).await?,
            wanted: wanted.columns,
        })
    }

    /// Looks whether the table is there with all its columns and its key. A consumer does this
    /// before it takes messages. Warns, with the SQL to run, if there is no B-tree index that
    /// begins with `processed_at`, so that each purge would read the whole table.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Schema`], whose source is a [`SchemaMismatch`] that names what is missing
    /// and the SQL to run.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let asking = async { DB::keeps_prepared(&self.pool).await.map_err(failed::<DB>) };
        self.answered(StoreErrorKind::Unavailable, asking).await?;
        self.check_table(&self.identities()).await?;
        match &self.replies {
            Some(replies) => self.check_table(&replies.wanted()).await,
            None => Ok(()),
        }
    }

    async fn check_table(&self, wanted: &Wanted<'_>) -> Result<(), StoreError> {
        let seen = self.answered(StoreErrorKind::Unavailable, self.look(wanted)).await?;
        let (absent, Wanted { table, time, index, .. }) = (seen.absent(), wanted);
        let missing = if seen.columns.is_empty() {
            format!("the table {table} is missing")
        } else if !absent.is_empty() {
            format!("the table {table} lacks the columns {}", absent.join(", "))
        } else if !has_key(&seen.key) {
            format!("the table {table} has no unique key on exactly (scope, message_id)")
        } else {
            if !seen.indexes.iter().any(|method| method == "btree") {
                tracing::warn!(%table, sql = index, "no B-tree index on {time}: each purge reads the whole table");
            }
            return Ok(());
        };
        Err(StoreError::new(StoreErrorKind::Schema, SchemaMismatch::new(missing, self.schema_sql())))
    }
}

/// What the catalog says of a table, by one of the dialect's statements for it.
pub(super) async fn catalog<DB: SqlDatabase>(
    connection: &mut DB::Connection,
    sql: &str,
    table: &TableName,
) -> Result<Vec<String>, StoreError> {
    let values = [Value::Text(table.name()), Value::Text(table.schema().unwrap_or_default())];
    DB::strings(connection, sql, &values).await.map_err(failed::<DB>)
}

/// The wanted columns that are not there.
pub(super) fn lacking(there: &[String], wanted: &[&'static str]) -> Vec<&'static str> {
    wanted.iter().copied().filter(|wanted| !there.iter().any(|found| found == wanted)).collect()
}

/// What is wrong with a primary key that is to have these columns and no other.
pub(super) fn other_key(table: &TableName, there: &[String], wanted: &[&'static str]) -> Option<String> {
    let is_it = there.len() == wanted.len() && lacking(there, wanted).is_empty();
    (!is_it).then(|| format!("the primary key of the table {table} is not ({})", wanted.join(", ")))
}

/// What a table is to have.
pub(super) struct Wanted<'a> {
    pub(super) table: &'a TableName,
    pub(super) columns: &'static [&'static str],
    /// The column that a purge goes by.
    pub(super) time: &'static str,
    /// Makes the index on it.
    pub(super) index: &'a str,
}

/// What the catalog says of a table.
struct Seen {
    wanted: &'static [&'static str],
    columns: Vec<String>,
    key: Vec<String>,
    indexes: Vec<String>,
}

impl Seen {
    fn absent(&self) -> Vec<&'static str> {
        lacking(&self.columns, self.wanted)
    }

    /// Whether there is nothing to be created.
    fn is_complete(&self) -> bool {
        self.absent().is_empty() && has_key(&self.key) && !self.indexes.is_empty()
    }
}

/// Whether the primary key is what identity rests on. A partitioned table has the time of the ID in
/// it too, which the ID decides.
fn has_key(key: &[String]) -> bool {
    let rest = |column: &String| column != "scope" && column != "message_id" && column != "id_time";
    key.len() >= 2 && !key.iter().any(rest)
}
