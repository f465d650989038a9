//! Relays are woken: those of this process at once, others by the database.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};
use tracing::Instrument;
use uuid::Uuid;

use super::{SqlDatabase, SqlOutbox};
use crate::error::Chain;

/// The shortest time between two notifications. Each takes a lock of the whole database for a
/// moment, so they must be few, however many transactions there are.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest that one may take: a relay finds the rows by itself, too.
const LIMIT: Duration = Duration::from_secs(5);

const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// Busy, and to be done once more.
const AGAIN: u8 = 2;

/// Tells other processes, from a task that lives as long as there is something to tell.
#[derive(Debug)]
pub(super) struct Notifier {
    /// Who it is, so that it does not wake itself.
    pub(super) id: Uuid,
    state: AtomicU8,
}

impl Default for Notifier {
    fn default() -> Self {
        Self { id: Uuid::new_v4(), state: AtomicU8::new(IDLE) }
    }
}

impl Notifier {
    /// Whether the caller has to start the task; else the task knows.
    fn ring(&self) -> bool {
        let ring = |state| Some(if state == IDLE { BUSY } else { AGAIN });
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, ring) == Ok(IDLE)
    }

    /// Whether there is nothing more to tell.
    fn rests(&self) -> bool {
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| state.checked_sub(1)) == Ok(BUSY)
    }
}

/// Lets the next call start another task, also if this one ended with its runtime.
struct Running(Option<Arc<Notifier>>);

impl Running {
    /// It has come to its end by itself.
    fn end(mut self) {
        self.0 = None;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(notifier) = &self.0 {
            notifier.state.store(IDLE, Ordering::Release);
        }
    }
}

// Beside the trait's method, which is this one: who only enqueues needs no trait for it.
impl<DB: SqlDatabase> SqlOutbox<DB> {
    /// Wakes the relays, of this process and, with PostgreSQL, of others. Call it after each commit
    /// of a transaction that has put something in; without it, relays find the rows when they look
    /// next.
    ///
    /// Never waits and never fails. Others are told from a task of the tokio runtime, on a
    /// connection of the pool, outside of any transaction, and at most every 20 milliseconds;
    /// outside of a runtime they are not.
    pub fn wake(&self) {
        self.wake.wake();
        if !DB::NOTIFIES {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.notifier.ring() {
            return;
        }
        let notifier = Arc::clone(&self.notifier);
        let running = Running(Some(Arc::clone(&notifier)));
        let (pool, statements) = (self.pool.clone(), Arc::clone(&self.statements));
        let telling = async move {
            loop {
                match timeout(LIMIT, DB::notify(&pool, &statements, notifier.id)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::debug!(error = %Chain(&error), "other relays were not notified");
                    }
                    Err(_) => tracing::debug!("other relays were not notified in time"),
                }
                sleep(PAUSE).await;
                if notifier.rests() {
                    // Whoever rings from here on starts another task.
                    running.end();
                    break;
                }
            }
        };
        runtime.spawn(telling.in_current_span());
    }
}
