//! A handler that says that what it depends on is away.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IncomingMessage,
    MemoryStore, SqliteStore,
    consumer::{ConsumerBuilder, ConsumerState},
};

use tokio::sync::Semaphore;

use super::{
    limits::{LIMITS, limited, told},
    redelivery::{delete, millis},
    support::{
        amqp::{Client, with_id},
        broker,
        consumer::Running,
        eventually,
        ledger::Ledger,
    },
};

trials! {
    dependency_that_is_away_is_asked_by_one_message_at_a_time,
    dependency_that_is_away_loses_and_parks_nothing,
    dependency_is_not_back_by_what_began_before_it_was_away,
    message_whose_dependency_alone_is_away_holds_nobody_up,
    many_messages_whose_dependency_alone_is_away_hold_nobody_up,
    slow_messages_whose_dependency_alone_is_away_hold_nobody_up,
    handler_that_is_ended_does_not_say_that_its_dependency_is_back,
    stop_while_the_dependency_is_away_stays_a_stop,
}

/// Needs something for each message, or for those of one body only.
#[derive(Clone, Default)]
struct Depends {
    away: Arc<AtomicBool>,
    /// How long it takes to find out that it is away.
    finds_out: Duration,
    only: Option<&'static [u8]>,
    asked: Arc<AtomicU32>,
    now: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
    done: Arc<Mutex<Vec<IncomingMessage>>>,
}

impl Depends {
    fn done(&self) -> usize {
        self.done.lock().expect("done").len()
    }
}

impl<S: IdempotencyStore> IdempotentHandler<S> for Depends {
    async fn handle(&self, message: &IncomingMessage, _: &mut S::Session) -> HandlerResult {
        self.asked.fetch_add(1, SeqCst);
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        tokio::time::sleep(millis(20)).await;
        self.now.fetch_sub(1, SeqCst);
        let needs = self.only.is_none_or(|body| message.body() == body);
        if needs && self.away.load(SeqCst) {
            tokio::time::sleep(self.finds_out).await;
            return Err(HandlerError::unavailable("the card network does not answer"));
        }
        self.done.lock().expect("done").push(message.clone());
        Ok(())
    }
}

async fn away_once<S: IdempotencyStore + Clone>(
    limit: i64,
    store: S,
    settings: impl FnOnce(ConsumerBuilder<S>) -> ConsumerBuilder<S>,
) {
    const MESSAGES: usize = 12;
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("depends", limited(limit)).await;
    for n in 0..MESSAGES {
        client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
    }
    let handler = Depends { away: Arc::new(true.into()), ..Depends::default() };
    // What counted as a run of the handler would be parked at once.
    let builder = IdempotentConsumer::builder(broker(), &queue, store).scope("ledger").max_attempts(1);
    let consumer = Running::start(settings(builder.delivery_limit(told(limit))), handler.clone());
    eventually("it asks again", async || (handler.asked.load(SeqCst) >= 9).then_some(())).await;
    let status = consumer.monitor.status();
    assert_eq!(status.state, ConsumerState::DependencyAway, "{limit}");
    assert!(!status.is_ready() && status.is_live());
    assert_eq!(status.last_error.as_deref(), Some("the card network does not answer"));
    assert_eq!(handler.done(), 0);
    handler.away.store(false, SeqCst);
    eventually("all are handled", async || (handler.done() == MESSAGES).then_some(())).await;
    eventually("it is ready", async || consumer.monitor.status().is_ready().then_some(())).await;
    let outcomes = consumer.decided(MESSAGES).await;
    consumer.stop().await;
    assert!(!outcomes.contains(&"retry"), "{limit}: {outcomes:?}");
    let done = handler.done.lock().expect("done").clone();
    let mut times = HashMap::new();
    for message in &done {
        assert_eq!(message.failures(), 0, "{limit}");
        assert!(message.delivery_count().unwrap_or_default() <= 1, "{limit}: spent on what is not its fault");
        *times.entry(message.raw_message_id().unwrap_or_default().to_owned()).or_insert(0) += 1;
    }
    assert!(times.len() == MESSAGES && times.values().all(|times| *times == 1), "{limit}: {times:?}");
    assert_eq!(client.ready(&queue).await + client.ready(&format!("{queue}.parked")).await, 0);
    delete(&client, &queue, &[]).await;
}

