//! `publish_idempotent`: stamp, hand over, await the verdict.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::stream::{self, Stream};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    all::PublishAll,
    builder::PublisherBuilder,
    connection::Link,
    error::{Failure, PublishError, PublishErrorKind},
    job::{Job, Payload, Reply},
    lane::{Lane, LaneOptions},
    receipt::Receipt,
};
use crate::{
    amqp::{ConnectError, ConnectErrorKind, ConnectOptions},
    error::BoxError,
    message::{IdStrategy, InvalidMessage, OutgoingMessage, Stamped},
};

/// Added to the deadline of a call before it stops waiting for its verdict: the lane answers first, unless it died.
const FAR_FUTURE: Duration = Duration::from_secs(365 * 86_400);

/// Publishes messages under a message ID that stays the same over all attempts, and knows when they are published.
///
/// `Ok` means that the broker confirmed this very message and did not return it. A message without a confirm
/// is never reported as published; it is sent again, with the same ID and body, until it is confirmed or its
/// [`RetryPolicy`](super::RetryPolicy) ends. A queue can therefore hold several copies of it, which is what the
/// consumer's guard is for.
///
/// Clones share the connection. When the last one is dropped, the connection closes after what is in flight is answered.
#[derive(Clone)]
pub struct IdempotentPublisher {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: mpsc::UnboundedSender<Job>,
    permits: Arc<Semaphore>,
    stamper: Stamper,
    total: Duration,
    closing: watch::Sender<Option<Instant>>,
    lane: Mutex<Option<JoinHandle<Vec<Payload>>>>,
    max_in_flight: usize,
}

impl IdempotentPublisher {
    /// Starts to set up a publisher for a broker URI, such as `amqp://user:password@host:5672/vhost`.
    ///
    /// Query parameters: `heartbeat` (seconds, default 10), `frame_max`, `channel_max`, `auth_mechanism`. A parameter that
    /// would be ignored is an error.
    pub fn builder(uri: impl AsRef<str>) -> PublisherBuilder {
        PublisherBuilder::new([uri.as_ref()])
    }

