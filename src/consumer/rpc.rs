//! Consumers that answer.

use std::{future::Future, sync::Arc};

use super::{
    builder::ConsumerBuilder,
    consume::IdempotentConsumer,
    context::ConsumerContext,
    error::ConsumeError,
    replies::{Answers, LostReply, UnclaimedReply},
    status::StoppedOnDrop,
};
use crate::idempotency::{Answering, ReplyStore, RpcHandler};

/// A request without an identity would take effect again each time that its reply is tried.
#[derive(Debug, thiserror::Error)]
#[error("a consumer that answers cannot handle messages unguarded: park those without an ID, or derive it")]
struct Unguarded;

/// # Replies
///
/// What [`run_rpc_until`](ConsumerBuilder::run_rpc_until) does with them.
impl<S: ReplyStore> ConsumerBuilder<S> {
    /// Sets what happens to a request whose reply no queue takes. Default: it is acked and counted.
    ///
    /// Direct reply-to (`amq.rabbitmq.reply-to`) does not tell: what is sent there counts as sent.
    pub fn replies(mut self, policy: UnclaimedReply) -> Self {
        self.options.unclaimed = policy;
        self
    }

    /// Sets what happens to a request that took effect before the store kept replies. Default: it
    /// is parked.
    pub fn lost_replies(mut self, policy: LostReply) -> Self {
        self.options.lost = policy;
        self
    }

    /// [Builds](Self::build) the consumer and runs it; see [`IdempotentConsumer::run_rpc_until`].
    ///
    /// # Errors
    ///
    /// As of both.
    pub async fn run_rpc_until<H>(
        self,
        handler: H,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ConsumeError>
    where
        H: RpcHandler<S> + 'static,
    {
        // However this ends.
        let _stopped = StoppedOnDrop(self.monitor.clone());
        self.build()?.run_rpc_until(handler, shutdown).await
    }
}

/// # Replies
impl<S: ReplyStore> IdempotentConsumer<S> {
    /// Consumes requests and answers them until it is [stopped](super::ConsumerControl::stop); as
    /// [`run_rpc_until`](Self::run_rpc_until) otherwise.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn run_rpc<H: RpcHandler<S> + 'static>(self, handler: H) -> Result<(), ConsumeError> {
        self.run_rpc_until(handler, std::future::pending()).await
    }

    /// Consumes requests until `shutdown` completes, as [`run_until`](Self::run_until) does
    /// messages, and answers each delivery of them.
    ///
    /// The reply is committed with the effect and the identity of the request. Then it is sent, to
    /// the `reply_to` of this delivery, with its `correlation_id` (without one, its message ID),
    /// and the delivery is acked when the broker has confirmed it. A copy of the request is
    /// answered with the same reply at its own address, and the handler does not run again. Copies
    /// of a reply have one message ID: the [effect key](crate::idempotency::effect_key) of the
    /// request's identity and `"reply"`, a step that the handler should not use itself.
    ///
    /// # What is guaranteed, and where it stops
    ///
    /// Every delivery of a request that has taken effect is answered with the reply of the run that
    /// was committed, before it is acked, within the retention: at least once. Nothing that was
    /// rolled back is told. A reply that cannot be sent, or read, is held with its delivery, which
    /// comes to it again after growing pauses of up to 10 s.
    ///
    /// * A process or connection that ends between the confirm and the ack has a reply sent twice.
    /// * To a direct reply-to (`amq.rabbitmq.reply-to`) a reply is sent at most once for each
    ///   delivery, and what the requester does not get is confirmed all the same. Let it ask again
    ///   under the same message ID.
    /// * Without `reply_to` nothing is sent; the reply is kept for a copy that has one.
    /// * Nobody is answered whose request is rejected, parked, or has another body than the one
    ///   that took effect, unless [`fingerprint_mismatch`](ConsumerBuilder::fingerprint_mismatch)
    ///   lets that pass.
    /// * If no queue takes a reply: [`UnclaimedReply`]. If there is none: [`LostReply`].
    ///
    /// The consumer's user needs the right to write to the default exchange.
    ///
    /// # Errors
    ///
    /// As of [`run_until`](Self::run_until); one of kind
    /// [`Invalid`](super::ConsumeErrorKind::Invalid) with
    /// [`MissingIdPolicy::HandleUnguarded`](crate::idempotency::MissingIdPolicy); and one of kind
    /// [`Store`](super::ConsumeErrorKind::Store), whose source is a
    /// [`StoreError`](crate::idempotency::StoreError) of kind
    /// [`Configuration`](crate::idempotency::StoreErrorKind::Configuration), if the store keeps no
    /// replies.
    ///
    /// # Cancellation
    ///
    /// As of [`run_until`](Self::run_until); what was not answered comes again, and is answered
    /// then.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn run_rpc_until<H>(
        self,
        handler: H,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ConsumeError>
    where
        H: RpcHandler<S> + 'static,
    {
        let _stopped = StoppedOnDrop(self.monitor.clone());
        let Self { guard, connect, options, monitor, control } = self;
        if guard.is_unguarded() {
            return Err(ConsumeError::invalid(Unguarded));
        }
        let store = guard.store().clone();
        let answers = Answers::new(store.clone(), options.unclaimed, options.lost);
        let handler = Answering::new(store, handler)?;
        let context = ConsumerContext::new(guard, handler, connect, options, monitor, control);
        Box::pin(Arc::new(context.answering(answers)).run(shutdown)).await
    }
}
