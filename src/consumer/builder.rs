//! How a consumer is set up.

use std::{future::Future, sync::Arc, time::Duration};

use super::{
    consume::IdempotentConsumer,
    control::ConsumerControl,
    delay_queues::Redelivery,
    error::ConsumeError,
    options::{Hook, Options},
    parking::ParkingTarget,
    retention::Retention,
    status::{ConsumerMonitor, StoppedOnDrop},
};
use crate::{
    amqp::{ConnectOptions, InvalidUri, Topology, connection_settings},
    error::BoxError,
    idempotency::{
        Guard, IdempotencyStore, IdempotentHandler, KeySource, MismatchPolicy, MissingIdPolicy, Outcome,
        Scope, StalePolicy,
    },
    message::{HeaderValue, IncomingMessage},
};

/// Sets up an [`IdempotentConsumer`] and runs it.
#[derive(Debug, Clone)]
#[must_use = "nothing is consumed before `run_until` is awaited"]
pub struct ConsumerBuilder<S> {
    connect: Result<ConnectOptions, InvalidUri>,
    store: S,
    scope: Option<String>,
    key: KeySource,
    missing_id: MissingIdPolicy,
    mismatch: MismatchPolicy,
    retention: Retention,
    monitor: ConsumerMonitor,
    handler_timeout: Option<Duration>,
    options: Options,
}