    /// Like [`builder`](Self::builder), for several nodes of one cluster; each connect tries them in random order.
    pub fn builder_for_cluster<'a>(uris: impl IntoIterator<Item = &'a str>) -> PublisherBuilder {
        PublisherBuilder::new(uris)
    }

    pub(crate) async fn connect(
        connect: ConnectOptions,
        stamper: Stamper,
        options: LaneOptions,
        max_in_flight: usize,
    ) -> Result<Self, ConnectError> {
        let link = Arc::new(Link::new(connect));
        let first = link.channel().await?;
        let (jobs, intake) = mpsc::unbounded_channel();
        let (closing, closed) = watch::channel(None);
        let total = options.retry.total();
        let lane = Lane::new(options, Arc::clone(&link), intake, closed);
        let lane = tokio::spawn(async move {
            let left = lane.run(Some(first)).await;
            link.close().await;
            left
        });
        let permits = Arc::new(Semaphore::new(max_in_flight));
        let lane = Mutex::new(Some(lane));
        Ok(Self { inner: Arc::new(Inner { jobs, permits, stamper, total, closing, lane, max_in_flight }) })
    }

    /// Publishes one message and waits for its confirm.
    ///
    /// The ID is the message's own, or else derived from its idempotency key, or else made by the builder's
    /// [`IdStrategy`]. Calls may run concurrently; they share the window of `max_in_flight`.
    ///
    /// # Errors
    ///
    /// A [`PublishError`], whose kind tells whether the message was invalid, unroutable, nacked, not confirmed in time, or
    /// whether the connection was lost for too long; it gives the message back, with its ID.
    ///
    /// # Cancellation
    ///
    /// Dropping the future before its first poll publishes nothing. Afterwards the message may be published, once or,
    /// if an attempt was under way, unconfirmed; it is not tried again, and its confirm is still awaited internally.
    pub async fn publish_idempotent(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        let started = Instant::now();
        let deadline = self.deadline(started);
        let stamped = self.inner.stamper.stamp(message)?;
        let permit = match self.place(deadline).await {
            Ok(permit) => permit,
            Err(kind) => return Err(unsent(kind, stamped, started)),
        };
        let pending = self.submit(stamped, permit, started);
        let reply = pending.reply.await;
        conclude(pending.stamped, started, reply.ok())
    }

    /// Publishes many messages, pipelined, and yields one result per message in the order of the messages.
    ///
    /// See [`publish_stream`](Self::publish_stream).
    pub fn publish_all<I>(&self, messages: I) -> PublishAll<stream::Iter<I::IntoIter>>
    where
        I: IntoIterator<Item = OutgoingMessage>,
    {
        self.publish_stream(stream::iter(messages))
    }

    /// Publishes a stream of messages, pipelined up to `max_in_flight`, and yields one result per message, in order.
    ///
    /// A failed message does not stop the others. Nothing is sent until the stream is polled; dropping it leaves what
    /// was taken from the source as [`publish_idempotent`](Self::publish_idempotent) does when it is cancelled.
    pub fn publish_stream<S>(&self, messages: S) -> PublishAll<S>
    where
        S: Stream<Item = OutgoingMessage>,
    {
        PublishAll::new(self.clone(), messages)
    }

    /// Closes the publisher for all its clones: waits for what is in flight for at most `limit`, then disconnects.
    ///
    /// New publishes fail with [`PublishErrorKind::Closed`] at once. Pending ones are answered.
    ///
    /// # Errors
    ///
    /// A [`CloseError`] with the messages that were still unconfirmed. Their pending calls fail with
    /// [`PublishErrorKind::Closed`]; each of them may have been published.
    pub async fn close(&self, limit: Duration) -> Result<(), CloseError> {
        let deadline = Instant::now() + limit.min(FAR_FUTURE);
        self.inner.permits.close();
        self.inner.closing.send_modify(|closing| {
            *closing = Some(closing.map_or(deadline, |earlier| earlier.min(deadline)));
        });
        let lane = self.inner.lane.lock().unwrap_or_else(PoisonError::into_inner).take();
        let left = match lane {
            Some(lane) => lane.await.unwrap_or_default(),
            None => Vec::new(),
        };
        let messages: Vec<OutgoingMessage> = left
            .into_iter()
            .filter_map(|payload| match payload {
                Payload::Stamped(stamped) => Some(Arc::unwrap_or_clone(stamped).message),
                Payload::Forwarded(_) => None,
            })
            .collect();
        if messages.is_empty() { Ok(()) } else { Err(CloseError { messages }) }
    }

    pub(super) fn deadline(&self, started: Instant) -> Instant {
        started + self.inner.total.min(FAR_FUTURE)
    }

    pub(super) fn max_in_flight(&self) -> usize {
        self.inner.max_in_flight
    }

    pub(super) fn permits(&self) -> &Arc<Semaphore> {
        &self.inner.permits
    }

    pub(super) fn stamper(&self) -> &Stamper {
        &self.inner.stamper
    }

    /// Waits for a place in the window.
    async fn place(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, PublishErrorKind> {
        let permits = &self.inner.permits;
        // Registering a timer costs more than taking a place that is free.
        if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
            return Ok(permit);
        }
        match timeout_at(deadline, Arc::clone(permits).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(PublishErrorKind::Closed),
            Err(_) => Err(PublishErrorKind::TimedOut),
        }
    }

    /// Hands a message over to the lane.
    pub(super) fn submit(
        &self,
        stamped: Arc<Stamped>,
        permit: OwnedSemaphorePermit,
        started: Instant,
    ) -> Pending {
        let reply = self.hand_over(Payload::Stamped(Arc::clone(&stamped)), permit, started);
        Pending { stamped, reply, started }
    }

    fn hand_over(
        &self,
        payload: Payload,
        permit: OwnedSemaphorePermit,
        started: Instant,
    ) -> oneshot::Receiver<Reply> {
        let (sender, reply) = oneshot::channel();
        // If the lane has ended, the job is dropped, and with it the sender: the caller sees a closed publisher.
        let _ = self.inner.jobs.send(Job::new(payload, sender, permit, started, self.deadline(started)));
        reply
    }

    /// Publishes a delivery on, as it is. Confirmed like everything else.
    pub(crate) async fn forward(&self, payload: Payload) -> Result<(), Failure> {
        let started = Instant::now();
        let gone = |kind| Failure::unsent(kind, started.elapsed());
        let permit = self.place(self.deadline(started)).await.map_err(gone)?;
        let reply = self.hand_over(payload, permit, started).await;
        reply.unwrap_or_else(|_| Err(gone(PublishErrorKind::Closed))).map(|_| ())
    }
}

