//! Publishing deliveries onward, confirmed: only then may the original be acked.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{FieldTable, ShortString, ShortStringError},
};
use tokio::{
    sync::{Mutex, OnceCell},
    time::{Instant, timeout},
};

#[cfg(feature = "testing")]
use std::sync::Arc;

use crate::{
    amqp::{self, COUNTS, ConnectError, ConnectOptions, declare_durable, ensure_queue, fitted},
    error::{BoxError, Chain},
    publisher::{
        Failure, Forwarded, IdempotentPublisher, PublishErrorKind, PublisherBuilder, PublisherState,
    },
};
#[cfg(feature = "testing")]
use crate::{
    amqp::{Kept, MemoryBroker},
    publisher::verdict,
};

/// How long a queue that could not be declared is not asked for again: each time costs a
/// connection.
const REFUSED: Duration = Duration::from_secs(30);

/// How long a broker that could not be reached is left alone: each try may take as long as
/// connecting may, and others wait for it.
const UNREACHABLE: Duration = Duration::from_secs(5);

/// Publishes on a connection of its own, made when it is needed: a blocked publisher must not keep
/// acks from being written.
#[derive(Debug)]
pub(crate) struct Forwarder {
    name: String,
    connect: ConnectOptions,
    publisher: OnceCell<IdempotentPublisher>,
    queues: Mutex<Queues>,
    /// Until when it is left alone, and why.
    unreachable: std::sync::Mutex<Option<(Instant, String)>>,
    /// The largest frame that the broker takes.
    frame: AtomicUsize,
    /// What takes them instead of a broker.
    #[cfg(feature = "testing")]
    memory: Option<Arc<MemoryBroker>>,
}

/// A copy of a delivery, on its way to another place.
#[derive(Debug)]
pub(crate) struct ForwardedCopy {
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    /// Headers of this crate that it must not go without. The others are left out where they do not
    /// fit into a frame.
    pub(crate) needed: &'static [&'static str],
    /// How many bytes of headers it gets on its way.
    pub(crate) growth: usize,
    /// Whether it must reach a queue, where that is not the rule.
    pub(crate) mandatory: Option<bool>,
}

impl ForwardedCopy {
    pub(crate) fn new(properties: BasicProperties, body: Bytes) -> Self {
        Self { properties, body, needed: &[], growth: COUNTS, mandatory: None }
    }
}

/// What is known of the queues that the consumer declares.
#[derive(Debug, Default)]
struct Queues {
    declared: BTreeSet<String>,
    /// Until when a refusal holds, and what it said.
    refused: BTreeMap<String, (Instant, String)>,
}

/// What a queue is declared with, where there is none.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    /// Any queue of that name will do.
    Any,
    /// It must have these arguments.
    With(FieldTable),
}

/// A message could not be passed on; it stays where it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("cannot connect to pass a message on")]
    Connect(#[from] ConnectError),
    #[error("cannot connect to pass a message on: {0}")]
    Unreachable(String),
    #[error("the destination has a name that AMQP cannot carry")]
    Name(#[from] ShortStringError),
    #[error("with what has to be said of it, the message does not fit into a frame")]
    TooLarge,
    #[error("the destination cannot be declared")]
    Declare(#[source] BoxError),
    #[error("the copy was not confirmed: {}", .0.kind)]
    Unconfirmed(Failure),
}

impl ForwardError {
    /// Whether it is the copy itself that nobody takes.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::TooLarge | Self::Name(_) => true,
            Self::Unconfirmed(failure) => failure.kind == PublishErrorKind::Refused,
            _ => false,
        }
    }
}

impl Forwarder {
    pub(crate) fn new(name: String, connect: ConnectOptions) -> Self {
        let frame = AtomicUsize::new(connect.smallest_frame());
        Self {
            name,
            connect,
            frame,
            publisher: OnceCell::new(),
            queues: Mutex::default(),
            unreachable: std::sync::Mutex::default(),
            #[cfg(feature = "testing")]
            memory: None,
        }
    }

    /// One that publishes to a broker in memory, and connects to none.
    #[cfg(feature = "testing")]
    pub(crate) fn in_memory(connect: ConnectOptions, broker: Arc<MemoryBroker>) -> Self {
        Self { memory: Some(broker), ..Self::new(String::new(), connect) }
    }

    /// Remembers the largest frame that was agreed upon with the broker.
    pub(crate) fn negotiated(&self, frame_max: u32) {
        self.frame.store(frame_max as usize, Relaxed);
    }

