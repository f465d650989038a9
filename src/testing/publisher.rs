//! A publisher without a broker.

use std::{
    fmt,
    future::{Future, ready},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{
    message::OutgoingMessage,
    publisher::{MemoryPublish, Publish, PublishError, PublishErrorKind, Receipt},
};

type Answer = dyn Fn(&OutgoingMessage) -> BoxFuture<'static, Result<(), PublishErrorKind>> + Send + Sync;

/// Stands in for an [`IdempotentPublisher`](crate::IdempotentPublisher): checks and stamps messages
/// as that does, and then confirms them, or says what it was told to. Clones are the same.
///
/// ```
/// use lapin_idempotent::{OutgoingMessage, Publish, publisher::PublishErrorKind, testing::MemoryPublisher};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let publisher = MemoryPublisher::answering(|message| {
///     let is_known = message.exchange() == "payments";
///     async move { if is_known { Ok(()) } else { Err(PublishErrorKind::Unroutable) } }
/// });
/// publisher.publish(OutgoingMessage::to("payments", "debit").text("500")).await?;
/// let error = publisher.publish(OutgoingMessage::to("elsewhere", "debit")).await.unwrap_err();
/// assert_eq!(error.kind(), PublishErrorKind::Unroutable);
/// assert_eq!(publisher.published().len(), 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct MemoryPublisher {
    stamping: Arc<MemoryPublish>,
    answer: Arc<Answer>,
    delay: Duration,
    ready: Arc<watch::Sender<bool>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    attempted: Vec<OutgoingMessage>,
    published: Vec<OutgoingMessage>,
}

impl MemoryPublisher {
    /// One that confirms everything, at once.
    pub fn new() -> Self {
        Self::answering(|_| ready(Ok(())))
    }

    /// One that answers as it is told. What `answer` awaits is the time that the broker takes.
    pub fn answering<F, R>(answer: F) -> Self
    where
        F: Fn(&OutgoingMessage) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), PublishErrorKind>> + Send + 'static,
    {
        Self {
            stamping: Arc::default(),
            answer: Arc::new(move |message| Box::pin(answer(message))),
            delay: Duration::ZERO,
            ready: Arc::new(watch::Sender::new(true)),
            seen: Arc::default(),
        }
    }

    /// Sets how long each answer takes, in tokio's time. Default: no time.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Sets whether it is ready, which changes nothing of its answers.
    pub fn set_ready(&self, ready: bool) {
        self.ready.send_replace(ready);
    }

    /// What it was given, with IDs, in the order of the calls.
    pub fn attempted(&self) -> Vec<OutgoingMessage> {
        self.seen().attempted.clone()
    }

    /// What it confirmed, in the order of the confirms.
    pub fn published(&self) -> Vec<OutgoingMessage> {
        self.seen().published.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryPublisher {
    fn default() -> Self {
        Self::new()
    }
}

impl Publish for MemoryPublisher {
    async fn publish(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        let started = Instant::now();
        let stamped = self.stamping.stamp(message)?;
        let message = stamped.message().clone();
        self.seen().attempted.push(message.clone());
        let answer = (self.answer)(&message);
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
        let result = answer.await;
        if result.is_ok() {
            self.seen().published.push(message);
        }
        stamped.answered(result, started.elapsed())
    }

    async fn ready(&self) {
        // The sender is here.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }
}

impl fmt::Debug for MemoryPublisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPublisher")
            .field("attempted", &self.seen().attempted.len())
            .field("published", &self.seen().published.len())
            .finish_non_exhaustive()
    }
}
