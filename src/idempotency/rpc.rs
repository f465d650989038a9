//! Handlers that answer, and what keeps their answers.

use std::{fmt, future::Future, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    handler::{HandlerError, HandlerResult, IdempotentHandler},
    identity::Identity,
    store::{IdempotencyStore, StoreError},
};
use crate::message::{IncomingMessage, Reply};

/// Handles one request, once per scope, and answers it.
///
/// The reply is committed in the session's transaction, together with the effect and the identity
/// of the request. It is sent after the commit, to the `reply_to` of the delivery; a copy of the
/// request is answered with the same reply, and the handler does not run again.
///
/// What is wrong with a request in the eyes of the application is a reply, such as one of another
/// [`kind`](Reply::kind): an error here rolls back, and nobody is answered. Otherwise this is as
/// [`IdempotentHandler`](super::IdempotentHandler); run it with
/// [`IdempotentConsumer::run_rpc_until`](crate::IdempotentConsumer::run_rpc_until), or make a
/// closure a handler with [`rpc_handler_fn`].
///
/// # Cancellation
///
/// As of [`IdempotentHandler`](super::IdempotentHandler).
#[cfg_attr(feature = "postgres", doc = "")]
#[cfg_attr(feature = "postgres", doc = "```no_run")]
#[cfg_attr(feature = "postgres", doc = include_str!("../docs/rpc.rs"))]
#[cfg_attr(feature = "postgres", doc = "```")]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not answer requests with the sessions of `{S}`",
    note = "implement `RpcHandler<{S}>`, whose `handle` takes `&IncomingMessage` and `&mut <{S} as IdempotencyStore>::Session`"
)]
pub trait RpcHandler<S: IdempotencyStore>: Send + Sync {
    /// Does the work of a request through the session, and answers it.
    ///
    /// # Errors
    ///
    /// A [`HandlerError`], as of [`IdempotentHandler::handle`]: nothing is committed, and nothing
    /// is sent.
    fn handle(
        &self,
        request: &IncomingMessage,
        session: &mut S::Session,
    ) -> impl Future<Output = RpcResult> + Send;

    /// Does the work of several requests through one session, and gives their replies in the order
    /// of the requests. Calls [`handle`](Self::handle) for each, in order, unless it is overridden;
    /// see [`IdempotentHandler::handle_batch`].
    ///
    /// # Errors
    ///
    /// Any; another number of replies than of requests is one, too. Each request is then handled
    /// alone.
    fn handle_batch(
        &self,
        requests: &[&IncomingMessage],
        session: &mut S::Session,
    ) -> impl Future<Output = Result<Vec<Reply>, HandlerError>> + Send {
        async move {
            let mut replies = Vec::with_capacity(requests.len());
            for request in requests {
                replies.push(self.handle(request, session).await?);
            }
            Ok(replies)
        }
    }
}

/// What a handler of requests returns.
pub type RpcResult = Result<Reply, HandlerError>;

/// Makes a handler of requests of a closure, as [`handler_fn`](super::handler_fn) does of messages.
///
/// ```
/// use lapin_idempotent::idempotency::rpc_handler_fn;
/// use lapin_idempotent::message::Reply;
/// # type Session = lapin_idempotent::Lease; // in its place a transaction, such as `PostgresTransaction`
///
/// let quote = rpc_handler_fn(|request, _: &mut Session| {
///     Box::pin(async move {
///         let amount: u32 = request.json()?;
///         Ok(Reply::json(&(amount * 2))?)
///     })
/// });
/// # let _ = quote;
/// ```
pub fn rpc_handler_fn<T, F>(f: F) -> RpcHandlerFn<F>
where
    F: for<'a> Fn(&'a IncomingMessage, &'a mut T) -> BoxFuture<'a, RpcResult> + Send + Sync,
{
    RpcHandlerFn(f)
}

/// A handler of requests that is a closure: see [`rpc_handler_fn`].
#[derive(Clone, Copy)]
pub struct RpcHandlerFn<F>(F);

impl<F> fmt::Debug for RpcHandlerFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RpcHandlerFn").finish_non_exhaustive()
    }
}

impl<S, F> RpcHandler<S> for RpcHandlerFn<F>
where
    S: IdempotencyStore,
    F: for<'a> Fn(&'a IncomingMessage, &'a mut S::Session) -> BoxFuture<'a, RpcResult> + Send + Sync,
{
    async fn handle(&self, request: &IncomingMessage, session: &mut S::Session) -> RpcResult {
        (self.0)(request, session).await
    }
}

/// One handler for several consumers.
impl<S: IdempotencyStore, H: RpcHandler<S>> RpcHandler<S> for Arc<H> {
    fn handle(
        &self,
        request: &IncomingMessage,
        session: &mut S::Session,
    ) -> impl Future<Output = RpcResult> + Send {
        (**self).handle(request, session)
    }

