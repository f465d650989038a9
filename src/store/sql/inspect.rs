//! Looking into the table.

use std::time::{Duration, SystemTime};

use super::{
    SqlDatabase, SqlStore,
    dialect::Value,
    error::{failed, not_committed},
    options::micros,
    session::end,
};
use crate::{
    idempotency::{Inspect, Record, Scope, StoreError, StoreErrorKind},
    message::MessageId,
    store::{ServerFacts, log_forgotten},
};

impl<DB: SqlDatabase> SqlStore<DB> {
    /// What the server says of itself.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    pub async fn server(&self) -> Result<ServerFacts, StoreError> {
        let asking = async {
            let mut connection = self.pool.acquire().await.map_err(failed::<DB>)?;
            let version = DB::strings(&mut connection, DB::VERSION, &[]).await.map_err(failed::<DB>)?;
            let clock = DB::integer(&mut connection, &self.statements.clock, &[]);
            let clock = u64::try_from(clock.await.map_err(failed::<DB>)?).unwrap_or_default();
            let clock = SystemTime::UNIX_EPOCH + Duration::from_micros(clock);
            Ok(ServerFacts { version: version.concat(), clock })
        };
        self.answered(StoreErrorKind::Unavailable, asking).await
    }

    /// How many identities are older than the retention, in all scopes, so that a purge would
    /// forget them. Reads them all: not for every minute.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    pub async fn count_older(&self, retention: Duration) -> Result<u64, StoreError> {
        let counting = async {
            let mut connection = self.pool.acquire().await.map_err(failed::<DB>)?;
            let ago = -micros(retention);
            let ago = [Value::Integer(ago), Value::Integer(ago)];
            let count = DB::integer(&mut connection, &self.statements.count_older, &ago).await;
            Ok(u64::try_from(count.map_err(failed::<DB>)?).unwrap_or_default())
        };
        self.answered(StoreErrorKind::Unavailable, counting).await
    }
}

impl<DB: SqlDatabase> Inspect for SqlStore<DB> {
    async fn find(&self, scope: &Scope, message_id: &MessageId) -> Result<Option<Record>, StoreError> {
        let finding = async {
            let mut connection = self.pool.acquire().await.map_err(failed::<DB>)?;
            let found = DB::select(&mut connection, &self.statements, &[(scope, message_id)]).await;
            Ok(found.map_err(failed::<DB>)?.first().and_then(|row| row.record()))
        };
        self.answered(StoreErrorKind::Unavailable, finding).await
    }

    async fn count(&self, scope: &Scope) -> Result<u64, StoreError> {
        let counting = async {
            let mut connection = self.pool.acquire().await.map_err(failed::<DB>)?;
            let count =
                DB::integer(&mut connection, &self.statements.count, &[Value::Text(scope.as_str())]).await;
            Ok(u64::try_from(count.map_err(failed::<DB>)?).unwrap_or_default())
        };
        self.answered(StoreErrorKind::Unavailable, counting).await
    }

    async fn forget(&self, scope: &Scope, message_id: &MessageId) -> Result<bool, StoreError> {
        let forgetting = async {
            let mut transaction = self.begin().await?;
            let identity = [Value::Text(scope.as_str()), Value::Text(message_id.as_str())];
            let mut changed = 0;
            for sql in [&self.statements.forget, &self.statements.forget_leased] {
                changed += DB::execute(&mut *transaction, sql, &identity).await.map_err(failed::<DB>)?;
            }
            end(transaction, DB::COMMIT).await.map_err(not_committed::<DB>)?;
            Ok(changed > 0)
        };
        let forgotten = self.answered(StoreErrorKind::Unavailable, forgetting).await?;
        if forgotten {
            log_forgotten(scope, message_id);
        }
        Ok(forgotten)
    }
}
