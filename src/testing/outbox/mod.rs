//! An outbox without a database.

mod table;
mod trait_impl;

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use self::table::Table;
use crate::{
    message::{MessageId, OutgoingMessage},
    outbox::{EnqueueError, NewRow, Outbox, Placement, Wake},
};

/// An outbox in memory, with transactions: what is enqueued in one is there once it is committed,
/// and never if it is not. For tests of a service that enqueues, and of what relays it. Clones are
/// the same table.
///
/// Numbers are given out when a message is enqueued, as a database's sequence does, so of two
/// transactions that are open together the later number may be visible first. Time is tokio's.
///
/// ```
/// use lapin_idempotent::{OutgoingMessage, testing::MemoryOutbox};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let outbox = MemoryOutbox::new();
/// let mut transaction = outbox.begin();
/// let placed = OutgoingMessage::to("orders", "placed").text("42");
/// outbox.enqueue_in_order(&mut transaction, "order-42", placed).await?;
/// assert_eq!(outbox.len(), 0);
/// transaction.commit();
/// assert_eq!(outbox.len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryOutbox {
    placement: Placement,
    latency: Duration,
    has_floor: bool,
    wake: Wake,
    is_away: Arc<AtomicBool>,
    table: Arc<Mutex<Table>>,
}

/// A transaction on a [`MemoryOutbox`]. Dropping it rolls it back.
#[derive(Debug)]
#[must_use = "dropping a transaction rolls it back"]
pub struct MemoryTransaction {
    outbox: MemoryOutbox,
    /// Once it has enqueued something.
    identity: Option<u64>,
    rows: Vec<(i64, NewRow)>,
}

impl MemoryOutbox {
    /// A table of 16 lanes.
    pub fn new() -> Self {
        Self::with_lanes(16)
    }

    /// A table of so many lanes, at least one.
    pub fn with_lanes(lanes: u16) -> Self {
        let lanes = lanes.max(1);
        Self {
            placement: Placement::new(lanes),
            latency: Duration::ZERO,
            has_floor: true,
            wake: Wake::default(),
            is_away: Arc::default(),
            table: Arc::new(Mutex::new(Table::new(lanes))),
        }
    }

    /// Sets what gives messages their ID and lane. Its number of lanes must be the table's.
    #[must_use]
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Sets how long each call takes: half of it before it has its effect, half after. Default: no
    /// time.
    #[must_use]
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = latency;
        self
    }

    /// Does not tell which transactions have ended, as MySQL does not.
    #[must_use]
    pub fn without_floor(mut self) -> Self {
        self.has_floor = false;
        self
    }

    /// The same table as another process sees it: it can be away by itself, and nobody there is
    /// woken by what is committed here.
    #[must_use]
    pub fn elsewhere(&self) -> Self {
        Self { wake: Wake::default(), is_away: Arc::default(), ..self.clone() }
    }

    /// Makes every call of this handle and its clones fail, or work again.
    pub fn set_away(&self, away: bool) {
        self.is_away.store(away, Relaxed);
    }

    /// Loses what has one of the last `numbers` numbers, and gives these out once more: as a
    /// database that comes back from a crash with `synchronous_commit=off`, or a replica that lags
    /// behind and takes over. Transactions that are open then would come back with the dead.
    pub fn lose_last(&self, numbers: u32) {
        self.table().lose_last(numbers);
    }

    /// Begins a transaction.
    pub fn begin(&self) -> MemoryTransaction {
        MemoryTransaction { outbox: self.clone(), identity: None, rows: Vec::new() }
    }

    /// Enqueues a message, which is in order with nothing. Gives its ID.
    ///
    /// # Errors
    ///
    /// [`EnqueueError::Invalid`], with the message, if it could never be published;
    /// [`EnqueueError::Store`] if the table is away.
    pub async fn enqueue(
        &self,
        transaction: &mut MemoryTransaction,
        message: OutgoingMessage,
    ) -> Result<MessageId, EnqueueError> {
        self.put_row(transaction, self.placement.place(message)?).await
    }

    /// Enqueues a message that is in order with all others of its key.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue), and if that is no key.
    pub async fn enqueue_in_order(
        &self,
        transaction: &mut MemoryTransaction,
        order_key: impl Into<String>,
        message: OutgoingMessage,
    ) -> Result<MessageId, EnqueueError> {
        self.put_row(transaction, self.placement.place_in_order(order_key, message)?).await
    }

    async fn put_row(
        &self,
        transaction: &mut MemoryTransaction,
        row: NewRow,
    ) -> Result<MessageId, EnqueueError> {
        let id = row.message_id.clone();
        self.put(transaction, &[row]).await?;
        Ok(id)
    }

    /// Tells relays that something was committed.
    pub fn wake(&self) {
        self.wake.wake();
    }

    /// How many committed rows wait to be published, those that are left alone included.
    pub fn len(&self) -> usize {
        self.table().rows.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often a method of [`Outbox`] was called, by its name.
    pub fn calls(&self, method: &str) -> u64 {
        self.table().calls.get(method).copied().unwrap_or_default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // No code path panics between two steps that belong together.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryOutbox {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryTransaction {
    /// Commits: what was enqueued is there from now on. Whoever is to publish it finds out by
    /// itself, or is [told](MemoryOutbox::wake).
    pub fn commit(mut self) {
        let rows = std::mem::take(&mut self.rows);
        self.outbox.table().commit(rows);
    }

    /// Forgets what was enqueued, as dropping it does.
    pub fn rollback(self) {}
}

impl Drop for MemoryTransaction {
    fn drop(&mut self) {
        if let Some(identity) = self.identity {
            self.outbox.table().end(identity);
        }
    }
}

impl fmt::Debug for MemoryOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryOutbox").field("rows", &self.len()).finish_non_exhaustive()
    }
}
