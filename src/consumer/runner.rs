//! The loop: deliveries in, settlements out.

use std::{future::Future, pin::Pin, time::Duration};

use futures_util::{FutureExt, StreamExt, future::Fuse, stream::FuturesUnordered};
use lapin::message::Delivery;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    attempts::{Attempts, backoff},
    builder::Options,
    error::ConsumeError,
    session::Session,
    settling::{Handled, Settler, Settling},
};
use crate::{
    amqp::{self, ConnectOptions},
    idempotency::{Guard, IdempotencyStore, IdempotentHandler},
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
        let end = loop {
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break End::Shutdown,
                Some(handled) = working.next() => self.settler.settle(handled, attempts, &mut settling),
                () = settling.drive() => {}
                delivery = session.deliveries.next(), if working.len() < self.options.workers => match delivery {
                    Some(Ok(delivery)) => working.push(self.work(delivery)),
                    Some(Err(error)) => break End::Lost(error.to_string()),
                    None => break End::Lost("the broker cancelled the consumer".to_owned()),
                },
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
            while let Some(handled) = working.next().await {
                self.settler.settle(handled, attempts, &mut settling);
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

    async fn work(&self, delivery: Delivery) -> Handled {
        let (message, properties, acker) = amqp::incoming(delivery);
        let outcome = self.guard.process(&message, &self.handler).await;
        Handled { acker, properties, message, outcome }
    }
}
