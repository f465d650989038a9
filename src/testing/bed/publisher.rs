//! What publishes to a bed.

use std::{fmt, sync::Arc};

use super::faults::ATTEMPTS;
use crate::{
    amqp::MemoryBroker,
    message::OutgoingMessage,
    publisher::{MemoryPublish, Publish, PublishError, Receipt},
};

/// Publishes to the broker of a [`TestBed`](super::TestBed): checks and stamps messages as an
/// [`IdempotentPublisher`](crate::IdempotentPublisher) with default settings does, and sends one
/// again under the same ID after a nack or a lost confirm, up to ten times. Clones are the same.
#[derive(Clone)]
pub struct BedPublisher {
    stamping: Arc<MemoryPublish>,
    broker: Arc<MemoryBroker>,
}

impl BedPublisher {
    pub(crate) fn new(broker: Arc<MemoryBroker>) -> Self {
        Self { stamping: Arc::default(), broker }
    }
}

impl Publish for BedPublisher {
    async fn publish(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        self.stamping.stamp(message)?.sent_to(&self.broker, ATTEMPTS).await
    }

    async fn ready(&self) {}
}

impl fmt::Debug for BedPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BedPublisher").finish_non_exhaustive()
    }
}
