//! Bringing parked messages back, once the reason is repaired.

use std::{fmt, sync::Arc, time::SystemTime};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{message::Delivery, options::BasicAckOptions};

use super::{
    delivery_limit::DeliveryLimit,
    error::ConsumeError,
    forwarder::{ForwardedCopy, Forwarder},
    parking_channel::ParkingChannel,
    settlement::ParkReason,
};
use crate::{
    amqp::{self, ConnectOptions, InvalidUri, connection_settings},
    error::{BoxError, Chain},
    message::{Epoch, IncomingMessage, reserved},
};

/// How many messages are on their way together.
const IN_FLIGHT: usize = 64;

/// Publishes parked messages back to their queue, under the same ID, with a confirm, and then acks
/// them.
///
/// Their failures are forgotten, so they get all attempts again, and the guard handles them unless
/// they have taken effect meanwhile. It remembers that for the retention only: a message whose
/// handler had failed can be put back for that long after it was parked, whatever its own age. One
/// that is put back later, or was parked as `indeterminate`, is parked again, unless
/// [`assume_unprocessed`](Self::assume_unprocessed) vouches for it.
///
/// What was parked because of its ID (none, an invalid one, or one that took effect with another
/// body) is parked again unless that was repaired: by another policy of the consumer, or with
/// [`Inspect::forget`](crate::idempotency::Inspect::forget).
///
/// ```no_run
/// # async fn repair() -> Result<(), lapin_idempotent::consumer::ConsumeError> {
/// use lapin_idempotent::consumer::Unpark;
///
/// let unparked = Unpark::new("amqp://localhost", "payments.debit.parked")
///     .only(|message| message.parked_reason() == Some("attempts-exhausted"))
///     .limit(1000)
///     .run()
///     .await?;
/// println!("{} put back, {} left, {} failed", unparked.moved, unparked.left, unparked.failed);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is moved before `run` is awaited"]
pub struct Unpark {
    connect: Result<ConnectOptions, InvalidUri>,
    parking: String,
    queue: Option<String>,
    limit: u64,
    delivery_limit: Option<u32>,
    assume_unprocessed: bool,
    replay: Option<Epoch>,
    only: Arc<dyn Fn(&IncomingMessage) -> bool + Send + Sync>,
}

/// What [`Unpark`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unparked {
    /// Messages that went back to their queue.
    pub moved: u64,
    /// Messages that were looked at and not chosen; they stay parked.
    pub left: u64,
    /// Messages that could not be put back; they stay parked.
    pub failed: u64,
    /// Why the last one could not; holds no credentials.
    pub last_error: Option<String>,
}

impl Unpark {
    /// Takes messages from the parking queue, to which a consumer parked them.
    ///
    /// URI parameters are those of
    /// [`IdempotentPublisher::builder`](crate::IdempotentPublisher::builder).
    pub fn new(uri: impl AsRef<str>, parking_queue: impl Into<String>) -> Self {
        Self::for_cluster([uri.as_ref()], parking_queue)
    }

    /// Like [`new`](Self::new), for several nodes of one cluster; each connect tries them in random
    /// order.
    pub fn for_cluster(
        uris: impl IntoIterator<Item = impl AsRef<str>>,
        parking_queue: impl Into<String>,
    ) -> Self {
        Self {
            connect: ConnectOptions::new(uris),
            parking: parking_queue.into(),
            queue: None,
            limit: u64::MAX,
            delivery_limit: Some(20),
            assume_unprocessed: false,
            replay: None,
            only: Arc::new(|_| true),
        }
    }

    connection_settings!();

