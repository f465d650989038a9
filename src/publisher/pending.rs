//! A message that was handed over, and will be answered for.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{sync::oneshot, time::Instant};
use tracing::Span;

use super::{channel::Reply, error::PublishError, publish::IdempotentPublisher, receipt::Receipt};
use crate::message::{MessageId, Stamped};

/// A message that was handed over, and where its verdict will come.
pub(super) struct Pending {
    pub(super) stamped: Arc<Stamped>,
    pub(super) reply: oneshot::Receiver<Reply>,
    pub(super) span: Span,
    pub(super) started: Instant,
}

/// What becomes of a message that was [enqueued](IdempotentPublisher::enqueue): await it for the
/// [`Receipt`], or for the error that gives the message back.
///
/// It always resolves, at the latest when the message's deadline has passed; after that it is
/// pending for ever. It need not be polled for the message to be published.
///
/// # Dropping
///
/// The message was handed over, and dropping this takes nothing back: it is published, and tried
/// again, as if somebody waited. Unlike a
/// [`publish_idempotent`](IdempotentPublisher::publish_idempotent) that is cancelled, where the
/// caller has called it off. What fails unseen is logged at `WARN` and counted in
/// [`failed`](super::PublisherStatus::failed), and the message is gone: a caller that has to know
/// keeps this.
#[must_use = "a message that fails is only given back here"]
pub struct PendingConfirm {
    publisher: IdempotentPublisher,
    stamped: Arc<Stamped>,
    /// Until it is answered.
    pending: Option<Pending>,
}

impl PendingConfirm {
    pub(super) fn new(publisher: IdempotentPublisher, pending: Pending) -> Self {
        Self { publisher, stamped: Arc::clone(&pending.stamped), pending: Some(pending) }
    }

    /// The ID that every attempt of the message carries.
    pub fn message_id(&self) -> &MessageId {
        self.stamped.id()
    }
}

impl Future for PendingConfirm {
    type Output = Result<Receipt, PublishError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(pending) = &mut self.pending else { return Poll::Pending };
        let reply = ready!(Pin::new(&mut pending.reply).poll(cx));
        match self.pending.take() {
            Some(pending) => Poll::Ready(self.publisher.conclude(pending, reply.ok())),
            None => Poll::Pending,
        }
    }
}

impl Drop for PendingConfirm {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            self.publisher.conclude_unseen(pending);
        }
    }
}

impl fmt::Debug for PendingConfirm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingConfirm")
            .field("message_id", self.message_id())
            .field("answered", &self.pending.is_none())
            .finish_non_exhaustive()
    }
}
