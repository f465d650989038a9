//! A consumer of a broker in memory: the guard and the settler are the real ones, the loop is a
//! plain one, with one delivery or one batch after the other.

use std::{
    iter,
    sync::Arc,
    time::{Duration, SystemTime},
};

use lapin::types::{AMQPValue, ShortString};

use super::{
    buffer::{Aside, Next, Unsettled},
    failure_counts::FailureCounts,
    forwarder::Forwarder,
    options::{Hook, Options},
    pending::{PendingSettlements, Settled},
    settler::{Decision, Settler},
    status::ConsumerMonitor,
    unpark::unprocessed,
};
use crate::{
    amqp::{
        ConnectOptions, Delay, InvalidUri, Kept, MemoryBroker, Route, delayed_properties, unparked_properties,
    },
    error::BoxError,
    idempotency::{DuplicateCause, Guard, IdempotencyStore, IdempotentHandler, Outcome},
    message::{IncomingMessage, reserved},
    now::Now,
};

/// How a consumer of a broker in memory is set up.
#[derive(Debug, Clone)]
pub(crate) struct MemorySettings {
    pub(crate) queue: String,
    pub(crate) batch: usize,
    pub(crate) delays: (Duration, Duration),
}

pub(crate) struct MemoryConsumer<S: IdempotencyStore, H> {
    guard: Guard<S>,
    handler: H,
    queue: String,
    batch: usize,
    settler: Settler,
    broker: Arc<MemoryBroker>,
    failures: FailureCounts,
    held: Vec<(SystemTime, Unsettled, Next)>,
    now: Now,
}

/// What came of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// There was nothing to do.
    Idle,
    /// Something was settled.
    Settled,
    /// Nothing was: everything is held, for a while. With the longest lease of somebody else's.
    Held(Option<Duration>),
}

impl<S: IdempotencyStore, H: IdempotentHandler<S>> MemoryConsumer<S, H> {
    /// Calls `seen` with each outcome.
    pub(crate) fn new(
        guard: Guard<S>,
        handler: H,
        settings: MemorySettings,
        broker: Arc<MemoryBroker>,
        now: Now,
        seen: impl Fn(&IncomingMessage, &Outcome) + Send + Sync + 'static,
    ) -> Result<Self, BoxError> {
        let MemorySettings { queue, batch, delays } = settings;
        let mut options = Options::new(queue.clone());
        options.set_delays(delays.0, delays.1);
        options.check()?;
        (options.immediate_retries, options.max_attempts) = guard.attempts();
        options.on_outcome = Hook(Some(Arc::new(seen)));
        options.now = now.clone();
        let forwarder = Forwarder::in_memory(nowhere()?, Arc::clone(&broker));
        let settler = Settler::new(options, guard.scope().as_str(), forwarder, ConsumerMonitor::new());
        Ok(Self {
            guard: guard.clocked(now.clone()),
            handler,
            queue,
            batch: if S::BATCHES { batch.max(1) } else { 1 },
            settler,
            broker,
            failures: FailureCounts::default(),
            held: Vec::new(),
            now,
        })
    }

