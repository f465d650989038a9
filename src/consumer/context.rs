//! What a consumer was built of, and how a batch is handled.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};

use tokio::time::Instant;
use tracing::Instrument;

use super::{
    buffer::{Unacked, Unsettled},
    control::ConsumerControl,
    forwarder::Forwarder,
    options::Options,
    replies::Answers,
    settler::Settler,
    status::ConsumerMonitor,
    telemetry,
};
use crate::{
    amqp::ConnectOptions,
    error::Chain,
    idempotency::{Batch, Guard, IdempotencyStore, IdempotentHandler, Outcome, StoreError},
    task::{EndedOnDrop, Temper},
};

/// How long everything may take, once handlers were let finish, to give back what is unsettled and
/// to close connections.
pub(super) const CLOSING: Duration = Duration::from_secs(5);

pub(crate) struct ConsumerContext<S: IdempotencyStore, H> {
    pub(super) guard: Guard<S>,
    pub(super) handler: H,
    pub(super) connect: ConnectOptions,
    pub(super) options: Options,
    pub(super) settler: Settler,
    pub(super) monitor: ConsumerMonitor,
    pub(super) control: ConsumerControl,
    temper: Temper,
}

/// A batch that has its outcomes.
pub(super) struct Done {
    pub(super) handled: Vec<(Unsettled, Outcome)>,
    pub(super) begun: Instant,
    pub(super) took: Duration,
    pub(super) together: bool,
}

impl<S: IdempotencyStore, H: IdempotentHandler<S>> ConsumerContext<S, H> {
    pub(crate) fn new(
        guard: Guard<S>,
        handler: H,
        connect: ConnectOptions,
        options: Options,
        monitor: ConsumerMonitor,
        control: ConsumerControl,
    ) -> Self {
        let scope = guard.scope().as_str();
        let forwarder = Forwarder::new(format!("{scope} (parking)"), connect.clone());
        let settler = Settler::new(options.clone(), scope, forwarder, monitor.clone());
        Self {
            guard: guard.coalesced(),
            handler,
            connect,
            options,
            settler,
            monitor,
            control,
            temper: Temper::default(),
        }
    }

    /// Answers what has taken effect.
    pub(super) fn answering(self, answers: Answers) -> Self {
        Self { settler: self.settler.answering(answers), ..self }
    }

    /// Tells that the store could not be asked, and how long it is left alone.
    pub(super) fn store_failed(&self, error: &StoreError, pause: Duration) {
        let error = Chain(error).to_string();
        tracing::warn!(queue = %self.options.queue, error, ?pause, "the store cannot be asked; nothing is taken until it answers");
        self.monitor.failed(&error);
    }

    /// Lets the guard decide about a batch: in a task of its own if there are others and handlers
    /// compute, so that they hold up neither each other nor the renewal of leases nor acks.
    pub(super) fn work(self: &Arc<Self>, batch: Vec<Unsettled>) -> BoxFuture<'_, Done>
    where
        H: 'static,
    {
        if self.options.workers == 1 || self.temper.is_quick() {
            return self.handle(batch).boxed();
        }
        let context = Arc::clone(self);
        EndedOnDrop::new(tokio::spawn(async move { context.handle(batch).await })).boxed()
    }

    async fn handle(&self, batch: Vec<Unsettled>) -> Done {
        let begun = Instant::now();
        let (messages, deliveries): (Vec<_>, Vec<Unacked>) =
            batch.into_iter().map(|unsettled| (unsettled.message, unsettled.delivery)).unzip();
        let span = telemetry::span(&self.options.queue, self.guard.scope().as_str(), &messages);
        let Batch { outcomes, together } =
            self.temper.watched(self.guard.batch(&messages, &self.handler).instrument(span.clone())).await;
        telemetry::finish(&span, &messages, &outcomes);
        #[cfg(feature = "metrics")]
        telemetry::record(self.guard.scope().as_str(), &outcomes, begun.elapsed());
        let unsettled = messages.into_iter().zip(deliveries);
        let unsettled = unsettled.map(|(message, delivery)| Unsettled { message, delivery });
        Done { handled: unsettled.zip(outcomes).collect(), begun, took: begun.elapsed(), together }
    }
}
