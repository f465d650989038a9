//! Sessions whose statements fail, for tests of handlers.

use crate::idempotency::StoreError;

/// A session of which every statement that writes can be made to fail, as long as it takes.
///
/// PostgreSQL needs none: it rolls back a transaction of which a statement has failed, whatever the
/// handler makes of it. MySQL has nothing of the sort that does not end the transaction.
#[derive(Debug)]
pub(crate) struct Sabotage(());

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::any::Any;

    use super::{Sabotage, StoreError};
    use crate::{idempotency::StoreErrorKind, store::SqliteTransaction};

    impl Sabotage {
        /// If it can be done to this session.
        pub(crate) fn of<S: 'static>(session: &S) -> Option<Self> {
            (session as &dyn Any).is::<SqliteTransaction>().then_some(Self(()))
        }

        /// From now on they fail.
        pub(crate) async fn begin<S: 'static>(&self, session: &mut S) -> Result<(), StoreError> {
            set(session, "PRAGMA query_only = true").await
        }

        /// They do no more.
        pub(crate) async fn end<S: 'static>(&self, session: &mut S) -> Result<(), StoreError> {
            set(session, "PRAGMA query_only = false").await
        }
    }

    async fn set<S: 'static>(session: &mut S, sql: &'static str) -> Result<(), StoreError> {
        let Some(transaction) = (session as &mut dyn Any).downcast_mut::<SqliteTransaction>() else {
            return Ok(());
        };
        let set = sqlx::raw_sql(sql).execute(&mut **transaction).await;
        set.map(|_| ()).map_err(|error| StoreError::new(StoreErrorKind::Unavailable, error))
    }
}

#[cfg(not(feature = "sqlite"))]
#[expect(clippy::unused_async, reason = "the same as with SQLite")]
impl Sabotage {
    pub(crate) fn of<S: 'static>(_: &S) -> Option<Self> {
        None
    }

    pub(crate) async fn begin<S: 'static>(&self, _: &mut S) -> Result<(), StoreError> {
        Ok(())
    }

    pub(crate) async fn end<S: 'static>(&self, _: &mut S) -> Result<(), StoreError> {
        Ok(())
    }
}
