//! Publisher and consumer joined in memory.

mod faults;
mod publisher;
pub(crate) mod wiring;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::SeqCst},
    time::Duration,
};

use tokio::sync::Mutex as AsyncMutex;

pub(crate) use faults::Faults;
pub use publisher::BedPublisher;
use wiring::{Wiring, drained, publisher, wiring_settings};

use super::ManualClock;
use crate::{
    amqp::MemoryBroker,
    consumer::{MemoryConsumer, Turn},
    idempotency::{DuplicateCause, Guard, IdempotencyStore, IdempotentHandler, Outcome},
    message::IncomingMessage,
};

/// A publisher and a consumer without a broker between them: what your service publishes goes
/// through the stamping and the checks of the real publisher into a queue in memory, and from there
/// through the real guard, your store and your handler; what fails is delayed and parked by the
/// consumer's own code.
///
/// What is not there: the network, topic exchanges, priorities, expiry, a broker's limits, several
/// consumers. For those test against a broker.
///
/// # Time
///
/// The bed has a clock of its own, which stands still until something waits for it: a message whose
/// retry is due in an hour is tried at once by [`drain`](Self::drain). Leases of a
/// [`MemoryStore`](crate::MemoryStore) go by it if the store has [the same
/// clock](TestBedBuilder::clock), and stores with a server go by their server's.
/// Messages with an ID or a key are stamped by it when they are published; an ID that a publisher
/// or an outbox makes tells the system's time.
///
/// ```
/// use lapin_idempotent::{
///     Lease, MemoryStore, OutgoingMessage, Publish, handler_fn, idempotency::DuplicateCause, testing::TestBed,
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let handler = handler_fn(|message, _: &mut Lease| {
///     Box::pin(async move {
///         println!("{}", message.text()?);
///         Ok(())
///     })
/// });
/// let bed = TestBed::builder(MemoryStore::new(100)).bind("payments", "debit").handler(handler);
/// let debit = OutgoingMessage::to("payments", "debit").idempotency_key("debit/42").text("500");
/// bed.lose_confirms(1); // so it is sent twice, under one ID
/// bed.publisher().publish(debit).await?;
/// bed.duplicate(1, DuplicateCause::Republished);
/// bed.drain().await;
/// bed.assert_outcomes(["processed", "duplicate", "duplicate", "duplicate"]);
/// # Ok(())
/// # }
/// ```
pub struct TestBed<S: IdempotencyStore, H> {
    broker: Arc<MemoryBroker>,
    faults: Arc<Faults>,
    clock: ManualClock,
    consumer: AsyncMutex<MemoryConsumer<S, H>>,
    parking: String,
    decided: Arc<Mutex<Vec<Decided>>>,
}

/// What the guard decided about a delivery.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Decided {
    /// The delivery's message.
    pub message: IncomingMessage,
    /// [`Outcome::name`].
    pub outcome: &'static str,
    /// Of a duplicate, where it most likely comes from.
    pub cause: Option<DuplicateCause>,
    /// What the handler or the store said, if it failed.
    pub error: Option<String>,
}

/// Sets up a [`TestBed`].
#[must_use = "a bed handles nothing without a handler"]
pub struct TestBedBuilder<S: IdempotencyStore> {
    store: S,
    wiring: Wiring,
    clock: ManualClock,
    guard: Box<dyn FnOnce(Guard<S>) -> Guard<S> + Send>,
}

impl<S: IdempotencyStore> TestBed<S, ()> {
    /// Starts to set up a bed whose consumer is guarded by `store`.
    pub fn builder(store: S) -> TestBedBuilder<S> {
        let (wiring, clock) = (Wiring::default(), ManualClock::default());
        TestBedBuilder { store, wiring, clock, guard: Box::new(|guard| guard) }
    }
}

impl<S: IdempotencyStore> TestBedBuilder<S> {
    wiring_settings!();

    /// Lets what is published so go somewhere else, where nobody handles it: see
    /// [`published`](TestBed::published). What goes nowhere is returned to its publisher.
    pub fn sink(mut self, exchange: impl Into<String>, routing_key: impl Into<String>) -> Self {
        self.wiring.sinks.push((exchange.into(), routing_key.into()));
        self
    }

    /// As [`batch`](crate::consumer::ConsumerBuilder::batch) of a consumer. Default: 64.
    pub fn batch(mut self, messages: usize) -> Self {
        self.wiring.batch = messages;
        self
    }

    /// As [`immediate_retries`](crate::consumer::ConsumerBuilder::immediate_retries) of a consumer.
    /// Default: 2.
    pub fn immediate_retries(mut self, retries: u32) -> Self {
        self.wiring.immediate_retries = retries;
        self
    }

    /// As [`retry_delays`](crate::consumer::ConsumerBuilder::retry_delays) of a consumer. Default:
    /// 1 second and 1 hour, by the bed's clock.
    pub fn retry_delays(mut self, first: Duration, longest: Duration) -> Self {
        self.wiring.delays = (first, longest);
        self
    }

    /// Sets what else can be set of a [`Guard`], such as its policies.
    pub fn guard(mut self, set: impl FnOnce(Guard<S>) -> Guard<S> + Send + 'static) -> Self {
        self.guard = Box::new(set);
        self
    }

    /// Lets the bed go by this clock, and set it.
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.clock = clock;
        self
    }

    /// As [`handler`](Self::handler), for a handler that publishes to the bed by itself.
    ///
    /// # Panics
    ///
    /// As there.
    pub fn handler_with<H: IdempotentHandler<S>>(
        self,
        handler: impl FnOnce(BedPublisher) -> H,
    ) -> TestBed<S, H> {
        let faults = Arc::new(Faults::default());
        let broker = self.wiring.broker(Arc::clone(&faults), &self.clock);
        let handler = handler(publisher(&broker));
        self.over(faults, broker, handler)
    }

    /// Puts the bed together.
    ///
    /// # Panics
    ///
    /// If a name or the scope cannot be used.
    pub fn handler<H: IdempotentHandler<S>>(self, handler: H) -> TestBed<S, H> {
        self.handler_with(|_| handler)
    }

    fn over<H: IdempotentHandler<S>>(
        self,
        faults: Arc<Faults>,
        broker: Arc<MemoryBroker>,
        handler: H,
    ) -> TestBed<S, H> {
        let Self { store, wiring, clock, guard } = self;
        let decided: Arc<Mutex<Vec<Decided>>> = Arc::default();
        let seen = {
            let decided = Arc::clone(&decided);
            move |message: &IncomingMessage, outcome: &Outcome| {
                let cause = match outcome {
                    Outcome::Duplicate(duplicate) => Some(duplicate.cause),
                    _ => None,
                };
                let (message, error) = (message.clone(), outcome.error_text());
                let decision = Decided { message, outcome: outcome.name(), cause, error };
                decided.lock().unwrap_or_else(PoisonError::into_inner).push(decision);
            }
        };
        let consumer =
            wiring.guard(store).and_then(|own| wiring.consumer(guard(own), handler, &broker, &clock, seen));
        let consumer = consumer.unwrap_or_else(|error| panic!("the bed cannot be set up: {error}"));
        let parking = consumer.parking();
        TestBed { broker, faults, clock, consumer: AsyncMutex::new(consumer), parking, decided }
    }
}

