//! How a publisher is set up.

use std::{future::Future, sync::Arc, time::Duration};

use super::{
    channel::WorkerOptions,
    permits::InFlightPermits,
    publish::IdempotentPublisher,
    retry::RetryPolicy,
    stamp::{Limits, Stamper},
    start::Setup,
    telemetry::{Attempt, AttemptHook, ContextSource},
};
use crate::{
    amqp::{ConnectError, ConnectErrorKind, ConnectOptions, InvalidUri, Topology, connection_settings},
    error::BoxError,
    message::{IdStrategy, TraceContext},
};

/// RabbitMQ's default limit since 4.0; older brokers take more.
pub(crate) const MAX_BODY: usize = 16 * 1024 * 1024;

/// A quarter of RabbitMQ's default: lapin keeps 64 times as much in buffers for each connection,
/// and small ones stay in the processor's cache. Bodies of 20 and 200 kB were published as fast as
/// with larger frames.
pub(crate) const FRAME_MAX: u32 = 32 * 1024;

/// Each has a thread; a service that needs more has several publishers.
const MAX_CONNECTIONS: usize = 1_000;

/// AMQP has no more on one connection.
const MAX_CHANNELS: usize = 65_535;

/// Sets up an [`IdempotentPublisher`]; made by [`IdempotentPublisher::builder`].
///
/// ```no_run
/// use std::time::Duration;
/// use lapin_idempotent::{IdStrategy, IdempotentPublisher, RetryPolicy};
///
/// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
/// let publisher = IdempotentPublisher::builder("amqp://localhost")
///     .app_id("orders")
///     .id_strategy(IdStrategy::ulid())
///     .retry(RetryPolicy::default().max_elapsed(Duration::from_secs(60)))
///     .max_in_flight(256)
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is connected before `connect` is awaited"]
pub struct PublisherBuilder {
    connect: Result<ConnectOptions, InvalidUri>,
    app_id: Option<String>,
    strategy: IdStrategy,
    trace: ContextSource,
    max_body: usize,
    max_in_flight: usize,
    max_bytes_in_flight: u32,
    connections: usize,
    channels: usize,
    topology: Option<Topology>,
    worker: WorkerOptions,
}

impl PublisherBuilder {
    pub(crate) fn new(uris: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        Self::with(
            ConnectOptions::new(uris).map(|connect| ConnectOptions { frame_max: FRAME_MAX, ..connect }),
        )
    }

    /// For a publisher beside something that has its connection settings already. It passes on what
    /// others have sent, so the frames stay as large as theirs.
    pub(crate) fn over(connect: ConnectOptions) -> Self {
        Self::with(Ok(connect))
    }

    fn with(connect: Result<ConnectOptions, InvalidUri>) -> Self {
        Self {
            connect,
            app_id: None,
            strategy: IdStrategy::default(),
            trace: ContextSource::default(),
            max_body: MAX_BODY,
            max_in_flight: 1024,
            max_bytes_in_flight: 64 * 1024 * 1024,
            connections: 1,
            channels: 1,
            topology: None,
            worker: WorkerOptions {
                retry: RetryPolicy::default(),
                confirm_timeout: Duration::from_secs(10),
                mandatory: true,
                on_attempt: AttemptHook::default(),
            },
        }
    }
}

/// # Identity
///
/// Whose the messages are, and how they get their IDs.
impl PublisherBuilder {
    /// Sets the name of the publishing application: AMQP property `app_id` of every message. At
    /// most 255 bytes. None by default.
    pub fn app_id(mut self, name: impl Into<String>) -> Self {
        self.app_id = Some(name.into());
        self
    }

    /// Sets how an ID is made for a message that has neither an ID nor an idempotency key. Default:
    /// UUIDv7.
    pub fn id_strategy(mut self, strategy: IdStrategy) -> Self {
        self.strategy = strategy;
        self
    }
}

/// # Confirms and failure
///
/// When a message counts as published, and what happens when it does not.
impl PublisherBuilder {
    /// Sets when and how often a message is published again, and its deadline. Default:
    /// [`RetryPolicy::default`].
    pub fn retry(mut self, policy: impl Into<RetryPolicy>) -> Self {
        self.worker.retry = policy.into();
        self
    }

