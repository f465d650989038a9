//! A handler that ends with its process at each of its awaits.

use std::{
    any::Any,
    future::{Future, pending, poll_fn},
    panic::{AssertUnwindSafe, resume_unwind},
    pin::pin,
    sync::Arc,
};

use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};

use super::store::CrashingStore;
use crate::{
    idempotency::{HandlerError, HandlerResult, IdempotencyStore, IdempotentHandler, StoreError},
    message::IncomingMessage,
    store::Sabotage,
    testing::points::{Point, Points},
};

pub(super) struct CrashingHandler<H> {
    pub(super) handler: Arc<H>,
    pub(super) points: Arc<Points>,
}

impl<H> CrashingHandler<H> {
    /// Polls what a handler does, up to the await at which its process ends.
    async fn up_to_the_end<F: Future + Send>(&self, work: F) -> Result<F::Output, Box<dyn Any + Send>> {
        let mut work = pin!(AssertUnwindSafe(work).catch_unwind());
        let mut awaits = 0;
        let work = poll_fn(|context| {
            let polled = work.as_mut().poll(context);
            if polled.is_pending() {
                awaits += 1;
                // After that it is polled no more, and dropped with its process.
                let _ = self.points.crashes_at(Point::Await(awaits));
            }
            polled
        });
        // What else wakes the process, such as a relay, does not make the handler wait once more.
        match FuturesUnordered::from_iter([work]).next().await {
            Some(handled) => handled,
            None => pending().await,
        }
    }

    async fn sabotaged<S: Send + 'static>(&self, session: &mut S) -> Result<Option<Sabotage>, StoreError> {
        match Sabotage::of(session) {
            Some(sabotage) if self.points.fails_at(Point::StatementsFail) => {
                sabotage.begin(session).await?;
                self.points.suspend(true);
                Ok(Some(sabotage))
            }
            _ => Ok(None),
        }
    }

    async fn ended<S: Send + 'static>(
        &self,
        handled: Result<HandlerResult, Box<dyn Any + Send>>,
        sabotage: Option<Sabotage>,
        session: &mut S,
    ) -> HandlerResult {
        if let Some(sabotage) = sabotage {
            // Also after a panic: the connection outlives the session.
            let ended = sabotage.end(session).await;
            self.points.suspend(false);
            ended?;
        } else if matches!(handled, Ok(Ok(()))) && self.points.fails_at(Point::HandlerFails) {
            return Err(HandlerError::retry("made up by the crash test"));
        }
        handled.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl<S, H> IdempotentHandler<CrashingStore<S>> for CrashingHandler<H>
where
    S: IdempotencyStore<Session: 'static>,
    H: IdempotentHandler<S>,
{
    async fn handle(&self, message: &IncomingMessage, session: &mut S::Session) -> HandlerResult {
        let sabotage = self.sabotaged(session).await?;
        let handled = self.up_to_the_end(self.handler.handle(message, session)).await;
        self.ended(handled, sabotage, session).await
    }

    async fn handle_batch(&self, messages: &[&IncomingMessage], session: &mut S::Session) -> HandlerResult {
        let sabotage = self.sabotaged(session).await?;
        let handled = self.up_to_the_end(self.handler.handle_batch(messages, session)).await;
        self.ended(handled, sabotage, session).await
    }
}
