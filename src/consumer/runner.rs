//! The loop: deliveries in, settlements out.

use std::{collections::VecDeque, future::Future, pin::Pin, time::Duration};

use futures_util::{FutureExt, StreamExt, future::Fuse, stream::FuturesUnordered};
use lapin::message::Delivery;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    attempts::{Attempts, backoff},
    builder::Options,
    error::ConsumeError,
    session::Session,
    settling::{Handled, Settler, Settling},
    size::BatchSize,
    window::Window,
};
use crate::{
    amqp::{self, ConnectOptions},
    idempotency::{Batch, Guard, IdempotencyStore, IdempotentHandler},
};

pub(crate) struct Runner<S, H> {
    guard: Guard<S>,
    handler: H,
    connect: ConnectOptions,
    options: Options,
    settler: Settler,
}

/// Why a session ended.
enum End {
    Shutdown,
    Lost(String),
}

impl<S: IdempotencyStore, H: IdempotentHandler<S>> Runner<S, H> {
    pub(crate) fn new(guard: Guard<S>, handler: H, connect: ConnectOptions, options: Options) -> Self {
        let settler = Settler::new(options.clone(), guard.scope().as_str(), connect.clone());
        Self { guard, handler, connect, options, settler }
    }

    pub(crate) async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ConsumeError> {
        let shutdown = shutdown.fuse();
        let mut shutdown = std::pin::pin!(shutdown);
        let mut attempts = Attempts::default();
        let mut session = Some(Session::open(&self.connect, &self.options).await?);
        let mut failures = 0;
        loop {
            if let Some(session) = session.take() {
                let started = Instant::now();
                match self.consume(session, shutdown.as_mut(), &mut attempts).await {
                    End::Shutdown => break,
                    End::Lost(reason) => {
                        tracing::warn!(queue = %self.options.queue, reason, "subscription lost");
                    }
                }
                if started.elapsed() > Duration::from_secs(10) {
                    failures = 0;
                }
            }
            failures += 1;
            let pause = backoff(failures, Duration::from_millis(100), Duration::from_secs(5));
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break,
                () = sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break,
                opened = Session::open(&self.connect, &self.options) => match opened {
                    Ok(opened) => session = Some(opened),
                    Err(error) => tracing::warn!(queue = %self.options.queue, error = %error, "cannot consume"),
                },
            }
        }
        self.settler.close().await;
        Ok(())
    }

    /// Consumes on one session until it ends; settles only on the channel that delivered.
    async fn consume<F>(
        &self,
        mut session: Session,
        mut shutdown: Pin<&mut Fuse<F>>,
        attempts: &mut Attempts,
    ) -> End
    where
        F: Future<Output = ()> + Send,
    {
        let mut working = FuturesUnordered::new();
        let mut settling = Settling::default();
        let mut window = Window::new();
        let mut size = BatchSize::new(if S::BATCHES { self.options.batch } else { 1 });
        let mut waiting: VecDeque<Delivery> = VecDeque::new();
        let end = loop {
            // Who is idle takes what is there. Beside others that work, only a full batch is worth a commit of its own: what comes
            // meanwhile makes the next batch larger.
            while !waiting.is_empty()
                && working.len() < self.options.workers
                && (working.is_empty() || waiting.len() >= size.now())
            {
                let batch = waiting.drain(..size.now().min(waiting.len())).collect();
                working.push(self.work(batch));
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break End::Shutdown,
                Some(done) = working.next() => {
                    size.learn(done.handled.len(), done.took, done.together);
                    self.settle(done, &session, &mut window, attempts, &mut settling);
                }
                tag = settling.next() => {
                    window.settled(tag);
                    settling.ack(session.channel(), window.handled([]));
                }
                delivery = session.deliveries.next(), if working.len() < self.options.workers => {
                    // And all that came with it: a batch is what is there, and never waits for more.
                    let mut next = Some(delivery);
                    let end = loop {
                        match next {
                            Some(Some(Ok(delivery))) => {
                                window.deliver(delivery.delivery_tag);
                                waiting.push_back(delivery);
                            }
                            Some(Some(Err(error))) => break Some(End::Lost(error.to_string())),
                            Some(None) => break Some(End::Lost("the broker cancelled the consumer".to_owned())),
                            None => break None,
                        }
                        if waiting.len() >= size.now() * (self.options.workers - working.len()) {
                            break None;
                        }
                        next = session.deliveries.next().now_or_never();
                    };
                    if let Some(end) = end {
                        break end;
                    }
                }
            }
        };
        let shutting_down = matches!(end, End::Shutdown);
        if shutting_down {
            session.cancel().await;
        }
        // Handlers that run are let finish: what they commit needs no second run. On a lost connection their acks go
        // nowhere, and are not waited for.
        let limit = Instant::now() + self.options.drain_timeout;
        let drained = timeout_at(limit, async {
            while let Some(done) = working.next().await {
                self.settle(done, &session, &mut window, attempts, &mut settling);
            }
            if shutting_down {
                settling.finish().await;
            }
        });
        if drained.await.is_err() {
            tracing::warn!(queue = %self.options.queue, "handlers did not finish in time; their messages go back");
        }
        session.close().await;
        end
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
        let Batch { outcomes, together } = self.guard.batch(&messages, &self.handler).await;
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

    /// Settles a batch on the channel that delivered it: as far as possible with one ack.
    fn settle<'a>(
        &'a self,
        done: Done,
        session: &Session,
        window: &mut Window,
        attempts: &mut Attempts,
        settling: &mut Settling<'a>,
    ) {
        let mut tags = Vec::with_capacity(done.handled.len());
        for handled in done.handled {
            tags.extend(self.settler.settle(handled, attempts, settling));
        }
        settling.ack(session.channel(), window.handled(tags));
    }
}

/// A batch that has its outcomes.
struct Done {
    handled: Vec<Handled>,
    took: Duration,
    together: bool,
}
