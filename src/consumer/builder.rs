//! How a consumer is set up.

use std::{future::Future, time::Duration};

use super::{
    consume::IdempotentConsumer,
    control::ConsumerControl,
    error::ConsumeError,
    options::{Options, checked},
    retention::Retention,
    status::{ConsumerMonitor, StoppedOnDrop},
};
use crate::{
    amqp::{ConnectOptions, InvalidUri},
    idempotency::{
        Guard, IdempotencyStore, IdempotentHandler, KeySource, MismatchPolicy, MissingIdPolicy, ReplayPolicy,
        Scope,
    },
};

/// Sets up an [`IdempotentConsumer`] and runs it; made by [`IdempotentConsumer::builder`].
///
/// ```no_run
/// use std::time::Duration;
/// use lapin_idempotent::{IdempotentConsumer, Lease, MemoryStore, handler_fn};
///
/// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
/// let store = MemoryStore::new(100_000);
/// let consumer = IdempotentConsumer::builder("amqp://localhost", "debits", store)
///     .scope("ledger")
///     .workers(4)
///     .handler_timeout(Duration::from_secs(10))
///     .retry_delays(Duration::from_secs(1), Duration::from_secs(600))
///     .build()?; // bad settings are found here
/// let handler = handler_fn(|message, _: &mut Lease| {
///     Box::pin(async move {
///         println!("{}", message.text()?);
///         Ok(())
///     })
/// });
/// consumer.run(handler).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is consumed before `run_until` is awaited"]
pub struct ConsumerBuilder<S> {
    pub(super) connect: Result<ConnectOptions, InvalidUri>,
    store: S,
    pub(super) scope: Option<String>,
    pub(super) key: KeySource,
    pub(super) missing_id: MissingIdPolicy,
    pub(super) mismatch: MismatchPolicy,
    pub(super) replays: ReplayPolicy,
    pub(super) retention: Retention,
    pub(super) monitor: ConsumerMonitor,
    pub(super) handler_timeout: Option<Duration>,
    pub(super) options: Options,
}

impl<S: IdempotencyStore> ConsumerBuilder<S> {
    pub(super) fn new(uris: impl IntoIterator<Item = impl AsRef<str>>, queue: String, store: S) -> Self {
        Self {
            connect: ConnectOptions::new(uris),
            store,
            scope: None,
            key: KeySource::default(),
            missing_id: MissingIdPolicy::default(),
            mismatch: MismatchPolicy::default(),
            replays: ReplayPolicy::default(),
            retention: Retention::default(),
            monitor: ConsumerMonitor::new(),
            handler_timeout: None,
            options: Options::new(queue),
        }
    }
}

/// # Build and run
impl<S: IdempotencyStore> ConsumerBuilder<S> {
    /// Checks the settings, and gives the consumer, which can be looked at and controlled before it
    /// runs.
    ///
    /// # Errors
    ///
    /// A [`ConsumeError`] of kind [`Invalid`](super::ConsumeErrorKind::Invalid): bad settings, or
    /// names that are too long with what this crate adds to them.
    pub fn build(self) -> Result<IdempotentConsumer<S>, ConsumeError> {
        let mut connect = checked(self.connect)?;
        self.key.check().map_err(ConsumeError::invalid)?;
        self.options.check().map_err(ConsumeError::invalid)?;
        let scope = self.scope.unwrap_or_else(|| {
            let queue = &self.options.queue;
            tracing::warn!(
                queue,
                "no scope was set, so it is the queue's name: under another name of the queue every message may take effect again"
            );
            queue.clone()
        });
        connect.name.get_or_insert_with(|| scope.clone());
        let mut guard = Guard::new(self.store, Scope::new(scope)?)
            .key(self.key)
            .missing_id(self.missing_id)
            .fingerprint_mismatch(self.mismatch)
            .replays(self.replays)
            .immediate_retries(self.options.immediate_retries)
            .max_attempts(self.options.max_attempts);
        let remembered = guard.store().remembers();
        let decided = self.retention.decide(remembered, self.options.redelivery_time());
        if let Some((retention, policy)) = decided.map_err(ConsumeError::invalid)? {
            guard = guard.retention(retention, policy);
        }
        if let Some(limit) = self.handler_timeout {
            guard = guard.handler_timeout(limit);
        }
        let Self { options, monitor, .. } = self;
        Ok(IdempotentConsumer { guard, connect, options, monitor, control: ConsumerControl::new() })
    }

    /// [Builds](Self::build) the consumer and runs it; see [`IdempotentConsumer::run_until`].
    ///
    /// # Errors
    ///
    /// As of both.
    pub async fn run_until<H>(
        self,
        handler: H,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ConsumeError>
    where
        H: IdempotentHandler<S> + 'static,
    {
        // However this ends.
        let _stopped = StoppedOnDrop(self.monitor.clone());
        self.build()?.run_until(handler, shutdown).await
    }
}