    fn handle_batch(
        &self,
        requests: &[&IncomingMessage],
        session: &mut S::Session,
    ) -> impl Future<Output = Result<Vec<Reply>, HandlerError>> + Send {
        (**self).handle_batch(requests, session)
    }
}

/// Keeps what requests were answered with: in the transaction of their effect, until their identity
/// is forgotten. The SQL stores do, with a table for it (`SqlStore::with_replies`).
///
/// It is sealed: a reply that is not committed together with the identity of its request could be
/// lost, or told of what was rolled back.
pub trait ReplyStore: IdempotencyStore + Clone + Sealed {
    /// The largest body of a reply that is kept.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`](super::StoreErrorKind) if it was not told where to keep
    /// replies.
    fn max_reply_bytes(&self) -> Result<usize, StoreError>;

    /// Keeps replies in the transaction of the session, in place of those that are left of earlier
    /// requests of the same identities.
    #[doc(hidden)]
    fn keep(
        &self,
        session: &mut Self::Session,
        replies: &[KeptReply],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// What the request of an identity was answered with; `None` if that is not known.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn reply_of(&self, identity: &Identity)
    -> impl Future<Output = Result<Option<Reply>, StoreError>> + Send;
}

/// Nobody else implements what needs it.
pub trait Sealed {}

/// A reply, and the identity of the request that it answers.
#[derive(Debug)]
#[cfg_attr(
    not(any(feature = "mysql", feature = "postgres", feature = "sqlite")),
    expect(dead_code, reason = "the SQL stores read it")
)]
pub struct KeptReply {
    pub(crate) identity: Identity,
    pub(crate) reply: Reply,
}

/// The identity that a reply is kept under: in a replay another one than the original's, whose
/// copies are answered as they were.
pub(crate) fn answered_as(request: &IncomingMessage) -> Option<Identity> {
    let identity = request.identity()?;
    match request.taken_epoch() {
        Some(epoch) => Some(identity.in_epoch(epoch)),
        None => Some(identity),
    }
}

/// Runs a handler of requests as a handler of messages: its replies are kept in the session.
#[derive(Debug)]
pub(crate) struct Answering<S, H> {
    store: S,
    handler: H,
    max_bytes: usize,
}

/// A handler gave another number of replies than it was given requests.
#[derive(Debug, thiserror::Error)]
#[error("the handler answered {requests} requests with {replies} replies")]
struct Unequal {
    requests: usize,
    replies: usize,
}

/// A guard calls handlers with messages whose identity is known.
#[derive(Debug, thiserror::Error)]
#[error("a request without an identity has no reply to be kept")]
struct Unidentified;

impl<S: ReplyStore, H: RpcHandler<S>> Answering<S, H> {
    /// Fails if the store does not keep replies.
    pub(crate) fn new(store: S, handler: H) -> Result<Self, StoreError> {
        let max_bytes = store.max_reply_bytes()?;
        Ok(Self { store, handler, max_bytes })
    }

    /// Keeps what the requests were answered with.
    async fn keep(
        &self,
        requests: &[&IncomingMessage],
        replies: Vec<Reply>,
        session: &mut S::Session,
    ) -> HandlerResult {
        let (mut kept, mut originals) = (Vec::with_capacity(requests.len()), Vec::new());
        for (request, reply) in requests.iter().zip(replies) {
            reply.check(self.max_bytes).map_err(HandlerError::reject)?;
            let identity = answered_as(request).ok_or(Unidentified).map_err(HandlerError::reject)?;
            // A replay that is the first effect of its original answers copies of that, too.
            if request.taken().is_some_and(|taken| taken.is_first)
                && let Some(identity) = request.identity()
            {
                originals.push(KeptReply { identity, reply: reply.clone() });
            }
            kept.push(KeptReply { identity, reply });
        }
        self.store.keep(session, &kept).await?;
        self.store.keep(session, &originals).await?;
        for (request, KeptReply { reply, .. }) in requests.iter().zip(kept) {
            request.at_hand.put(reply);
        }
        Ok(())
    }
}

impl<S: ReplyStore, H: RpcHandler<S>> IdempotentHandler<S> for Answering<S, H> {
    async fn handle(&self, message: &IncomingMessage, session: &mut S::Session) -> HandlerResult {
        let reply = self.handler.handle(message, session).await?;
        self.keep(&[message], vec![reply], session).await
    }

    async fn handle_batch(&self, messages: &[&IncomingMessage], session: &mut S::Session) -> HandlerResult {
        let replies = self.handler.handle_batch(messages, session).await?;
        if replies.len() != messages.len() {
            let (requests, replies) = (messages.len(), replies.len());
            return Err(HandlerError::retry(Unequal { requests, replies }));
        }
        self.keep(messages, replies, session).await
    }
}
