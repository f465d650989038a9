//! What a confirmed publish gives.

use std::time::Duration;

use crate::message::MessageId;

/// Proof that the broker took responsibility for a message: its own publisher confirm came, and it
/// was not returned.
///
/// For a persistent message on a durable queue that means written to disk, or to a majority of a
/// quorum queue's members (RabbitMQ, "Consumer Acknowledgements and Publisher Confirms").
///
/// ```no_run
/// # use lapin_idempotent::{IdempotentPublisher, OutgoingMessage, PublishError};
/// # async fn example(publisher: IdempotentPublisher, debit: OutgoingMessage) -> Result<(), PublishError> {
/// let receipt = publisher.publish_idempotent(debit).await?;
/// if receipt.attempts() > 1 {
///     println!("{} may be there twice; the guard absorbs it", receipt.message_id());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    message_id: MessageId,
    attempts: u32,
    elapsed: Duration,
}

impl Receipt {
    pub(crate) fn new(message_id: MessageId, attempts: u32, elapsed: Duration) -> Self {
        Self { message_id, attempts, elapsed }
    }

    /// The ID that every attempt carried.
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// How often the message was sent. More than one means that a queue may hold several copies.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The time from the call to the confirm, waiting and retries included.
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}
