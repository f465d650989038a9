//! Replays in a SQL database: which are open, and what took effect in them.
//!
//! Reads: `claim` (what a guard asks), `found` (what operators see), `schema`.

mod claim;
mod found;
mod schema;
mod statements;

use std::fmt;

use sqlx::AssertSqlSafe;

pub use self::found::{ReplayOpening, ReplayOutlook, ReplayedMessage};
pub(super) use self::statements::ReplayStatements;
pub(in crate::store) use self::statements::ReplaySyntax;
use self::{found::opening, statements::REASON};
use super::{
    SqlDatabase, SqlStore,
    dialect::{Cause, Value},
    error::{cause, failed, not_claimed, not_committed},
    session::end,
};
use crate::{
    idempotency::{Inspect, Record, Scope, StoreError, StoreErrorKind},
    message::{Epoch, MessageId},
};

/// How often an opening is tried again that another one stood in the way of.
const TRIES: usize = 3;

/// Opens and closes replays in the database of a [`SqlStore`]: messages that took effect do so once
/// more, once each, in the scopes that opened their epoch.
///
/// The messages are sent again under their own IDs, with the epoch: by
/// [`OutgoingMessage::replay`](crate::OutgoingMessage::replay), or
/// [`Unpark::replay`](crate::consumer::Unpark::replay) for parked ones. Consumers need
/// [`ReplayPolicy::Opened`](crate::idempotency::ReplayPolicy::Opened).
///
/// What is guaranteed: the effect is committed at most once per (scope, message ID, epoch), and
/// only while the epoch is open in that scope. Who opened it, why and when, and what took effect in
/// it, is in the database; the latter is committed with the effect.
///
/// * A header alone opens nothing: who may INSERT into the table of the openings may open.
/// * The records of what took effect are kept for good, beyond the retention of the identities. A
///   copy of one that was deleted takes effect again while its epoch is open.
/// * What took effect in an epoch stays a duplicate in it when it is closed; anything else is
///   parked as `replay-refused`, and can be put back when it was opened again.
/// * What a handler does outside of its transaction is not covered, as ever.
///
/// It has two tables beside that of the identities, with `_replays` and `_replayed` behind its
/// name. Operators need SELECT, INSERT and UPDATE on the first one and SELECT on the second; a
/// consumer SELECT on both, INSERT on the second, and UPDATE on the first, which PostgreSQL and
/// MySQL want for the lock: on PostgreSQL of one column, such as `reason`, is enough.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn replay(store: lapin_idempotent::PostgresStore)
/// # -> Result<(), lapin_idempotent::BoxError> {
/// use lapin_idempotent::{Scope, consumer::Unpark, message::Epoch, store::Replays};
///
/// let replays = Replays::new(store);
/// replays.create_schema().await?;
/// let (scope, epoch) = (Scope::new("ledger")?, Epoch::new("2026-11-vat-fix")?);
/// replays.open(&scope, &epoch, "ops@example.org", "VAT was 16 %").await?;
/// Unpark::new("amqp://localhost", "payments.debit.parked").replay(epoch.clone()).run().await?;
/// // ... when all of them have taken effect:
/// replays.close(&scope, &epoch).await?;
/// # Ok(())
/// # }
/// ```
///
/// Cheap to clone.
pub struct Replays<DB: SqlDatabase> {
    store: SqlStore<DB>,
}

/// Who opens, or why, cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("{what} must have 1 to {most} bytes and no control characters")]
struct Unkeepable {
    what: &'static str,
    most: usize,
}

impl<DB: SqlDatabase> Replays<DB> {
    /// The replays of a store's scopes.
    pub fn new(store: SqlStore<DB>) -> Self {
        Self { store }
    }

    /// The store.
    pub fn store(&self) -> &SqlStore<DB> {
        &self.store
    }

    /// Opens an epoch in a scope, and says whether it was closed: one that is open stays as it is.
    /// An epoch that was closed can be opened again; each opening is kept, and what took effect in
    /// an earlier one is not repeated.
    ///
    /// `by` has 1 to 255 bytes, `because` 1 to 1000; neither has control characters.
    ///
    /// # Errors
    ///
    /// `Configuration` for those; `Schema` without the tables; any other [`StoreError`].
    pub async fn open(
        &self,
        scope: &Scope,
        epoch: &Epoch,
        by: &str,
        because: &str,
    ) -> Result<bool, StoreError> {
        for (what, text, most) in [("who opens", by, 255), ("the reason", because, REASON)] {
            if text.is_empty() || text.len() > most || text.contains(char::is_control) {
                return Err(StoreError::new(StoreErrorKind::Configuration, Unkeepable { what, most }));
            }
        }
        let opening = async {
            for _ in 0..TRIES {
                match self.changed(&self.statements().open, &values(scope, epoch, by, because)).await {
                    Err(error) if error.kind() == StoreErrorKind::Conflict => {}
                    opened => return Ok(opened? > 0),
                }
            }
            Err(StoreErrorKind::Conflict.into())
        };
        let opened = self.store.answered(StoreErrorKind::OutcomeUnknown, opening).await?;
        if opened {
            tracing::warn!(%scope, %epoch, by, because, "replay opened: messages that took effect may do so once more");
        }
        Ok(opened)
    }

