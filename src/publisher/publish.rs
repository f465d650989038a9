//! `publish_idempotent`: stamp, hand over, await the verdict.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::stream::{self, Stream};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};
use tracing::Span;

use super::{
    builder::PublisherBuilder,
    channel::{Dispatcher, HandedOver, Job, Reply},
    closing::{CloseError, Closing},
    error::{Failure, PublishError, PublishErrorKind},
    payload::{Forwarded, Payload},
    pending::Pending,
    permits::{InFlightPermits, Permit},
    publish_all::PublishAll,
    receipt::Receipt,
    stamp::Stamper,
    start::{self, Setup, Started},
    status::{Monitor, PublisherStatus},
    telemetry,
};
use crate::{
    amqp::ConnectError,
    error::Chain,
    message::{OutgoingMessage, Stamped},
};

/// No deadline is further away: an `Instant` cannot be moved by every duration.
const FAR_FUTURE: Duration = Duration::from_secs(365 * 86_400);

/// Publishes messages under a message ID that stays the same over all attempts, and knows when they
/// are published.
///
/// `Ok` means that the broker confirmed this very message and did not return it. A message without
/// a confirm is never reported as published; it is sent again, with the same ID and body, until it
/// is confirmed or its [`RetryPolicy`](super::RetryPolicy) ends. A queue can therefore hold several
/// copies of it, which is what the consumer's guard is for.
///
/// Clones share the connection. When the last one is dropped, the connection closes after what is
/// in flight is answered.
///
/// ```no_run
/// use std::time::Duration;
/// use lapin_idempotent::{IdempotentPublisher, OutgoingMessage};
///
/// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
/// let publisher = IdempotentPublisher::builder("amqp://localhost").connect().await?;
/// let debit = OutgoingMessage::to("payments", "debit")
///     .idempotency_key("debit/order-42")
///     .text("500");
/// publisher.publish_idempotent(debit).await?;
/// publisher.close(Duration::from_secs(5)).await?; // waits for what is in flight
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct IdempotentPublisher {
    inner: Arc<Inner>,
}

struct Inner {
    dispatcher: Arc<Dispatcher>,
    permits: Arc<InFlightPermits>,
    monitor: Arc<Monitor>,
    stamper: Stamper,
    total: Duration,
    handed: HandedOver,
    closing: Closing,
    /// The runtime of the workers.
    runtime: Handle,
}

impl IdempotentPublisher {
    /// Starts to set up a publisher for a broker URI, such as
    /// `amqp://user:password@host:5672/vhost`.
    ///
    /// Query parameters: `heartbeat` (seconds, default 10), `frame_max` (bytes, default 32,768;
    /// headers have to fit into one; RabbitMQ 4.1 and later refuse less than 8,192, and so does
    /// this), `channel_max`, `auth_mechanism`. A parameter that would be ignored is an error.
    pub fn builder(uri: impl AsRef<str>) -> PublisherBuilder {
        PublisherBuilder::new([uri.as_ref()])
    }

    /// Like [`builder`](Self::builder), for several nodes of one cluster; each connect tries them
    /// in random order.
    pub fn builder_for_cluster(uris: impl IntoIterator<Item = impl AsRef<str>>) -> PublisherBuilder {
        PublisherBuilder::new(uris)
    }

    pub(crate) async fn connect(setup: Setup, stamper: Stamper) -> Result<Self, ConnectError> {
        let (permits, total) = (Arc::clone(&setup.permits), setup.options.retry.total());
        Ok(Self::new(start::start(setup).await?, permits, total, stamper))
    }

    pub(crate) fn connect_lazy(setup: Setup, stamper: Stamper) -> Self {
        let (permits, total) = (Arc::clone(&setup.permits), setup.options.retry.total());
        Self::new(start::start_unconnected(setup), permits, total, stamper)
    }

    fn new(started: Started, permits: Arc<InFlightPermits>, total: Duration, stamper: Stamper) -> Self {
        Self {
            inner: Arc::new(Inner {
                dispatcher: started.dispatcher,
                permits,
                monitor: started.monitor,
                stamper,
                total,
                handed: HandedOver::default(),
                closing: Closing { limit: started.closing, ended: started.ended },
                runtime: Handle::current(),
            }),
        }
    }

