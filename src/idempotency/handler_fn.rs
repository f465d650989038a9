//! A closure as a handler.

use std::{fmt, future::Future, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    handler::{HandlerResult, IdempotentHandler},
    store::IdempotencyStore,
};
use crate::message::IncomingMessage;

/// Makes a handler of a closure, for what needs no type of its own. `T` is the session of the
/// store: a transaction or a [`Lease`](super::Lease).
///
/// The closure is called for each message, so it clones what its futures are to own. It boxes them,
/// because a bound on an `async` closure cannot say yet that its futures are `Send`. A handler that
/// overrides [`handle_batch`](IdempotentHandler::handle_batch) is a type.
///
/// ```
/// use lapin_idempotent::{Guard, IncomingMessage, Lease, MemoryStore, Outcome, Scope, handler_fn};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let (sender, mut amounts) = tokio::sync::mpsc::channel(10);
/// let handler = handler_fn(move |message, _: &mut Lease| {
///     let sender = sender.clone();
///     Box::pin(async move {
///         let amount: u32 = message.json()?;
///         sender.send(amount).await?;
///         Ok(())
///     })
/// });
/// let guard = Guard::new(MemoryStore::new(100), Scope::new("billing")?);
/// let message = IncomingMessage::new("500").with_message_id("order-42");
/// assert!(matches!(guard.process(&message, &handler).await, Outcome::Processed));
/// assert_eq!(amounts.recv().await, Some(500));
/// # Ok(())
/// # }
/// ```
///
/// An `async fn` needs `|message, session| Box::pin(debit(message, session))`, and the session's
/// type where the compiler asks for it.
pub fn handler_fn<T, F>(f: F) -> HandlerFn<F>
where
    F: for<'a> Fn(&'a IncomingMessage, &'a mut T) -> BoxFuture<'a, HandlerResult> + Send + Sync,
{
    HandlerFn(f)
}

/// A handler that is a closure: see [`handler_fn`].
#[derive(Clone, Copy)]
pub struct HandlerFn<F>(F);

impl<F> fmt::Debug for HandlerFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerFn").finish_non_exhaustive()
    }
}

impl<S, F> IdempotentHandler<S> for HandlerFn<F>
where
    S: IdempotencyStore,
    F: for<'a> Fn(&'a IncomingMessage, &'a mut S::Session) -> BoxFuture<'a, HandlerResult> + Send + Sync,
{
    async fn handle(&self, message: &IncomingMessage, session: &mut S::Session) -> HandlerResult {
        (self.0)(message, session).await
    }
}

/// One handler for several consumers.
impl<S: IdempotencyStore, H: IdempotentHandler<S>> IdempotentHandler<S> for Arc<H> {
    fn handle(
        &self,
        message: &IncomingMessage,
        session: &mut S::Session,
    ) -> impl Future<Output = HandlerResult> + Send {
        (**self).handle(message, session)
    }

    fn handle_batch(
        &self,
        messages: &[&IncomingMessage],
        session: &mut S::Session,
    ) -> impl Future<Output = HandlerResult> + Send {
        (**self).handle_batch(messages, session)
    }
}
