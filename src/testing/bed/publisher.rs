//! What publishes to a bed.

use std::{fmt, sync::Arc};

use super::faults::ATTEMPTS;
use crate::{
    amqp::MemoryBroker,
    message::OutgoingMessage,
    now::Now,
    publisher::{MemoryPublish, Publish, PublishError, Receipt},
};

/// Publishes to the broker of a [`TestBed`](super::TestBed): checks and stamps messages as an
/// [`IdempotentPublisher`](crate::IdempotentPublisher) with default settings does, and sends one
/// again under the same ID after a nack or a lost confirm, up to ten times. Clones are the same.
#[derive(Clone)]
pub struct BedPublisher {
    stamping: Arc<MemoryPublish>,
    broker: Arc<MemoryBroker>,
    now: Now,
}

impl BedPublisher {
    pub(crate) fn new(broker: Arc<MemoryBroker>) -> Self {
        let now = broker.clock().clone();
        Self { stamping: Arc::default(), broker, now }
    }

    /// With the time of the bed, if it is stamped at all.
    fn timed(&self, message: OutgoingMessage) -> OutgoingMessage {
        let is_told = message.stamped_at().is_some() || message.is_timed_by_id() || !message.has_identity();
        if is_told { message } else { message.timestamp(self.now.get()) }
    }
}

impl Publish for BedPublisher {
    async fn publish(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        self.stamping.stamp(self.timed(message))?.sent_to(&self.broker, ATTEMPTS).await
    }

    async fn ready(&self) {}
}

impl fmt::Debug for BedPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BedPublisher").finish_non_exhaustive()
    }
}
