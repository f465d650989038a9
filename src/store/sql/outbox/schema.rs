//! The tables: created on request, printed for those who run their own migrations, checked before a
//! relay starts.

use super::{
    SqlDatabase, SqlOutbox,
    statements::{COLUMNS, LANE_COLUMNS, RELAY_COLUMNS},
};
use crate::{
    idempotency::{StoreError, StoreErrorKind},
    store::sql::{
        dialect::Cause,
        error::{cause, failed},
        schema::{SchemaMismatch, catalog, lacking, other_key},
    },
};

/// The server cannot do what an outbox needs.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Lacks(&'static str);

/// What the catalog says.
struct Seen {
    /// What each of the three tables has.
    columns: [Vec<String>; 3],
    key: Vec<String>,
    lanes: i64,
}

impl<DB: SqlDatabase> SqlOutbox<DB> {
    /// The statements that create the tables, for those who run their own migrations. They can be
    /// run again, and do nothing then.
    pub fn schema_sql(&self) -> String {
        self.statements.schema.clone()
    }

    /// Creates the tables that are missing. Safe to run again, and by several processes together:
    /// where nothing is missing it only reads the catalog. A schema that the table's name has must
    /// be there.
    ///
    /// A table that is there is never changed, whoever made it.
    ///
    /// # Errors
    ///
    /// `Unavailable`, with the database's reason, such as a missing right; those of
    /// [`check_schema`](Self::check_schema) if a table of this name is there that is no outbox.
    pub async fn create_schema(&self) -> Result<(), StoreError> {
        let creating = async {
            let seen = self.look().await?;
            match self.missing(&seen) {
                None => Ok(()),
                Some(missing) if seen.has_strangers() => Err(self.mismatch(missing)),
                Some(_) => {
                    let sql = &self.statements.schema;
                    DB::create_missing(&self.pool, sql, &self.limits).await.map_err(failed::<DB>)
                }
            }
        };
        self.answered(StoreErrorKind::Unavailable, creating).await?;
        self.check_schema().await
    }

    /// Looks whether the tables are there with all their columns, their key and their lanes. A
    /// relay does this before it starts.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Schema`], whose source is a [`SchemaMismatch`] that names what is missing
    /// and the SQL to run, or says that a table of this name is there that is no outbox;
    /// [`StoreErrorKind::Configuration`] for a server that is too old.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        let asking = async {
            DB::keeps_prepared(&self.pool).await.map_err(failed::<DB>)?;
            let mut connection = self.connection().await?;
            if let Some(lacks) = DB::lacks(&mut connection).await.map_err(failed::<DB>)? {
                return Err(StoreError::new(StoreErrorKind::Configuration, Lacks(lacks)));
            }
            drop(connection);
            self.look().await
        };
        let seen = self.answered(StoreErrorKind::Unavailable, asking).await?;
        self.missing(&seen).map_or(Ok(()), |missing| Err(self.mismatch(missing)))
    }

    fn mismatch(&self, missing: String) -> StoreError {
        StoreError::new(StoreErrorKind::Schema, SchemaMismatch::new(missing, self.schema_sql()))
    }

    async fn look(&self) -> Result<Seen, StoreError> {
        let statements = &self.statements;
        let mut connection = self.connection().await?;
        let mut ask = async |sql, table| catalog::<DB>(&mut connection, sql, table).await;
        let columns = [
            ask(DB::COLUMNS, &statements.table).await?,
            ask(DB::COLUMNS, &statements.lanes_table).await?,
            ask(DB::COLUMNS, &statements.relays_table).await?,
        ];
        let key = ask(DB::KEY, &statements.table).await?;
        let lanes = match DB::integer(&mut connection, &statements.lanes_there, &[]).await {
            Err(error) if cause::<DB>(&error) == Some(Cause::Schema) => 0,
            lanes => lanes.map_err(failed::<DB>)?,
        };
        Ok(Seen { columns, key, lanes })
    }

    /// What is missing, if something is.
    fn missing(&self, seen: &Seen) -> Option<String> {
        let statements = &self.statements;
        let tables = [&statements.table, &statements.lanes_table, &statements.relays_table];
        for ((table, there), absent) in tables.into_iter().zip(&seen.columns).zip(seen.absent()) {
            if there.is_empty() {
                return Some(format!("the table {table} is missing"));
            }
            if is_stranger(there, &absent) {
                return Some(format!(
                    "a table {table} is there that is no outbox (it has no {}); name another one with table()",
                    absent.join(", ")
                ));
            }
            if !absent.is_empty() {
                return Some(format!("the table {table} lacks the columns {}", absent.join(", ")));
            }
        }
        let other = other_key(tables[0], &seen.key, DB::ROW_KEY);
        if other.is_some() {
            return other;
        }
        if seen.lanes != i64::from(DB::LANES) {
            return Some(format!("the table {} has not its {} rows", tables[1], DB::LANES));
        }
        None
    }
}

impl Seen {
    fn absent(&self) -> [Vec<&'static str>; 3] {
        let wanted: [&[&'static str]; 3] = [&COLUMNS, &LANE_COLUMNS, &RELAY_COLUMNS];
        let mut index = 0;
        wanted.map(|wanted| {
            let there = &self.columns[index];
            index += 1;
            lacking(there, wanted)
        })
    }

    fn has_strangers(&self) -> bool {
        self.columns.iter().zip(self.absent()).any(|(there, absent)| is_stranger(there, &absent))
    }
}

/// Whether a table is somebody else's. One of another version of this crate would have these
/// columns.
fn is_stranger(there: &[String], absent: &[&str]) -> bool {
    !there.is_empty() && absent.iter().any(|column| ["lane", "seq", "relay"].contains(column))
}
