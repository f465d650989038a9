//! Looking at parked messages, and deleting those that nobody wants any more.

use std::fmt;

use lapin::{options::BasicAckOptions, types::ShortString};
use tokio::time::timeout;

use super::{delivery_limit::DeliveryLimit, error::ConsumeError, parking_channel::ParkingChannel};
use crate::{
    amqp::{ConnectOptions, InvalidUri, connection_settings},
    error::BoxError,
    message::IncomingMessage,
};

/// Looks at the messages of a parking queue, in its order, and leaves or deletes each.
///
/// [`Unpark`](super::Unpark) brings them back instead. What is looked at is not lost: it is given
/// back when the look ends, and a broker that counts this towards a delivery limit is kept from
/// reaching it, as [`delivery_limit`](Self::delivery_limit) says. While the look goes on, other
/// readers of the queue do not see what it holds; afterwards the messages have the flag
/// `redelivered`, and may be in another order.
///
/// ```no_run
/// # async fn look() -> Result<(), lapin_idempotent::consumer::ConsumeError> {
/// use lapin_idempotent::consumer::{Parked, ParkedChoice};
///
/// let looked = Parked::new("amqp://localhost", "payments.debit.parked")
///     .each(|message| {
///         println!("{:?}: {:?}", message.raw_message_id(), message.parked_reason());
///         ParkedChoice::Leave
///     })
///     .await?;
/// println!("{} of {}", looked.seen, looked.there);
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is looked at before `each` is awaited"]
pub struct Parked {
    connect: Result<ConnectOptions, InvalidUri>,
    parking: String,
    limit: u64,
    delivery_limit: Option<u32>,
}

/// What becomes of a parked message that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParkedChoice {
    /// It stays.
    Leave,
    /// It stays, and it is the last one that is looked at.
    LeaveAndStop,
    /// It is deleted, **for good**.
    Discard,
}

/// What [`Parked`] saw and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LookedAt {
    /// Messages that were in the queue, ready to be read, when it began.
    pub there: u64,
    /// Messages that were looked at.
    pub seen: u64,
    /// Messages that were deleted.
    pub discarded: u64,
    /// Messages that were published anew to the end of the queue, as the broker had counted them
    /// half up to the delivery limit.
    pub renewed: u64,
}

impl Parked {
    /// Looks into the parking queue, to which a consumer parked messages.
    ///
    /// URI parameters are those of
    /// [`IdempotentPublisher::builder`](crate::IdempotentPublisher::builder).
    pub fn new(uri: impl AsRef<str>, parking_queue: impl Into<String>) -> Self {
        Self::for_cluster([uri.as_ref()], parking_queue)
    }

    /// Like [`new`](Self::new), for several nodes of one cluster, which are tried in random order.
    pub fn for_cluster(
        uris: impl IntoIterator<Item = impl AsRef<str>>,
        parking_queue: impl Into<String>,
    ) -> Self {
        Self {
            connect: ConnectOptions::new(uris),
            parking: parking_queue.into(),
            limit: u64::MAX,
            delivery_limit: Some(20),
        }
    }

    connection_settings!();

    /// Looks at so many at most. Default: all that are there when it begins.
    pub fn limit(mut self, messages: u64) -> Self {
        self.limit = messages;
        self
    }

    /// States the delivery limit of the parking queue, as
    /// [`Unpark::delivery_limit`](super::Unpark::delivery_limit) does: what comes near it is
    /// published anew to the end of the queue, with a confirm, and acked.
    ///
    /// Default: 20.
    pub fn delivery_limit(mut self, limit: impl Into<Option<u32>>) -> Self {
        self.delivery_limit = limit.into();
        self
    }

    /// Asks `choose` about each message, once. What is parked meanwhile is not looked at.
    ///
    /// # Errors
    ///
    /// A [`ConsumeError`] if it cannot start, or if the queue cannot be read any more. What was to
    /// be discarded by then may be deleted or not; everything else is still there.
    ///
    /// # Cancellation
    ///
    /// As for an error.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn each(
        self,
        choose: impl FnMut(&IncomingMessage) -> ParkedChoice + Send,
    ) -> Result<LookedAt, ConsumeError> {
        let parking = ParkingChannel::open(&self.connect, "look at", &self.parking).await?;
        let looked = self.walk(&parking, choose).await;
        parking.give_back().await;
        if let Ok(looked) = &looked {
            parking.returned(looked.there - looked.discarded).await;
        }
        // Answered only after all acks before it.
        let closed = timeout(parking.limit, parking.channel.close(200, ShortString::from(""))).await;
        let looked = match (looked, closed) {
            (Ok(looked), Ok(Err(error))) if looked.discarded > 0 => Err(error.into()),
            (Ok(looked), Err(elapsed)) if looked.discarded > 0 => Err(elapsed.into()),
            (looked, _) => looked,
        };
        parking.close().await;
        looked.map_err(ConsumeError::of_channel)
    }

    async fn walk(
        &self,
        parking: &ParkingChannel,
        mut choose: impl FnMut(&IncomingMessage) -> ParkedChoice + Send,
    ) -> Result<LookedAt, BoxError> {
        let mut looked = LookedAt { there: parking.ready().await?.into(), ..LookedAt::default() };
        let limit = DeliveryLimit::new(self.delivery_limit, 0, false);
        while looked.seen < looked.there.min(self.limit) {
            let Some(got) = parking.get().await? else { break };
            let message = IncomingMessage::from(&got.delivery);
            looked.seen += 1;
            let choice = choose(&message);
            if choice == ParkedChoice::Discard {
                got.delivery.acker.ack(BasicAckOptions::default()).await?;
                looked.discarded += 1;
                tracing::warn!(queue = %self.parking, message_id = ?message.raw_message_id(), "parked message discarded on request");
            } else if !limit.allows_return(&message) {
                looked.renewed += u64::from(parking.publish_anew(&got.delivery).await);
            }
            if choice == ParkedChoice::LeaveAndStop {
                break;
            }
        }
        Ok(looked)
    }
}

impl fmt::Debug for Parked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parked")
            .field("parking", &self.parking)
            .field("limit", &self.limit)
            .field("delivery_limit", &self.delivery_limit)
            .finish_non_exhaustive()
    }
}