pub async fn dependency_that_is_away_loses_and_parks_nothing() {
    let leases = LIMITS.map(|limit| away_once(limit, MemoryStore::new(100), |consumer| consumer.workers(4)));
    join_all(leases).await;
    let batches = LIMITS.map(async |limit| {
        let ledger = Ledger::create().await;
        away_once::<SqliteStore>(limit, ledger.store.clone(), |consumer| consumer.batch(8)).await;
    });
    join_all(batches).await;
}

/// Whatever was in hand when it went away: after that, one message at a time finds out.
pub async fn dependency_that_is_away_is_asked_by_one_message_at_a_time() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("depends").await;
    for n in 0..40 {
        client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
    }
    let handler = Depends { away: Arc::new(true.into()), ..Depends::default() };
    let builder = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100)).scope("ledger");
    let consumer = Running::start(builder.workers(8), handler.clone());
    let is_away = async || {
        let status = consumer.monitor.status();
        (status.state == ConsumerState::DependencyAway && status.in_hand == 0).then_some(())
    };
    eventually("it is away", is_away).await;
    handler.most.store(0, SeqCst);
    let before = handler.asked.load(SeqCst);
    eventually("it asks again", async || (handler.asked.load(SeqCst) >= before + 4).then_some(())).await;
    assert_eq!(handler.most.load(SeqCst), 1);
    handler.away.store(false, SeqCst);
    eventually("all are handled", async || (handler.done() == 40).then_some(())).await;
    assert!(handler.most.load(SeqCst) > 1, "then all workers go on");
    consumer.stop().await;
    delete(&client, &queue, &[]).await;
}

/// Messages whose own dependency is away, in front of others.
async fn some_alone(count: usize, finds_out: Duration) {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("depends").await;
    for n in 0..count {
        client.publish(&queue, b"tenant", with_id(&format!("theirs-{n}"))).await;
    }
    for n in 0..50 {
        client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
    }
    let away = Arc::new(true.into());
    let handler = Depends { away, finds_out, only: Some(b"tenant"), ..Depends::default() };
    let builder = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100)).scope("ledger");
    let consumer = Running::start(builder.workers(1), handler.clone());
    let deadline = Instant::now() + Duration::from_secs(240);
    while handler.done() < 50 {
        assert!(Instant::now() < deadline, "{} others were handled", handler.done());
        tokio::time::sleep(millis(20)).await;
    }
    handler.away.store(false, SeqCst);
    eventually("these, too", async || (handler.done() == 50 + count).then_some(())).await;
    consumer.stop().await;
    delete(&client, &queue, &[]).await;
}

pub async fn message_whose_dependency_alone_is_away_holds_nobody_up() {
    some_alone(1, Duration::ZERO).await;
}

pub async fn many_messages_whose_dependency_alone_is_away_hold_nobody_up() {
    some_alone(6, Duration::ZERO).await;
}

/// So many, for so long, that one of them would always be due.
pub async fn slow_messages_whose_dependency_alone_is_away_hold_nobody_up() {
    some_alone(4, Duration::from_secs(4)).await;
}

/// Finds what it depends on away once, and hangs after that.
#[derive(Clone, Default)]
struct Hangs {
    runs: Arc<AtomicU32>,
    most: Arc<AtomicU32>,
    now: Arc<AtomicU32>,
}

struct Ended(Arc<AtomicU32>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl<S: IdempotencyStore> IdempotentHandler<S> for Hangs {
    async fn handle(&self, _: &IncomingMessage, _: &mut S::Session) -> HandlerResult {
        if self.runs.fetch_add(1, SeqCst) == 0 {
            return Err(HandlerError::unavailable("the card network does not answer"));
        }
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        let _ended = Ended(Arc::clone(&self.now));
        std::future::pending().await
    }
}

/// A call that hangs is how most services are away. When nothing is left to try, the consumer is
/// ready for what comes.
pub async fn handler_that_is_ended_does_not_say_that_its_dependency_is_back() {
    const MESSAGES: u32 = 6;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("depends").await;
    let handler = Hangs::default();
    let builder = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100)).scope("ledger");
    let builder =
        builder.workers(4).handler_timeout(millis(100)).retry_delays(millis(3_600_000), millis(3_600_000));
    let consumer = Running::start(builder, handler.clone());
    client.publish(&queue, b"500", with_id("first")).await;
    consumer.until(ConsumerState::DependencyAway).await;
    for n in 1..MESSAGES {
        client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
    }
    // The first one twice.
    consumer.decided(MESSAGES as usize + 1).await;
    assert_eq!(handler.most.load(SeqCst), 1, "one at a time");
    consumer.until(ConsumerState::Consuming).await;
    consumer.stop().await;
    delete(&client, &queue, &[3_600_000]).await;
}

