//! The loop: deliveries in, settlements out.

use std::{future::Future, pin::Pin, time::Duration};

use futures_util::{FutureExt, StreamExt, future::Fuse, stream::FuturesUnordered};
use lapin::message::Delivery;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};
use tracing::Instrument;

use super::{
    attempts::Attempts,
    builder::Options,
    error::ConsumeError,
    inbox::Inbox,
    observe,
    park::describe,
    prefetch::Prefetch,
    session::Session,
    settling::{Handled, Settler, Settling},
    size::BatchSize,
    status::{ConsumerMonitor, ConsumerState},
    trouble::{Sessions, StoreHealth},
};
use crate::{
    amqp::{self, ConnectOptions},
    idempotency::{Batch, Guard, IdempotencyStore, IdempotentHandler, Outcome},
};

pub(crate) struct Runner<S: IdempotencyStore, H> {
    guard: Guard<S>,
    handler: H,
    connect: ConnectOptions,
    options: Options,
    settler: Settler,
    monitor: ConsumerMonitor,
}

/// How often the subscription is looked at while all workers are busy.
const LOOK: Duration = Duration::from_millis(200);

/// Why a session ended.
enum End {
    Shutdown,
    Lost(String),
}

impl<S: IdempotencyStore, H: IdempotentHandler<S>> Runner<S, H> {
    pub(crate) fn new(
        guard: Guard<S>,
        handler: H,
        connect: ConnectOptions,
        options: Options,
        monitor: ConsumerMonitor,
    ) -> Self {
        let settler = Settler::new(options.clone(), guard.scope().as_str(), connect.clone(), monitor.clone());
        Self { guard: guard.gather(), handler, connect, options, settler, monitor }
    }

    pub(crate) async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ConsumeError> {
        let shutdown = shutdown.fuse();
        let mut shutdown = std::pin::pin!(shutdown);
        let mut attempts = Attempts::default();
        let mut prefetch = Prefetch::new(self.options.prefetch, self.options.prefetch_bytes);
        let mut session = Some(Session::open(&self.connect, &self.options, prefetch.now()).await?);
        let mut sessions = Sessions::default();
        loop {
            if let Some(session) = session.take() {
                let (started, mut decided) = (Instant::now(), 0);
                self.monitor.enter(ConsumerState::Consuming);
                match self
                    .consume(session, shutdown.as_mut(), &mut attempts, &mut prefetch, &mut decided)
                    .await
                {
                    End::Shutdown => break,
                    End::Lost(reason) => {
                        sessions.ended(started.elapsed(), decided);
                        self.lost(&reason, sessions.failing());
                    }
                }
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break,
                () = sleep(sessions.pause()) => {}
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break,
                opened = Session::open(&self.connect, &self.options, prefetch.now()) => match opened {
                    Ok(opened) => {
                        self.monitor.reconnected();
                        session = Some(opened);
                    }
                    Err(error) => {
                        self.monitor.failed(&describe(&error));
                        tracing::warn!(queue = %self.options.queue, error = %error, "cannot consume");
                    }
                },
            }
        }
        self.settler.close().await;
        Ok(())
    }

    fn lost(&self, reason: &str, failing: bool) {
        self.monitor.failed(reason);
        self.monitor.enter(if failing { ConsumerState::Failing } else { ConsumerState::Reconnecting });
        if failing {
            tracing::error!(
                queue = %self.options.queue,
                reason,
                "subscriptions end before anything is settled; trying again with long pauses"
            );
        } else {
            tracing::warn!(queue = %self.options.queue, reason, "subscription lost");
        }
    }

