//! Looking into the table.

use super::{
    SqlDatabase, SqlStore,
    dialect::Value,
    error::{failed, not_committed},
    session::end,
};
use crate::{
    idempotency::{Inspect, Record, Scope, StoreError, StoreErrorKind},
    message::MessageId,
    store::log_forgotten,
};

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
