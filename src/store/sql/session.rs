//! The session: a transaction, its guarded end, and the contract of a store.

use std::{error::Error, future::Future, sync::Arc, time::Duration};

use sqlx::{Connection, Transaction};
use tokio::time::timeout;

use super::{
    SqlDatabase, SqlStore,
    begin::begun,
    claim::{Answer, NotClaimed, claim_all},
    dialect::{Cause, NewLease},
    error::{cause, failed, is_conflict, not_claimed, not_committed},
    optimistic::claim_new,
};
use crate::idempotency::{
    Claim, ClaimRequest, Claims, IdempotencyStore, ReplayClaim, ReplayRequest, StoreError, StoreErrorKind,
};

/// How often a claim is made again whose rows moved under it.
const TRIES: usize = 3;

/// The longest retention that is asked for: PostgreSQL knows no time long before that.
const LONGEST_RETENTION: Duration = Duration::from_secs(1_000 * 31_536_000);

impl<DB: SqlDatabase> SqlStore<DB> {
    /// Begins a transaction with the limits set.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, DB>, StoreError> {
        let begin = || begun(&self.pool, Arc::clone(&self.begin));
        match begin().await {
            // A cancelled handler left a connection behind on which SQLite had ended the
            // transaction by itself (see `end`).
            Err(sqlx::Error::InvalidSavePointStatement) => {
                self.pool.acquire().await.map_err(failed::<DB>)?.close().await.map_err(failed::<DB>)?;
                begin().await.map_err(failed::<DB>)
            }
            begun => begun.map_err(failed::<DB>),
        }
    }

    /// Bounds what asks the server something, so that one that is frozen or unreachable is an error
    /// and not a hang.
    pub(super) async fn answered<T>(
        &self,
        late: StoreErrorKind,
        asking: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        // The wait for a connection of the pool has its own limit.
        let limit = self.limits.answer().saturating_add(self.pool.options().get_acquire_timeout());
        timeout(limit, asking).await.unwrap_or_else(|elapsed| Err(StoreError::new(late, elapsed)))
    }

    /// A claim, made again if its rows moved under it.
    async fn tried<T, F>(&self, claim: impl Fn() -> F + Send + Sync) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, NotClaimedError>> + Send,
    {
        let claiming = async {
            for _ in 0..TRIES {
                match claim().await {
                    Ok(claims) => return Ok(claims),
                    Err(NotClaimedError::Failed(error)) => return Err(error),
                    Err(NotClaimedError::Moved) => {}
                }
            }
            Err(StoreErrorKind::Conflict.into())
        };
        self.answered(StoreErrorKind::Unavailable, claiming).await
    }

    async fn try_claim(
        &self,
        requests: &[ClaimRequest],
    ) -> Result<Claims<Transaction<'static, DB>>, NotClaimedError> {
        if let Some(transaction) = self.begun_with_new(requests).await? {
            let claims = vec![Claim::Acquired; requests.len()];
            return Ok(Claims { session: Some(transaction), claims });
        }
        let mut transaction = self.begin().await?;
        if DB::OPTIMISTIC && self.optimistic.is_worth_it(requests.len()) {
            match claim_new::<DB>(&mut *transaction, &self.statements, requests).await {
                Ok(()) => {
                    let claims = vec![Claim::Acquired; requests.len()];
                    return Ok(Claims { session: Some(transaction), claims });
                }
                Err(error) if cause::<DB>(&error) == Some(Cause::Duplicate) => {
                    self.optimistic.missed();
                    self.begin_anew(&mut transaction).await.map_err(failed::<DB>)?;
                }
                // With care it is asked once more.
                Err(error) if cause::<DB>(&error) == Some(Cause::Stale) => {
                    self.prepare_anew(&mut transaction).await.map_err(failed::<DB>)?;
                }
                Err(error) => return Err(self.refused(transaction, error).await.into()),
            }
        }
        let (transaction, answers) = self.claim_in(transaction, requests, None).await?;
        let claims: Vec<Claim> = answers.into_iter().map(|Answer { claim, .. }| claim).collect();
        self.optimistic.learn(claims.iter().all(|claim| *claim == Claim::Acquired));
        if claims.contains(&Claim::Acquired) {
            return Ok(Claims { session: Some(transaction), claims });
        }
        end(transaction, DB::ROLLBACK).await.map_err(failed::<DB>)?;
        Ok(Claims { session: None, claims })
    }

    /// Begins a transaction that has the one identity already, in one round trip, if it is new as
    /// it nearly always is.
    async fn begun_with_new(
        &self,
        requests: &[ClaimRequest],
    ) -> Result<Option<Transaction<'static, DB>>, NotClaimedError> {
        let [request] = requests else { return Ok(None) };
        let begin =
            self.optimistic.is_likely().then(|| DB::begin_with_new(&self.begin, &self.statements, request));
        let Some(begin) = begin.flatten() else { return Ok(None) };
        let error = match begun(&self.pool, begin).await {
            Ok(transaction) => return Ok(Some(transaction)),
            Err(error) => error,
        };
        match cause::<DB>(&error) {
            // To ask once more would be to wait once more.
            None | Some(Cause::Busy | Cause::Conflict) => return Err(not_claimed::<DB>(error).into()),
            Some(Cause::Duplicate) => self.optimistic.missed(),
            // What is the matter shows at the claim with care.
            Some(_) => {}
        }
        Ok(None)
    }

    /// Claims all in a transaction that is open, and gives it back with the answers.
    pub(super) async fn claim_in(
        &self,
        mut transaction: Transaction<'static, DB>,
        requests: &[ClaimRequest],
        lease: Option<NewLease>,
    ) -> Result<(Transaction<'static, DB>, Vec<Answer>), NotClaimedError> {
        let mut claimed = claim_all::<DB>(&mut *transaction, &self.statements, requests, lease).await;
        if let Err(NotClaimed::Failed(error)) = &claimed
            && cause::<DB>(error) == Some(Cause::Stale)
        {
            // On this very connection: each of the pool's has statements of its own.
            self.prepare_anew(&mut transaction).await.map_err(failed::<DB>)?;
            claimed = claim_all::<DB>(&mut *transaction, &self.statements, requests, lease).await;
        }
        match claimed {
            Ok(answers) => Ok((transaction, answers)),
            Err(NotClaimed::Moved) => Err(NotClaimedError::Moved),
            Err(NotClaimed::Failed(error)) => Err(self.refused(transaction, error).await.into()),
        }
    }

    /// The server has undone all of it; the driver still counts the transaction, which begins anew.
    async fn begin_anew(&self, transaction: &mut Transaction<'static, DB>) -> Result<(), sqlx::Error> {
        DB::execute(&mut *transaction, &format!("ROLLBACK; {}", self.begin), &[]).await.map(|_| ())
    }

    /// Forgets what was prepared on this connection.
    async fn prepare_anew(&self, transaction: &mut Transaction<'static, DB>) -> Result<(), sqlx::Error> {
        transaction.clear_cached_statements().await?;
        self.begin_anew(transaction).await
    }

    /// What an error of a claim means. Connections to a server that takes no writes are given up:
    /// the next ones may lead to the one that does.
    pub(super) async fn refused(
        &self,
        mut transaction: Transaction<'static, DB>,
        error: sqlx::Error,
    ) -> StoreError {
        if cause::<DB>(&error) == Some(Cause::ReadOnly)
            && let Some(leave) = DB::LEAVE
        {
            // Ends with an error. The driver has no way to close a connection whose transaction is
            // open.
            let _ = raw::<DB>(&mut transaction, leave).await;
            for _ in 0..self.pool.num_idle() {
                match self.pool.try_acquire() {
                    Some(mut idle) => idle.close_on_drop(),
                    None => break,
                }
            }
        }
        not_claimed::<DB>(error)
    }
}

