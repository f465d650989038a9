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
        Some(Cause::Duplicate | Cause::Unavailable | Cause::Refused) => StoreErrorKind::Unavailable,
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

/// An error of the commit. Only where the server itself refused it is it certain that nothing was committed.
pub(super) fn not_committed<DB: Dialect>(error: sqlx::Error) -> StoreError {
    let kind = match cause::<DB>(&error) {
        Some(Cause::Conflict | Cause::Busy) => StoreErrorKind::Conflict,
        Some(Cause::Duplicate | Cause::Refused | Cause::Schema) => StoreErrorKind::RolledBack,
        Some(Cause::Unavailable) | None => StoreErrorKind::OutcomeUnknown,
    };
    StoreError::new(kind, error)
}

/// Whether an error, or one that it was made from, is a conflict of transactions.
pub(super) fn is_conflict<DB: Dialect>(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<sqlx::Error>() {
            return cause::<DB>(error) == Some(Cause::Conflict);
        }
        next = error.source();
    }
    false
}