    /// Sets how long one attempt may wait for its confirm; more than zero.
    ///
    /// When it has passed, the outcome is unknown: the connection is given up, and everything that
    /// was unconfirmed on it is published again under the same IDs. While the broker blocks the
    /// connection this clock stands still.
    ///
    /// Default: 10 seconds.
    pub fn confirm_timeout(mut self, limit: Duration) -> Self {
        self.worker.confirm_timeout = limit;
        self
    }

    /// Sets whether messages are published `mandatory`, so that one that no queue gets is returned
    /// and fails as [`Unroutable`](super::PublishErrorKind::Unroutable).
    ///
    /// Without it the broker confirms such a message and drops it: for events that may have no
    /// subscriber.
    ///
    /// Default: true.
    pub fn mandatory(mut self, mandatory: bool) -> Self {
        self.worker.mandatory = mandatory;
        self
    }
}

/// # Throughput
///
/// How much is in flight, and over what.
impl PublisherBuilder {
    /// Sets how many messages may be unanswered, those that wait for a retry included, at least 1;
    /// further callers wait. A quarter of the default costs little throughput and a good part of
    /// the queueing delay.
    ///
    /// Default: 1,024.
    pub fn max_in_flight(mut self, messages: usize) -> Self {
        self.max_in_flight = messages.clamp(1, tokio::sync::Semaphore::MAX_PERMITS);
        self
    }

    /// Sets how many bytes the bodies of unanswered messages may have together, at least 1, at most
    /// 4 GiB; further callers wait. A body that is larger than that goes alone. Each byte is in
    /// memory about twice while it is sent: lapin copies it.
    ///
    /// Default: 64 MiB.
    pub fn max_bytes_in_flight(mut self, bytes: usize) -> Self {
        self.max_bytes_in_flight = u32::try_from(bytes).unwrap_or(u32::MAX).max(1);
        self
    }

    /// Sets the largest body that is sent; a larger one is
    /// [`Invalid`](super::PublishErrorKind::Invalid) at once. A broker closes the channel over a
    /// body above its limit.
    ///
    /// Default: 16 MiB, which is RabbitMQ's own `max_message_size` since 4.0.
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// Sets over how many connections messages are spread, at least 1, at most 1,000.
    ///
    /// Each has a thread and 64 times its `frame_max` of buffers in lapin: 2 MiB by default. More
    /// than one gives up the order in which messages are sent. A message goes over a connection
    /// that is up if any is.
    ///
    /// Default: 1.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.max(1);
        self
    }

    /// Sets over how many channels of each connection messages are spread, at least 1.
    ///
    /// More than the broker allows, 2,047 by default, is an error when connecting
    /// ([`ConnectErrorKind::Setting`]). More than one gives up the order in which messages are
    /// sent, and rarely helps: connections do. A message over which the broker ends connections is
    /// not named then, as any of those on the other channels may be the one: it fails as
    /// `Disconnected`.
    ///
    /// Default: 1.
    pub fn channels_per_connection(mut self, channels: usize) -> Self {
        self.channels = channels.max(1);
        self
    }
}

/// # Topology and observation
impl PublisherBuilder {
    /// Declares exchanges, queues and bindings on every new connection, before anything is
    /// published on it.
    ///
    /// The channel is a plain one, closed afterwards. Declaring must be repeatable, as it is in
    /// AMQP. When it fails, or takes longer than [`connect_timeout`](Self::connect_timeout), the
    /// connection is given up; after the first `connect`, which fails, it is tried again with
    /// backoff.
    ///
    /// ```no_run
    /// use lapin_idempotent::{IdempotentPublisher, lapin};
    /// use lapin::{ExchangeKind, options::ExchangeDeclareOptions, types::FieldTable};
    ///
    /// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
    /// let publisher = IdempotentPublisher::builder("amqp://localhost")
    ///     .topology(|channel| async move {
    ///         let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    ///         channel.exchange_declare("payments".into(), ExchangeKind::Topic, durable, FieldTable::default()).await
    ///     })
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn topology<F, Fut, E>(mut self, declare: F) -> Self
    where
        F: Fn(lapin::Channel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.topology = Some(Topology::new(declare));
        self
    }

