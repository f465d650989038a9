//! Leases in the SQL table: for handlers whose effect is outside of the database.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;

use super::{
    SqlDatabase, SqlStore,
    claim::{Answer, ROWS},
    dialect::{NewLease, Value},
    error::{failed, not_committed},
    micros,
    session::{NotClaimedError, end},
};
use crate::{
    idempotency::{
        Claim, ClaimRequest, Claims, IdempotencyStore, Inspect, Lease, Record, Scope, StoreError,
        StoreErrorKind,
    },
    message::MessageId,
    store::lease::{keep_alive, single},
};

/// Remembers identities in the table of a [`SqlStore`], under leases: for handlers whose effect is
/// outside of the database, such as a call to another service.
///
/// The claim is a row of its own, committed at once, with a fencing token and a time at which it
/// runs out; no transaction stays open while the handler works. The handler gets the [`Lease`],
/// which is renewed at a third of its time while the handler runs, and is completed by
/// compare-and-set on its token.
///
/// What is guaranteed: at most one consumer holds an identity at a time as far as its lease has not
/// run out, and what was completed is not handled again within the retention. Each change of a row
/// is a transaction with the store's limits. The effect is *not* atomic with that: a process that
/// dies between its call and `complete` makes the call again. Give the other service an idempotency
/// key (the message ID), or the token, if it can refuse older ones.
///
/// Tokens of one identity grow with each lease, for as long as its row is there: released and
/// completed rows keep them until they are purged. The first token is the time of the claiming
/// process in microseconds.
///
/// It works on the same table as the transactions: each honours what the other completed.
pub struct LeasedStore<DB: SqlDatabase> {
    store: SqlStore<DB>,
    lease: Duration,
}

impl<DB: SqlDatabase> LeasedStore<DB> {
    pub(super) fn new(store: SqlStore<DB>, lease: Duration) -> Result<Self, StoreError> {
        if lease.is_zero() {
            return Err(StoreError::new(StoreErrorKind::Configuration, "a lease of zero runs out at once"));
        }
        Ok(Self { store, lease: lease.min(Duration::from_secs(31_536_000)) })
    }

    /// The store of transactions on the same table.
    pub fn transactional(&self) -> &SqlStore<DB> {
        &self.store
    }

    async fn claim_leases(&self, requests: &[ClaimRequest]) -> Result<Vec<Claims<Lease>>, StoreError> {
        let lease = NewLease { token: first_token(), micros: micros(self.lease) };
        // A transaction, for the sake of its limits: a rival's may hold the row for as long as its
        // handler takes.
        let transaction = self.store.begin().await?;
        let answers = match self.store.claim_in(transaction, requests, Some(lease)).await {
            Ok((transaction, answers)) => {
                end(transaction, DB::COMMIT).await.map_err(failed::<DB>)?;
                answers
            }
            Err(NotClaimedError::Moved) => return Err(StoreErrorKind::Conflict.into()),
            Err(NotClaimedError::Failed(error)) => return Err(error),
        };
        let claims = requests.iter().zip(answers).map(|(request, Answer { claim, token })| match claim {
            Claim::Acquired => Claims::leased(Lease::new(request, token.cast_unsigned())),
            taken => Claims { session: None, claims: vec![taken] },
        });
        Ok(claims.collect())
    }

    /// Changes the row of a lease that is still held, or says that it is not.
    async fn change(&self, sql: &str, before: &[Value<'_>], lease: &Lease) -> Result<(), StoreError> {
        let mut transaction = self.store.begin().await?;
        let changed = match change_row::<DB>(&mut transaction, sql, before, lease).await {
            Err(error) => return Err(self.store.refused(transaction, error).await),
            Ok(changed) => changed,
        };
        if changed {
            end(transaction, DB::COMMIT).await.map_err(not_committed::<DB>)
        } else {
            end(transaction, DB::ROLLBACK).await.map_err(failed::<DB>)?;
            Err(StoreErrorKind::LeaseLost.into())
        }
    }
}

async fn change_row<DB: SqlDatabase>(
    connection: &mut DB::Connection,
    sql: &str,
    before: &[Value<'_>],
    lease: &Lease,
) -> Result<bool, sqlx::Error> {
    let mut values = before.to_vec();
    values.extend([
        Value::Text(lease.scope().as_str()),
        Value::Text(lease.message_id().as_str()),
        Value::Integer(lease.token().cast_signed()),
    ]);
    Ok(DB::execute(connection, sql, &values).await? == 1)
}

/// Where the tokens of an identity begin: later than those of a row that was purged in the
/// meantime.
fn first_token() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    micros(now)
}

impl<DB: SqlDatabase> IdempotencyStore for LeasedStore<DB> {
    type Session = Lease;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Lease>, StoreError> {
        let request = std::slice::from_ref(single(requests)?);
        let mut claims = self.store.answered(StoreErrorKind::Unavailable, self.claim_leases(request)).await?;
        claims.pop().ok_or_else(|| StoreErrorKind::Unavailable.into())
    }