    /// Publishes one message and waits for its confirm.
    ///
    /// The ID is the message's own, or else derived from its idempotency key, or else made by the
    /// builder's [`IdStrategy`](crate::IdStrategy). Calls may run concurrently; they share the
    /// window of `max_in_flight`.
    ///
    /// ```no_run
    /// # async fn example(publisher: lapin_idempotent::IdempotentPublisher) {
    /// use lapin_idempotent::OutgoingMessage;
    ///
    /// let debit = OutgoingMessage::to("payments", "debit").text("500");
    /// match publisher.publish_idempotent(debit).await {
    ///     Ok(receipt) => println!("{} is published", receipt.message_id()),
    ///     Err(error) => eprintln!("{error}"), // `error.into_message()` has the ID
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A [`PublishError`], whose kind tells whether the message was invalid, unroutable, nacked,
    /// not confirmed in time, or whether the connection was lost for too long; it gives the message
    /// back, with its ID.
    ///
    /// # Cancellation
    ///
    /// Dropping the future before its first poll publishes nothing. Afterwards the message may be
    /// published, once or, if an attempt was under way, unconfirmed; it is not tried again, and its
    /// confirm is still awaited internally.
    pub async fn publish_idempotent(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        let started = Instant::now();
        let stamped = self.stamp(message)?;
        let span = telemetry::span(&stamped);
        let deadline = self.deadline(&stamped, started);
        let permit = match self.permit(stamped.message.payload().len(), deadline).await {
            Ok(permit) => permit,
            Err(kind) => return self.refuse(kind, stamped, &span, started),
        };
        let mut pending = self.submit(stamped, permit, span, started);
        let reply = (&mut pending.reply).await;
        self.conclude(pending, reply.ok())
    }

    /// Publishes many messages, pipelined, and yields one result per message in the order of the
    /// messages. See [`publish_stream`](Self::publish_stream).
    ///
    /// ```no_run
    /// # async fn example(publisher: lapin_idempotent::IdempotentPublisher) {
    /// use futures_util::StreamExt; // or `TryStreamExt`, to stop at the first error
    /// use lapin_idempotent::OutgoingMessage;
    ///
    /// let debit = |order: u32| OutgoingMessage::to("", "debits").text(order.to_string());
    /// let mut results = publisher.publish_all((1..=1000).map(debit));
    /// while let Some(result) = results.next().await {
    ///     if let Err(error) = result {
    ///         eprintln!("{error}"); // the others go on
    ///     }
    /// }
    /// # }
    /// ```
    pub fn publish_all<I>(&self, messages: I) -> PublishAll<stream::Iter<I::IntoIter>>
    where
        I: IntoIterator<Item = OutgoingMessage>,
    {
        self.publish_stream(stream::iter(messages))
    }

    /// Publishes a stream of messages, pipelined up to `max_in_flight`, and yields one result per
    /// message, in order.
    ///
    /// A failed message does not stop the others. Nothing is sent until the stream is polled;
    /// dropping it leaves what was taken from the source as
    /// [`publish_idempotent`](Self::publish_idempotent) does when it is cancelled.
    pub fn publish_stream<S>(&self, messages: S) -> PublishAll<S>
    where
        S: Stream<Item = OutgoingMessage>,
    {
        PublishAll::new(self.clone(), messages)
    }

    /// Closes the publisher for all its clones: waits for what is in flight for at most `limit`,
    /// then disconnects.
    ///
    /// New publishes fail with [`PublishErrorKind::Closed`] at once. Pending ones are answered.
    ///
    /// There is one end, and every call waits for it and gets the same answer, also one that comes
    /// when all is over. If several give a limit, the earliest counts. A call takes at most three
    /// seconds longer than its limit: two to say goodbye to a broker that does not answer, and one
    /// to spare.
    ///
    /// # Errors
    ///
    /// A [`CloseError`] with the messages that were still unconfirmed. Their pending calls fail
    /// with [`PublishErrorKind::Closed`]; each of them may have been published.
    ///
    /// # Cancellation
    ///
    /// Once polled, closing goes on when the future is dropped, and a later call gets its result.
    pub async fn close(&self, limit: Duration) -> Result<(), CloseError> {
        self.inner.permits.close();
        self.inner.closing.close_by(Instant::now() + limit.min(FAR_FUTURE)).await
    }

    /// How the publisher is doing now.
    pub fn status(&self) -> PublisherStatus {
        self.inner.monitor.status()
    }

    /// Follows how the publisher is doing: a change of its connections at once, counters a few
    /// times a second.
    pub fn watch(&self) -> watch::Receiver<PublisherStatus> {
        self.inner.monitor.subscribe()
    }

    pub(super) fn deadline(&self, stamped: &Stamped, started: Instant) -> Instant {
        let own = stamped.message.extra().and_then(|extra| extra.deadline);
        started + own.unwrap_or(self.inner.total).min(FAR_FUTURE)
    }

    pub(super) fn handed(&self) -> &HandedOver {
        &self.inner.handed
    }

    pub(super) fn permits(&self) -> &Arc<InFlightPermits> {
        &self.inner.permits
    }

