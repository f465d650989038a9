//! What can be set of a consumer, by what it is about.

use std::{future::Future, sync::Arc, time::Duration};

use super::{
    builder::ConsumerBuilder, delay_queues::Redelivery, options::Hook, parking::ParkingTarget,
    status::ConsumerMonitor,
};
use crate::{
    amqp::{Topology, connection_settings},
    error::BoxError,
    idempotency::{
        IdempotencyStore, KeySource, MismatchPolicy, MissingIdPolicy, Outcome, ReplayPolicy, StalePolicy,
    },
    message::{HeaderValue, IncomingMessage},
};

/// # Identity
///
/// Whose the effects are, and what makes two messages the same one.
impl<S: IdempotencyStore> ConsumerBuilder<S> {
    /// Sets the consumer's identity: a message may take effect once in each scope.
    ///
    /// All instances of one service use the same scope; services that share a table use different
    /// ones.
    ///
    /// Default: the name of the queue, of which the consumer warns when it starts. **A queue that
    /// is renamed then forgets every ID**: what is moved over, delivered again or put back from
    /// parking takes effect a second time. Say a name of the service's own.
    pub fn scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    /// Sets which data of a message is its identity. A key that no message can have, such as a
    /// malformed JSON pointer, is refused at the start. Default: the message ID.
    pub fn key(mut self, key: KeySource) -> Self {
        self.key = key;
        self
    }

    /// Sets what happens to a message without an ID. Default: it is parked.
    pub fn missing_id(mut self, policy: MissingIdPolicy) -> Self {
        self.missing_id = policy;
        self
    }

    /// Sets what happens to a message whose ID took effect with another body. Default: it is
    /// parked.
    pub fn fingerprint_mismatch(mut self, policy: MismatchPolicy) -> Self {
        self.mismatch = policy;
        self
    }

    /// Sets what happens to a message of a replay. With
    /// [`ReplayPolicy::Opened`] the consumer does not start if the store cannot tell which are
    /// open. Default: the header means nothing.
    pub fn replays(mut self, policy: ReplayPolicy) -> Self {
        self.replays = policy;
        self
    }

    /// States for how long the store remembers an ID: the retention that it is purged with. A
    /// message that is older and unknown is not handled but parked as `indeterminate`, unless
    /// `policy` is [`StalePolicy::Handle`]. The consumer does not start if the store forgets sooner
    /// than is said here.
    ///
    /// Default: what the store [says](IdempotencyStore::remembers), with [`StalePolicy::Park`]; a
    /// store that is purged from outside says nothing.
    pub fn retention(mut self, retention: Duration, policy: StalePolicy) -> Self {
        self.retention.said = Some((retention, policy));
        self
    }

    /// States how long after its first publishing a copy of a message may still come, at most: add
    /// up the publisher's retries, the time in the queue, and the time that parked messages are
    /// replayed in. This consumer's own [`retry_delays`](Self::retry_delays) are added. The
    /// consumer does not start if the retention is shorter than that, or not known.
    ///
    /// Not set by default: the consumer then only warns.
    pub fn horizon(mut self, horizon: Duration) -> Self {
        self.retention.horizon = Some(horizon);
        self
    }
}

/// # The queue
///
/// How the queue is consumed, and what the broker was told about it.
impl<S: IdempotencyStore> ConsumerBuilder<S> {
    /// Consumes the queue alone: a second consumer is refused. A consumer that finds the queue
    /// taken does not start; one that loses it goes on asking for it. For a stand-by that takes
    /// over, a queue with `x-single-active-consumer` is the better choice. Off by default.
    pub fn exclusive(mut self) -> Self {
        self.options.exclusive = true;
        self
    }

    /// States that the queue has `x-single-active-consumer`. The consumer then subscribes once and
    /// for all, as each new subscription may hand over to another consumer:
    /// [`prefetch_bytes`](Self::prefetch_bytes) is ignored, and a message that ends its consumers
    /// is not parked for it, because its neighbours cannot be told from it. Off by default.
    pub fn single_active(mut self) -> Self {
        self.options.single_active = true;
        self
    }

