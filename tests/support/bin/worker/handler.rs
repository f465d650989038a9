//! What is done for a message: one row, and whatever misfortune was asked for.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, idempotency::Lease,
    store::SqlStore,
};
use sqlx::Transaction;

use crate::{
    aborting::{AbortAt, Aborting},
    effects::{self, Effects, Pooled},
    options::Options,
};

/// What is the same for all stores.
pub(crate) struct Work {
    abort: bool,
    abort_on: Option<String>,
    sleep: Duration,
    fail_first: u32,
    runs: AtomicU32,
}

impl Work {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            abort: options.abort_at == Some(AbortAt::Effect),
            abort_on: options.abort_on.clone(),
            sleep: Duration::from_millis(options.sleep_ms),
            fail_first: options.fail_first,
            runs: AtomicU32::new(0),
        }
    }

    /// Counts a run, which fails if it is one of the first.
    fn run(&self) -> HandlerResult {
        if self.runs.fetch_add(1, Ordering::SeqCst) < self.fail_first {
            return Err(HandlerError::retry("one of the first runs, which fail"));
        }
        Ok(())
    }

    async fn after_effect(&self, message: &IncomingMessage) {
        let on_this = self.abort_on.is_some() && self.abort_on.as_deref() == message.raw_message_id();
        if self.abort || on_this {
            std::process::abort();
        }
        tokio::time::sleep(self.sleep).await;
    }
}

/// Writes the effect in the transaction of the store.
pub(crate) struct InSession {
    work: Work,
    insert: String,
}

impl InSession {
    pub(crate) fn new<DB: Effects>(work: Work, table: &str) -> Self {
        Self { work, insert: effects::insert::<DB>(table) }
    }
}

impl<DB: Effects> IdempotentHandler<Aborting<SqlStore<DB>>> for InSession {
    async fn handle(&self, message: &IncomingMessage, tx: &mut Transaction<'static, DB>) -> HandlerResult {
        DB::add(tx, &self.insert, &name(message)).await?;
        self.work.after_effect(message).await;
        // Undoes the effect, if it fails.
        self.work.run()
    }
}

/// Writes the effect elsewhere, under a lease.
pub(crate) struct Beside {
    work: Work,
    effects: Arc<dyn Pooled>,
}

impl Beside {
    pub(crate) fn new(work: Work, effects: Arc<dyn Pooled>) -> Self {
        Self { work, effects }
    }
}

impl<S> IdempotentHandler<Aborting<S>> for Beside
where
    S: IdempotencyStore<Session = Lease>,
{
    async fn handle(&self, message: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        // Nothing would undo the effect.
        self.work.run()?;
        self.effects.write(&name(message)).await?;
        self.work.after_effect(message).await;
        Ok(())
    }
}

/// The message's ID; the hash of its body if it has none.
fn name(message: &IncomingMessage) -> Cow<'_, str> {
    match message.raw_message_id() {
        Some(id) => Cow::Borrowed(id),
        None => Cow::Owned(message.fingerprint().to_string()),
    }
}