impl<S: IdempotencyStore> ConsumerBuilder<S> {
    pub(super) fn new<'a>(uris: impl IntoIterator<Item = &'a str>, queue: String, store: S) -> Self {
        Self {
            connect: ConnectOptions::new(uris),
            store,
            scope: None,
            key: KeySource::default(),
            missing_id: MissingIdPolicy::default(),
            mismatch: MismatchPolicy::default(),
            retention: Retention::default(),
            monitor: ConsumerMonitor::new(),
            handler_timeout: None,
            options: Options::new(queue),
        }
    }

    connection_settings!();

    /// The consumer's identity: a message may take effect once in each scope.
    ///
    /// Default: the name of the queue, of which the consumer warns when it starts. **A queue that
    /// is renamed then forgets every ID**: what is moved over, delivered again or put back from
    /// parking takes effect a second time. Say a name of the service's own.
    ///
    /// All instances of one service use the same scope; services that share a table use different
    /// ones.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// Which data of a message is its identity. Default: the message ID. A key that no message can
    /// have, such as a malformed JSON pointer, is refused at the start.
    pub fn key(mut self, key: KeySource) -> Self {
        self.key = key;
        self
    }

    /// What happens to a message without an ID. Default: it is parked.
    pub fn missing_id(mut self, policy: MissingIdPolicy) -> Self {
        self.missing_id = policy;
        self
    }

    /// What happens to a message whose ID took effect with another body. Default: it is parked.
    pub fn fingerprint_mismatch(mut self, policy: MismatchPolicy) -> Self {
        self.mismatch = policy;
        self
    }

    /// For how long the store remembers an ID: the retention that it is purged with. A message that
    /// is older and unknown is not handled but parked as `indeterminate`, unless `policy` is
    /// [`StalePolicy::Handle`]. Default: what the store [says](IdempotencyStore::remembers), with
    /// [`StalePolicy::Park`]; a store that is purged from outside says nothing. The consumer does
    /// not start if the store forgets sooner than is said here.
    pub fn retention(mut self, retention: Duration, policy: StalePolicy) -> Self {
        self.retention.said = Some((retention, policy));
        self
    }

    /// How long after its first publishing a copy of a message may still come, at most: add up the
    /// publisher's retries, the time in the queue, and the time that parked messages are replayed
    /// in. This consumer's own [`retry_delays`](Self::retry_delays) are added. The consumer does
    /// not start if the retention is shorter than that, or not known; without a horizon it only
    /// warns.
    pub fn horizon(mut self, horizon: Duration) -> Self {
        self.retention.horizon = Some(horizon);
        self
    }

    /// The longest that the handler may take for one message; then it is dropped, and the message
    /// counts as failed. Not set by default.
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.handler_timeout = Some(limit);
        self
    }

    /// Consumes the queue alone: a second consumer is refused. A consumer that finds the queue
    /// taken does not start; one that loses it goes on asking for it. For a stand-by that takes
    /// over, a queue with `x-single-active-consumer` is the better choice.
    pub fn exclusive(mut self) -> Self {
        self.options.exclusive = true;
        self
    }

    /// States that the queue has `x-single-active-consumer`. The consumer then subscribes once and
    /// for all, as each new subscription may hand over to another consumer:
    /// [`prefetch_bytes`](Self::prefetch_bytes) is ignored, and a message that ends its consumers
    /// is not parked for it, because its neighbours cannot be told from it.
    pub fn single_active(mut self) -> Self {
        self.options.single_active = true;
        self
    }

    /// The delivery limit of the queue: how often the broker takes a message back before it removes
    /// it. Default 20, as quorum queues have it since RabbitMQ 4.0; `None` for a queue without one.
    ///
    /// A lost connection takes back all that was delivered on it, so messages come near the limit
    /// without having failed. One that does (half of it) is published anew, to the end of its
    /// queue, with a confirm, and acked: the broker counts the copy from nought, and never decides.
    /// Say here what the queue was declared with, or a policy sets, if it is less than 20. A limit
    /// of 0 or 1 leaves no room for that: what is lost with such a connection is removed.
    ///
    /// The consumer's user needs the right to write to the default exchange, as for delays and
    /// parking.
    pub fn delivery_limit(mut self, limit: impl Into<Option<u32>>) -> Self {
        self.options.delivery_limit = limit.into();
        self
    }

    /// How long the broker lets a consumer hold a message unacknowledged (its setting
    /// `consumer_timeout`, or the queue's `x-consumer-timeout`): after that it takes back all that
    /// the consumer has, and counts it. Default 30 minutes, as RabbitMQ's; at least 1 s; `None` if
    /// there is no such limit.
    ///
    /// What waits here for four fifths of that is published anew, to the end of its queue, with a
    /// confirm, and acked. The prefetch follows the time that a message takes, so that the last one
    /// of the window has its turn in half of it. A handler that takes longer by itself goes on;
    /// what it commits is found by the next delivery.
    pub fn consumer_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.options.consumer_timeout = limit.into().map(|limit| limit.max(Duration::from_secs(1)));
        self
    }

    /// Consumers with a higher priority get messages first, as long as they have room (RabbitMQ's
    /// consumer priorities, `x-priority`); at their start for one message, see
    /// [`prefetch`](Self::prefetch). Default 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = priority;
        self
    }

    /// Declares what the consumer needs, on a channel of its own, on every new connection before it
    /// subscribes: an exchange, a binding, the queue itself. See also
    /// [`WorkQueue`](super::WorkQueue). If it fails, the consumer does not start; later it goes on
    /// trying.
    pub fn topology<F, Fut, E>(mut self, declare: F) -> Self
    where
        F: Fn(lapin::Channel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        self.options.topology = Some(Topology::new(declare));
        self
    }

    /// Adds an argument to the subscription (`basic.consume`), such as `x-stream-offset`.
    /// Repeatable; of one name the last one counts.
    pub fn consume_argument(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.options.arguments.push((name.into(), value.into()));
        self
    }

    /// How many unsettled deliveries the broker may send ahead (`basic.qos`). Default 256; at least
    /// 1.
    ///
    /// A consumer begins with one, and subscribes anew with this count when something was delivered
    /// that had not been taken back again and again: what ends the process should not take its
    /// neighbours with it. See also [`delivery_limit`](Self::delivery_limit) and
    /// [`consumer_timeout`](Self::consumer_timeout).
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.options.prefetch = messages.max(1);
        self
    }

    /// How many bytes of bodies the broker may send ahead, about. Not set by default.
    ///
    /// RabbitMQ bounds by count only. So the consumer begins with few messages, as if each had a
    /// mebibyte, and subscribes anew on its channel when the count that fits the largest recent
    /// bodies is another one. Bodies that suddenly grow exceed the bound once. See also
    /// [`single_active`](Self::single_active).
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.options.prefetch_bytes = Some(bytes);
        self
    }

    /// How many messages are handled in one transaction at most: group commit. Default 64; 1 for
    /// one transaction each.
    ///
    /// For stores whose session is a SQL transaction. A batch is what is there, and never waits for
    /// more, so a message that comes alone is handled alone. Batches grow while they are full and
    /// take less than a tenth of a second, so slow handlers get small ones. When a message fails,
    /// its batch is rolled back and done again one by one: handlers run again for its neighbours,
    /// whose first run was not committed. Set 1 if a handler does something outside of its session
    /// that should not happen twice for another message's sake.
    ///
    /// For throughput, several hundred, with a `prefetch` of two or three batches for each of the
    /// `workers`.
    pub fn batch(mut self, messages: usize) -> Self {
        self.options.batch = messages.max(1);
        self
    }

    /// How many batches, or messages where there are none, are handled concurrently. Default 1, the
    /// least; more gives up the order of the queue. They share one task: a handler that blocks its
    /// thread holds up the others and their leases; see `tokio::task::spawn_blocking`.
    pub fn workers(mut self, workers: usize) -> Self {
        self.options.workers = workers.max(1);
        self
    }

    /// How a failed message comes to be delivered again. Default: through delay queues.
    pub fn redelivery(mut self, redelivery: Redelivery) -> Self {
        self.options.redelivery = redelivery;
        self
    }

    /// How often a failed message is tried again at once, each time in a transaction of its own,
    /// before it is delivered again. Default 2.
    ///
    /// Not done for a handler that asked for a delay.
    pub fn immediate_retries(mut self, retries: u32) -> Self {
        self.options.immediate_retries = retries;
        self
    }

    /// After how many failed runs of its handler a message is parked, those that were tried again
    /// at once included. Default 36; at least 1.
    ///
    /// With the default [`immediate_retries`](Self::immediate_retries) that is 12 deliveries, and
    /// with the default [`retry_delays`](Self::retry_delays) 5 hours and 22 minutes of waiting
    /// between them: a service that is away for less parks nothing. Handlers whose dependencies may
    /// be away for longer need more of both.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts.max(1);
        self
    }

    /// The delays before a failed message is delivered again: `first`, then each four times the
    /// last, up to `longest`. Default 1 s and 1 hour; from 1 ms to 49 days. Each different delay
    /// has a queue of its own: 7 by default, each declared when it is first needed.
    ///
    /// A handler's own [`retry_after`](crate::HandlerError::retry_after) is rounded up to one of
    /// them; a longer one is made of several. When they change, the delay queues of the old ones
    /// stay, and can be deleted when they are empty.
    pub fn retry_delays(mut self, first: Duration, longest: Duration) -> Self {
        self.options.first_delay = first;
        self.options.longest_delay = longest.max(first);
        self
    }

    /// Parks messages through this exchange and routing key, which must lead to a queue. Default: a
    /// queue named like the consumed one with `.parked` behind, which is declared as a quorum queue
    /// if there is none: it must outlive the node that it began on.
    pub fn parking(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.options.parking = ParkingTarget::exchange(exchange.into(), routing_key.into());
        self
    }

    /// Looks at the consumer while it runs: its status, for health probes. Take it before
    /// `run_until`. Clones of a builder share it.
    pub fn monitor(&self) -> ConsumerMonitor {
        self.monitor.clone()
    }

    /// Calls `observe` with every delivery that was decided, before it is settled. It must not
    /// block; if it panics, that is logged.
    pub fn on_outcome(
        mut self,
        observe: impl Fn(&IncomingMessage, &Outcome) + Send + Sync + 'static,
    ) -> Self {
        self.options.on_outcome = Hook(Some(Arc::new(observe)));
        self
    }

    /// How long handlers may go on after shutdown was asked for, or after the connection was lost.
    /// Default 20 s.
    ///
    /// [`run_until`](Self::run_until) returns within 5 s more: 25 s after shutdown was asked for,
    /// where Kubernetes kills after 30 s by default. A handler that blocks its thread is not
    /// bounded by that.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.options.drain_timeout = limit;
        self
    }

    /// Checks the settings, and gives the consumer, which can be looked at and controlled before it
    /// runs.
    ///
    /// # Errors
    ///
    /// A [`ConsumeError`] of kind [`Invalid`](super::ConsumeErrorKind::Invalid): bad settings, or
    /// names that are too long with what this crate adds to them.
    pub fn build(self) -> Result<IdempotentConsumer<S>, ConsumeError> {
        let mut connect = self.connect.map_err(ConsumeError::invalid)?;
        connect.check().map_err(ConsumeError::invalid)?;
        if let Some(what) = connect.invalid_setting() {
            return Err(ConsumeError::invalid(what));
        }
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
        H: IdempotentHandler<S>,
    {
        // However this ends.
        let _stopped = StoppedOnDrop(self.monitor.clone());
        self.build()?.run_until(handler, shutdown).await
    }
}
