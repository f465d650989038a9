//! An outbox and a publisher that end the process at a chosen point, or freeze it there.

use std::{
    future::Future,
    process::{Command, abort, id},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::BoxFuture;
use lapin_idempotent::{
    OutgoingMessage, Publish, PublishError, Receipt,
    idempotency::StoreError,
    outbox::{
        Batch, Confirmed, Failed, Lane, NewRow, Next, Outbox, Ownership, ParkedKey, ParkedRow, ReadRequest,
        RelayId, Removed, Select, TableStatus, Term, Wake,
    },
};
use tokio::sync::watch;

use crate::relay::AbortAt;

/// Does all that the inner one does, up to the one point; and at the other waits for SIGCONT.
pub(crate) struct Dying<T> {
    inner: T,
    at: Option<AbortAt>,
    freezes_at: Option<AbortAt>,
    was_frozen: AtomicBool,
}

impl<T> Dying<T> {
    pub(crate) fn new(inner: T, at: Option<AbortAt>, freezes_at: Option<AbortAt>) -> Self {
        Self { inner, at, freezes_at, was_frozen: AtomicBool::new(false) }
    }

    fn reach(&self, point: AbortAt) {
        if self.at == Some(point) {
            abort();
        }
        if self.freezes_at == Some(point) && !self.was_frozen.swap(true, Ordering::SeqCst) {
            // With all its threads; this one goes on when it is told to.
            let _ = Command::new("kill").args(["-STOP", &id().to_string()]).status();
        }
    }

    /// Ends at `point` if what was asked for was done.
    async fn done<R: Send, E: Send>(
        &self,
        point: AbortAt,
        asking: impl Future<Output = Result<R, E>> + Send,
        counts: impl Fn(&R) -> bool + Send,
    ) -> Result<R, E>
    where
        T: Sync,
    {
        let answer = asking.await;
        if answer.as_ref().is_ok_and(counts) {
            self.reach(point);
        }
        answer
    }
}

impl<P: Publish> Publish for Dying<P> {
    async fn publish(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        self.reach(AbortAt::Send);
        self.done(AbortAt::Confirm, self.inner.publish(message), |_| true).await
    }

    async fn ready(&self) {
        self.inner.ready().await;
    }
}

impl<O: Outbox> Outbox for Dying<O> {
    type Connection = O::Connection;

    fn lanes(&self) -> u16 {
        self.inner.lanes()
    }

    async fn put(&self, connection: &mut Self::Connection, rows: &[NewRow]) -> Result<(), StoreError> {
        self.inner.put(connection, rows).await
    }

    async fn register(&self, relay: RelayId, name: &str) -> Result<(), StoreError> {
        self.done(AbortAt::Register, self.inner.register(relay, name), |()| true).await
    }

    async fn beat(&self, relay: RelayId, lease: Duration) -> Result<bool, StoreError> {
        self.done(AbortAt::Beat, self.inner.beat(relay, lease), |counts| *counts).await
    }

    async fn ownership(&self, lease: Duration) -> Result<Ownership, StoreError> {
        self.inner.ownership(lease).await
    }

    async fn take(&self, relay: RelayId, lanes: &[Term], lease: Duration) -> Result<Vec<Term>, StoreError> {
        let take = self.inner.take(relay, lanes, lease);
        self.done(AbortAt::Take, take, |taken| !taken.is_empty()).await
    }

    async fn release(&self, lanes: &[Term]) -> Result<(), StoreError> {
        self.reach(AbortAt::BeforeRelease);
        self.done(AbortAt::Release, self.inner.release(lanes), |()| true).await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        self.done(AbortAt::Leave, self.inner.leave(relay), |()| true).await
    }

    async fn read(&self, request: &ReadRequest<'_>) -> Result<Batch, StoreError> {
        self.done(AbortAt::Read, self.inner.read(request), |batch| !batch.rows.is_empty()).await
    }

    async fn parked_keys(&self, lanes: &[Lane]) -> Result<Vec<ParkedKey>, StoreError> {
        self.done(AbortAt::ParkedKeys, self.inner.parked_keys(lanes), |_| true).await
    }

    async fn remove(&self, confirmed: &[Confirmed]) -> Result<Removed, StoreError> {
        self.reach(AbortAt::BeforeRemove);
        self.done(AbortAt::Remove, self.inner.remove(confirmed), |_| !confirmed.is_empty()).await
    }

    async fn fail(&self, held: &[Term], failed: &[Failed]) -> Result<Vec<Lane>, StoreError> {
        let parks = failed.iter().any(|failed| failed.next == Next::Park);
        let (before, after) =
            if parks { (AbortAt::BeforePark, AbortAt::Park) } else { (AbortAt::BeforeFail, AbortAt::Fail) };
        self.reach(before);
        self.done(after, self.inner.fail(held, failed), |_| true).await
    }

    async fn status(&self) -> Result<TableStatus, StoreError> {
        self.inner.status().await
    }

    async fn list_parked(
        &self,
        select: &Select,
        behind: i64,
        limit: u32,
    ) -> Result<Vec<ParkedRow>, StoreError> {
        self.inner.list_parked(select, behind, limit).await
    }

    async fn unpark(&self, select: &Select) -> Result<u64, StoreError> {
        self.inner.unpark(select).await
    }

    async fn discard(&self, select: &Select) -> Result<u64, StoreError> {
        self.inner.discard(select).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.inner.check().await
    }

    fn waker(&self) -> &Wake {
        self.inner.waker()
    }

    fn wake(&self) {
        self.inner.wake();
    }

    fn listen(&self, hears: watch::Sender<bool>) -> BoxFuture<'static, ()> {
        self.inner.listen(hears)
    }
}