    /// Handles what is there to be handled now, up to a batch of it.
    pub(crate) async fn turn(&mut self) -> Turn {
        let is_held = |tag| self.held.iter().any(|(_, unsettled, _)| unsettled.delivery.tag == tag);
        // What a turn had that was cancelled.
        self.broker.take_back(&self.queue, is_held);
        self.broker.expire();
        let (mut batch, mut parking) = (Vec::new(), Vec::new());
        let now = self.now.get();
        let (due, held) = std::mem::take(&mut self.held).into_iter().partition(|(due, ..)| *due <= now);
        self.held = held;
        for (due, unsettled, next) in due {
            match next {
                Next::Park(reason) => parking.push((unsettled, Aside::Park(reason))),
                Next::Handle if batch.len() < self.batch => batch.push(unsettled),
                Next::Handle => self.held.push((due, unsettled, Next::Handle)),
            }
        }
        while batch.len() < self.batch {
            let Some(delivery) = self.broker.deliver(&self.queue) else { break };
            batch.push(Unsettled::new(delivery, &self.failures, None));
        }
        if batch.is_empty() && parking.is_empty() {
            return Turn::Idle;
        }
        let (messages, deliveries): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|unsettled| (unsettled.message, unsettled.delivery)).unzip();
        let outcomes = self.guard.batch(&messages, &self.handler).await.outcomes;
        let leases = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::InProgress { remaining } => Some(*remaining),
            _ => None,
        });
        let mut turn = Turn::Held(leases.max());
        let unsettled = messages.into_iter().zip(deliveries);
        let unsettled = unsettled.map(|(message, delivery)| Unsettled { message, delivery });
        for (unsettled, outcome) in unsettled.zip(outcomes) {
            if self.settle(unsettled, &outcome).await {
                turn = Turn::Settled;
            }
        }
        for (unsettled, aside) in parking {
            let mut settling = PendingSettlements::default();
            self.settler.set_aside(unsettled, aside, &mut settling);
            if settled(settling.next().await, &self.queue, &self.broker, &mut self.held, self.now.get()).await
            {
                turn = Turn::Settled;
            }
        }
        turn
    }

    /// Gives whether it is settled.
    async fn settle(&mut self, unsettled: Unsettled, outcome: &Outcome) -> bool {
        let mut settling = PendingSettlements::default();
        let done = match self.settler.settle(unsettled, outcome, &mut self.failures, &mut settling) {
            Decision::Ack(tag) => Settled::Away(tag),
            Decision::Hold { unsettled, after } => {
                Settled::Held { unsettled: *unsettled, after, next: Next::Handle }
            }
            Decision::Begun => settling.next().await,
        };
        settled(done, &self.queue, &self.broker, &mut self.held, self.now.get()).await
    }

    /// Puts copies of all that is ready behind it, as they come of a cause.
    pub(crate) fn duplicate(&self, copies: usize, cause: DuplicateCause) {
        let ready = self.broker.ready(&self.queue);
        for copy in ready.iter().flat_map(|kept| iter::repeat_n(kept, copies)) {
            self.broker.put(&self.queue, self.copy(copy, cause));
        }
    }

    fn copy(&self, original: &Kept, cause: DuplicateCause) -> Kept {
        let mut copy = original.clone();
        let Kept { exchange, routing_key, properties, .. } = original;
        let mut passed_on = |properties| {
            (copy.exchange, copy.routing_key) = (String::new(), self.queue.clone());
            copy.properties = properties;
        };
        match cause {
            DuplicateCause::BrokerRedelivery => copy.redelivered = true,
            DuplicateCause::PublisherRetry => {
                let mut headers = properties.headers().clone().unwrap_or_default();
                headers.insert(ShortString::from(reserved::ATTEMPT), AMQPValue::LongLongInt(2));
                copy.properties = properties.clone().with_headers(headers);
            }
            DuplicateCause::DelayedRedelivery => {
                let route = Route { queue: &self.queue, exchange, routing_key };
                passed_on(delayed_properties(
                    properties,
                    &Delay { failures: 1, at: self.now.get(), until: None, route },
                ));
            }
            DuplicateCause::Replayed => {
                passed_on(unparked_properties(properties, &self.queue, self.now.get(), None));
            }
            DuplicateCause::Republished => {}
            DuplicateCause::IdReuse => copy.body = [&*copy.body, b" "].concat().into(),
        }
        copy
    }

    /// Puts what is parked back into the queue, as [`Unpark`](super::Unpark) does. Gives how many.
    pub(crate) fn unpark(&self) -> usize {
        let parked = self.broker.take(&self.parking());
        for kept in &parked {
            let unprocessed = unprocessed(&kept.clone().incoming());
            let properties = unparked_properties(&kept.properties, &self.queue, unprocessed, None);
            let (exchange, routing_key) = (String::new(), self.queue.clone());
            self.broker.put(&self.queue, Kept { exchange, routing_key, properties, ..kept.clone() });
        }
        parked.len()
    }

    /// How many messages nobody has taken yet.
    pub(crate) fn ready(&self) -> usize {
        self.broker.ready(&self.queue).len()
    }

    /// The queue that messages are parked in.
    pub(crate) fn parking(&self) -> String {
        format!("{}.parked", self.queue)
    }

    /// When something is to be done again, if nothing else happens.
    pub(crate) fn due(&self) -> Option<SystemTime> {
        let held = self.held.iter().map(|(due, ..)| *due).min();
        held.into_iter().chain(self.broker.next_expiry()).min()
    }
}

async fn settled(
    done: Settled,
    queue: &str,
    broker: &MemoryBroker,
    held: &mut Vec<(SystemTime, Unsettled, Next)>,
    now: SystemTime,
) -> bool {
    match done {
        Settled::Away(tag) => {
            broker.ack(queue, tag).await;
            true
        }
        Settled::Held { unsettled, after, next } => {
            held.push((now + after, unsettled, next));
            false
        }
        Settled::Stays(unsettled) => {
            held.push((now, unsettled, Next::Handle));
            false
        }
        Settled::Written => false,
    }
}

/// Where nobody connects to.
fn nowhere() -> Result<ConnectOptions, InvalidUri> {
    ConnectOptions::new(["amqp://localhost"])
}
