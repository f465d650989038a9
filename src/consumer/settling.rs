//! What is done on the channel about a delivery that has its outcome.

use std::{cell::LazyCell, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    Acker, BasicProperties, Channel,
    options::{BasicAckOptions, BasicNackOptions, BasicRejectOptions},
};
use tokio::time::{sleep, timeout};

use super::{
    attempts::{Attempts, backoff},
    builder::Options,
    observe,
    park::{Parked, Parking, describe},
    settle::{ParkReason, Settlement, settle},
    window::Ack,
};
use crate::{
    amqp::{self, ConnectOptions},
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
    parking: Parking,
}

/// What is being done about the deliveries of one session.
#[derive(Default)]
pub(crate) struct Settling<'a> {
    /// Acks and parkings under way; they are waited for. Each ends with the tag that it settled by itself, if it did.
    now: FuturesUnordered<BoxFuture<'a, Option<u64>>>,
    /// Messages that go back to the queue after a delay; they are not waited for, as closing the channel does the same.
    later: FuturesUnordered<BoxFuture<'a, Option<u64>>>,
}

impl Settling<'_> {
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

    /// Waits for what must not be left undone.
    pub(crate) async fn finish(&mut self) {
        while self.now.next().await.is_some() {}
    }
}

impl Settler {
    pub(crate) fn new(options: Options, scope: &str, connect: ConnectOptions) -> Self {
        let parking = Parking::new(options.parking.clone(), options.queue.clone(), scope.to_owned(), connect);
        Self { options, parking }
    }

    pub(crate) async fn close(&self) {
        self.parking.close(self.options.drain_timeout).await;
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
        match settle(&outcome) {
            Settlement::Ack => {
                if !attempts.is_empty() {
                    attempts.forget(&name);
                }
                return Some(tag);
            }
            Settlement::Requeue { after } => {
                settling.later.push(requeue(acker, after).map(move |()| Some(tag)).boxed());
            }
            Settlement::Retry { after } => {
                let failures = attempts.fail(&name);
                let error = error_text(&outcome);
                if failures < self.options.max_attempts {
                    let delay = backoff(failures, self.options.first_delay, self.options.longest_delay);
                    let delay = after.map_or(delay, |least| delay.max(least));
                    tracing::warn!(message_id = %*name, failures, error, "handler failed; to be tried again");
                    settling.later.push(reject(acker, delay).map(move |()| Some(tag)).boxed());
                } else {
                    attempts.forget(&name);
                    let parked = parked(&message, properties, ParkReason::AttemptsExhausted, error, failures);
                    settling.now.push(self.park(acker, parked).map(move |()| Some(tag)).boxed());
                }
            }
            Settlement::Park(reason) => {
                attempts.forget(&name);
                let parked = parked(&message, properties, reason, error_text(&outcome), 1);
                settling.now.push(self.park(acker, parked).map(move |()| Some(tag)).boxed());
            }
        }
        None
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