    /// States the delivery limit of the queue: how often the broker takes a message back before it
    /// removes it. `None` for a queue without one.
    ///
    /// A lost connection takes back all that was delivered on it, so messages come near the limit
    /// without having failed. One that does (half of it) is published anew, to the end of its
    /// queue, with a confirm, and acked: the broker counts the copy from 0, and never decides. Say
    /// here what the queue was declared with, or a policy sets, if it is less than 20. A limit of 0
    /// or 1 leaves no room for that: what is lost with such a connection is removed.
    ///
    /// The consumer's user needs the right to write to the default exchange, as for delays and
    /// parking.
    ///
    /// Default: 20, as quorum queues have it since RabbitMQ 4.0.
    pub fn delivery_limit(mut self, limit: impl Into<Option<u32>>) -> Self {
        self.options.delivery_limit = limit.into();
        self
    }

    /// States how long the broker lets a consumer hold a message unacknowledged (its setting
    /// `consumer_timeout`, or the queue's `x-consumer-timeout`): after that it takes back all that
    /// the consumer has, and counts it. At least 1 s; `None` if there is no such limit.
    ///
    /// What waits here for four fifths of that is published anew, to the end of its queue, with a
    /// confirm, and acked. The prefetch follows the time that a message takes, so that the last one
    /// of the window has its turn in half of it. A handler that takes longer by itself goes on;
    /// what it commits is found by the next delivery.
    ///
    /// Default: 30 minutes, as RabbitMQ's.
    pub fn consumer_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.options.set_consumer_timeout(limit.into());
        self
    }

    /// Sets the consumer's priority (`x-priority`): consumers with a higher one get messages first,
    /// as long as they have room; at their start for one message, see [`prefetch`](Self::prefetch).
    /// Default: 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.options.priority = priority;
        self
    }

    /// Declares what the consumer needs, on a channel of its own, on every new connection before it
    /// subscribes: an exchange, a binding, the queue itself. See also
    /// [`WorkQueue`](super::WorkQueue). If it fails, the consumer does not start; later it goes on
    /// trying. Nothing by default.
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
    /// Repeatable; of one name the last one counts. None by default.
    pub fn consume_argument(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.options.arguments.push((name.into(), value.into()));
        self
    }
}

/// # Throughput
///
/// How much is taken, and handled together.
impl<S: IdempotencyStore> ConsumerBuilder<S> {
    /// Sets how many unsettled deliveries the broker may send ahead (`basic.qos`), at least 1.
    ///
    /// A consumer begins with one, and subscribes anew with this count when something was delivered
    /// that had not been taken back again and again: what ends the process should not take its
    /// neighbours with it. See also [`delivery_limit`](Self::delivery_limit) and
    /// [`consumer_timeout`](Self::consumer_timeout).
    ///
    /// Default: 256.
    pub fn prefetch(mut self, messages: u16) -> Self {
        self.options.prefetch = messages.max(1);
        self
    }

    /// Bounds how many bytes of bodies the broker may send ahead, about.
    ///
    /// RabbitMQ bounds by count only. So the consumer begins with few messages, as if each had a
    /// mebibyte, and subscribes anew on its channel when the count that fits the largest recent
    /// bodies is another one. Bodies that suddenly grow exceed the bound once. See also
    /// [`single_active`](Self::single_active).
    ///
    /// Not set by default.
    pub fn prefetch_bytes(mut self, bytes: usize) -> Self {
        self.options.prefetch_bytes = Some(bytes);
        self
    }

    /// Sets how many messages are handled in one transaction at most: group commit; 1 for one
    /// transaction each.
    ///
    /// For stores whose session is a SQL transaction. A batch is what is there, and never waits for
    /// more, so a message that comes alone is handled alone. Batches grow while they are full and
    /// take less than a tenth of a second, so slow handlers get small ones. When a message fails,
    /// its batch is rolled back and done again one by one: handlers run again for its neighbours,
    /// whose first run was not committed. Set 1 if a handler does something outside of its session
    /// that should not happen twice for another message's sake.
    ///
    /// For throughput, several hundred, with a `prefetch` of two or three batches for each of the
    /// `workers`. Default: 64.
    pub fn batch(mut self, messages: usize) -> Self {
        self.options.batch = messages.max(1);
        self
    }

