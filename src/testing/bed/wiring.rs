//! How a bed is put together.

use std::{sync::Arc, time::Duration};

use super::{faults::Faults, publisher::BedPublisher};
use crate::{
    amqp::{Kept, MemoryBroker},
    consumer::{MemoryConsumer, MemorySettings, Turn},
    error::BoxError,
    idempotency::{Guard, IdempotencyStore, IdempotentHandler, Outcome, Scope},
    message::IncomingMessage,
    now::Now,
    store::Clock,
    testing::ManualClock,
};

/// A queue of which nothing is settled is asked for so often before that is told.
const PATIENCE: u32 = 100;

/// And so many turns are taken in vain, over all messages.
const MOST: u32 = 100_000;

/// How long a store that may come back is left alone, in the time that passes by itself.
const PAUSE: Duration = Duration::from_millis(5);

/// The settings that a bed and a crash test share, of a builder with a field `wiring`.
macro_rules! wiring_settings {
    () => {
        /// Sets the scope of the consumer. Default: `test`.
        pub fn scope(mut self, scope: impl Into<String>) -> Self {
            self.wiring.scope = scope.into();
            self
        }

        /// Sets the name of the queue, by which the default exchange knows it. Default: `test`.
        pub fn queue(mut self, name: impl Into<String>) -> Self {
            self.wiring.queue = name.into();
            self
        }

        /// Lets what is published to a direct exchange with a routing key come to the queue.
        pub fn bind(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
            self.wiring.bound.push((exchange.into(), routing_key.into()));
            self
        }

        /// Sets after how many failures a message is parked, as
        /// [`max_attempts`](crate::consumer::ConsumerBuilder::max_attempts) of a consumer. Default:
        /// 36.
        pub fn max_attempts(mut self, attempts: u32) -> Self {
            self.wiring.max_attempts = attempts;
            self
        }
    };
}

pub(crate) use wiring_settings;

/// What is wired up, apart from store and handler.
#[derive(Debug, Clone)]
pub(crate) struct Wiring {
    pub(crate) scope: String,
    pub(crate) queue: String,
    pub(crate) bound: Vec<(String, String)>,
    pub(crate) sinks: Vec<(String, String)>,
    pub(crate) batch: usize,
    pub(crate) max_attempts: u32,
    pub(crate) immediate_retries: u32,
    pub(crate) delays: (Duration, Duration),
}

impl Default for Wiring {
    /// As a consumer's.
    fn default() -> Self {
        Self {
            scope: "test".to_owned(),
            queue: "test".to_owned(),
            bound: Vec::new(),
            sinks: Vec::new(),
            batch: 64,
            max_attempts: 36,
            immediate_retries: 2,
            delays: (Duration::from_secs(1), Duration::from_secs(3600)),
        }
    }
}

impl Wiring {
    pub(crate) fn broker(&self, faults: Arc<Faults>, clock: &ManualClock) -> Arc<MemoryBroker> {
        let broker = MemoryBroker::new(faults, now(clock));
        broker.declare_plain(&self.queue);
        for (exchange, routing_key) in &self.bound {
            broker.bind(exchange, routing_key, &self.queue);
        }
        for (exchange, routing_key) in &self.sinks {
            // The default exchange knows queues by their names.
            let sink =
                if exchange.is_empty() { routing_key.clone() } else { format!("{exchange}/{routing_key}") };
            broker.declare_plain(&sink);
            broker.bind(exchange, routing_key, &sink);
        }
        Arc::new(broker)
    }

    /// Whether a message comes to the queue.
    pub(crate) fn leads_here(&self, kept: &Kept) -> bool {
        let is_bound =
            |(exchange, key): &(String, String)| *exchange == kept.exchange && *key == kept.routing_key;
        (kept.exchange.is_empty() && kept.routing_key == self.queue) || self.bound.iter().any(is_bound)
    }

    pub(crate) fn guard<S: IdempotencyStore>(&self, store: S) -> Result<Guard<S>, BoxError> {
        let guard = Guard::new(store, Scope::new(&*self.scope)?);
        Ok(guard.immediate_retries(self.immediate_retries).max_attempts(self.max_attempts))
    }

    pub(crate) fn consumer<S: IdempotencyStore, H: IdempotentHandler<S>>(
        &self,
        guard: Guard<S>,
        handler: H,
        broker: &Arc<MemoryBroker>,
        clock: &ManualClock,
        seen: impl Fn(&IncomingMessage, &Outcome) + Send + Sync + 'static,
    ) -> Result<MemoryConsumer<S, H>, BoxError> {
        let settings = MemorySettings { queue: self.queue.clone(), batch: self.batch, delays: self.delays };
        MemoryConsumer::new(guard, handler, settings, Arc::clone(broker), now(clock), seen)
    }
}

pub(crate) fn publisher(broker: &Arc<MemoryBroker>) -> BedPublisher {
    BedPublisher::new(Arc::clone(broker))
}

fn now(clock: &ManualClock) -> Now {
    let clock = clock.clone();
    Now::told_by(move || clock.now())
}

/// An outcome with what was said, for people.
pub(crate) fn told(outcome: &Outcome) -> String {
    match outcome.error_text() {
        Some(error) => format!("{} ({error})", outcome.name()),
        None => outcome.name().to_owned(),
    }
}

/// Handles what there is, and lets time pass for what waits, until nothing is left. Gives what was
/// never settled.
pub(crate) async fn drained<S: IdempotencyStore, H: IdempotentHandler<S>>(
    consumer: &mut MemoryConsumer<S, H>,
    clock: &ManualClock,
) -> Result<(), Restless> {
    let (mut fruitless, mut turns, mut held) = (0, 0, None);
    while fruitless < PATIENCE && turns < MOST {
        match consumer.turn().await {
            Turn::Settled => (fruitless, turns, held) = (0, 0, None),
            // One held message after the other; then time may pass.
            Turn::Held(lease) => {
                turns += 1;
                held = held.max(Some(lease));
            }
            Turn::Idle => {
                let Some(due) = consumer.due() else { return Ok(()) };
                if let Some(lease) = held.take() {
                    fruitless += 1;
                    if fruitless > 1 {
                        // It goes by another clock than the bed's.
                        tokio::time::sleep(lease.unwrap_or(PAUSE)).await;
                    }
                }
                clock.set(due.max(clock.now()));
            }
        }
    }
    Err(Restless)
}

/// A message is held again and again.
#[derive(Debug, thiserror::Error)]
#[error("it never comes to rest: what is in the queue was held again and again, and nothing was settled")]
pub(crate) struct Restless;
