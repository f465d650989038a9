//! What is done on the channel about a delivery that has its outcome.

use std::{
    cell::LazyCell,
    future::Future,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    Acker, BasicProperties, Channel,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use tokio::time::{sleep, timeout};

use super::{
    attempts::Attempts,
    builder::Options,
    delay::{self, Delays, Redelivery, Wait},
    observe,
    onward::Onward,
    park::{ParkingTarget, bounded, describe},
    settle::{ParkReason, Settlement, settle},
    status::ConsumerMonitor,
    window::Ack,
};
use crate::{
    amqp::{ConnectOptions, Delay, Note, delayed_properties, parked_properties},
    idempotency::Outcome,
    message::IncomingMessage,
};

/// How long a message that could not be parked is held before it goes back.
const PARKING_AWAY: Duration = Duration::from_secs(5);

/// How long an ack, nack or reject may take to be written.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// A delivery that has its outcome.
pub(crate) struct Handled {
    pub(crate) tag: u64,
    pub(crate) acker: Acker,
    pub(crate) properties: BasicProperties,
    pub(crate) message: IncomingMessage,
    pub(crate) outcome: Outcome,
}

/// Settles deliveries, over all sessions of a consumer.
pub(crate) struct Settler {
    options: Options,
    scope: String,
    delays: Delays,
    onward: Onward,
    monitor: ConsumerMonitor,
}

/// A delivery that did not take effect.
struct Troubled {
    acker: Acker,
    properties: BasicProperties,
    message: IncomingMessage,
}

/// What is being done about the deliveries of one session.
#[derive(Default)]
pub(crate) struct Settling<'a> {
    /// Acks and parkings under way; they are waited for. Each ends with the tag that it settled by itself, if it did.
    now: FuturesUnordered<BoxFuture<'a, Option<u64>>>,
    /// Messages that go back to the queue after a delay; they are not waited for, as closing the channel does the same.
    later: FuturesUnordered<BoxFuture<'a, Option<u64>>>,
}

impl<'a> Settling<'a> {
    /// Goes on with all of it, until a delivery is settled by itself: its tag.
    pub(crate) async fn next(&mut self) -> u64 {
        loop {
            let settled = tokio::select! {
                Some(settled) = self.now.next() => settled,
                Some(settled) = self.later.next() => settled,
                else => std::future::pending().await,
            };
            if let Some(tag) = settled {
                return tag;
            }
        }
    }

    /// Writes acks, in this order. What cannot be written at once is waited for later.
    pub(crate) fn ack(&mut self, channel: &Channel, acks: Vec<Ack>) {
        for Ack { tag, multiple } in acks {
            let channel = channel.clone();
            let ack = async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await };
            let mut ack = timeout(SETTLE_TIMEOUT, ack).map(|_| None).boxed();
            // Its first poll queues the frame. The broker closes a channel on which an ack comes for what a later one has settled.
            if (&mut ack).now_or_never().is_none() {
                self.now.push(ack);
            }
        }
    }

    /// Begins what must not be left undone.
    fn now(&mut self, tag: u64, work: impl Future<Output = ()> + Send + 'a) {
        self.now.push(work.map(move |()| Some(tag)).boxed());
    }

    /// Begins what closing the channel does as well.
    fn later(&mut self, tag: u64, work: impl Future<Output = ()> + Send + 'a) {
        self.later.push(work.map(move |()| Some(tag)).boxed());
    }

    /// Waits for what must not be left undone.
    pub(crate) async fn finish(&mut self) {
        while self.now.next().await.is_some() {}
    }
}

impl Settler {
    pub(crate) fn new(
        options: Options,
        scope: &str,
        connect: ConnectOptions,
        monitor: ConsumerMonitor,
    ) -> Self {
        let delays = options.delays();
        let onward = Onward::new(format!("{scope} (parking)"), connect);
        Self { options, scope: scope.to_owned(), delays, onward, monitor }
    }

    pub(crate) async fn close(&self) {
        self.onward.close(self.options.drain_timeout).await;
    }