    /// Sets how many batches, or messages where there are none, are handled concurrently, at least
    /// 1; more gives up the order of the queue. Where handlers compute, each batch is a task of its
    /// own, so that on a runtime of several threads they do so side by side. One that blocks its
    /// thread for as long as its lease runs loses it; see `tokio::task::spawn_blocking`.
    /// Default: 1.
    pub fn workers(mut self, workers: usize) -> Self {
        self.options.workers = workers.max(1);
        self
    }
}

/// # Failure
///
/// What happens to a message whose handler fails.
impl<S: IdempotencyStore> ConsumerBuilder<S> {
    /// Sets the longest that the handler may take for one message; then it is dropped, and the
    /// message counts as failed. Not set by default.
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.handler_timeout = Some(limit);
        self
    }

    /// Sets how a failed message comes to be delivered again. Default: through delay queues.
    pub fn redelivery(mut self, redelivery: Redelivery) -> Self {
        self.options.redelivery = redelivery;
        self
    }

    /// Sets how often a failed message is tried again at once, each time in a transaction of its
    /// own, before it is delivered again. Not done for a handler that asked for a delay. Default:
    /// 2.
    pub fn immediate_retries(mut self, retries: u32) -> Self {
        self.options.immediate_retries = retries;
        self
    }

    /// Sets after how many failed runs of its handler a message is parked, those that were tried
    /// again at once included; at least 1.
    ///
    /// With the default [`immediate_retries`](Self::immediate_retries) the default is 12
    /// deliveries, and with the default [`retry_delays`](Self::retry_delays) 5 hours and 22 minutes
    /// of waiting between them: a service that is away for less parks nothing. Handlers whose
    /// dependencies may be away for longer need more of both.
    ///
    /// Default: 36.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.options.max_attempts = attempts.max(1);
        self
    }

    /// Sets the delays before a failed message is delivered again: `first`, then each four times
    /// the last, up to `longest`; from 1 ms to 49 days. Each different delay has a queue of its
    /// own, which is declared when it is first needed: 7 by default.
    ///
    /// A handler's own [`retry_after`](crate::HandlerError::retry_after) is rounded up to one of
    /// them; a longer one is made of several. When they change, the delay queues of the old ones
    /// stay, and can be deleted when they are empty.
    ///
    /// Default: 1 second and 1 hour.
    pub fn retry_delays(mut self, first: Duration, longest: Duration) -> Self {
        self.options.set_delays(first, longest);
        self
    }

    /// Parks messages through this exchange and routing key, which must lead to a queue.
    ///
    /// Default: a queue named like the consumed one with `.parked` behind, which is declared as a
    /// quorum queue if there is none: it must outlive the node that it began on.
    pub fn parking(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.options.parking = ParkingTarget::exchange(exchange.into(), routing_key.into());
        self
    }
}

/// # Shutdown and observation
impl<S: IdempotencyStore> ConsumerBuilder<S> {
    /// Sets how long handlers may go on after shutdown was asked for, or after the connection was
    /// lost.
    ///
    /// [`run_until`](Self::run_until) returns within 5 s more: 25 s after shutdown was asked for,
    /// where Kubernetes kills after 30 s by default. A handler that blocks its thread is not
    /// bounded by that.
    ///
    /// Default: 20 seconds.
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.options.drain_timeout = limit;
        self
    }

    /// Calls `observe` with every delivery that was decided, before it is settled. It must not
    /// block; if it panics, that is logged. Nothing by default.
    pub fn on_outcome(
        mut self,
        observe: impl Fn(&IncomingMessage, &Outcome) + Send + Sync + 'static,
    ) -> Self {
        self.options.on_outcome = Hook(Some(Arc::new(observe)));
        self
    }

    /// Looks at the consumer while it runs: its status, for health probes. Take it before
    /// `run_until`. Clones of a builder share it.
    pub fn monitor(&self) -> ConsumerMonitor {
        self.monitor.clone()
    }
}

/// # Connection
impl<S: IdempotencyStore> ConsumerBuilder<S> {
    connection_settings!();
}
