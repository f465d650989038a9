//! Publishing without waiting for each confirm.

use tokio::{sync::TryAcquireError, time::Instant};

use super::{
    error::{PublishError, PublishErrorKind},
    pending::PendingConfirm,
    publish::IdempotentPublisher,
    telemetry,
};
use crate::message::OutgoingMessage;

/// # Confirms that are awaited later
impl IdempotentPublisher {
    /// Hands a message over, and returns as soon as there is a permit for it; its confirm is
    /// awaited later.
    ///
    /// Messages are sent in the order in which they were handed over, so a task that enqueues one
    /// after the other publishes in order, over one connection and one channel, as long as nothing
    /// has to be sent again. [`publish_stream`](Self::publish_stream) does the same for a stream.
    ///
    /// ```no_run
    /// # async fn example(publisher: lapin_idempotent::IdempotentPublisher) -> Result<(), lapin_idempotent::BoxError> {
    /// use lapin_idempotent::OutgoingMessage;
    ///
    /// let first = publisher.enqueue(OutgoingMessage::to("", "debits").body("1")).await?;
    /// let second = publisher.enqueue(OutgoingMessage::to("", "debits").body("2")).await?;
    /// let (first, second) = (first.await?, second.await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A [`PublishError`] if the message is invalid, the publisher is closed, or no permit became
    /// free before the message's deadline. What happens to it later, [`PendingConfirm`] tells.
    ///
    /// # Cancellation
    ///
    /// Dropping the future publishes nothing. For the [`PendingConfirm`] it is different, see
    /// there.
    pub async fn enqueue(&self, message: OutgoingMessage) -> Result<PendingConfirm, PublishError> {
        let started = Instant::now();
        let stamped = self.stamp(message)?;
        let span = telemetry::span(&stamped);
        let deadline = self.deadline(&stamped, started);
        match self.permit(stamped.message.payload().len(), deadline).await {
            Ok(permit) => Ok(PendingConfirm::new(self.clone(), self.submit(stamped, permit, span, started))),
            Err(kind) => Err(self.refused(kind, stamped, &span, started)),
        }
    }

    /// Like [`enqueue`](Self::enqueue), but never waits.
    ///
    /// # Errors
    ///
    /// As there, and [`PublishErrorKind::Full`] if there is no permit now.
    pub fn try_enqueue(&self, message: OutgoingMessage) -> Result<PendingConfirm, PublishError> {
        let started = Instant::now();
        let stamped = self.stamp(message)?;
        let span = telemetry::span(&stamped);
        let kind = match self.permits().try_enter(stamped.message.payload().len()) {
            Ok(permit) => {
                return Ok(PendingConfirm::new(self.clone(), self.submit(stamped, permit, span, started)));
            }
            Err(TryAcquireError::NoPermits) => PublishErrorKind::Full,
            Err(TryAcquireError::Closed) => PublishErrorKind::Closed,
        };
        Err(self.refused(kind, stamped, &span, started))
    }

    /// Waits until everything is answered that was handed over before this call, by any clone:
    /// confirmed, or failed.
    ///
    /// It says nothing of success: that the calls are told, and each [`PendingConfirm`]. What is
    /// handed over meanwhile is neither waited for nor held up. It ends at the latest when the last
    /// deadline of those messages has passed. Dropping the future leaves nothing behind.
    pub async fn flush(&self) {
        self.handed().flush().await;
    }
}
