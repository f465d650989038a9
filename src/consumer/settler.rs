//! What follows from an outcome, and from the broker's count of a delivery.

use std::{error::Error, time::Duration};

use tokio::time::Instant;

use super::{
    backoff::holding,
    buffer::{Aside, Next, Parking, Unsettled},
    delay_queues::{self, Delays, Redelivery, Wait},
    delivery_limit::DeliveryLimit,
    failure_counts::FailureCounts,
    forwarder::{ForwardedCopy, Forwarder, Wanted},
    options::Options,
    parking::ParkingTarget,
    pending::{PendingSettlements, Settled, ack, reject},
    replies::{Answered, Answers},
    settlement::{ParkReason, Settlement, settle},
    status::ConsumerMonitor,
    telemetry,
};
use crate::{
    amqp::{Delay, Move, Note, Route, delayed_properties, growth, moved_properties, parked_properties},
    error::{Chain, bounded},
    idempotency::Outcome,
    message::{IncomingMessage, reserved},
};

/// How soon a message is tried again to be published anew that could not be before the broker's
/// consumer timeout.
const MOVE_AGAIN: Duration = Duration::from_secs(30);

/// Without its count a message would be delayed for ever, and without its delay it would be too
/// early.
const NEEDED_TO_RETURN: [&str; 3] = [reserved::ORIGINAL_QUEUE, reserved::FAILURES, reserved::NOT_BEFORE];

/// How long a new subscription waits for the connection that messages are passed on over.
const RECOVERY: Duration = Duration::from_secs(10);

/// What an outcome leads to.
pub(crate) enum Decision {
    /// The delivery of this tag may be acked.
    Ack(u64),
    /// It is being passed on.
    Begun,
    /// It stays here for a while.
    Hold { unsettled: Box<Unsettled>, after: Duration },
}

/// Settles deliveries, over all sessions of a consumer.
pub(crate) struct Settler {
    options: Options,
    scope: String,
    delays: Delays,
    limit: DeliveryLimit,
    forwarder: Forwarder,
    monitor: ConsumerMonitor,
    /// Of a consumer that answers.
    answers: Option<Answers>,
}

impl Settler {
    pub(crate) fn new(options: Options, scope: &str, forwarder: Forwarder, monitor: ConsumerMonitor) -> Self {
        let (delays, limit) = (options.delays(), options.watched());
        Self { options, scope: scope.to_owned(), delays, limit, forwarder, monitor, answers: None }
    }

    /// The same, of a consumer that answers what has taken effect.
    pub(super) fn answering(self, answers: Answers) -> Self {
        Self { answers: Some(answers), ..self }
    }

    /// Waits a while for what was lost with a connection: what a subscription delivers near the
    /// limit must be published anew, or the next lost one counts against it.
    pub(crate) async fn recovers(&self) {
        self.forwarder.recovers(RECOVERY).await;
    }

    /// Remembers the largest frame that was agreed upon with the broker.
    pub(crate) fn negotiated(&self, frame_max: u32) {
        self.forwarder.negotiated(frame_max);
    }

    /// Lets what is in flight finish for so long; the original of the rest is unacked, and comes
    /// again.
    pub(crate) async fn close(&self, limit: Duration) {
        self.forwarder.close(limit).await;
    }