/// `early` begins before the dependency is away, and `tried` finds out that it is. Each ends when
/// it is let.
struct Gates {
    asked: Mutex<Vec<String>>,
    begun: Semaphore,
    early: Semaphore,
    tried: Semaphore,
}

impl Gates {
    fn new() -> Self {
        let shut = || Semaphore::new(0);
        Self { asked: Mutex::default(), begun: shut(), early: shut(), tried: shut() }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("asked").clone()
    }
}

async fn pass(gate: &Semaphore) {
    gate.acquire().await.expect("open").forget();
}

struct Gated(Arc<Gates>);

impl<S: IdempotencyStore> IdempotentHandler<S> for Gated {
    async fn handle(&self, message: &IncomingMessage, _: &mut S::Session) -> HandlerResult {
        let id = message.raw_message_id().unwrap_or_default();
        let first = {
            let mut asked = self.0.asked.lock().expect("asked");
            asked.push(id.to_owned());
            asked.iter().filter(|asked| *asked == id).count() == 1
        };
        match id {
            "early" => {
                self.0.begun.add_permits(1);
                pass(&self.0.early).await;
            }
            "tried" if first => {
                pass(&self.0.begun).await;
                return Err(HandlerError::unavailable("the card network does not answer"));
            }
            "tried" => pass(&self.0.tried).await,
            _ => {}
        }
        Ok(())
    }
}

/// A consumer that tries `tried` once more while `early` is still in hand and `next` waits.
async fn tried_beside_an_early_one() -> (Client, String, Arc<Gates>, Running) {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("depends").await;
    for id in ["tried", "early"] {
        client.publish(&queue, b"500", with_id(id)).await;
    }
    let gates = Arc::new(Gates::new());
    let builder = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100)).scope("ledger");
    let consumer = Running::start(builder.workers(3), Gated(Arc::clone(&gates)));
    consumer.until(ConsumerState::DependencyAway).await;
    eventually("it is tried again", async || (gates.asked().len() == 3).then_some(())).await;
    // Not before: of those that wait, the one that was refused least is tried first.
    client.publish(&queue, b"500", with_id("next")).await;
    eventually("the next one is here", async || (client.ready(&queue).await == 0).then_some(())).await;
    let mut asked = gates.asked();
    assert_eq!(asked.pop().as_deref(), Some("tried"), "beside one that takes long");
    (client, queue, gates, consumer)
}

pub async fn dependency_is_not_back_by_what_began_before_it_was_away() {
    let (client, queue, gates, consumer) = tried_beside_an_early_one().await;
    gates.early.add_permits(1);
    assert_eq!(consumer.decided(2).await, ["dependency_unavailable", "processed"]);
    assert_eq!(consumer.monitor.status().state, ConsumerState::DependencyAway);
    assert_eq!(gates.asked().len(), 3, "nothing else is begun");
    gates.tried.add_permits(1);
    consumer.decided(4).await;
    consumer.until(ConsumerState::Consuming).await;
    consumer.stop().await;
    assert_eq!(gates.asked().last().map(String::as_str), Some("next"));
    delete(&client, &queue, &[]).await;
}

/// Whoever watches must not take a consumer for ready that stops.
pub async fn stop_while_the_dependency_is_away_stays_a_stop() {
    let (client, queue, gates, consumer) = tried_beside_an_early_one().await;
    consumer.ask_to_stop();
    consumer.until(ConsumerState::Draining).await;
    gates.tried.add_permits(1);
    assert_eq!(consumer.decided(2).await, ["dependency_unavailable", "processed"]);
    assert_eq!(consumer.monitor.status().state, ConsumerState::Draining);
    gates.early.add_permits(1);
    consumer.stop().await;
    assert_eq!(client.ready(&queue).await, 1, "what was not begun is back");
    delete(&client, &queue, &[]).await;
}