    /// Returns when the broker has confirmed the copy.
    pub(crate) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        copied: &ForwardedCopy,
    ) -> Result<(), ForwardError> {
        // Sent, it would end the connection of all that are on their way.
        let properties = self.fit(copied).ok_or(ForwardError::TooLarge)?;
        let forwarded = Forwarded {
            exchange: ShortString::try_new(exchange)?,
            routing_key: ShortString::try_new(routing_key)?,
            properties,
            body: copied.body.clone(),
            mandatory: copied.mandatory,
        };
        #[cfg(feature = "testing")]
        if let Some(broker) = &self.memory {
            return in_memory(broker, forwarded).await;
        }
        let publisher = self.publisher.get_or_try_init(|| self.reach(self.connect())).await?;
        publisher.forward(forwarded).await.map_err(ForwardError::Unconfirmed)
    }

    fn fit(&self, copied: &ForwardedCopy) -> Option<BasicProperties> {
        let ForwardedCopy { properties, needed, growth, .. } = copied;
        match self.frame.load(Relaxed) {
            0 => Some(properties.clone()),
            frame => fitted(properties, frame.saturating_sub(*growth), needed)
                // There it can stay as it is.
                .or_else(|| needed.is_empty().then(|| fitted(properties, frame, needed)).flatten()),
        }
    }

    /// As [`publish`](Self::publish), to a queue that is declared before, and again if somebody
    /// deleted it.
    pub(crate) async fn publish_to(
        &self,
        queue: &str,
        wanted: &Wanted,
        copied: &ForwardedCopy,
    ) -> Result<(), ForwardError> {
        self.declare(queue, wanted).await?;
        match self.publish("", queue, copied).await {
            Err(ForwardError::Unconfirmed(failure)) if failure.kind == PublishErrorKind::Unroutable => {
                self.queues.lock().await.declared.remove(queue);
                self.declare(queue, wanted).await?;
                self.publish("", queue, copied).await
            }
            done => done,
        }
    }

    async fn declare(&self, queue: &str, wanted: &Wanted) -> Result<(), ForwardError> {
        #[cfg(feature = "testing")]
        if let Some(broker) = &self.memory {
            let none = FieldTable::default();
            broker.declare(queue, if let Wanted::With(arguments) = wanted { arguments } else { &none });
            return Ok(());
        }
        let mut queues = self.queues.lock().await;
        if queues.declared.contains(queue) {
            return Ok(());
        }
        if let Some((_, said)) = queues.refused.get(queue).filter(|(until, _)| *until > Instant::now()) {
            return Err(ForwardError::Declare(said.as_str().into()));
        }
        let connection = self.reach(self.connect.open()).await?;
        self.negotiated(connection.configuration().frame_max());
        let limit = self.connect.timeout;
        let done = match wanted {
            Wanted::Any => ensure_queue(&connection, limit, queue).await,
            Wanted::With(arguments) => declare_durable(&connection, limit, queue, arguments.clone()).await,
        };
        amqp::close(&connection).await;
        match done {
            Ok(()) => {
                queues.refused.remove(queue);
                queues.declared.insert(queue.to_owned());
                Ok(())
            }
            Err(error) => {
                queues
                    .refused
                    .insert(queue.to_owned(), (Instant::now() + REFUSED, Chain(&*error).to_string()));
                Err(ForwardError::Declare(error))
            }
        }
    }

    /// Connects, unless that failed just now.
    async fn reach<T>(
        &self,
        connecting: impl Future<Output = Result<T, ConnectError>>,
    ) -> Result<T, ForwardError> {
        // No code of others runs under the lock.
        let known = || self.unreachable.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, why)) = known().as_ref().filter(|(until, _)| *until > Instant::now()) {
            return Err(ForwardError::Unreachable(why.clone()));
        }
        let connected = connecting.await;
        *known() =
            connected.as_ref().err().map(|error| (Instant::now() + UNREACHABLE, Chain(error).to_string()));
        Ok(connected?)
    }

    async fn connect(&self) -> Result<IdempotentPublisher, ConnectError> {
        PublisherBuilder::over(self.connect.clone())
            .connection_name(self.name.clone())
            .max_in_flight(256)
            .connect()
            .await
    }

    /// Waits until messages can be passed on again, if that was so before, and for so long at most.
    pub(crate) async fn recovers(&self, limit: Duration) {
        if let Some(publisher) = self.publisher.get() {
            let mut status = publisher.watch();
            let _ =
                timeout(limit, status.wait_for(|status| status.state != PublisherState::Reconnecting)).await;
        }
    }

    pub(crate) async fn close(&self, limit: Duration) {
        if let Some(publisher) = self.publisher.get() {
            let _ = publisher.close(limit).await;
        }
    }
}

/// The verdict of a broker in memory.
#[cfg(feature = "testing")]
async fn in_memory(broker: &MemoryBroker, forwarded: Forwarded) -> Result<(), ForwardError> {
    let Forwarded { exchange, routing_key, properties, body, .. } = forwarded;
    let answer = broker.copy(Kept::new(&exchange, &routing_key, properties, body)).await;
    verdict(answer).map_err(|kind| ForwardError::Unconfirmed(Failure::unsent(kind, Duration::ZERO)))
}