    /// Calls `observe` after every attempt, with its result. It runs in the publishing task and
    /// must not block; if it panics, that is logged. Nothing by default.
    ///
    /// ```no_run
    /// use lapin_idempotent::IdempotentPublisher;
    ///
    /// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
    /// let publisher = IdempotentPublisher::builder("amqp://localhost")
    ///     .on_attempt(|attempt| {
    ///         if let Err(why) = attempt.result {
    ///             eprintln!("attempt {} of {}: {why}", attempt.number, attempt.message_id);
    ///         }
    ///     })
    ///     .connect()
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn on_attempt(mut self, observe: impl Fn(&Attempt<'_>) + Send + Sync + 'static) -> Self {
        self.worker.on_attempt = AttemptHook::new(observe);
        self
    }

    /// Asks `current` for the trace context of each message that has none; called where the message
    /// is published.
    ///
    /// With OpenTelemetry, `current` injects the current context into a map by the global
    /// propagator and takes `traceparent` from it. Without it, set
    /// [`OutgoingMessage::trace_context`](crate::OutgoingMessage::trace_context) yourself.
    pub fn trace_context(
        mut self,
        current: impl Fn() -> Option<TraceContext> + Send + Sync + 'static,
    ) -> Self {
        self.trace = ContextSource::new(current);
        self
    }
}

/// # Connection
impl PublisherBuilder {
    connection_settings!();
}

/// # Connect
impl PublisherBuilder {
    /// Connects, declares the topology, and opens the publishing channels.
    ///
    /// # Errors
    ///
    /// A [`ConnectError`] if a URI or a setting is not usable, if no node accepted the connection,
    /// or if the topology was refused. Nothing is retried here; once connected, the publisher
    /// reconnects by itself. See [`connect_lazy`](Self::connect_lazy).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime. The publisher lives in the runtime that it is connected in, and
    /// ends with it: one in a `static` does not outlive the first of several `#[tokio::test]`s.
    pub async fn connect(self) -> Result<IdempotentPublisher, ConnectError> {
        let (setup, stamper) = self.set_up()?;
        IdempotentPublisher::connect(setup, stamper).await
    }

    /// Like [`connect`](Self::connect), but returns at once and connects in the background, until
    /// it succeeds: for a service that may start before its broker.
    ///
    /// Until then the state is [`Connecting`](super::PublisherState::Connecting), and messages wait
    /// up to their deadlines. Wrong credentials and a topology that is refused are tried again,
    /// too: `last_error` of the [`status`](IdempotentPublisher::status) and the log say what is in
    /// the way.
    ///
    /// # Errors
    ///
    /// A [`ConnectError`] if a URI or a setting is not usable, as far as that can be told without a
    /// broker.
    ///
    /// # Panics
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_lazy(self) -> Result<IdempotentPublisher, ConnectError> {
        let (setup, stamper) = self.set_up()?;
        Ok(IdempotentPublisher::connect_lazy(setup, stamper))
    }

    fn set_up(self) -> Result<(Setup, Stamper), ConnectError> {
        let mut connect = self.connect?;
        connect.check()?;
        let refused = [
            ("confirm_timeout is zero", self.worker.confirm_timeout.is_zero()),
            ("max_elapsed of the retry policy is zero", self.worker.retry.total().is_zero()),
            ("connections is above 1,000", self.connections > MAX_CONNECTIONS),
            (
                "channels_per_connection times connections is above 65,535",
                self.channels.saturating_mul(self.connections) > MAX_CHANNELS,
            ),
        ];
        let refused = refused.into_iter().find(|(_, refused)| *refused).map(|(what, _)| what);
        if let Some(what) = connect.invalid_setting().or(refused) {
            return Err(ConnectError::setup(ConnectErrorKind::Setting, what));
        }
        connect.name = connect.name.or_else(|| self.app_id.clone());
        let limits = Limits::new(self.max_body, connect.smallest_frame());
        let stamper = Stamper::new(self.strategy, self.app_id, self.trace, limits)?;
        let setup = Setup {
            connect,
            topology: self.topology,
            connections: self.connections,
            channels: self.channels,
            options: self.worker,
            permits: Arc::new(InFlightPermits::new(self.max_in_flight, self.max_bytes_in_flight)),
        };
        Ok((setup, stamper))
    }
}
