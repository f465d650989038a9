//! Tries a table of messages against its contract.

mod capabilities;
mod failures;
mod handles;
mod lanes;
mod parked;
mod reads;
mod rows;
mod telling;

use std::{
    future::{Future, ready},
    sync::Arc,
};

use futures_util::FutureExt;

use self::handles::Handles;
use super::{report::Report, runner::Cases};
use crate::{error::BoxError, outbox::Outbox};

pub use capabilities::OutboxCapabilities;

/// Lets the suite put messages in as a producer does: in transactions of the database that the
/// table is in.
pub trait Transactions<O: Outbox>: Send + Sync + 'static {
    /// An open transaction. Dropping it rolls it back, sooner or later.
    type Transaction: Send;

    /// Begins a transaction, on the database of this handle.
    ///
    /// # Errors
    ///
    /// Any error; the case then fails.
    fn begin(&self, outbox: &O) -> impl Future<Output = Result<Self::Transaction, BoxError>> + Send;

    /// What [`Outbox::put`] is given.
    fn connection<'t>(&self, transaction: &'t mut Self::Transaction) -> &'t mut O::Connection;

    /// Commits.
    ///
    /// # Errors
    ///
    /// Any error; the case then fails.
    fn commit(&self, transaction: Self::Transaction) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Rolls back, and has done so when it returns. Drops it, if not said otherwise.
    ///
    /// # Errors
    ///
    /// Any error; the case then fails.
    fn rollback(&self, transaction: Self::Transaction) -> impl Future<Output = Result<(), BoxError>> + Send {
        drop(transaction);
        ready(Ok(()))
    }
}

/// Tries a table of messages against the contract of [`Outbox`].
///
/// Each call of `open` gives two handles on the same table, as two processes would have them, and
/// **the table must be empty**, with all lanes free: a new one, or one that was emptied. There is
/// one call for each case, and a panic of `open` fails the case.
///
/// ```
/// use lapin_idempotent::{BoxError, testing::{MemoryOutbox, MemoryTransaction}};
/// use lapin_idempotent::testing::conformance::{self, OutboxCapabilities, Transactions};
///
/// struct InMemory;
///
/// impl Transactions<MemoryOutbox> for InMemory {
///     type Transaction = MemoryTransaction;
///
///     async fn begin(&self, outbox: &MemoryOutbox) -> Result<MemoryTransaction, BoxError> {
///         Ok(outbox.begin()) // with sqlx: Ok(outbox.pool().begin().await?)
///     }
///     fn connection<'t>(&self, tx: &'t mut MemoryTransaction) -> &'t mut MemoryTransaction {
///         tx // with sqlx: &mut **tx
///     }
///     async fn commit(&self, tx: MemoryTransaction) -> Result<(), BoxError> {
///         Ok(tx.commit()) // with sqlx: Ok(tx.commit().await?), and `rollback` likewise
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let open = async || {
///     let outbox = MemoryOutbox::new();
///     [outbox.clone(), outbox]
/// };
/// let capabilities = OutboxCapabilities::new().tells_ended();
/// conformance::run_outbox(open, capabilities, InMemory).await.assert();
/// # }
/// ```
///
/// Some cases wait until a lease of a second has run out. What the suite cannot try is a crash, nor
/// what a relay makes of the table.
///
/// # Cancellation
///
/// Dropping the future drops the transaction of the case under way.
pub async fn run_outbox<O, P, F, T>(open: P, capabilities: OutboxCapabilities, transactions: T) -> Report
where
    O: Outbox,
    P: Fn() -> F + Send + Sync,
    F: Future<Output = [O; 2]> + Send,
    T: Transactions<O>,
{
    let transactions = Arc::new(transactions);
    let (open, known) = (&open, capabilities.clone());
    let two = move |_| {
        let (capabilities, transactions) = (capabilities.clone(), Arc::clone(&transactions));
        async move { Handles::new(open().await, transactions, capabilities) }.boxed()
    };
    let mut cases = Cases::over(two, known.all(), known.limit());
    rows::all(&mut cases).await;
    reads::all(&mut cases).await;
    lanes::all(&mut cases).await;
    failures::all(&mut cases).await;
    parked::all(&mut cases).await;
    telling::all(&mut cases).await;
    cases.report()
}

/// Tries [`Outbox::check`] where there is nothing: each call of `open` gives a handle on tables
/// that are missing.
pub async fn run_outbox_check<O, P, F>(open: P) -> Report
where
    O: Outbox,
    P: Fn() -> F + Send + Sync,
    F: Future<Output = O> + Send,
{
    let (open, known) = (&open, OutboxCapabilities::new());
    let mut cases = Cases::over(move |_| open().boxed(), known.all(), known.limit());
    telling::missing(&mut cases).await;
    cases.report()
}
