//! The contract, over the table in memory.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::sleep;

use super::{MemoryOutbox, MemoryTransaction, table::Table};
use crate::{
    idempotency::{StoreError, StoreErrorKind},
    outbox::{
        Batch, Confirmed, Failed, Lane, NewRow, Outbox, Ownership, ParkedKey, ParkedRow, ReadRequest,
        RelayId, Removed, Select, TableStatus, Term, Wake,
    },
};

impl MemoryOutbox {
    /// Does something with the table, after and before the time that it takes.
    async fn ask<T: Send>(
        &self,
        method: &'static str,
        answer: impl FnOnce(&mut Table) -> T + Send,
    ) -> Result<T, StoreError> {
        self.wait().await;
        let answer = {
            let mut table = self.table();
            *table.calls.entry(method).or_default() += 1;
            if self.is_away.load(Relaxed) {
                return Err(StoreError::new(StoreErrorKind::Unavailable, "the table is away"));
            }
            answer(&mut table)
        };
        self.wait().await;
        Ok(answer)
    }

    async fn wait(&self) {
        if !self.latency.is_zero() {
            sleep(self.latency / 2).await;
        }
    }
}

impl Outbox for MemoryOutbox {
    type Connection = MemoryTransaction;

    fn lanes(&self) -> u16 {
        u16::try_from(self.table().lanes()).unwrap_or(u16::MAX)
    }

    async fn put(&self, connection: &mut MemoryTransaction, rows: &[NewRow]) -> Result<(), StoreError> {
        let identity = &mut connection.identity;
        let numbered = self.ask("put", |table| {
            // Before the first number: floors rest on it.
            identity.get_or_insert_with(|| table.begin());
            rows.iter().map(|row| (table.next_seq(), row.clone())).collect::<Vec<(i64, NewRow)>>()
        });
        let numbered = numbered.await?;
        connection.rows.extend(numbered);
        Ok(())
    }

    async fn register(&self, relay: RelayId, _: &str) -> Result<(), StoreError> {
        self.ask("register", |table| table.register(relay)).await
    }

    async fn beat(&self, relay: RelayId, lease: Duration) -> Result<bool, StoreError> {
        self.ask("beat", |table| table.beats(relay, lease)).await
    }

    async fn ownership(&self, lease: Duration) -> Result<Ownership, StoreError> {
        self.ask("ownership", |table| table.ownership(lease)).await
    }

    async fn take(&self, relay: RelayId, lanes: &[Term], lease: Duration) -> Result<Vec<Term>, StoreError> {
        self.ask("take", |table| table.take(relay, lanes, lease)).await
    }

    async fn release(&self, lanes: &[Term]) -> Result<(), StoreError> {
        self.ask("release", |table| table.release(lanes)).await
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        self.ask("leave", |table| table.leave(relay)).await
    }

    async fn read(&self, request: &ReadRequest<'_>) -> Result<Batch, StoreError> {
        let batch = self.ask("read", |table| table.read(request)).await?;
        let ended_below = batch.ended_below.filter(|_| self.has_floor);
        Ok(Batch { ended_below, ..batch })
    }

    async fn parked_keys(&self, lanes: &[Lane]) -> Result<Vec<ParkedKey>, StoreError> {
        self.ask("parked_keys", |table| table.parked_keys(lanes)).await
    }

    async fn remove(&self, confirmed: &[Confirmed]) -> Result<Removed, StoreError> {
        self.ask("remove", |table| {
            let transaction = table.begin();
            let rows = table.remove(confirmed);
            table.end(transaction);
            Removed { rows, transaction: self.has_floor.then_some(transaction) }
        })
        .await
    }

    async fn fail(&self, held: &[Term], failed: &[Failed]) -> Result<Vec<Lane>, StoreError> {
        self.ask("fail", |table| table.fail(held, failed)).await
    }

    async fn status(&self) -> Result<TableStatus, StoreError> {
        self.ask("status", |table| table.status()).await
    }

    async fn list_parked(
        &self,
        select: &Select,
        behind: i64,
        limit: u32,
    ) -> Result<Vec<ParkedRow>, StoreError> {
        self.ask("list_parked", |table| table.list_parked(select, behind, limit)).await
    }

    async fn unpark(&self, select: &Select) -> Result<u64, StoreError> {
        self.ask("unpark", |table| table.unpark(select)).await
    }

    async fn discard(&self, select: &Select) -> Result<u64, StoreError> {
        self.ask("discard", |table| table.take_parked(select).len() as u64).await
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.ask("check", |_| ()).await
    }

    fn waker(&self) -> &Wake {
        &self.wake
    }
}
