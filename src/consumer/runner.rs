//! The loop: deliveries in, settlements out.

use std::{future::Future, pin::Pin, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Fuse},
    stream::FuturesUnordered,
};
use lapin::{
    Acker, BasicProperties,
    message::Delivery,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    attempts::{Attempts, backoff},
    builder::Options,
    error::ConsumeError,
    park::{Parked, Parking, describe},
    session::Session,
    settle::{ParkReason, Settlement, settle},
};
use crate::{
    amqp::{self, ConnectOptions},
    idempotency::{Guard, IdempotencyStore, IdempotentHandler, Outcome},
    message::IncomingMessage,
};

/// How long a message that could not be parked is held before it goes back.
const PARKING_AWAY: Duration = Duration::from_secs(5);

/// How long an ack, nack or reject may take to be written.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct Runner<S, H> {
    guard: Guard<S>,
    handler: H,
    connect: ConnectOptions,
    options: Options,
    parking: Parking,
}

/// A delivery that has its outcome.
struct Handled {
    acker: Acker,
    properties: BasicProperties,
    message: IncomingMessage,
    outcome: Outcome,
}

/// Why a session ended.
enum End {
    Shutdown,
    Lost(String),
}

/// What is being done about deliveries that have their outcome.
#[derive(Default)]
struct Settling<'a> {
    /// Acks and parkings under way; they are waited for.
    now: FuturesUnordered<BoxFuture<'a, ()>>,
    /// Messages that go back to the queue after a delay; they are not waited for, as closing the channel does the same.
    later: FuturesUnordered<BoxFuture<'a, ()>>,
}

impl<S: IdempotencyStore, H: IdempotentHandler<S>> Runner<S, H> {
    pub(crate) fn new(guard: Guard<S>, handler: H, connect: ConnectOptions, options: Options) -> Self {
        let scope = guard.scope().as_str().to_owned();
        let parking = Parking::new(options.parking.clone(), options.queue.clone(), scope, connect.clone());
        Self { guard, handler, connect, options, parking }
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
        self.parking.close(self.options.drain_timeout).await;
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
                Some(handled) = working.next() => self.settle(handled, attempts, &mut settling),
                Some(()) = settling.now.next() => {}
                Some(()) = settling.later.next() => {}
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
                self.settle(handled, attempts, &mut settling);
            }
            while shutting_down && settling.now.next().await.is_some() {}
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

    /// Turns an outcome into what is done on the channel.
    fn settle<'a>(&'a self, handled: Handled, attempts: &mut Attempts, settling: &mut Settling<'a>) {
        let Handled { acker, properties, message, outcome } = handled;
        let name = message.raw_message_id().map_or_else(|| message.fingerprint().to_string(), str::to_owned);
        tracing::debug!(message_id = %name.escape_debug(), outcome = outcome.name(), "delivery decided");
        self.options.on_outcome.call(&message, &outcome);
        match settle(&outcome) {
            Settlement::Ack => {
                attempts.forget(&name);
                settling.now.push(ack(acker).boxed());
            }
            Settlement::Requeue { after } => settling.later.push(requeue(acker, after).boxed()),
            Settlement::Retry { after } => {
                let failures = attempts.fail(&name);
                let error = error_text(&outcome);
                if failures < self.options.max_attempts {
                    let delay = backoff(failures, self.options.first_delay, self.options.longest_delay);
                    let delay = after.map_or(delay, |least| delay.max(least));
                    tracing::warn!(message_id = %name.escape_debug(), failures, error, "handler failed; to be tried again");
                    settling.later.push(reject(acker, delay).boxed());
                } else {
                    attempts.forget(&name);
                    let parked = parked(&message, properties, ParkReason::AttemptsExhausted, error, failures);
                    settling.now.push(self.park(acker, parked).boxed());
                }
            }
            Settlement::Park(reason) => {
                attempts.forget(&name);
                let parked = parked(&message, properties, reason, error_text(&outcome), 1);
                settling.now.push(self.park(acker, parked).boxed());
            }
        }
    }

    async fn park(&self, acker: Acker, parked: Parked) {
        let reason = parked.reason.as_str();
        match self.parking.park(parked).await {
            Ok(()) => {
                tracing::warn!(queue = %self.options.queue, reason, "message parked");
                ack(acker).await;
            }
            Err(error) => {
                tracing::error!(queue = %self.options.queue, reason, error = %error, "message not parked; it stays");
                requeue(acker, PARKING_AWAY).await;
            }
        }
    }
}

fn parked(
    message: &IncomingMessage,
    properties: BasicProperties,
    reason: ParkReason,
    error: Option<String>,
    attempts: u32,
) -> Parked {
    Parked {
        exchange: amqp::short(message.exchange()),
        routing_key: amqp::short(message.routing_key()),
        properties,
        body: message.body().clone(),
        reason,
        error,
        attempts,
    }
}

/// What a parked message says of its failure.
fn error_text(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Retry { error, .. } | Outcome::Reject { error } | Outcome::InvalidId { error } => {
            Some(describe(error))
        }
        Outcome::FingerprintMismatch { stored, found } => {
            Some(format!("the ID was completed with body {stored}, this body is {found}"))
        }
        _ => None,
    }
}

// A settlement that cannot be written is no failure: the channel is gone, and the delivery comes again. lapin may leave one
// unanswered for ever when the connection dies under it, hence the limit.

async fn ack(acker: Acker) {
    let _ = timeout(SETTLE_TIMEOUT, acker.ack(BasicAckOptions { multiple: false })).await;
}

async fn requeue(acker: Acker, after: Duration) {
    sleep(after).await;
    let options = BasicNackOptions { multiple: false, requeue: true };
    let _ = timeout(SETTLE_TIMEOUT, acker.nack(options)).await;
}

async fn reject(acker: Acker, after: Duration) {
    sleep(after).await;
    let _ = timeout(SETTLE_TIMEOUT, acker.reject(BasicRejectOptions { requeue: true })).await;
}
