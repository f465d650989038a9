//! The tables: created on request, printed for those who run their own migrations, checked at
//! start-up.

use super::{
    Replays,
    statements::{COLUMNS, KEYS},
};
use crate::{
    idempotency::{StoreError, StoreErrorKind},
    store::sql::{
        SqlDatabase, SqlStore,
        error::failed,
        schema::{SchemaMismatch, catalog, lacking, other_key},
    },
};

impl<DB: SqlDatabase> Replays<DB> {
    /// The statements that create the tables, for those who run their own migrations. They can be
    /// run again, and do nothing then.
    pub fn schema_sql(&self) -> String {
        self.statements().schema.clone()
    }

    /// Creates the tables that are missing. Safe to run again, and by several processes together:
    /// where nothing is missing it only reads the catalog. The table of the identities is the
    /// store's own to create.
    ///
    /// # Errors
    ///
    /// `Unavailable`, with the database's reason, such as a missing right; those of
    /// [`check_schema`](Self::check_schema) if a table of this name is there that is another one.
    pub async fn create_schema(&self) -> Result<(), StoreError> {
        let store = &self.store;
        let creating = async {
            if store.missing_for_replays().await?.is_none() {
                return Ok(());
            }
            let sql = &self.statements().schema;
            DB::create_missing(&store.pool, sql, &store.limits).await.map_err(failed::<DB>)
        };
        store.answered(StoreErrorKind::Unavailable, creating).await?;
        self.check_schema().await
    }

    /// Looks whether the tables are there with all their columns and their keys. A consumer with
    /// [`ReplayPolicy::Opened`](crate::idempotency::ReplayPolicy::Opened) does this before it takes
    /// messages.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Schema`], whose source is a [`SchemaMismatch`] that names what is missing
    /// and the SQL to run.
    pub async fn check_schema(&self) -> Result<(), StoreError> {
        self.store.check_replay_tables().await
    }
}

impl<DB: SqlDatabase> SqlStore<DB> {
    pub(in crate::store::sql) async fn check_replay_tables(&self) -> Result<(), StoreError> {
        match self.answered(StoreErrorKind::Unavailable, self.missing_for_replays()).await? {
            None => Ok(()),
            Some(missing) => {
                let mismatch = SchemaMismatch::new(missing, self.replays.schema.clone());
                Err(StoreError::new(StoreErrorKind::Schema, mismatch))
            }
        }
    }

    async fn missing_for_replays(&self) -> Result<Option<String>, StoreError> {
        let mut connection = self.pool.acquire().await.map_err(failed::<DB>)?;
        for ((table, columns), key) in self.replays.tables.iter().zip(COLUMNS).zip(KEYS) {
            let there = catalog::<DB>(&mut connection, DB::COLUMNS, table).await?;
            let keyed = catalog::<DB>(&mut connection, DB::KEY, table).await?;
            if there.is_empty() {
                return Ok(Some(format!("the table {table} is missing")));
            }
            let absent = lacking(&there, columns);
            if !absent.is_empty() {
                return Ok(Some(format!("the table {table} lacks the columns {}", absent.join(", "))));
            }
            let other = other_key(table, &keyed, key);
            if other.is_some() {
                return Ok(other);
            }
        }
        Ok(None)
    }
}