impl fmt::Debug for IdempotentPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentPublisher")
            .field("id_strategy", &self.inner.stamper.strategy)
            .field("free_places", &self.inner.permits.available_permits())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").finish_non_exhaustive()
    }
}

/// A message that was handed over, and where its verdict will come.
pub(super) struct Pending {
    pub(super) stamped: Arc<Stamped>,
    pub(super) reply: oneshot::Receiver<Reply>,
    pub(super) started: Instant,
}

/// The verdict as the caller sees it. `None` means that the lane ended without one.
pub(super) fn conclude(
    stamped: Arc<Stamped>,
    started: Instant,
    reply: Option<Reply>,
) -> Result<Receipt, PublishError> {
    match reply {
        Some(Ok(confirmed)) => Ok(Receipt::new(stamped.id().clone(), confirmed.attempts, confirmed.elapsed)),
        Some(Err(failure)) => Err(PublishError::new(failure, stamped)),
        None => {
            // Whether the lane had sent it is not known any more.
            let failure = Failure::unsent(PublishErrorKind::Closed, started.elapsed());
            Err(PublishError::new(Failure { uncertain: true, ..failure }, stamped))
        }
    }
}

pub(super) fn unsent(kind: PublishErrorKind, stamped: Arc<Stamped>, started: Instant) -> PublishError {
    PublishError::new(Failure::unsent(kind, started.elapsed()), stamped)
}

/// Gives messages their ID and what else they travel with.
#[derive(Debug)]
pub(crate) struct Stamper {
    strategy: IdStrategy,
    app_id: Option<Arc<str>>,
}

impl Stamper {
    pub(crate) fn new(strategy: IdStrategy, app_id: Option<String>) -> Result<Self, ConnectError> {
        if let Some(length) = app_id.as_ref().map(String::len).filter(|length| *length > 255) {
            let source: BoxError = format!("the app_id has {length} bytes; AMQP allows 255").into();
            return Err(ConnectError::setup(ConnectErrorKind::Protocol, source));
        }
        Ok(Self { strategy, app_id: app_id.map(Arc::from) })
    }

    /// Checks a message and gives it its ID, once for all attempts.
    pub(super) fn stamp(&self, message: OutgoingMessage) -> Result<Arc<Stamped>, PublishError> {
        let id = match message.validate() {
            Ok(()) => self.strategy.message_id(&message).map_err(InvalidMessage::from),
            Err(invalid) => Err(invalid),
        };
        match id {
            Ok(id) => {
                let told_by_id = !message.has_identity() && self.strategy.is_time_ordered();
                let timestamp = message.stamped_at().or_else(|| (!told_by_id).then(SystemTime::now));
                Ok(Arc::new(Stamped::new(message, id, self.app_id.clone(), timestamp)))
            }
            Err(invalid) => Err(PublishError::invalid(message, invalid.into())),
        }
    }
}

/// The time ran out while messages were unconfirmed; they are handed back, with their IDs.
#[derive(Debug, thiserror::Error)]
#[error("{} message(s) were not confirmed before the publisher closed", .messages.len())]
pub struct CloseError {
    messages: Vec<OutgoingMessage>,
}

impl CloseError {
    /// The messages that were not confirmed.
    pub fn messages(&self) -> &[OutgoingMessage] {
        &self.messages
    }

    /// Takes the messages back: to publish them again or to store them.
    pub fn into_messages(self) -> Vec<OutgoingMessage> {
        self.messages
    }
}