    /// Consumes on one session until it ends; settles only on the channel that delivered.
    async fn consume<F>(
        &self,
        mut session: Session,
        mut shutdown: Pin<&mut Fuse<F>>,
        attempts: &mut Attempts,
        prefetch: &mut Prefetch,
        decided: &mut u64,
    ) -> End
    where
        F: Future<Output = ()> + Send,
    {
        let mut working = FuturesUnordered::new();
        let mut answering = std::pin::pin!(self.guard.answer());
        let mut settling = Settling::default();
        let mut inbox = Inbox::new(prefetch);
        let mut size = BatchSize::new(if S::BATCHES { self.options.batch } else { 1 });
        let mut store = StoreHealth::default();
        let mut in_hand = 0;
        let mut looking = interval(LOOK);
        looking.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = loop {
            if let Err(reason) = inbox.adapt(&mut session, &self.options).await {
                break End::Lost(reason);
            }
            let paused = store.paused();
            if paused.is_none()
                && working.len() < self.options.workers
                && inbox.len() < size.now()
                && let Err(reason) = inbox.look(&mut session)
            {
                break End::Lost(reason);
            }
            // Who is idle takes what is there. Beside others that work, only a full batch is worth a commit of its own: what comes
            // meanwhile makes the next batch larger.
            while paused.is_none()
                && inbox.len() > 0
                && working.len() < self.options.workers
                && (working.is_empty() || inbox.len() >= size.now())
            {
                let batch = inbox.take(size.now());
                in_hand += batch.len();
                self.monitor.in_hand(in_hand);
                working.push(self.work(batch));
            }
            let idle = paused.is_none() && working.len() < self.options.workers;
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break End::Shutdown,
                Some(done) = working.next() => {
                    // With all that are ready as well: an ack costs the broker more than a delivery.
                    let (mut next, mut tags) = (Some(done), Vec::new());
                    while let Some(done) = next {
                        size.learn(done.handled.len(), done.took, done.together);
                        self.count(&done, &mut in_hand, decided);
                        self.judge_store(&done, &mut store);
                        self.settle(done, attempts, &mut settling, &mut tags);
                        next = working.next().now_or_never().flatten();
                    }
                    settling.ack(session.channel(), inbox.window.handled(tags));
                }
                never = answering.as_mut() => match never {},
                tag = settling.next() => {
                    inbox.window.settled(tag);
                    settling.ack(session.channel(), inbox.window.handled([]));
                }
                // Nothing is begun while the store is away. What the broker has sent already waits here.
                () = sleep_until(paused.unwrap_or_else(Instant::now)), if paused.is_some() => {}
                received = session.deliveries.next(), if idle => {
                    if let Err(reason) = inbox.receive(received) {
                        break End::Lost(reason);
                    }
                }
                // While nobody is idle each delivery would wake us for nothing. But there is no other way to learn that the subscription is lost.
                _ = looking.tick(), if !idle => {
                    if let Err(reason) = inbox.look(&mut session) {
                        break End::Lost(reason);
                    }
                }
            }
        };
        let shutting_down = matches!(end, End::Shutdown);
        match &end {
            End::Shutdown => {
                self.monitor.enter(ConsumerState::Draining);
                session.cancel().await;
            }
            // Nothing comes any more, though handlers may go on for a while.
            End::Lost(reason) => {
                self.monitor.failed(reason);
                self.monitor.enter(ConsumerState::Reconnecting);
            }
        }
        // Handlers that run are let finish: what they commit needs no second run. On a lost connection their acks go
        // nowhere, and are not waited for.
        let limit = Instant::now() + self.options.drain_timeout;
        let drained = timeout_at(limit, async {
            loop {
                let done = tokio::select! {
                    biased;
                    done = working.next() => done,
                    never = answering.as_mut() => match never {},
                };
                let (Some(done), mut tags) = (done, Vec::new()) else { break };
                self.count(&done, &mut in_hand, decided);
                self.settle(done, attempts, &mut settling, &mut tags);
                settling.ack(session.channel(), inbox.window.handled(tags));
            }
            if shutting_down {
                settling.finish().await;
            }
        });
        if drained.await.is_err() {
            tracing::warn!(queue = %self.options.queue, "handlers did not finish in time; their messages go back");
        }
        self.monitor.in_hand(0);
        session.close().await;
        end
    }

    fn count(&self, done: &Done, in_hand: &mut usize, decided: &mut u64) {
        *in_hand -= done.handled.len();
        *decided += done.handled.len() as u64;
        self.monitor.in_hand(*in_hand);
        self.monitor.decided(done.handled.iter().map(|handled| &handled.outcome));
    }

    /// What the outcomes of a batch say of the store: while it cannot be asked, nothing is taken.
    fn judge_store(&self, done: &Done, store: &mut StoreHealth) {
        let error = done.handled.iter().find_map(|handled| match &handled.outcome {
            Outcome::StoreUnavailable { error } => Some(describe(error)),
            _ => None,
        });
        match error {
            Some(error) => {
                tracing::warn!(queue = %self.options.queue, error, "the store cannot be asked; nothing is taken for a while");
                store.failed();
                self.monitor.failed(&error);
                self.monitor.enter(ConsumerState::StoreAway);
            }
            None if store.answered() => self.monitor.enter(ConsumerState::Consuming),
            None => {}
        }
    }

    async fn work(&self, batch: Vec<Delivery>) -> Done {
        let started = Instant::now();
        let (mut messages, mut rest) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        for delivery in batch {
            let tag = delivery.delivery_tag;
            let (message, properties, acker) = amqp::incoming(delivery);
            messages.push(message);
            rest.push((tag, properties, acker));
        }
        let span = observe::span(&self.options.queue, self.guard.scope().as_str(), &messages);
        let Batch { outcomes, together } =
            self.guard.batch(&messages, &self.handler).instrument(span.clone()).await;
        observe::finish(&span, &messages, &outcomes);
        #[cfg(feature = "metrics")]
        observe::record(self.guard.scope().as_str(), &outcomes, started.elapsed());
        let handled = messages.into_iter().zip(rest).zip(outcomes);
        let handled = handled.map(|((message, (tag, properties, acker)), outcome)| Handled {
            tag,
            acker,
            properties,
            message,
            outcome,
        });
        Done { handled: handled.collect(), took: started.elapsed(), together }
    }

    /// Begins to settle a batch; adds the tags of what may be acked.
    fn settle<'a>(
        &'a self,
        done: Done,
        attempts: &mut Attempts,
        settling: &mut Settling<'a>,
        tags: &mut Vec<u64>,
    ) {
        for handled in done.handled {
            tags.extend(self.settler.settle(handled, attempts, settling));
        }
    }
}

/// A batch that has its outcomes.
struct Done {
    handled: Vec<Handled>,
    took: Duration,
    together: bool,
}
