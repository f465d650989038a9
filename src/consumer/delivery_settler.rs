//! What the consumer does about its deliveries, for a consume loop of one's own.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lapin::message::Delivery;
use tokio::time::{Instant, sleep_until};

use super::{
    backoff::moment_after,
    buffer::{Aside, Next, Unsettled},
    error::ConsumeError,
    failure_counts::FailureCounts,
    forwarder::Forwarder,
    options::{Options, checked},
    parking::ParkingTarget,
    pending::{PendingSettlements, Settled, ack},
    settler::{Decision, Settler},
    status::ConsumerMonitor,
};
use crate::{
    amqp::{ConnectOptions, InvalidUri, connection_settings},
    idempotency::{Guard, IdempotencyStore, Outcome},
    message::IncomingMessage,
};

/// Settles the deliveries of one queue as [`IdempotentConsumer`](crate::IdempotentConsumer) does,
/// in a consume loop of your own.
///
/// The loop subscribes with lapin and asks a [`Guard`]; [`settle`](Self::settle) then acks, delays
/// through `<queue>.retry.<milliseconds>`, parks in `<queue>.parked`, or holds. Queues and headers
/// are those of the consumer, so [`Unpark`](super::Unpark) brings back what was parked, and a queue
/// may be served by both.
///
/// Copies are published on a connection of the settler's own, made when it is first needed: a
/// publisher that the broker blocks must not keep acks from being written, and lapin does not say
/// which message of a shared channel was returned.
///
/// # What is guaranteed, and where it stops
///
/// A delivery is acked only after its message has taken effect, or after the broker has confirmed
/// its copy and not returned it. What can be neither delayed nor parked is held unacknowledged, and
/// tried again after growing pauses of up to 10 s, or after its delay. Nothing is given back with
/// `basic.nack` or `basic.reject`.
///
/// A process or connection that ends between the confirm and the ack leaves the copy and the
/// original. The guard lets one of them take effect. A message that is parked then may be parked
/// twice.
///
/// The loop's part: not to take more than it can hold (`basic.qos`), to subscribe again after a
/// lost connection, and to pause while the store is away. The settler does not watch the queue's
/// delivery limit, and does not find the message that ends its consumers. It publishes anew what it
/// has held for most of the broker's consumer timeout
/// ([`consumer_timeout`](DeliverySettlerBuilder::consumer_timeout)), and nothing else.
///
/// ```no_run
/// use futures_util::{StreamExt, stream::FuturesUnordered};
/// use lapin_idempotent::{
///     BoxError, Guard, IdempotentHandler, MemoryStore, consumer::DeliverySettler,
/// };
///
/// # async fn example(
/// #     guard: Guard<MemoryStore>, handler: impl IdempotentHandler<MemoryStore>,
/// #     mut deliveries: lapin::Consumer,
/// # ) -> Result<(), BoxError> {
/// let settler = DeliverySettler::builder("amqp://localhost", "payments.debit").build(&guard)?;
/// let mut settling = FuturesUnordered::new();
/// loop {
///     let delivery = tokio::select! {
///         biased;
///         Some(settled) = settling.next() => match settled {
///             // It was held; the guard is asked again.
///             Some(delivery) => delivery,
///             None => continue,
///         },
///         delivered = deliveries.next() => match delivered {
///             Some(delivery) => settler.receive(delivery?),
///             None => return Err("the broker cancelled the consumer".into()),
///         },
///     };
///     let outcome = guard.process(delivery.message(), &handler).await;
///     settling.push(settler.settle(delivery, outcome));
/// }
/// # }
/// ```
///
/// `examples/existing_loop.rs` also pauses, stops and connects again.
pub struct DeliverySettler {
    settler: Settler,
    queue: String,
    patience: Option<Duration>,
    /// Of those that no copy counts.
    failures: Mutex<FailureCounts>,
}

