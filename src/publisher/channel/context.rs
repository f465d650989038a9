//! What a worker shares with the others of its publisher.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::queue::Dispatcher;
use crate::publisher::{
    permits::InFlightPermits, retry::RetryPolicy, status::Monitor, telemetry::AttemptHook,
};

/// What a worker needs to know; the same for all workers of a publisher.
#[derive(Debug, Clone)]
pub(crate) struct WorkerOptions {
    pub(crate) retry: RetryPolicy,
    pub(crate) confirm_timeout: Duration,
    pub(crate) mandatory: bool,
    pub(crate) on_attempt: AttemptHook,
}

impl WorkerOptions {
    /// How often deadlines are looked at: fine enough for the shortest of them, coarse enough to
    /// cost nothing.
    pub(crate) fn resolution(&self) -> Duration {
        let finest = self.confirm_timeout.min(self.retry.total()) / 20;
        finest.clamp(Duration::from_millis(5), Duration::from_millis(100))
    }
}

/// What a worker shares with the others of its publisher.
#[derive(Clone)]
pub(crate) struct WorkerContext {
    pub(crate) options: WorkerOptions,
    pub(crate) permits: Arc<InFlightPermits>,
    pub(crate) monitor: Arc<Monitor>,
    /// Weak, or the publisher could never be seen to be dropped.
    pub(crate) dispatcher: Weak<Dispatcher>,
    /// The time by which the workers must be done, once the publisher is being closed.
    pub(crate) closing: watch::Receiver<Option<Instant>>,
}