    /// Puts them into this queue. Default: each into the one that it was consumed from, as its
    /// header says; or from which the broker dead-lettered it, where it did.
    pub fn to(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Moves so many at most. Default: all that are there when it begins.
    pub fn limit(mut self, messages: u64) -> Self {
        self.limit = messages;
        self
    }

    /// States the delivery limit of the parking queue; `None` for a queue without one, as those
    /// that this crate declares.
    ///
    /// A message that was looked at and stays parked is given back, which the broker counts (up to
    /// RabbitMQ 4.2). Before the limit is reached such a message is published anew to the parking
    /// queue, with a confirm, and acked: looking never uses it up, however often. It goes to the
    /// end of the queue then.
    ///
    /// Default: 20, as quorum queues have it since RabbitMQ 4.0 unless they say otherwise.
    pub fn delivery_limit(mut self, limit: impl Into<Option<u32>>) -> Self {
        self.delivery_limit = limit.into();
        self
    }

    /// Moves only messages for which `choose` says so.
    pub fn only(mut self, choose: impl Fn(&IncomingMessage) -> bool + Send + Sync + 'static) -> Self {
        self.only = Arc::new(choose);
        self
    }

    /// States that none of the chosen messages has taken effect. The guard then handles those, too,
    /// that are older than its retention and of which it knows nothing: **a second time, if the
    /// statement is wrong**. Find out first, and choose with [`only`](Self::only).
    pub fn assume_unprocessed(mut self) -> Self {
        self.assume_unprocessed = true;
        self
    }

    /// Puts them back as messages of a replay: those that took effect do so **once more**, if the
    /// consumer was set up for it and the epoch is open in its scope
    /// ([`ReplayPolicy`](crate::idempotency::ReplayPolicy)). What was parked in another epoch is in
    /// this one then.
    pub fn replay(mut self, epoch: Epoch) -> Self {
        self.replay = Some(epoch);
        self
    }

    /// Moves them. Looks at each message once, in the order of the queue; what is parked meanwhile
    /// stays.
    ///
    /// # Errors
    ///
    /// A [`ConsumeError`] if it cannot start, or if the parking queue cannot be read any more. A
    /// message that cannot be put back is no error: it is counted, and stays.
    ///
    /// # Cancellation
    ///
    /// Messages that were not acked stay parked. One that was on its way may be in both queues
    /// then; its ID keeps it from taking effect twice.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn run(self) -> Result<Unparked, ConsumeError> {
        let parking = ParkingChannel::open(&self.connect, "unpark", &self.parking).await?;
        let moved = self.all(&parking).await;
        parking.give_back().await;
        if let Ok(Unparked { left, failed, .. }) = &moved {
            parking.returned(left + failed).await;
        }
        parking.close().await;
        moved.map_err(ConsumeError::of_channel)
    }

    async fn all(&self, parking: &ParkingChannel) -> Result<Unparked, BoxError> {
        let mut unparked = Unparked::default();
        let mut unseen = parking.ready().await?;
        let mut chosen = 0;
        let limit = DeliveryLimit::new(self.delivery_limit, 0, false);
        let mut moving = FuturesUnordered::new();
        loop {
            if moving.len() < IN_FLIGHT && unseen > 0 && chosen < self.limit {
                unseen -= 1;
                let Some(got) = parking.get().await? else {
                    unseen = 0;
                    continue;
                };
                let message = IncomingMessage::from(&got.delivery);
                let chooses = (self.only)(&message);
                let renew = !limit.allows_return(&message);
                if chooses {
                    chosen += 1;
                } else {
                    unparked.left += 1;
                    if !renew {
                        continue;
                    }
                }
                let unprocessed =
                    if self.assume_unprocessed { SystemTime::now() } else { unprocessed(&message) };
                let delivery = got.delivery;
                moving.push(async move {
                    let moved = if chooses {
                        Some(self.one(&delivery, unprocessed, &parking.forwarder).await)
                    } else {
                        None
                    };
                    if renew && !matches!(moved, Some(Ok(()))) {
                        parking.publish_anew(&delivery).await;
                    }
                    moved
                });
            } else {
                match moving.next().await {
                    None => return Ok(unparked),
                    Some(None) => {}
                    Some(Some(Ok(()))) => unparked.moved += 1,
                    Some(Some(Err(error))) => {
                        unparked.failed += 1;
                        unparked.last_error = Some(Chain(&*error).to_string());
                        // It counts as looked at, and another one may take its place.
                        chosen -= 1;
                    }
                }
            }
        }
    }

    async fn one(
        &self,
        delivery: &Delivery,
        unprocessed: SystemTime,
        forwarder: &Forwarder,
    ) -> Result<(), BoxError> {
        let Delivery { properties, acker, data, .. } = delivery;
        let from = || {
            let said = amqp::text_header(properties, reserved::ORIGINAL_QUEUE);
            said.or_else(|| amqp::last_death(properties).map(|death| death.queue))
        };
        let queue = match &self.queue {
            Some(queue) => queue.clone(),
            None => from().ok_or("it does not say which queue it is from")?,
        };
        let copy = amqp::unparked_properties(properties, &queue, unprocessed, self.replay.as_ref());
        forwarder.publish("", &queue, &ForwardedCopy::new(copy, data.clone().into())).await?;
        acker.ack(BasicAckOptions::default()).await?;
        Ok(())
    }
}

/// When a parked message is known last not to have taken effect.
pub(super) fn unprocessed(message: &IncomingMessage) -> SystemTime {
    // Its handler failed just before it was parked, in a session that had claimed its ID.
    let failed = [ParkReason::Rejected, ParkReason::AttemptsExhausted]
        .iter()
        .any(|reason| message.parked_reason() == Some(reason.name()));
    message.parked_at().filter(|_| failed).unwrap_or(SystemTime::UNIX_EPOCH)
}

impl fmt::Debug for Unpark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpark")
            .field("parking", &self.parking)
            .field("queue", &self.queue)
            .field("limit", &self.limit)
            .field("delivery_limit", &self.delivery_limit)
            .field("assume_unprocessed", &self.assume_unprocessed)
            .field("replay", &self.replay)
            .finish_non_exhaustive()
    }
}
