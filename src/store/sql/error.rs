//! What an error of the driver means.

use std::error::Error;

use super::dialect::{Cause, Dialect};
use crate::idempotency::{StoreError, StoreErrorKind};

/// What the server meant by an error, if it was the server's.
pub(super) fn cause<DB: Dialect>(error: &sqlx::Error) -> Option<Cause> {
    error.as_database_error().map(DB::cause)
}

/// An error before the commit: nothing was committed.
pub(in crate::store) fn failed<DB: Dialect>(error: sqlx::Error) -> StoreError {
    let kind = match cause::<DB>(&error) {
        Some(Cause::Conflict) => StoreErrorKind::Conflict,
        Some(Cause::Busy) => StoreErrorKind::Busy,
        Some(Cause::Schema) => StoreErrorKind::Schema,
        Some(Cause::Stale) => return StoreError::new(StoreErrorKind::Configuration, NotPrepared(error)),
        Some(Cause::Duplicate | Cause::Unavailable | Cause::ReadOnly | Cause::Row | Cause::Refused) => {
            StoreErrorKind::Unavailable
        }
        None => match error {
            sqlx::Error::PoolTimedOut if DB::ONE_WRITER => StoreErrorKind::Busy,
            sqlx::Error::Configuration(_) => StoreErrorKind::Configuration,
            // Rows that are not what this version writes.
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => StoreErrorKind::Schema,
            _ => StoreErrorKind::Unavailable,
        },
    };
    StoreError::new(kind, error)
}

/// An error of a claim: nothing was claimed. It may be the fault of one of the identities.
pub(in crate::store) fn not_claimed<DB: Dialect>(error: sqlx::Error) -> StoreError {
    match cause::<DB>(&error) {
        Some(Cause::Row) => StoreError::new(StoreErrorKind::Refused, error),
        _ => failed::<DB>(error),
    }
}

/// A statement was prepared, and prepared anew, and still was not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "prepared statements get lost: a pooler in transaction mode must keep track of them (PgBouncer 1.21 or later with max_prepared_statements \
     above 0), or pool by session"
)]
struct NotPrepared(#[source] sqlx::Error);

/// An error of the commit. Only where the server itself refused it is it certain that nothing was
/// committed.
pub(super) fn not_committed<DB: Dialect>(error: sqlx::Error) -> StoreError {
    let kind = match cause::<DB>(&error) {
        Some(Cause::Conflict | Cause::Busy) => StoreErrorKind::Conflict,
        Some(Cause::Duplicate | Cause::Refused | Cause::Row | Cause::Schema) => StoreErrorKind::RolledBack,
        // The last two are not the handler's doing; that nothing was committed shows at the next
        // claim.
        Some(Cause::Unavailable | Cause::ReadOnly | Cause::Stale) | None => StoreErrorKind::OutcomeUnknown,
    };
    StoreError::new(kind, error)
}

/// Whether an error, or one that it was made from, is a conflict of transactions, or was a
/// statement to be prepared anew (see `release`).
pub(super) fn is_conflict<DB: Dialect>(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return matches!(cause::<DB>(error), Some(Cause::Conflict | Cause::Stale));
        }
        next = error.source();
    }
    false
}