    /// Turns an outcome into what is done about its delivery; what is to be published is begun.
    pub(crate) fn settle<'a>(
        &'a self,
        mut unsettled: Unsettled,
        outcome: &Outcome,
        attempts: &mut FailureCounts,
        settling: &mut PendingSettlements<'a>,
    ) -> Decision {
        tracing::debug!(message_id = %telemetry::name(&unsettled.message), outcome = outcome.name(), "delivery decided");
        self.options.on_outcome.call(&unsettled.message, outcome);
        let settlement = settle(outcome);
        // It has an end, good or bad.
        if !attempts.is_empty() && matches!(settlement, Settlement::Ack | Settlement::Park(_)) {
            attempts.forget(&telemetry::name(&unsettled.message));
        }
        match settlement {
            Settlement::Ack => self.answer(unsettled, outcome, settling),
            Settlement::Hold { after } => {
                let after = after.max(holding(unsettled.delivery.holds));
                unsettled.delivery.holds += 1;
                Decision::Hold { unsettled: Box::new(unsettled), after }
            }
            Settlement::Defer { after } if self.options.redelivery == Redelivery::Held => {
                Decision::Hold { unsettled: Box::new(unsettled), after }
            }
            Settlement::Defer { after } => {
                let failures = unsettled.message.failures();
                self.delay(unsettled, failures, self.delays.rest(after), settling);
                Decision::Begun
            }
            Settlement::Retry { after, failures } => {
                let (failed, error) = (self.failed(&unsettled, failures), outcome.error_text());
                let name = telemetry::name(&unsettled.message);
                if self.exhausted(&unsettled, failed) {
                    attempts.forget(&name);
                    let parking =
                        Parking::new(ParkReason::AttemptsExhausted, error, failed, self.options.now.get());
                    self.park(unsettled, parking, settling);
                    return Decision::Begun;
                }
                tracing::warn!(
                    message_id = name,
                    failures = failed,
                    error,
                    "handler failed; to be tried again"
                );
                self.again(unsettled, &name, failed, after, attempts, settling)
            }
            Settlement::Park(reason) => {
                let attempts = unsettled.message.failures().saturating_add(1);
                let parking = Parking::new(reason, outcome.error_text(), attempts, self.options.now.get());
                self.park(unsettled, parking, settling);
                Decision::Begun
            }
        }
    }

    /// Acks what is not to be answered; the rest after its reply was confirmed. What cannot be
    /// answered now comes to it again: then it is a duplicate.
    fn answer<'a>(
        &'a self,
        unsettled: Unsettled,
        outcome: &Outcome,
        settling: &mut PendingSettlements<'a>,
    ) -> Decision {
        let tag = unsettled.delivery.tag;
        let Some(answers) = &self.answers else { return Decision::Ack(tag) };
        // Of a run that was not committed, unless this one was.
        let at_hand = unsettled.message.at_hand.take().filter(|_| matches!(outcome, Outcome::Processed));
        let Some(to) = unsettled.message.reply_to().filter(|to| !to.is_empty()).map(str::to_owned) else {
            return Decision::Ack(tag);
        };
        settling.begin(async move {
            let mut unsettled = unsettled;
            match answers.answer(&self.forwarder, &unsettled.message, &to, at_hand).await {
                Ok(Answered::Ack(how)) => {
                    telemetry::answered(&self.scope, &unsettled.message, how);
                    self.monitor.answered(how);
                    ack(&unsettled.delivery.acker).await;
                    Settled::Away(tag)
                }
                Ok(Answered::Park(reason, error)) => {
                    let parking = Parking::new(reason, error, 1, self.options.now.get());
                    self.parked(unsettled, parking).await
                }
                Err(error) => {
                    self.not_passed_on(&error, "request not answered; it stays here until it is");
                    let after = holding(unsettled.delivery.holds.max(2));
                    unsettled.delivery.holds += 1;
                    Settled::Held { unsettled, after, next: Next::Handle }
                }
            }
        });
        Decision::Begun
    }

    /// How often a message has failed, in all.
    fn failed(&self, unsettled: &Unsettled, failures: u32) -> u32 {
        let message = &unsettled.message;
        let counted = match self.options.redelivery {
            // By the broker, which counts deliveries.
            Redelivery::DelayedRetry => {
                message.delivery_count().unwrap_or_default().saturating_mul(self.options.failures_each())
            }
            Redelivery::Delayed | Redelivery::Held => 0,
        };
        message.failures().saturating_add(counted).saturating_add(failures)
    }

    fn exhausted(&self, unsettled: &Unsettled, failed: u32) -> bool {
        failed >= self.options.max_attempts
            || (self.options.redelivery == Redelivery::DelayedRetry
                && !self.limit.allows_return(&unsettled.message))
    }

    /// Sees to it that a message whose handler failed is tried again after a while.
    fn again<'a>(
        &'a self,
        unsettled: Unsettled,
        name: &str,
        failed: u32,
        least: Option<Duration>,
        attempts: &mut FailureCounts,
        settling: &mut PendingSettlements<'a>,
    ) -> Decision {
        let wait = self.delays.after(failed.div_ceil(self.options.failures_each()), least);
        match self.options.redelivery {
            // What comes back without a count is not counted: that is no quorum queue, and nothing
            // would hold it.
            Redelivery::DelayedRetry
                if least.is_none()
                    && (!unsettled.message.redelivered() || unsettled.message.delivery_count().is_some()) =>
            {
                settling.begin(async move {
                    reject(&unsettled.delivery.acker).await;
                    Settled::Away(unsettled.delivery.tag)
                });
                Decision::Begun
            }
            Redelivery::Held => {
                let mut unsettled = unsettled;
                unsettled.message.set_failures(failed);
                // A lost connection takes the message back as it was.
                attempts.remember(name, failed);
                Decision::Hold { unsettled: Box::new(unsettled), after: wait.wanted }
            }
            Redelivery::Delayed | Redelivery::DelayedRetry => {
                self.delay(unsettled, failed, wait, settling);
                Decision::Begun
            }
        }
    }

    /// What is done about a delivery without asking the guard.
    pub(crate) fn set_aside<'a>(
        &'a self,
        unsettled: Unsettled,
        aside: Aside,
        settling: &mut PendingSettlements<'a>,
    ) {
        match aside {
            Aside::Move { suspected, wait } => settling.begin(self.publish_anew(unsettled, suspected, wait)),
            Aside::Park(parking) => self.park(unsettled, parking, settling),
        }
    }

    /// Publishes a message to its own queue, and acks the delivery: the broker's count of it begins
    /// anew.
    async fn publish_anew(&self, mut unsettled: Unsettled, suspected: bool, wait: Duration) -> Settled {
        let (queue, message, now) = (&self.options.queue, &unsettled.message, self.options.now.get());
        let returns = message.returns();
        let moved = Move {
            returns,
            suspected: message.suspected_at().or(suspected.then_some(returns)),
            failures: message.failures(),
            at: now,
            until: if wait.is_zero() { None } else { now.checked_add(wait) },
            route: self.route(message),
        };
        let copy = moved_properties(&unsettled.delivery.properties, &moved);
        match self.forwarder.publish("", queue, &ForwardedCopy::new(copy, message.body().clone())).await {
            Ok(()) => {
                tracing::debug!(message_id = %telemetry::name(message), returns, suspected, "published anew, for the broker's limits");
                self.monitor.moved();
                #[cfg(feature = "metrics")]
                telemetry::published_anew(&self.scope);
                ack(&unsettled.delivery.acker).await;
                Settled::Away(unsettled.delivery.tag)
            }
            Err(error) => {
                self.not_passed_on(
                    &error,
                    "message not published anew; it stays, and is counted by the broker",
                );
                if unsettled.delivery.leaves.is_some() {
                    unsettled.delivery.leaves = Some(Instant::now() + MOVE_AGAIN);
                }
                if wait.is_zero() {
                    Settled::Stays(unsettled)
                } else {
                    Settled::Held { unsettled, after: wait, next: Next::Handle }
                }
            }
        }
    }

    /// Publishes a message to a delay queue, then acks the delivery. Where that cannot be, it waits
    /// here.
    fn delay<'a>(
        &'a self,
        unsettled: Unsettled,
        failures: u32,
        wait: Wait,
        settling: &mut PendingSettlements<'a>,
    ) {
        settling.begin(async move {
            let mut unsettled = unsettled;
            let (queue, message, now) = (&self.options.queue, &unsettled.message, self.options.now.get());
            let delay = Delay {
                failures,
                at: now,
                until: (wait.wanted > wait.step).then(|| now + wait.wanted),
                route: self.route(message),
            };
            let (name, wanted) = (
                delay_queues::name(queue, wait.step),
                Wanted::With(delay_queues::arguments(queue, wait.step)),
            );
            let copied = ForwardedCopy {
                needed: &NEEDED_TO_RETURN,
                growth: growth(&name),
                ..ForwardedCopy::new(
                    delayed_properties(&unsettled.delivery.properties, &delay),
                    message.body().clone(),
                )
            };
            match self.forwarder.publish_to(&name, &wanted, &copied).await {
                Ok(()) => {
                    self.monitor.delayed();
                    #[cfg(feature = "metrics")]
                    telemetry::passed_on(&self.scope, None);
                    ack(&unsettled.delivery.acker).await;
                    Settled::Away(unsettled.delivery.tag)
                }
                Err(error) => {
                    self.not_passed_on(&error, "message not delayed; it waits here");
                    unsettled.message.set_failures(failures);
                    Settled::Held { unsettled, after: wait.wanted, next: Next::Handle }
                }
            }
        });
    }

    /// Publishes a message to the parking queue, then acks the delivery. Where that cannot be, it
    /// stays here until it can.
    fn park<'a>(&'a self, unsettled: Unsettled, parking: Parking, settling: &mut PendingSettlements<'a>) {
        settling.begin(self.parked(unsettled, parking));
    }

    async fn parked(&self, mut unsettled: Unsettled, parking: Parking) -> Settled {
        let (queue, message) = (&self.options.queue, &unsettled.message);
        let note = Note {
            reason: parking.reason.name(),
            error: parking.error.as_deref().map(bounded),
            attempts: parking.attempts,
            at: parking.at,
            scope: &self.scope,
            route: self.route(message),
        };
        let copy = parked_properties(&unsettled.delivery.properties, &note);
        let ParkingTarget { exchange, routing_key, .. } = &self.options.parking;
        let (reason, copied) = (parking.reason.name(), ForwardedCopy::new(copy, message.body().clone()));
        let parked = match self.options.parking.queue_to_declare() {
            Some(queue) => self.forwarder.publish_to(queue, &Wanted::Any, &copied).await,
            None => self.forwarder.publish(exchange, routing_key, &copied).await,
        };
        match parked {
            Ok(()) => {
                tracing::warn!(queue, reason, "message parked");
                self.monitor.parked(reason);
                #[cfg(feature = "metrics")]
                telemetry::passed_on(&self.scope, Some(reason));
                ack(&unsettled.delivery.acker).await;
                Settled::Away(unsettled.delivery.tag)
            }
            Err(error) => {
                self.not_passed_on(&error, "message not parked; it stays here until it can be");
                let after = holding(unsettled.delivery.holds.max(2));
                unsettled.delivery.holds += 1;
                Settled::Held { unsettled, after, next: Next::Park(parking) }
            }
        }
    }

    /// The way that a message came, of which each copy of it tells.
    fn route<'m>(&'m self, message: &'m IncomingMessage) -> Route<'m> {
        Route { queue: &self.options.queue, exchange: message.exchange(), routing_key: message.routing_key() }
    }

    fn not_passed_on(&self, error: &(dyn Error + 'static), what: &str) {
        let error = Chain(error).to_string();
        tracing::error!(queue = %self.options.queue, error, "{what}");
        self.monitor.failed(&error);
    }
}
