//! The contract of an outbox, point by point.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{SqlDatabase, SqlOutbox, dialect::Ear};
use crate::{
    idempotency::StoreError,
    outbox::{
        Batch, Confirmed, Failed, Lane, NewRow, Outbox, Ownership, ParkedKey, ParkedRow, ReadRequest,
        RelayId, Removed, Select, TableStatus, Term, Wake,
    },
};

/// Each call is boxed: a connection of the driver's that is being opened takes 20 kilobytes, which
/// would be in the future of whoever calls, once for each call.
impl<DB: SqlDatabase> Outbox for SqlOutbox<DB> {
    type Connection = DB::Connection;

    fn lanes(&self) -> u16 {
        DB::LANES
    }

    fn put(
        &self,
        connection: &mut Self::Connection,
        rows: &[NewRow],
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        Box::pin(self.put_in(connection, rows))
    }

    fn register(&self, relay: RelayId, name: &str) -> impl Future<Output = Result<(), StoreError>> + Send {
        Box::pin(self.register_relay(relay, name))
    }

    fn beat(&self, relay: RelayId, lease: Duration) -> impl Future<Output = Result<bool, StoreError>> + Send {
        Box::pin(self.beat_once(relay, lease))
    }

    fn ownership(&self, lease: Duration) -> impl Future<Output = Result<Ownership, StoreError>> + Send {
        Box::pin(self.owners(lease))
    }

    fn take(
        &self,
        relay: RelayId,
        lanes: &[Term],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Term>, StoreError>> + Send {
        Box::pin(self.take_lanes(relay, lanes, lease))
    }

    fn release(&self, lanes: &[Term]) -> impl Future<Output = Result<(), StoreError>> + Send {
        Box::pin(self.release_lanes(lanes))
    }

    fn leave(&self, relay: RelayId) -> impl Future<Output = Result<(), StoreError>> + Send {
        Box::pin(self.forget_relay(relay))
    }

    fn read(&self, request: &ReadRequest<'_>) -> impl Future<Output = Result<Batch, StoreError>> + Send {
        Box::pin(self.read_rows(request))
    }

    fn parked_keys(&self, lanes: &[Lane]) -> impl Future<Output = Result<Vec<ParkedKey>, StoreError>> + Send {
        Box::pin(self.keys_parked(lanes))
    }

    fn remove(&self, confirmed: &[Confirmed]) -> impl Future<Output = Result<Removed, StoreError>> + Send {
        Box::pin(self.remove_rows(confirmed))
    }

    fn fail(
        &self,
        held: &[Term],
        failed: &[Failed],
    ) -> impl Future<Output = Result<Vec<Lane>, StoreError>> + Send {
        Box::pin(self.note(held, failed))
    }

    fn status(&self) -> impl Future<Output = Result<TableStatus, StoreError>> + Send {
        Box::pin(self.table_status())
    }

    fn list_parked(
        &self,
        select: &Select,
        behind: i64,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<ParkedRow>, StoreError>> + Send {
        Box::pin(self.parked(select, behind, limit))
    }

    fn unpark(&self, select: &Select) -> impl Future<Output = Result<u64, StoreError>> + Send {
        Box::pin(self.put_back(select))
    }

    fn discard(&self, select: &Select) -> impl Future<Output = Result<u64, StoreError>> + Send {
        Box::pin(self.delete_parked(select))
    }

    fn check(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        Box::pin(self.check_schema())
    }

    fn waker(&self) -> &Wake {
        &self.wake
    }

    fn wake(&self) {
        Self::wake(self);
    }

    fn listen(&self, hears: watch::Sender<bool>) -> BoxFuture<'static, ()> {
        DB::listen(Ear {
            pool: self.pool.clone(),
            statements: Arc::clone(&self.statements),
            me: self.notifier.id,
            wake: self.wake.clone(),
            hears,
        })
    }
}
