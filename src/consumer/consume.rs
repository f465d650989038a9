//! `IdempotentConsumer`: what a builder gives, and what runs.

use std::{fmt, future::Future, sync::Arc};

use super::{
    builder::ConsumerBuilder,
    context::ConsumerContext,
    control::ConsumerControl,
    error::ConsumeError,
    options::Options,
    status::{ConsumerMonitor, StoppedOnDrop},
};
use crate::{
    amqp::ConnectOptions,
    idempotency::{Guard, IdempotencyStore, IdempotentHandler},
};

/// Consumes a queue through a [`Guard`]: each message takes effect once, whatever is delivered
/// twice.
///
/// Deliveries are acked after the effect is committed. A consumer that dies at any point leaves
/// either no effect and an unacked delivery, or an effect and a remembered ID.
///
/// # Order
///
/// With `workers(1)`, the default, messages are handled in the order in which the broker delivers
/// them, in one subscription. A failed message is overtaken by those behind it, and after a lost
/// connection the broker delivers again what was not acked, possibly to another consumer. What is
/// published anew for the broker's limits ([`delivery_limit`](ConsumerBuilder::delivery_limit),
/// [`consumer_timeout`](ConsumerBuilder::consumer_timeout)) goes to the end of the queue. What must
/// be in order needs a sequence number that the handler compares.
///
/// # Several consumers
///
/// Any number of consumers, in one process or many, may share a queue: with one scope each message
/// takes effect once. A queue declared with `x-single-active-consumer` serves one of them at a time
/// and changes over when that one goes; it may still be finishing a message then, which the guard
/// keeps from taking effect twice. See also [`exclusive`](ConsumerBuilder::exclusive) and
/// [`priority`](ConsumerBuilder::priority).
///
/// ```no_run
/// use lapin_idempotent::{IdempotentConsumer, Lease, MemoryStore, handler_fn};
///
/// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
/// let store = MemoryStore::new(100_000);
/// let consumer = IdempotentConsumer::builder("amqp://localhost", "debits", store)
///     .scope("ledger")
///     .build()?;
/// let monitor = consumer.monitor(); // for a health probe: `monitor.status().is_ready()`
/// # let _ = monitor;
/// let handler = handler_fn(|message, _: &mut Lease| {
///     Box::pin(async move {
///         println!("{}", message.text()?);
///         Ok(())
///     })
/// });
/// let ctrl_c = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// consumer.run_until(handler, ctrl_c).await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is consumed before `run_until` is awaited"]
pub struct IdempotentConsumer<S: IdempotencyStore> {
    pub(super) guard: Guard<S>,
    pub(super) connect: ConnectOptions,
    pub(super) options: Options,
    pub(super) monitor: ConsumerMonitor,
    pub(super) control: ConsumerControl,
}

impl<S: IdempotencyStore> IdempotentConsumer<S> {
    /// Starts to set up a consumer of `queue` whose effects are guarded by `store`.
    ///
    /// The queue must exist; [`WorkQueue`](super::WorkQueue) declares one as it is recommended. URI
    /// parameters are those of
    /// [`IdempotentPublisher::builder`](crate::IdempotentPublisher::builder).
    pub fn builder(uri: impl AsRef<str>, queue: impl Into<String>, store: S) -> ConsumerBuilder<S> {
        Self::builder_for_cluster([uri.as_ref()], queue, store)
    }

    /// Like [`builder`](Self::builder), for several nodes of one cluster; each connect tries them
    /// in random order.
    pub fn builder_for_cluster(
        uris: impl IntoIterator<Item = impl AsRef<str>>,
        queue: impl Into<String>,
        store: S,
    ) -> ConsumerBuilder<S> {
        ConsumerBuilder::new(uris, queue.into(), store)
    }

    /// Looks at the consumer while it runs: its status, for health probes.
    pub fn monitor(&self) -> ConsumerMonitor {
        self.monitor.clone()
    }

    /// Pauses, resumes and stops the consumer while it runs.
    pub fn control(&self) -> ConsumerControl {
        self.control.clone()
    }

    /// Consumes until it is [stopped](ConsumerControl::stop); as [`run_until`](Self::run_until)
    /// otherwise.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn run<H>(self, handler: H) -> Result<(), ConsumeError>
    where
        H: IdempotentHandler<S> + 'static,
    {
        self.run_until(handler, std::future::pending()).await
    }

    /// Consumes until `shutdown` completes: then takes no more messages, lets the handlers that run
    /// finish, settles, and returns. Unsettled deliveries go back to the queue.
    ///
    /// Once it runs, a lost connection, a deleted queue or an unreachable store is waited out; a
    /// store that cannot be reached is also waited for at the start.
    /// While the store is away, the deliveries that are here stay here, unacknowledged; only
    /// shutdown, a lost channel and the broker's own consumer timeout give them back.
    ///
    /// It reacts to `shutdown` at any time: also while it connects for the first time or again, or
    /// waits for a store that is away or hangs. It returns at the latest 5 s after
    /// [`drain_timeout`](ConsumerBuilder::drain_timeout).
    ///
    /// ```no_run
    /// # use lapin_idempotent::{ConsumeError, IdempotentConsumer, IdempotentHandler, MemoryStore};
    /// # async fn example<H: IdempotentHandler<MemoryStore> + 'static>(
    /// #     consumer: IdempotentConsumer<MemoryStore>, handler: H,
    /// # ) -> Result<(), ConsumeError> {
    /// let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    /// let stopped = async { stopped.await.unwrap_or_default() };
    /// let running = tokio::spawn(consumer.run_until(handler, stopped));
    /// // Later, when the service ends:
    /// drop(stop);
    /// running.await.expect("the consumer's task does not panic")
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A [`ConsumeError`] if it cannot start: no broker, no such queue, or a store that answers and
    /// cannot work, such as one without its table. None if it was told to stop before.
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops the running handlers, whose sessions are released; their
    /// deliveries come again. With several [`workers`](ConsumerBuilder::workers) each handler runs
    /// in a task of its own, unless handlers are known to be quick, and one that computes at that
    /// moment ends where it next waits.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
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
        let Self { guard, connect, options, monitor, control } = self;
        let context = ConsumerContext::new(guard, handler, connect, options, monitor, control);
        // On the heap: it is large, and would be a part of every future that awaits it.
        Box::pin(Arc::new(context).run(shutdown)).await
    }
}

impl<S: IdempotencyStore> fmt::Debug for IdempotentConsumer<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentConsumer")
            .field("queue", &self.options.queue)
            .field("scope", self.guard.scope())
            .finish_non_exhaustive()
    }
}