    async fn claim_each(&self, requests: &[ClaimRequest]) -> Vec<Result<Claims<Lease>, StoreError>> {
        let (mut answers, mut parts) = (Vec::with_capacity(requests.len()), vec![requests]);
        while let Some(part) = parts.pop() {
            match self.store.answered(StoreErrorKind::Unavailable, self.claim_leases(part)).await {
                Ok(claims) => answers.extend(claims.into_iter().map(Ok)),
                // One of them is refused: halves find out which.
                Err(error) if error.kind() == StoreErrorKind::Refused && part.len() > 1 => {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([right, left]);
                }
                Err(error) => answers.extend(repeated(part.len(), error)),
            }
        }
        answers
    }

    async fn complete(&self, session: Lease) -> Result<(), StoreError> {
        let completing = self.change(&self.store.statements.complete, &[], &session);
        self.store.answered(StoreErrorKind::OutcomeUnknown, completing).await
    }

    /// In one transaction and, as long as all are held, one statement; in sorted order, so that two
    /// of them never wait for each other in a circle.
    async fn complete_each(&self, sessions: Vec<Lease>) -> Vec<Result<(), StoreError>> {
        let completing = async {
            let mut leases: Vec<(usize, &Lease)> = sessions.iter().enumerate().collect();
            leases.sort_unstable_by_key(|(_, lease)| (lease.scope(), lease.message_id()));
            let mut transaction = self.store.begin().await?;
            let mut held = 0;
            for chunk in leases.chunks(ROWS) {
                let chunk: Vec<&Lease> = chunk.iter().map(|(_, lease)| *lease).collect();
                held += DB::complete(&mut *transaction, &self.store.statements, &chunk)
                    .await
                    .map_err(failed::<DB>)?;
            }
            let mut results: Vec<Result<(), StoreError>> = sessions.iter().map(|_| Ok(())).collect();
            if held < sessions.len() as u64 {
                // Some are lost. One by one tells which; none is committed yet.
                end(transaction, DB::ROLLBACK).await.map_err(failed::<DB>)?;
                transaction = self.store.begin().await?;
                for (index, lease) in leases {
                    let completed =
                        change_row::<DB>(&mut *transaction, &self.store.statements.complete, &[], lease)
                            .await;
                    if !completed.map_err(failed::<DB>)? {
                        results[index] = Err(StoreErrorKind::LeaseLost.into());
                    }
                }
            }
            end(transaction, DB::COMMIT).await.map_err(not_committed::<DB>)?;
            Ok(results)
        };
        let completed = self.store.answered(StoreErrorKind::OutcomeUnknown, completing).await;
        completed.unwrap_or_else(|error| repeated(sessions.len(), error))
    }

    async fn release(&self, session: Lease) -> Result<(), StoreError> {
        let releasing = self.change(&self.store.statements.release, &[], &session);
        self.store.answered(StoreErrorKind::Unavailable, releasing).await
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        self.store.purge(retention, limit).await
    }

    fn keep_alive(&self, session: &Lease) -> Option<BoxFuture<'static, StoreError>> {
        let (store, lease) = (self.clone(), session.clone());
        Some(keep_alive(self.lease, move || {
            let (store, lease) = (store.clone(), lease.clone());
            async move {
                let micros = [Value::Integer(micros(store.lease))];
                store.change(&store.store.statements.renew, &micros, &lease).await
            }
        }))
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.store.check().await
    }
}

/// One error for each of many.
fn repeated<T>(count: usize, error: StoreError) -> Vec<Result<T, StoreError>> {
    let (kind, text) = (error.kind(), error.to_string());
    let mut all: Vec<_> = (1..count).map(|_| Err(StoreError::new(kind, text.clone()))).collect();
    all.push(Err(error));
    all.truncate(count);
    all
}

impl<DB: SqlDatabase> Inspect for LeasedStore<DB> {
    async fn find(&self, scope: &Scope, message_id: &MessageId) -> Result<Option<Record>, StoreError> {
        self.store.find(scope, message_id).await
    }

    async fn count(&self, scope: &Scope) -> Result<u64, StoreError> {
        self.store.count(scope).await
    }

    async fn forget(&self, scope: &Scope, message_id: &MessageId) -> Result<bool, StoreError> {
        self.store.forget(scope, message_id).await
    }
}

impl<DB: SqlDatabase> Clone for LeasedStore<DB> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), lease: self.lease }
    }
}

impl<DB: SqlDatabase> fmt::Debug for LeasedStore<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedStore").field("store", &self.store).field("lease", &self.lease).finish()
    }
}