    /// Turns an outcome into what is done on the channel. Gives the tag of a delivery that may be acked; what becomes of any other one is
    /// begun.
    pub(crate) fn settle<'a>(
        &'a self,
        handled: Handled,
        attempts: &mut Attempts,
        settling: &mut Settling<'a>,
    ) -> Option<u64> {
        let Handled { tag, acker, properties, message, outcome } = handled;
        // Made for messages in trouble only: most are acked, and need no name.
        let name = LazyCell::new(|| observe::name(&message));
        tracing::debug!(message_id = %*name, outcome = outcome.name(), "delivery decided");
        self.options.on_outcome.call(&message, &outcome);
        let settlement = settle(&outcome);
        // It has an end, good or bad.
        if !attempts.is_empty() && matches!(settlement, Settlement::Ack | Settlement::Park(_)) {
            attempts.forget(&name);
        }
        if settlement == Settlement::Ack {
            return Some(tag);
        }
        let failed = match settlement {
            Settlement::Retry { failures, .. } => self.count(&message, &name, failures, attempts),
            _ => message.failures(),
        };
        let error = error_text(&outcome);
        let exhausted = failed >= self.options.max_attempts;
        match settlement {
            Settlement::Retry { .. } if exhausted => attempts.forget(&name),
            Settlement::Retry { .. } => {
                tracing::warn!(message_id = %*name, failures = failed, error, "handler failed; to be tried again");
            }
            _ => {}
        }
        let troubled = Troubled { acker, properties, message };
        match settlement {
            Settlement::Ack => {}
            Settlement::Requeue { after } => settling.later(tag, requeue(troubled.acker, after)),
            Settlement::Defer { after } => {
                self.again(troubled, failed, self.delays.rest(after), tag, settling);
            }
            Settlement::Retry { .. } if exhausted => {
                settling.now(tag, self.park(troubled, ParkReason::AttemptsExhausted, error, failed));
            }
            Settlement::Retry { after, .. } => {
                let deliveries = failed.div_ceil(self.options.failures_each());
                self.again(troubled, failed, self.delays.after(deliveries, after), tag, settling);
            }
            Settlement::Park(reason) => {
                settling.now(tag, self.park(troubled, reason, error, failed.saturating_add(1)));
            }
        }
        None
    }

    /// How often a message has failed, in all: counted in its header, or in this process where it goes back as it is.
    fn count(&self, message: &IncomingMessage, name: &str, failures: u32, attempts: &mut Attempts) -> u32 {
        let failures = match self.options.redelivery {
            Redelivery::Delayed => failures,
            Redelivery::Requeue => attempts.fail(name, failures),
        };
        message.failures().saturating_add(failures)
    }

    /// Sees to it that a message is delivered again after a while.
    fn again<'a>(
        &'a self,
        troubled: Troubled,
        failures: u32,
        wait: Wait,
        tag: u64,
        settling: &mut Settling<'a>,
    ) {
        match self.options.redelivery {
            Redelivery::Delayed => settling.now(tag, self.delay(troubled, failures, wait)),
            Redelivery::Requeue => settling.later(tag, reject(troubled.acker, wait.wanted)),
        }
    }

    /// Publishes a message to a delay queue, then acks it.
    async fn delay(&self, troubled: Troubled, failures: u32, wait: Wait) {
        let Troubled { acker, properties, message } = troubled;
        let (queue, now) = (&self.options.queue, SystemTime::now());
        let delay = Delay {
            failures,
            at: now,
            until: (wait.wanted > wait.step).then(|| now + wait.wanted),
            queue,
            exchange: message.exchange(),
            routing_key: message.routing_key(),
        };
        let (name, arguments) = (delay::name(queue, wait.step), delay::arguments(queue, wait.step));
        let copy = delayed_properties(&properties, &delay);
        match self.onward.publish_to(&name, &arguments, copy, message.body().clone()).await {
            Ok(()) => {
                self.monitor.delayed();
                #[cfg(feature = "metrics")]
                observe::passed_on(&self.scope, None);
                ack(acker).await;
            }
            Err(error) => {
                tracing::error!(
                    queue,
                    error = describe(&error),
                    "message not delayed; it is held and requeued"
                );
                self.monitor.failed(&describe(&error));
                reject(acker, wait.wanted).await;
            }
        }
    }

    /// Publishes a message to the parking queue, then acks it.
    async fn park(&self, troubled: Troubled, reason: ParkReason, error: Option<String>, attempts: u32) {
        let Troubled { acker, properties, message } = troubled;
        let queue = &self.options.queue;
        let note = Note {
            reason: reason.as_str(),
            error: error.as_deref().map(bounded),
            attempts,
            at: SystemTime::now(),
            scope: &self.scope,
            queue,
            exchange: message.exchange(),
            routing_key: message.routing_key(),
        };
        let copy = parked_properties(&properties, &note);
        let ParkingTarget { exchange, routing_key, .. } = &self.options.parking;
        let reason = reason.as_str();
        match self.onward.publish(exchange, routing_key, copy, message.body().clone()).await {
            Ok(()) => {
                tracing::warn!(queue, reason, "message parked");
                self.monitor.parked(reason);
                #[cfg(feature = "metrics")]
                observe::passed_on(&self.scope, Some(reason));
                ack(acker).await;
            }
            Err(error) => {
                tracing::error!(queue, reason, error = describe(&error), "message not parked; it stays");
                self.monitor.failed(&describe(&error));
                requeue(acker, PARKING_AWAY).await;
            }
        }
    }
}

/// What a parked message says of its failure.
fn error_text(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Retry { error, .. } | Outcome::Reject { error } | Outcome::InvalidId { error } => {
            Some(describe(&**error))
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
