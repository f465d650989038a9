//! What publishes, for those that do not care what it is.

use std::{future::Future, sync::Arc};

use super::{error::PublishError, publish::IdempotentPublisher, receipt::Receipt};
use crate::message::OutgoingMessage;

/// Publishes a message and tells what became of it: an [`IdempotentPublisher`], or what stands in
/// for one.
///
/// A service that is generic over this can be tested without a broker: with `MemoryPublisher`, of
/// the feature `testing`. A [`Relay`](crate::outbox::Relay) is, too.
///
/// ```
/// use lapin_idempotent::{OutgoingMessage, Publish, PublishError};
///
/// async fn greet(publisher: &impl Publish, name: &str) -> Result<(), PublishError> {
///     publisher.publish(OutgoingMessage::to("", "greetings").text(format!("Hello {name}"))).await?;
///     Ok(())
/// }
/// ```
pub trait Publish: Send + Sync + 'static {
    /// Publishes one message. `Ok` means that the broker confirmed this very message, under the ID
    /// that the receipt names, and did not return it.
    ///
    /// # Errors
    ///
    /// A [`PublishError`], which gives the message back, with its ID.
    ///
    /// # Cancellation
    ///
    /// Whether the message was published is not known when the future is dropped after its first
    /// poll.
    fn publish(&self, message: OutgoingMessage)
    -> impl Future<Output = Result<Receipt, PublishError>> + Send;

    /// Waits until it is worth while to publish: there is a connection, or there never will be one
    /// again. Dropping the future changes nothing.
    fn ready(&self) -> impl Future<Output = ()> + Send;
}

impl Publish for IdempotentPublisher {
    /// As [`publish_idempotent`](IdempotentPublisher::publish_idempotent).
    async fn publish(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        self.publish_idempotent(message).await
    }

    /// Waits until the publisher is [ready](super::PublisherStatus::is_ready), or closed.
    async fn ready(&self) {
        // The sender is the publisher's.
        let _ = self.watch().wait_for(|status| status.is_ready() || !status.is_live()).await;
    }
}

impl<P: Publish> Publish for Arc<P> {
    async fn publish(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        (**self).publish(message).await
    }

    async fn ready(&self) {
        (**self).ready().await;
    }
}