pub(super) enum NotClaimedError {
    Moved,
    Failed(StoreError),
}

impl From<StoreError> for NotClaimedError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Ends a transaction with a statement of its own, and leaves its connection fit for the next one.
///
/// The driver's commit answers `Ok` where the server rolled back: PostgreSQL does so when a
/// statement had failed and nobody looked, MySQL when a deadlock had ended the transaction and
/// later statements were committed one by one. This statement fails then. Dropping the transaction
/// makes the driver queue a ROLLBACK, which finds nothing to undo.
pub(super) async fn end<DB: SqlDatabase>(
    mut transaction: Transaction<'static, DB>,
    statement: &'static str,
) -> Result<(), sqlx::Error> {
    let ended = raw::<DB>(&mut transaction, statement).await;
    if let (Err(_), Some(repair)) = (&ended, DB::AFTER_FAILURE) {
        // Fails, and does no harm, if the transaction is still there.
        let _ = raw::<DB>(&mut transaction, repair).await;
        let _ = transaction.rollback().await;
    }
    ended
}

async fn raw<DB: SqlDatabase>(connection: &mut DB::Connection, sql: &'static str) -> Result<(), sqlx::Error> {
    DB::execute(connection, sql, &[]).await.map(|_| ())
}

impl<DB: SqlDatabase> IdempotencyStore for SqlStore<DB> {
    type Session = Transaction<'static, DB>;

    const BATCHES: bool = true;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Self::Session>, StoreError> {
        self.tried(|| self.try_claim(requests)).await
    }

    async fn claim_replay(&self, request: &ReplayRequest) -> Result<ReplayClaim<Self::Session>, StoreError> {
        self.tried(|| self.try_claim_replay(request)).await
    }

    async fn check_replays(&self) -> Result<(), StoreError> {
        self.check_replay_tables().await
    }

    async fn complete(&self, session: Self::Session) -> Result<(), StoreError> {
        let committing = async { end(session, DB::COMMIT).await.map_err(not_committed::<DB>) };
        self.answered(StoreErrorKind::OutcomeUnknown, committing).await
    }

    async fn release(&self, mut session: Self::Session) -> Result<(), StoreError> {
        let undoing = async {
            if DB::GOES_STALE {
                // The handler may have failed because what it had prepared does not fit any more.
                session.clear_cached_statements().await.map_err(failed::<DB>)?;
            }
            end(session, DB::ROLLBACK).await.map_err(failed::<DB>)
        };
        self.answered(StoreErrorKind::Unavailable, undoing).await
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        let retention = retention.min(LONGEST_RETENTION);
        let purging = async {
            DB::purge(&self.pool, &self.statements, &self.limits, retention, limit)
                .await
                .map_err(failed::<DB>)
        };
        let forgotten = self.answered(StoreErrorKind::Unavailable, purging).await?;
        // A reply goes after its identity. With the last identities go all replies: nobody asks
        // again when none was forgotten.
        self.forget_replies(retention, limit, forgotten < u64::from(limit)).await?;
        Ok(forgotten)
    }

    fn sessions(&self) -> Option<usize> {
        usize::try_from(self.pool.options().get_max_connections()).ok()
    }

    fn is_conflict(&self, error: &(dyn Error + 'static)) -> bool {
        is_conflict::<DB>(error)
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.check_schema().await
    }
}