/// # Work
impl<S: IdempotencyStore, H: IdempotentHandler<S>> TestBed<S, H> {
    /// What publishes to the bed. A service that is generic over
    /// [`Publish`](crate::Publish) takes it in the place of an
    /// [`IdempotentPublisher`](crate::IdempotentPublisher).
    pub fn publisher(&self) -> BedPublisher {
        publisher(&self.broker)
    }

    /// Handles what is in the queue, and what comes back to it: lets time pass until nothing waits
    /// any more. What is parked stays.
    ///
    /// # Panics
    ///
    /// If nothing can be settled, such as with a store that is away for good.
    ///
    /// # Cancellation
    ///
    /// What was being handled comes again, as after a connection was lost.
    pub async fn drain(&self) {
        let mut consumer = self.consumer.lock().await;
        if let Err(restless) = drained(&mut consumer, &self.clock).await {
            let outcomes = self.outcomes();
            let last = outcomes.last().map(|decided| (decided.outcome, decided.error.as_deref()));
            panic!("{restless}; the last outcome is {last:?}");
        }
    }

    /// Handles what can be handled now, without letting time pass.
    ///
    /// # Cancellation
    ///
    /// As [`drain`](Self::drain).
    pub async fn handle_ready(&self) {
        let mut consumer = self.consumer.lock().await;
        loop {
            let ready = consumer.ready();
            match consumer.turn().await {
                Turn::Settled => {}
                // What is held now holds up nothing else.
                Turn::Held(_) if consumer.ready() < ready => {}
                Turn::Held(_) | Turn::Idle => break,
            }
        }
    }

