//! Tries a store against its contract: [`IdempotencyStore`], and the invariants I1 to I4 and I7 of
//! [`idempotency`](crate::idempotency).
//!
//! ```
//! use lapin_idempotent::{MemoryStore, testing::conformance::{self, Capabilities}};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! // Every call gives a handle on the same identities, as a second consumer would have it.
//! let store = MemoryStore::new(10_000).lease(Duration::from_millis(500));
//! let open = || async { store.clone() };
//! conformance::run(open, Capabilities::leased(Duration::from_millis(500))).await.assert();
//! # }
//! ```
//!
//! [`run_with_effects`] also checks that effect and identity are committed together, which is what
//! a store with transactions is for; [`run_inspection`] checks an implementation of [`Inspect`].
//! [`run_outbox`] tries a table of messages against the contract of
//! [`Outbox`](crate::outbox::Outbox).
//!
//! # What a run does to a store
//!
//! Cases run one after the other, with two handles each, in scopes that were never used before. So
//! a run disturbs neither old data nor another run, **but for the cases of `purge`**: a purge knows
//! no scopes, and forgets whatever is older than a fraction of a second. Give the suite a table or
//! a database of its own, or turn these cases off with [`Capabilities::purges`].
//!
//! # Limits
//!
//! A case that does not end within its [time limit](Capabilities::time_limit) fails, and so does
//! one in which the store panics; a store that blocks its thread, instead of waiting, stops the
//! suite. Run it in a runtime with several threads (`#[tokio::test(flavor = "multi_thread")]`), so
//! that the races are real ones. What the suite cannot try is a crash: that a commit survives the
//! end of the process, or a power loss, is for tests of your own.

mod capabilities;
mod cases;
mod fixture;
mod outbox;
mod report;
mod runner;

use std::{future::Future, sync::Arc};

pub use capabilities::Capabilities;
pub use outbox::{OutboxCapabilities, Transactions, run_outbox, run_outbox_check};
pub use report::{CaseReport, Report, Verdict};

use crate::{
    error::BoxError,
    idempotency::{IdempotencyStore, Inspect},
};
use runner::Runner;

/// Lets the suite write effects through the sessions of a store, and count them.
///
/// An effect is whatever the session can write: a row with the name in it, say.
pub trait Effects<S: IdempotencyStore>: Send + Sync + 'static {
    /// Writes one effect with a name, through the session and no other way.
    ///
    /// # Errors
    ///
    /// Any error; the case then fails.
    fn write(
        &self,
        session: &mut S::Session,
        name: &str,
    ) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// How many effects with that name are committed. Asked while no session of the suite is open;
    /// may panic if it cannot tell.
    fn count(&self, name: &str) -> impl Future<Output = u64> + Send;
}

/// Tries a store against the contract of [`IdempotencyStore`].
///
/// Each call of `open` gives a handle on the same identities: a clone of the store, or better a new
/// connection to its database. A panic of `open` fails the case.
///
/// # Cancellation
///
/// Dropping the future drops the sessions of the case under way; what was completed until then
/// stays in the store.
pub async fn run<S, O, F>(open: O, capabilities: Capabilities) -> Report
where
    S: IdempotencyStore,
    O: Fn() -> F + Send + Sync,
    F: Future<Output = S> + Send,
{
    let mut runner = Runner::new(&open, capabilities);
    contract(&mut runner).await;
    cases::purge::full(&mut runner).await;
    runner.report()
}

/// Like [`run`], and checks that an effect is committed with its identity or not at all (I1, I2).
pub async fn run_with_effects<S, O, F, E>(open: O, capabilities: Capabilities, effects: E) -> Report
where
    S: IdempotencyStore,
    O: Fn() -> F + Send + Sync,
    F: Future<Output = S> + Send,
    E: Effects<S>,
{
    let mut runner = Runner::new(&open, capabilities);
    contract(&mut runner).await;
    cases::effects::all(&mut runner, &Arc::new(effects)).await;
    cases::purge::full(&mut runner).await;
    runner.report()
}

/// Tries an implementation of [`Inspect`]. [`run`] is to be passed, too: this takes for granted
/// that claims work.
pub async fn run_inspection<S, O, F>(open: O, capabilities: Capabilities) -> Report
where
    S: Inspect,
    O: Fn() -> F + Send + Sync,
    F: Future<Output = S> + Send,
{
    let mut runner = Runner::new(&open, capabilities);
    cases::inspection::all(&mut runner).await;
    runner.report()
}

async fn contract<S: IdempotencyStore>(runner: &mut Runner<'_, S>) {
    cases::claims::all(runner).await;
    cases::identity::all(runner).await;
    cases::rivals::all(runner).await;
    cases::leases::all(runner).await;
    cases::batches::all(runner).await;
    cases::purge::all(runner).await;
}
