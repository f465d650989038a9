//! One run: the same messages, with another point at which the process ends.

use std::{
    collections::BTreeSet,
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::LocalBoxFuture;
use tokio::time::{Instant, sleep};

use super::{
    CrashTest, Subject,
    handler::CrashingHandler,
    report::Observed,
    store::CrashingStore,
    subject::{Relaying, Service, SetGuard},
};
use crate::{
    amqp::MemoryBroker,
    error::{BoxError, Chain},
    idempotency::{IdempotencyStore, IdempotentHandler, Outcome, StoreError},
    message::{IncomingMessage, OutgoingMessage},
    publisher::{Publish, PublishError, PublishErrorKind},
    testing::{
        BedPublisher, ManualClock,
        bed::{
            Faults,
            wiring::{Wiring, drained, publisher, told},
        },
        points::{Passage, Points},
    },
};

/// How often a process is started at most. One that does not come to rest is a finding.
const ROUNDS: usize = 10;

/// How often a service that fails is called again.
const CALLS: usize = 100;

/// How long a relay may publish nothing of what is in its outbox.
const RELAYED: Duration = Duration::from_secs(10);

/// How long a process may pass no point.
const STILL: Duration = Duration::from_secs(20);

/// What that is told as.
const STANDS_STILL: &str = "nothing happened for 20 seconds; does the handler wait for ever, or for a lease that \
                            runs out in real time?";

/// How long a relay is waited for before its table is looked at again.
const LOOK: Duration = Duration::from_millis(1);

/// What came of a run.
pub(super) struct Run {
    pub(super) passed: Vec<Passage>,
    pub(super) hit: Vec<Passage>,
    pub(super) end: Result<Observed, String>,
    /// The last outcome that was none to be acked, for people.
    pub(super) last: Option<String>,
}

/// What all lives of a process share.
struct Stage<S: IdempotencyStore, H> {
    store: Arc<S>,
    handler: Box<dyn Fn() -> Arc<H>>,
    guard: SetGuard<S>,
    relaying: Option<Relaying>,
    wiring: Wiring,
    broker: Arc<MemoryBroker>,
    clock: ManualClock,
    points: Arc<Points>,
    last: Arc<Mutex<Option<String>>>,
}

impl<F> CrashTest<F> {
    pub(super) async fn once<S, H>(&self, chosen: &[Passage]) -> Run
    where
        F: AsyncFn(BedPublisher) -> Subject<S, H>,
        S: IdempotencyStore<Session: 'static>,
        H: IdempotentHandler<S>,
    {
        let (points, clock) = (Arc::new(Points::new(chosen)), ManualClock::default());
        let faults = Faults::at(Arc::clone(&points));
        let broker = self.wiring.broker(Arc::new(faults), &clock);
        let subject = (self.setup)(publisher(&broker)).await;
        let Subject { store, handler, guard, state, services, relaying } = subject;
        let messages = self.messages.iter().cloned().map(publishing);
        let services: Vec<Service> = messages.chain(services).collect();
        let stage = Stage {
            store: Arc::new(store),
            handler,
            guard,
            relaying,
            wiring: self.wiring.clone(),
            broker,
            clock,
            points: Arc::clone(&points),
            last: Arc::default(),
        };
        let lived = stage.lives(&services).await;
        let end = match lived {
            Err(what) => Err(what),
            Ok(()) => Ok(Observed::of(&state().await, &stage.broker, &self.wiring)),
        };
        let last = stage.last();
        Run { passed: points.passed(), hit: points.hit(), end, last }
    }
}

/// What publishes a message, and nothing else.
fn publishing(message: OutgoingMessage) -> Service {
    Box::new(move |publisher| {
        let message = message.clone();
        Box::pin(async move { publisher.publish(message).await.map(|_| ()).map_err(BoxError::from) })
    })
}

/// Where a message was to go that goes nowhere.
fn nowhere(error: &PublishError) -> String {
    let message = error.message();
    match error.kind() {
        PublishErrorKind::Unroutable => unbound(message.exchange(), message.routing_key()),
        _ => String::new(),
    }
}

fn unbound(exchange: &str, key: &str) -> String {
    format!("; nothing is bound to exchange {exchange:?} with routing key {key:?}: see `bind` and `sink`")
}

impl<S, H> Stage<S, H>
where
    S: IdempotencyStore<Session: 'static>,
    H: IdempotentHandler<S>,
{
    /// Lets the process live, again after each end, until nothing is left to be done.
    async fn lives(&self, services: &[Service]) -> Result<(), String> {
        let mut done = BTreeSet::new();
        for _ in 0..ROUNDS {
            let ended = tokio::select! {
                biased;
                () = self.points.crashed() => None,
                never = self.relay() => match never {},
                ended = self.live(services, &mut done) => Some(ended),
                () = self.stands_still() => return Err(format!("it never comes to rest: {STANDS_STILL}")),
            };
            if let Some(ended) = ended {
                return ended.map_err(|error| error.to_string());
            }
            self.broker.take_back(&self.wiring.queue, |_| false);
            self.points.lives_again();
        }
        Err(format!("it never comes to rest: the process was started {ROUNDS} times"))
    }

    /// Until all services are done, and the queue and the outbox are empty.
    async fn live(&self, services: &[Service], done: &mut BTreeSet<usize>) -> Result<(), BoxError> {
        for (number, service) in services.iter().enumerate() {
            if !done.contains(&number) {
                self.call(service).await?;
                done.insert(number);
            }
        }
        let points = &self.points;
        let store = CrashingStore { store: Arc::clone(&self.store), points: Arc::clone(points) };
        let handler = CrashingHandler { handler: (self.handler)(), points: Arc::clone(points) };
        let guard = (self.guard)(self.wiring.guard(Arc::clone(&self.store))?).over(store);
        let last = Arc::clone(&self.last);
        let seen = move |_: &IncomingMessage, outcome: &Outcome| {
            if !outcome.is_handled() {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(told(outcome));
            }
        };
        let mut consumer = self.wiring.consumer(guard, handler, &self.broker, &self.clock, seen)?;
        let (mut progress, mut since) = ((0, 0), Instant::now());
        loop {
            if let Err(restless) = drained(&mut consumer, &self.clock).await {
                return Err(format!("{restless}{}", self.last().unwrap_or_default()).into());
            }
            match &self.relaying {
                Some(relaying) => match (relaying.backlog)().await {
                    Ok(0) if self.broker.is_empty(&self.wiring.queue) => return Ok(()),
                    _ if (self.broker.count(), points.acked()) != progress => {
                        (progress, since) = ((self.broker.count(), points.acked()), Instant::now());
                    }
                    left if since.elapsed() > RELAYED => return Err(self.unrelayed(left).into()),
                    _ => sleep(LOOK).await,
                },
                None => return Ok(()),
            }
        }
    }

    /// What a relay does not get done.
    fn unrelayed(&self, left: Result<u64, StoreError>) -> String {
        let hint = self.broker.unrouted().pop().map(|kept| unbound(&kept.exchange, &kept.routing_key));
        let left = match left {
            Ok(left) => format!("the relay leaves {left} in the outbox"),
            Err(error) => format!("the outbox cannot be read: {}", Chain(&error)),
        };
        format!("it never comes to rest: {left}{}", hint.unwrap_or_default())
    }

    /// Waits until nothing has happened for long, in real time: what sleeps in paused time does
    /// not stand still.
    async fn stands_still(&self) {
        let (mut passed, mut since) = (self.points.count(), std::time::Instant::now());
        while since.elapsed() < STILL {
            sleep(STILL / 10).await;
            if self.points.count() > passed {
                (passed, since) = (self.points.count(), std::time::Instant::now());
            }
        }
    }

    /// As who calls a service does: again, until it succeeds.
    async fn call(&self, service: &Service) -> Result<(), BoxError> {
        let mut called = service(publisher(&self.broker)).await;
        for _ in 1..CALLS {
            if called.is_ok() {
                break;
            }
            called = service(publisher(&self.broker)).await;
        }
        called.map_err(|error| {
            let hint = error.downcast_ref::<PublishError>().map(nowhere).unwrap_or_default();
            format!("a service fails each of {CALLS} times: {}{hint}", Chain(&*error)).into()
        })
    }

    /// The last outcome that was none to be acked.
    fn last(&self) -> Option<String> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().map(|last| format!("; the last outcome is {last}"))
    }

    fn relay(&self) -> LocalBoxFuture<'_, std::convert::Infallible> {
        match &self.relaying {
            Some(relaying) => (relaying.relay)(publisher(&self.broker), Arc::clone(&self.points)),
            None => Box::pin(pending()),
        }
    }
}