    /// Closes an epoch in a scope, and says whether it was open. Waits for what is taking effect in
    /// it, as long as the store's lock time-out; from then on nothing does.
    ///
    /// # Errors
    ///
    /// `Busy` if something was still taking effect then, and it stays open: stop what sends the
    /// messages, or pause the consumers, and close it again. Any other [`StoreError`].
    pub async fn close(&self, scope: &Scope, epoch: &Epoch) -> Result<bool, StoreError> {
        let values = [Value::Text(scope.as_str()), Value::Text(epoch.as_str())];
        let closing = self.changed(&self.statements().close, &values);
        let closed = self.store.answered(StoreErrorKind::OutcomeUnknown, closing).await? > 0;
        if closed {
            tracing::warn!(%scope, %epoch, "replay closed");
        }
        Ok(closed)
    }

    /// All openings, those that were closed included: of one scope, or of all. Counts what took
    /// effect: not for every minute.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    pub async fn list(&self, scope: Option<&Scope>) -> Result<Vec<ReplayOpening>, StoreError> {
        let [of_one, of_all] = &self.statements().list;
        let rows = match scope {
            Some(scope) => self.rows(of_one, &[Value::Text(scope.as_str())]).await?,
            None => self.rows(of_all, &[]).await?,
        };
        rows.iter().map(opening).collect::<Result<_, _>>().map_err(failed::<DB>)
    }

    /// What took effect in an epoch, in the order of the IDs, `limit` of them behind `after`.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    pub async fn replayed(
        &self,
        scope: &Scope,
        epoch: &Epoch,
        after: Option<&MessageId>,
        limit: u32,
    ) -> Result<Vec<ReplayedMessage>, StoreError> {
        let after = after.map(MessageId::as_str).unwrap_or_default();
        let values = [
            Value::Text(scope.as_str()),
            Value::Text(epoch.as_str()),
            Value::Text(after),
            Value::Integer(limit.into()),
        ];
        let rows = self.rows(&self.statements().list_replayed, &values).await?;
        rows.iter().map(found::replayed).collect::<Result<_, _>>().map_err(failed::<DB>)
    }

    /// What a message of this ID would meet in an epoch: for a dry run. Whether the epoch is open
    /// is not asked.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    pub async fn look(
        &self,
        scope: &Scope,
        epoch: &Epoch,
        message_id: &MessageId,
    ) -> Result<ReplayOutlook, StoreError> {
        let values = [scope.as_str(), epoch.as_str(), message_id.as_str()].map(Value::Text);
        if !self.rows(&self.statements().recorded, &values).await?.is_empty() {
            return Ok(ReplayOutlook::Known);
        }
        Ok(match self.store.find(scope, message_id).await? {
            Some(Record::Completed { .. }) => ReplayOutlook::WouldRun,
            _ => ReplayOutlook::NeverRan,
        })
    }

    fn statements(&self) -> &ReplayStatements {
        &self.store.replays
    }

    /// Changes rows in a transaction, which has the store's limits; how many. None, if a unique key
    /// says that a rival was first.
    async fn changed(&self, sql: &str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        let mut transaction = self.store.begin().await?;
        match DB::execute(&mut *transaction, sql, values).await {
            Ok(changed) => {
                end(transaction, DB::COMMIT).await.map_err(not_committed::<DB>)?;
                Ok(changed)
            }
            Err(error) => {
                end(transaction, DB::ROLLBACK).await.map_err(failed::<DB>)?;
                if cause::<DB>(&error) == Some(Cause::Duplicate) {
                    Ok(0)
                } else {
                    Err(not_claimed::<DB>(error))
                }
            }
        }
    }

    async fn rows(&self, sql: &str, values: &[Value<'_>]) -> Result<Vec<DB::Row>, StoreError> {
        let reading = async {
            let mut connection = self.store.pool.acquire().await.map_err(failed::<DB>)?;
            let query = DB::bound(sqlx::query(AssertSqlSafe(sql)), values);
            DB::fetch(&mut connection, query).await.map_err(failed::<DB>)
        };
        self.store.answered(StoreErrorKind::Unavailable, reading).await
    }
}

/// What an opening is made of, in the order of the statement.
fn values<'v>(scope: &'v Scope, epoch: &'v Epoch, by: &'v str, because: &'v str) -> [Value<'v>; 6] {
    let (scope, epoch) = (scope.as_str(), epoch.as_str());
    [scope, epoch, by, because, scope, epoch].map(Value::Text)
}

impl<DB: SqlDatabase> Clone for Replays<DB> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone() }
    }
}

impl<DB: SqlDatabase> fmt::Debug for Replays<DB> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replays").field("store", &self.store).finish()
    }
}
