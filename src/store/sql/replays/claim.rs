//! What a guard asks for a message of a replay: one transaction, from the claim on.
//!
//! The claim comes first, as it may begin the transaction anew, and with it would go the lock on
//! the opening.

use sqlx::{AssertSqlSafe, Connection, Transaction};

use super::found::recorded;
use crate::{
    idempotency::{Claim, Claims, Record, ReplayClaim, ReplayRequest, StoreError},
    store::sql::{
        SqlDatabase, SqlStore,
        dialect::{Cause, Value},
        error::{cause, failed},
        session::{NotClaimedError, end},
    },
};

type Answer<DB> = ReplayClaim<Transaction<'static, DB>>;

impl<DB: SqlDatabase> SqlStore<DB> {
    /// Claims the identity of the replay, and with it the original's: a copy of that which is being
    /// handled is waited for, and what never took effect does so here and nowhere else.
    pub(in crate::store::sql) async fn try_claim_replay(
        &self,
        request: &ReplayRequest,
    ) -> Result<Answer<DB>, NotClaimedError> {
        let transaction = self.begin().await?;
        let requests = [request.claim(), request.original.clone()];
        let (transaction, answers) = self.claim_in(transaction, &requests, None).await?;
        let mut claims = answers.into_iter().map(|answer| answer.claim);
        let original = match (claims.next(), claims.next()) {
            (Some(Claim::Acquired), Some(Claim::Acquired)) => None,
            (Some(Claim::Acquired), Some(Claim::Completed { fingerprint, processed_at })) => {
                Some(Record::completed(fingerprint, processed_at))
            }
            // It took effect in this epoch, or the original has a lease.
            (Some(Claim::Acquired), Some(taken)) | (Some(taken), _) => {
                undone(transaction).await?;
                return Ok(taken_by(taken));
            }
            (None, _) => return Err(NotClaimedError::Moved),
        };
        self.try_record(transaction, request, original).await
    }

    async fn try_record(
        &self,
        mut transaction: Transaction<'static, DB>,
        request: &ReplayRequest,
        original: Option<Record>,
    ) -> Result<Answer<DB>, NotClaimedError> {
        let statements = &self.replays;
        let scope = Value::Text(request.original.scope.as_str());
        let epoch = Value::Text(request.epoch.as_str());
        let id = Value::Text(request.original.message_id.as_str());
        match DB::strings(&mut *transaction, &statements.is_open, &[scope, epoch, scope, epoch]).await {
            Ok(open) if open.is_empty() => {
                undone(transaction).await?;
                return Ok(ReplayClaim::Refused);
            }
            Ok(_) => {}
            Err(error) => return Err(self.not_recorded(transaction, error).await),
        }
        let fingerprint = Value::Bytes(request.original.fingerprint.as_bytes());
        let values = [scope, epoch, id, fingerprint, scope, id];
        let [first, again] = &statements.record;
        let recording = match original {
            None => DB::execute(&mut *transaction, first, &values[..4]).await,
            Some(_) => DB::execute(&mut *transaction, again, &values).await,
        };
        match recording {
            Ok(_) => {
                let claims = Claims { session: Some(transaction), claims: vec![Claim::Acquired] };
                Ok(ReplayClaim::open(claims, original))
            }
            // Its identity was purged, and this remembers it.
            Err(error) if cause::<DB>(&error) == Some(Cause::Duplicate) => {
                undone(transaction).await?;
                let mut connection = self.pool.acquire().await.map_err(failed::<DB>)?;
                let asked = sqlx::query(AssertSqlSafe(statements.recorded.as_str()));
                let asked = DB::bound(asked, &[scope, epoch, id]);
                let rows = DB::fetch(&mut connection, asked).await.map_err(failed::<DB>)?;
                let row = rows.first().ok_or(NotClaimedError::Moved)?;
                let (fingerprint, at) = recorded(row, 0).map_err(failed::<DB>)?;
                Ok(taken_by(Claim::completed(fingerprint, at)))
            }
            Err(error) => Err(self.not_recorded(transaction, error).await),
        }
    }

    async fn not_recorded(
        &self,
        mut transaction: Transaction<'static, DB>,
        error: sqlx::Error,
    ) -> NotClaimedError {
        if cause::<DB>(&error) == Some(Cause::Stale) {
            return match transaction.clear_cached_statements().await {
                Ok(()) => NotClaimedError::Moved,
                Err(error) => failed::<DB>(error).into(),
            };
        }
        self.refused(transaction, error).await.into()
    }
}

async fn undone<DB: SqlDatabase>(transaction: Transaction<'static, DB>) -> Result<(), StoreError> {
    end(transaction, DB::ROLLBACK).await.map_err(failed::<DB>)
}

fn taken_by<S>(claim: Claim) -> ReplayClaim<S> {
    ReplayClaim::open(Claims { session: None, claims: vec![claim] }, None)
}