/// A delivery that is not settled, and its message.
///
/// Dropped, it stays unacknowledged: the broker delivers it again when its channel is closed.
#[must_use = "a delivery that is not settled is delivered again when the channel closes"]
pub struct UnsettledDelivery(Unsettled);

/// Sets up a [`DeliverySettler`].
#[derive(Debug, Clone)]
#[must_use = "nothing is settled before `build`"]
pub struct DeliverySettlerBuilder {
    connect: Result<ConnectOptions, InvalidUri>,
    options: Options,
}

impl UnsettledDelivery {
    /// The message, for [`Guard::process`].
    pub fn message(&self) -> &IncomingMessage {
        &self.0.message
    }
}

impl DeliverySettler {
    /// Starts to set up a settler for the deliveries of `queue`.
    ///
    /// URI parameters are those of
    /// [`IdempotentPublisher::builder`](crate::IdempotentPublisher::builder).
    pub fn builder(uri: impl AsRef<str>, queue: impl Into<String>) -> DeliverySettlerBuilder {
        Self::builder_for_cluster([uri.as_ref()], queue)
    }

    /// Like [`builder`](Self::builder), for several nodes of one cluster; each connect tries them
    /// in random order.
    pub fn builder_for_cluster(
        uris: impl IntoIterator<Item = impl AsRef<str>>,
        queue: impl Into<String>,
    ) -> DeliverySettlerBuilder {
        DeliverySettlerBuilder { connect: ConnectOptions::new(uris), options: Options::new(queue.into()) }
    }

    /// Takes a delivery of the queue, from whichever channel; does not copy the body.
    ///
    /// As with [`IncomingMessage::from`], what a message says of its failures and delays counts
    /// only if a consumer of this queue has passed it on.
    pub fn receive(&self, delivery: Delivery) -> UnsettledDelivery {
        UnsettledDelivery(Unsettled::new(delivery, &self.failures(), self.patience))
    }

    /// Does about a delivery what its outcome says, as the guide's reference lists it.
    ///
    /// `None`: it is settled, or its channel is closed and it comes again. `Some`: it was held for
    /// a while, which has passed, and the guard is to be asked again.
    ///
    /// The future lasts as long as the message is held: poll it beside the loop, as the example of
    /// the type does, or spawn it. It never fails. What cannot be delayed or parked is logged as an
    /// error, and held.
    ///
    /// # Cancellation
    ///
    /// Dropped, it leaves the delivery unacknowledged; a copy that was on its way may be in its
    /// queue. Drop it when the channel of the delivery is closed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn settle(&self, delivery: UnsettledDelivery, outcome: Outcome) -> Option<UnsettledDelivery> {
        let UnsettledDelivery(unsettled) = delivery;
        let acker = unsettled.delivery.acker.clone();
        if !acker.usable() {
            return None;
        }
        let mut settling = PendingSettlements::default();
        let decision = self.settler.settle(unsettled, &outcome, &mut self.failures(), &mut settling);
        let mut settled = match decision {
            Decision::Ack(tag) => {
                ack(&acker).await;
                Settled::Away(tag)
            }
            Decision::Hold { unsettled, after } => {
                Settled::Held { unsettled: *unsettled, after, next: Next::Handle }
            }
            Decision::Begun => self.passed_on(&mut settling).await,
        };
        loop {
            let (mut unsettled, after, next) = match settled {
                Settled::Away(_) | Settled::Written => return None,
                Settled::Stays(unsettled) => return Some(UnsettledDelivery(unsettled)),
                Settled::Held { unsettled, after, next } => (unsettled, after, next),
            };
            let aside = hold(&mut unsettled, after, next).await;
            if !acker.usable() {
                return None;
            }
            let Some(aside) = aside else { return Some(UnsettledDelivery(unsettled)) };
            aside.forget_in(&mut self.failures(), &unsettled.message);
            self.settler.set_aside(unsettled, aside, &mut settling);
            settled = self.passed_on(&mut settling).await;
        }
    }

    /// Waits for what was begun about one delivery.
    async fn passed_on(&self, settling: &mut PendingSettlements<'_>) -> Settled {
        let settled = settling.next().await;
        if let Settled::Held { unsettled, .. } = &settled {
            unsettled.remember(&mut self.failures());
        }
        settled
    }

    /// Waits for up to `limit` until what is being published is confirmed, and closes the
    /// connection of the copies. Call it last: what is to be delayed or parked later may be held.
    pub async fn close(&self, limit: Duration) {
        self.settler.close(limit).await;
    }

    fn failures(&self) -> MutexGuard<'_, FailureCounts> {
        // Nothing panics while it is locked.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until a message is due; gives what is then done about it, unless the guard is to be asked.
