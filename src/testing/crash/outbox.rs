//! An outbox, with points before and after what a relay asks of it.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::{
    idempotency::StoreError,
    outbox::{
        Batch, Confirmed, Failed, Lane, NewRow, Outbox, Ownership, ParkedKey, ParkedRow, ReadRequest,
        RelayId, Removed, Select, TableStatus, Term, Wake,
    },
    testing::points::{Point, Points},
};

#[derive(Debug)]
pub(super) struct CrashingOutbox<O> {
    pub(super) outbox: O,
    pub(super) points: Arc<Points>,
}

impl<O: Outbox> Outbox for CrashingOutbox<O> {
    type Connection = O::Connection;

    fn lanes(&self) -> u16 {
        self.outbox.lanes()
    }

    async fn put(&self, connection: &mut O::Connection, rows: &[NewRow]) -> Result<(), StoreError> {
        self.outbox.put(connection, rows).await
    }

    async fn register(&self, relay: RelayId, name: &str) -> Result<(), StoreError> {
        self.outbox.register(relay, name).await
    }

    async fn beat(&self, relay: RelayId, lease: Duration) -> Result<bool, StoreError> {
        self.outbox.beat(relay, lease).await
    }

    async fn ownership(&self, lease: Duration) -> Result<Ownership, StoreError> {
        self.outbox.ownership(lease).await
    }

    async fn take(&self, relay: RelayId, lanes: &[Term], lease: Duration) -> Result<Vec<Term>, StoreError> {
        self.outbox.take(relay, lanes, lease).await
    }

    async fn release(&self, lanes: &[Term]) -> Result<(), StoreError> {
        self.outbox.release(lanes).await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        self.outbox.leave(relay).await
    }

    /// Reads that find nothing come as often as they like, and are no points.
    async fn read(&self, request: &ReadRequest<'_>) -> Result<Batch, StoreError> {
        let batch = self.outbox.read(request).await?;
        if !batch.rows.is_empty() {
            self.points.crash_at(Point::HasRead).await;
        }
        Ok(batch)
    }

    async fn parked_keys(&self, lanes: &[Lane]) -> Result<Vec<ParkedKey>, StoreError> {
        self.outbox.parked_keys(lanes).await
    }

    async fn remove(&self, confirmed: &[Confirmed]) -> Result<Removed, StoreError> {
        if confirmed.is_empty() {
            return self.outbox.remove(confirmed).await;
        }
        self.points.crash_at(Point::Remove).await;
        let removed = self.outbox.remove(confirmed).await?;
        self.points.crash_at(Point::Removed).await;
        Ok(removed)
    }

    async fn fail(&self, held: &[Term], failed: &[Failed]) -> Result<Vec<Lane>, StoreError> {
        self.outbox.fail(held, failed).await
    }

    async fn status(&self) -> Result<TableStatus, StoreError> {
        self.outbox.status().await
    }

    async fn list_parked(
        &self,
        select: &Select,
        behind: i64,
        limit: u32,
    ) -> Result<Vec<ParkedRow>, StoreError> {
        self.outbox.list_parked(select, behind, limit).await
    }

    async fn unpark(&self, select: &Select) -> Result<u64, StoreError> {
        self.outbox.unpark(select).await
    }

    async fn discard(&self, select: &Select) -> Result<u64, StoreError> {
        self.outbox.discard(select).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.outbox.check().await
    }

    fn waker(&self) -> &Wake {
        self.outbox.waker()
    }

    fn wake(&self) {
        self.outbox.wake();
    }

    fn listen(&self, hears: watch::Sender<bool>) -> BoxFuture<'static, ()> {
        self.outbox.listen(hears)
    }
}
