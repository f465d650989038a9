//! A consumer that is told to stop: it does so from wherever it is, and in a time that is known.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IncomingMessage,
    MemoryStore,
    consumer::ConsumerState,
    idempotency::{ClaimRequest, Claims, Lease, StoreError},
};

use super::support::{
    amqp::{Client, with_id},
    broker,
    consumer::Running,
    eventually,
    ledger::{Debit, Ledger},
    proxy::{Action, Proxy},
    unique,
};

trials! {
    paused_consumer_takes_nothing_and_loses_nothing,
    start_reacts_to_shutdown,
    shutdown_takes_less_than_half_a_minute_whatever_hangs,
}

/// Rejects what says so, and never ends with the rest.
#[derive(Clone, Default)]
struct Stuck(Arc<AtomicBool>);

impl<S: IdempotencyStore> IdempotentHandler<S> for Stuck {
    async fn handle(&self, message: &IncomingMessage, _: &mut S::Session) -> HandlerResult {
        if &message.body()[..] == b"reject" {
            return Err(HandlerError::reject("as it asked"));
        }
        self.0.store(true, SeqCst);
        std::future::pending().await
    }
}

/// Never answers the first question.
#[derive(Clone)]
struct Hanging {
    memory: MemoryStore,
    asked: Arc<AtomicBool>,
}

impl IdempotencyStore for Hanging {
    type Session = Lease;

    async fn check(&self) -> Result<(), StoreError> {
        self.asked.store(true, SeqCst);
        std::future::pending().await
    }

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Lease>, StoreError> {
        self.memory.claim(requests).await
    }

    async fn complete(&self, session: Lease) -> Result<(), StoreError> {
        self.memory.complete(session).await
    }

    async fn release(&self, session: Lease) -> Result<(), StoreError> {
        self.memory.release(session).await
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        self.memory.purge(retention, limit).await
    }
}

pub async fn start_reacts_to_shutdown() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("stop-at-start").await;
    let store = Hanging { memory: MemoryStore::new(10), asked: Arc::default() };
    let asked = Arc::clone(&store.asked);
    let consumer = Running::start(IdempotentConsumer::builder(broker(), &queue, store), Stuck::default());
    eventually("the store is asked", async || asked.load(SeqCst).then_some(())).await;
    consumer.stop().await;

    // A broker that freezes at each frame of the start has its own; the last of them is the answer
    // to basic.consume.
    for frozen_at in 0.. {
        let proxy = Proxy::start(&broker()).await;
        let frozen = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&frozen);
        let mut frames = 0;
        proxy.rule(move |frame| {
            frames += u32::from(frame.from == super::support::proxy::From::Broker);
            let freeze = frames > frozen_at;
            seen.fetch_or(freeze, SeqCst);
            if freeze { Action::Freeze } else { Action::Pass }
        });
        // Longer than the test may take.
        let url = format!("{}?heartbeat=600", proxy.url());
        let builder = IdempotentConsumer::builder(&url, &queue, MemoryStore::new(10));
        let consumer = Running::start(builder.connect_timeout(Duration::from_secs(3600)), Stuck::default());
        let monitor = consumer.monitor.clone();
        let started = eventually("it is frozen, or has started", async || {
            let started = monitor.status().state == ConsumerState::Consuming;
            (started || frozen.load(SeqCst)).then_some(started)
        })
        .await;
        consumer.stop().await;
        if started {
            assert!(frozen_at > 5, "the frames of a start: {frozen_at}");
            break;
        }
    }
    client.delete(&format!("{queue}.parked")).await;
    client.delete(&queue).await;
}

/// Kubernetes kills after half a minute. With nothing but defaults: a handler that never ends, a
/// broker that answers no more, and a connection for parking that is frozen too.
pub async fn shutdown_takes_less_than_half_a_minute_whatever_hangs() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("stop-in-time").await;
    let parking = format!("{queue}.parked");
    client.publish(&queue, b"reject", with_id(&unique("rejected"))).await;
    let proxy = Proxy::start(&broker()).await;
    let url = format!("{}?heartbeat=600", proxy.url());
    let handler = Stuck::default();
    let builder = IdempotentConsumer::builder(&url, &queue, MemoryStore::new(10));
    let consumer = Running::start(builder, handler.clone());
    consumer.decided(1).await;
    eventually("it is parked", async || (client.ready(&parking).await == 1).then_some(())).await;
    client.publish(&queue, b"stay", with_id(&unique("stuck"))).await;
    eventually("a handler is stuck", async || handler.0.load(SeqCst).then_some(())).await;
    proxy.rule(|_| Action::Freeze);
    let asked = Instant::now();
    consumer.stop().await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    proxy.cut_all();
    eventually("what was in hand is back", async || (client.ready(&queue).await == 1).then_some(())).await;
    client.delete(&queue).await;
    client.delete(&parking).await;
}

/// Paused from the start, then let go, then paused with a handler at work; stopped while it is
/// paused.
pub async fn paused_consumer_takes_nothing_and_loses_nothing() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("paused").await;
    let ledger = Ledger::create().await;
    let handler = Debit { dawdle: Duration::from_millis(200), ..Debit::default() };
    let consumer =
        IdempotentConsumer::builder(broker(), &queue, ledger.store.clone()).scope("ledger").batch(1);
    let consumer = consumer.build().expect("settings");
    let (monitor, control) = (consumer.monitor(), consumer.control());
    control.pause();
    let running = tokio::spawn(consumer.run(handler.clone()));
    let until = async |state: ConsumerState| {
        eventually(state.name(), async || (monitor.status().state == state).then_some(())).await;
    };
    until(ConsumerState::Paused).await;
    for n in 0..20 {
        client.publish(&queue, b"1", with_id(&format!("m{n}"))).await;
    }
    assert!(!monitor.status().is_ready() && monitor.status().is_live());
    control.resume();
    eventually("some are handled", async || (handler.runs() >= 3).then_some(())).await;
    control.pause();
    until(ConsumerState::Paused).await;
    eventually("what was in hand is done", async || (monitor.status().in_hand == 0).then_some(())).await;
    let handled = ledger.rows().await;
    // Each of them the broker would deliver at once, if there were room.
    for n in 20..30 {
        client.publish(&queue, b"1", with_id(&format!("m{n}"))).await;
    }
    control.stop();
    control.resume();
    running.await.expect("task").expect("consumer");
    let left = i64::from(client.ready(&queue).await);
    assert_eq!(ledger.rows().await, handled, "nothing more was taken");
    assert_eq!(handled.0 + left, 30, "all others are back");
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}