    /// Lets time pass for what waits; it is handled by the next [`drain`](Self::drain) or
    /// [`handle_ready`](Self::handle_ready).
    pub fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Puts everything that is parked back into the queue, as
    /// [`Unpark`](crate::consumer::Unpark) does. Gives how many messages.
    pub async fn unpark(&self) -> usize {
        self.consumer.lock().await.unpark()
    }
}

/// # What goes wrong
///
/// Each counts from now on.
impl<S: IdempotencyStore, H: IdempotentHandler<S>> TestBed<S, H> {
    /// The broker takes so many messages whose confirms are lost. Their publishers send them again.
    pub fn lose_confirms(&self, confirms: u32) -> &Self {
        self.faults.lost_confirms.fetch_add(confirms, SeqCst);
        self
    }

    /// The broker nacks so many messages of publishers, which send them again: ten in a row are too
    /// many for one.
    pub fn nack(&self, messages: u32) -> &Self {
        self.faults.nacks.fetch_add(messages, SeqCst);
        self
    }

    /// So many acks of the consumer are lost. Their messages come again.
    pub fn lose_acks(&self, acks: u32) -> &Self {
        self.faults.lost_acks.fetch_add(acks, SeqCst);
        self
    }

    /// Puts copies of each message that is in the queue behind them, as they come of a cause.
    ///
    /// # Panics
    ///
    /// While the bed works.
    pub fn duplicate(&self, copies: usize, cause: DuplicateCause) -> &Self {
        let Ok(consumer) = self.consumer.try_lock() else { panic!("the bed is not at rest") };
        consumer.duplicate(copies, cause);
        self
    }
}

/// # What came of it
impl<S: IdempotencyStore, H> TestBed<S, H> {
    /// What the guard decided, in its order.
    pub fn outcomes(&self) -> Vec<Decided> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Says that these are the [names](Outcome::name) of all outcomes so far, in their order.
    ///
    /// # Panics
    ///
    /// If they are not.
    #[track_caller]
    pub fn assert_outcomes<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let (found, expected): (Vec<_>, Vec<_>) =
            (self.outcomes().iter().map(|decided| decided.outcome).collect(), names.into_iter().collect());
        assert_eq!(found, expected, "the outcomes");
    }

    /// What is parked, as [`Unpark`](crate::consumer::Unpark) would see it.
    pub fn parked(&self) -> Vec<IncomingMessage> {
        self.broker.ready(&self.parking).into_iter().map(crate::amqp::Kept::incoming).collect()
    }

    /// What publishers have sent and the broker has routed, each copy of it, in its order.
    pub fn published(&self) -> Vec<IncomingMessage> {
        self.broker.published().into_iter().map(crate::amqp::Kept::incoming).collect()
    }
}

impl<S: IdempotencyStore, H> fmt::Debug for TestBed<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBed").field("parking", &self.parking).finish_non_exhaustive()
    }
}

impl<S: IdempotencyStore> fmt::Debug for TestBedBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBedBuilder").field("wiring", &self.wiring).finish_non_exhaustive()
    }
}