    /// Checks a message and gives it its ID.
    pub(super) fn stamp(&self, message: OutgoingMessage) -> Result<Arc<Stamped>, PublishError> {
        self.inner.stamper.stamp(message).inspect_err(|_| self.inner.monitor.failed())
    }

    /// Waits for a permit.
    pub(super) async fn permit(&self, body: usize, deadline: Instant) -> Result<Permit, PublishErrorKind> {
        let permits = &self.inner.permits;
        // Registering a timer costs more than taking a permit that is free.
        if let Ok(permit) = permits.try_enter(body) {
            return Ok(permit);
        }
        match timeout_at(deadline, Arc::clone(permits).enter(body)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(PublishErrorKind::Closed),
            Err(_) => Err(PublishErrorKind::TimedOut),
        }
    }

    /// Hands a message over to a worker.
    pub(super) fn submit(
        &self,
        stamped: Arc<Stamped>,
        permit: Permit,
        span: Span,
        started: Instant,
    ) -> Pending {
        let deadline = self.deadline(&stamped, started);
        let reply = self.hand_over(Payload::Stamped(Arc::clone(&stamped)), permit, started, deadline);
        Pending { stamped, reply, span, started }
    }

    fn hand_over(
        &self,
        payload: Payload,
        permit: Permit,
        started: Instant,
        deadline: Instant,
    ) -> oneshot::Receiver<Reply> {
        let (answer, reply) = self.inner.handed.answer();
        self.inner.dispatcher.send(Job::new(payload, answer, permit, started, deadline));
        reply
    }

    /// The verdict as the caller sees it. `None` means that the worker ended without one.
    pub(super) fn conclude(&self, pending: Pending, reply: Option<Reply>) -> Result<Receipt, PublishError> {
        let Pending { stamped, span, started, .. } = pending;
        let result = match reply {
            Some(Ok(confirmed)) => {
                Ok(Receipt::new(stamped.id().clone(), confirmed.attempts, confirmed.elapsed))
            }
            Some(Err(failure)) => Err(PublishError::new(failure, stamped)),
            None => {
                // Whether the worker had sent it is not known any more.
                let failure = Failure::unsent(PublishErrorKind::Closed, started.elapsed());
                Err(PublishError::new(Failure { uncertain: true, ..failure }, stamped))
            }
        };
        self.finish(&span, result)
    }

    /// Sees to a verdict that nobody waits for any more.
    pub(super) fn conclude_unseen(&self, mut pending: Pending) {
        let publisher = self.clone();
        self.inner.runtime.spawn(async move {
            let reply = (&mut pending.reply).await;
            if let Err(error) = publisher.conclude(pending, reply.ok()) {
                let message_id = error.message_id().map(tracing::field::display);
                tracing::warn!(message_id, error = %Chain(&error), "a message failed whose confirm nobody awaits");
            }
        });
    }

    /// The error of a message that was never handed over.
    pub(super) fn refused(
        &self,
        kind: PublishErrorKind,
        stamped: Arc<Stamped>,
        span: &Span,
        started: Instant,
    ) -> PublishError {
        let failure = Failure::unsent(kind, started.elapsed());
        let error = PublishError::new(failure, stamped);
        self.inner.monitor.failed();
        telemetry::finish(span, Err(&error));
        error
    }

    /// Fails a message that was never handed over.
    pub(super) fn refuse(
        &self,
        kind: PublishErrorKind,
        stamped: Arc<Stamped>,
        span: &Span,
        started: Instant,
    ) -> Result<Receipt, PublishError> {
        Err(self.refused(kind, stamped, span, started))
    }

    fn finish(&self, span: &Span, result: Result<Receipt, PublishError>) -> Result<Receipt, PublishError> {
        if result.is_err() {
            self.inner.monitor.failed();
        }
        telemetry::finish(span, result.as_ref());
        result
    }

    /// Publishes a delivery on, as it is. Confirmed like everything else.
    pub(crate) async fn forward(&self, forwarded: Forwarded) -> Result<(), Failure> {
        let started = Instant::now();
        let deadline = started + self.inner.total.min(FAR_FUTURE);
        let gone = |kind| Failure::unsent(kind, started.elapsed());
        let permit = self.permit(forwarded.body.len(), deadline).await.map_err(gone)?;
        let reply = self.hand_over(Payload::Forwarded(Arc::new(forwarded)), permit, started, deadline);
        reply.await.unwrap_or_else(|_| Err(gone(PublishErrorKind::Closed))).map(|_| ())
    }
}

impl fmt::Debug for IdempotentPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentPublisher")
            .field("id_strategy", self.inner.stamper.strategy())
            .field("permits", &self.inner.permits)
            .finish_non_exhaustive()
    }
}