async fn hold(unsettled: &mut Unsettled, after: Duration, next: Next) -> Option<Aside> {
    let due = moment_after(after);
    if let Some(leaves) = unsettled.delivery.leaves.filter(|leaves| *leaves < due) {
        sleep_until(leaves).await;
        return Some(unsettled.leaves_before(&next, due.saturating_duration_since(Instant::now())));
    }
    sleep_until(due).await;
    match next {
        Next::Handle => None,
        Next::Park(parking) => Some(Aside::Park(parking)),
    }
}

impl DeliverySettlerBuilder {
    connection_settings!();

    /// Sets the delays before a failed message is delivered again, as
    /// [`ConsumerBuilder::retry_delays`](super::ConsumerBuilder::retry_delays). Default 1 s and 1
    /// hour.
    pub fn retry_delays(mut self, first: Duration, longest: Duration) -> Self {
        self.options.set_delays(first, longest);
        self
    }

    /// Parks messages through this exchange and routing key, which must lead to a queue. Default: a
    /// queue named like the consumed one with `.parked` behind, which is declared as a quorum queue
    /// when it is first needed, if there is none.
    pub fn parking(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.options.parking = ParkingTarget::exchange(exchange.into(), routing_key.into());
        self
    }

    /// Sets how long the broker lets a consumer hold a message unacknowledged. Default 30 minutes,
    /// as RabbitMQ's; at least 1 s; `None` if there is no such limit.
    ///
    /// What is held for four fifths of that since it was [received](DeliverySettler::receive) is
    /// published anew, to the end of its queue, with a confirm, and acked. Messages that wait in
    /// the loop's own hands are not watched.
    pub fn consumer_timeout(mut self, limit: impl Into<Option<Duration>>) -> Self {
        self.options.set_consumer_timeout(limit.into());
        self
    }

    /// Checks the settings. The scope, and how often a message may fail, are those of the guard
    /// that the loop asks: [`immediate_retries`](Guard::immediate_retries) and
    /// [`max_attempts`](Guard::max_attempts). Does not connect.
    ///
    /// # Errors
    ///
    /// A [`ConsumeError`] of kind [`Invalid`](super::ConsumeErrorKind::Invalid): bad settings, or
    /// names that are too long with what this crate adds to them.
    pub fn build<S: IdempotencyStore>(self, guard: &Guard<S>) -> Result<DeliverySettler, ConsumeError> {
        let (mut connect, mut options) = (checked(self.connect)?, self.options);
        options.check().map_err(ConsumeError::invalid)?;
        (options.immediate_retries, options.max_attempts) = guard.attempts();
        let scope = guard.scope().as_str();
        let name = connect.name.get_or_insert_with(|| format!("{scope} (parking)")).clone();
        let (queue, patience) = (options.queue.clone(), options.patience());
        let forwarder = Forwarder::new(name, connect);
        let settler = Settler::new(options, scope, forwarder, ConsumerMonitor::new());
        Ok(DeliverySettler { settler, queue, patience, failures: Mutex::default() })
    }
}

impl fmt::Debug for DeliverySettler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeliverySettler").field("queue", &self.queue).finish_non_exhaustive()
    }
}

impl fmt::Debug for UnsettledDelivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnsettledDelivery").field(self.message()).finish()
    }
}
