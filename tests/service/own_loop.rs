//! The loop of the example, which is there to be copied: it keeps what the consumer promises.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use lapin::{
    BasicProperties,
    message::BasicGetMessage,
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::{
    Guard, IdempotencyStore, IdempotentHandler, Lease, MemoryStore, Scope, SqliteStore,
    consumer::{DeliverySettler, DeliverySettlerBuilder, Unpark},
    idempotency::{ClaimRequest, Claims, StoreError, StoreErrorKind},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{
    limits::{Noting, limited},
    redelivery::{Flaky, delete, millis, wait_for_parked},
    support::{
        DEADLINE,
        amqp::{Client, header, with_id},
        broker, eventually,
        ledger::{Debit, Ledger},
        proxy::{Action, From, Proxy, method},
        unique,
    },
};

#[allow(dead_code)]
#[path = "../../examples/existing_loop.rs"]
mod existing_loop;

trials! {
    parked_by_a_loop_of_ones_own_is_unparked,
    delayed_by_a_loop_of_ones_own_comes_back_with_its_attempts,
    loop_of_ones_own_parks_the_same_copy_as_a_consumer,
    ack_behind_a_copy_lost_one_effect,
    confirm_of_a_copy_lost_one_effect,
    what_cannot_be_parked_is_held,
    what_cannot_be_delayed_is_held_and_counted,
    held_for_long_it_is_published_anew,
    loop_of_ones_own_pauses_while_the_store_is_away,
}

/// The loop of the example, in the background.
struct OwnLoop {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl OwnLoop {
    /// `url` is for the deliveries; the copies have a connection of their own.
    fn start<S: IdempotencyStore>(
        url: &str,
        queue: &str,
        guard: Guard<S>,
        handler: impl IdempotentHandler<S> + 'static,
        settler: DeliverySettler,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (url, queue) = (url.to_owned(), queue.to_owned());
        let task = tokio::spawn(async move {
            existing_loop::consume((&url, &queue), (&guard, &handler), &settler, stopped).await;
        });
        Self { stop, task }
    }

    async fn stop(self) {
        let _ = self.stop.send(true);
        timeout(DEADLINE, self.task).await.expect("stops in time").expect("loop");
    }
}

fn guard(ledger: &Ledger) -> Guard<SqliteStore> {
    Guard::new(ledger.store.clone(), Scope::new("ledger").expect("scope"))
}

/// A way to the broker, and how many frames of a kind went over it. Something happens to the first.
async fn counting(from: From, method: (u16, u16), first: Action) -> (Proxy, Arc<AtomicU32>) {
    let (proxy, count) = (Proxy::start(&broker()).await, Arc::new(AtomicU32::new(0)));
    let seen = Arc::clone(&count);
    proxy.rule(
        move |frame| {
            if frame.is(from, method) && seen.fetch_add(1, SeqCst) == 0 { first } else { Action::Pass }
        },
    );
    (proxy, count)
}

async fn counted(what: &str, count: &AtomicU32, least: u32) {
    eventually(what, async || (count.load(SeqCst) >= least).then_some(())).await;
}

fn settler(queue: &str) -> DeliverySettlerBuilder {
    DeliverySettler::builder(broker(), queue)
}

pub async fn parked_by_a_loop_of_ones_own_is_unparked() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("own-unpark").await;
    let parking = format!("{queue}.parked");
    for _ in 0..2 {
        client.publish(&queue, b"500", with_id("order-42")).await;
    }
    client.declare(&parking).await;
    let ledger = Ledger::create().await;
    let (proxy, acks) = counting(From::Client, method::BASIC_ACK, Action::Pass).await;
    let start = |handler| {
        let guard = guard(&ledger).max_attempts(2);
        let settler = settler(&queue).retry_delays(millis(30), millis(30)).build(&guard).expect("settler");
        OwnLoop::start(proxy.url(), &queue, guard, handler, settler)
    };
    let failing = start(Flaky::new(usize::MAX));
    wait_for_parked(&client, &queue, 2).await;
    failing.stop().await;
    let unparked = Unpark::new(broker(), &parking).run().await.expect("unpark");
    assert_eq!((unparked.moved, unparked.left, unparked.failed), (2, 0, 0));
    assert_eq!((client.ready(&queue).await, client.ready(&parking).await), (2, 0));
    let repaired = Flaky::new(0);
    let running = start(repaired.clone());
    // Two were delayed, two were parked, and two took effect or were duplicates.
    counted("both are acked", &acks, 6).await;
    running.stop().await;
    let message = &repaired.seen()[0].message;
    assert_eq!((message.failures(), message.is_replay()), (0, true), "it has all its attempts again");
    assert_eq!(message.routing_key(), queue);
    assert_eq!((repaired.seen().len(), ledger.rows().await), (1, (1, 1)), "one of two copies");
    assert_eq!((client.ready(&queue).await, client.ready(&parking).await), (0, 0));
    delete(&client, &queue, &[30]).await;
}

pub async fn delayed_by_a_loop_of_ones_own_comes_back_with_its_attempts() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("own-delayed").await;
    client.declare(&format!("{queue}.parked")).await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let (ledger, handler) = (Ledger::create().await, Flaky::new(usize::MAX));
    let guard = guard(&ledger).immediate_retries(1).max_attempts(7);
    let settler = settler(&queue).retry_delays(millis(60), millis(240)).build(&guard).expect("settler");
    let running = OwnLoop::start(&broker(), &queue, guard, handler.clone(), settler);
    wait_for_parked(&client, &queue, 1).await;
    running.stop().await;
    let seen = handler.seen();
    let failures: Vec<u32> = seen.iter().map(|seen| seen.message.failures()).collect();
    assert_eq!(failures, [0, 0, 2, 2, 4, 4, 6], "twice in each delivery, and once in the last");
    // A delay may take longer, never less.
    for (delivery, least) in [(1, 60), (2, 240), (3, 240)] {
        let delay = seen[2 * delivery].at - seen[2 * delivery - 1].at;
        assert!(delay >= millis(least), "{delay:?} before delivery {delivery}");
    }
    let parked = client.get(&format!("{queue}.parked")).await.expect("parked");
    assert_eq!(header(&parked, "x-idempotency-parked-attempts").as_deref(), Some("LongLongInt(7)"));
    assert_eq!(ledger.rows().await, (0, 0));
    delete(&client, &queue, &[60, 240]).await;
}

/// The properties of a copy: without times, and without the name of its queue.
fn told(copy: &BasicGetMessage, queue: &str) -> (BasicProperties, BTreeMap<String, String>) {
    let headers = copy.properties.headers().clone().unwrap_or_default();
    let told = headers.inner().iter().map(|(name, value)| {
        let value = match value {
            AMQPValue::Timestamp(_) => "a time".to_owned(),
            _ => header(copy, name.as_str()).unwrap_or_default().replace(queue, "<queue>"),
        };
        (name.to_string(), value)
    });
    (copy.properties.clone().with_headers(FieldTable::default()), told.collect())
}

pub async fn loop_of_ones_own_parks_the_same_copy_as_a_consumer() {
    let client = Client::connect(&broker()).await;
    let mut copies = Vec::new();
    for own in [false, true] {
        let queue = client.queue("own-same").await;
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("t-1".into()));
        let properties = with_id("order-42").with_headers(headers).with_expiration("60000".into());
        client.publish(&queue, b"500", properties.with_priority(3)).await;
        let (ledger, handler) = (Ledger::create().await, Flaky::new(usize::MAX));
        let delay = millis(30);
        if own {
            let guard = guard(&ledger).immediate_retries(1).max_attempts(3);
            let settler = settler(&queue).retry_delays(delay, delay).build(&guard).expect("settler");
            let (proxy, acks) = counting(From::Client, method::BASIC_ACK, Action::Pass).await;
            let running = OwnLoop::start(proxy.url(), &queue, guard, handler, settler);
            // Its parking queue is declared when it is needed.
            counted("it was delayed and parked", &acks, 2).await;
            running.stop().await;
        } else {
            let running = ledger.consume_with(&broker(), &queue, handler, |b| {
                b.immediate_retries(1).max_attempts(3).retry_delays(delay, delay)
            });
            wait_for_parked(&client, &queue, 1).await;
            running.stop().await;
        }
        let copy = client.get(&format!("{queue}.parked")).await.expect("parked");
        copies.push(told(&copy, &queue));
        delete(&client, &queue, &[30]).await;
    }
    assert_eq!(copies[0], copies[1]);
    assert!(copies[0].1.len() > 8, "{copies:?}");
}

/// The copy is confirmed, and the connection of the original ends before its ack: both come.
pub async fn ack_behind_a_copy_lost_one_effect() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("own-ack-lost").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let (proxy, acks) = counting(From::Client, method::BASIC_ACK, Action::CutBefore).await;
    let (ledger, handler) = (Ledger::create().await, Flaky::new(1));
    let guard = guard(&ledger);
    let settler = settler(&queue).retry_delays(millis(4000), millis(4000)).build(&guard).expect("settler");
    let running = OwnLoop::start(proxy.url(), &queue, guard, handler.clone(), settler);
    counted("the original and its copy are acked", &acks, 3).await;
    running.stop().await;
    let seen: Vec<_> = handler.seen().iter().map(|seen| seen.message.redelivered()).collect();
    assert_eq!(seen, [false, true], "the copy was a duplicate");
    assert_eq!((ledger.rows().await, client.ready(&queue).await), ((1, 1), 0));
    delete(&client, &queue, &[4000]).await;
}

/// Nothing is acked before the copy is confirmed; it is sent again, under the same ID.
pub async fn confirm_of_a_copy_lost_one_effect() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("own-confirm-lost").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let (proxy, confirms) = counting(From::Broker, method::BASIC_ACK, Action::CutBefore).await;
    let (loops, acks) = counting(From::Client, method::BASIC_ACK, Action::Pass).await;
    let (ledger, handler) = (Ledger::create().await, Flaky::new(1));
    let guard = guard(&ledger);
    let settler = DeliverySettler::builder(proxy.url(), &queue).retry_delays(millis(50), millis(50));
    let settler = settler.build(&guard).expect("settler");
    let running = OwnLoop::start(loops.url(), &queue, guard, handler.clone(), settler);
    counted("the original and two copies are acked", &acks, 3).await;
    running.stop().await;
    assert!(confirms.load(SeqCst) >= 2, "no confirm was lost");
    assert_eq!(handler.seen().len(), 2, "the second copy was a duplicate");
    assert_eq!((ledger.rows().await, client.ready(&queue).await), ((1, 1), 0));
    delete(&client, &queue, &[50]).await;
}

/// For more tries than the broker would let a message come back. Its handler does not run again.
pub async fn what_cannot_be_parked_is_held() {
    let (client, parking) = (Client::connect(&broker()).await, unique("own-parking"));
    let queue = client.queue_with("own-nowhere", limited(3)).await;
    client.publish(&queue, b"-500", with_id("order-42")).await;
    let (proxy, tries) = counting(From::Client, method::BASIC_PUBLISH, Action::Pass).await;
    let (ledger, handler) = (Ledger::create().await, Debit::default());
    let start = |handler| {
        let guard = guard(&ledger);
        let settler = DeliverySettler::builder(proxy.url(), &queue).parking("", parking.as_str());
        let settler = settler.build(&guard).expect("settler");
        OwnLoop::start(&broker(), &queue, guard, handler, settler)
    };
    let running = start(handler.clone());
    counted("it is tried again and again", &tries, 5).await;
    assert_eq!((client.ready(&queue).await, handler.runs()), (0, 1), "held, and rejected once");
    running.stop().await;
    eventually("it is back", async || (client.ready(&queue).await == 1).then_some(())).await;
    client.declare(&parking).await;
    let running = start(handler);
    eventually("it is parked", async || (client.ready(&parking).await == 1).then_some(())).await;
    running.stop().await;
    assert_eq!((client.ready(&queue).await, client.ready(&parking).await), (0, 1));
    client.delete(&queue).await;
    client.delete(&parking).await;
}

pub async fn what_cannot_be_delayed_is_held_and_counted() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("own-undeclarable").await;
    // Somebody else's, with other arguments.
    let taken = format!("{queue}.retry.40");
    client.declare(&taken).await;
    client.declare(&format!("{queue}.parked")).await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let (ledger, handler) = (Ledger::create().await, Flaky::new(usize::MAX));
    let guard = guard(&ledger).max_attempts(4);
    let settler = settler(&queue).retry_delays(millis(40), millis(40)).build(&guard).expect("settler");
    let proxy = Proxy::start(&broker()).await;
    let running = OwnLoop::start(proxy.url(), &queue, guard, handler.clone(), settler);
    eventually("it failed", async || (handler.seen().len() >= 2).then_some(())).await;
    // What was counted in the process is not lost with a connection of it.
    proxy.cut_all();
    wait_for_parked(&client, &queue, 1).await;
    running.stop().await;
    let failures: Vec<u32> = handler.seen().iter().map(|seen| seen.message.failures()).collect();
    assert!(
        failures.is_sorted() && failures.starts_with(&[0, 1]) && failures.ends_with(&[3]),
        "{failures:?}"
    );
    assert_eq!(client.ready(&taken).await, 0, "nothing was put where nobody brings it back");
    delete(&client, &queue, &[40]).await;
}

/// Before the broker takes it back, and counts that.
pub async fn held_for_long_it_is_published_anew() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("own-long", limited(3)).await;
    client.publish(&queue, b"500", BasicProperties::default()).await;
    let guard = Guard::new(MemoryStore::new(10), Scope::new("ledger").expect("scope"));
    let settler = settler(&queue).parking("", "test.no-such-queue").consumer_timeout(millis(1000));
    // On the connection of the deliveries: each is acked only for a copy.
    let (proxy, acks) = counting(From::Client, method::BASIC_ACK, Action::Pass).await;
    let settler = settler.build(&guard).expect("settler");
    let running = OwnLoop::start(proxy.url(), &queue, guard, Noting::default(), settler);
    counted("it was published anew", &acks, 2).await;
    running.stop().await;
    eventually("it is back", async || (client.ready(&queue).await == 1).then_some(())).await;
    let message = client.get(&queue).await.expect("message");
    assert_eq!(header(&message, "x-idempotency-original-queue"), Some(queue.clone()));
    client.delete(&queue).await;
}

/// Memory, unless it is away; when it was asked then.
#[derive(Clone)]
struct Absent {
    memory: MemoryStore,
    away: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl IdempotencyStore for Absent {
    type Session = Lease;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Lease>, StoreError> {
        if !self.away.load(SeqCst) {
            return self.memory.claim(requests).await;
        }
        self.asked.lock().expect("asked").push(Instant::now());
        Err(StoreErrorKind::Unavailable.into())
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

/// With many messages in the queue it is asked for one of them at a time, and left alone between.
pub async fn loop_of_ones_own_pauses_while_the_store_is_away() {
    const MESSAGES: usize = 20;
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("own-away", limited(3)).await;
    for n in 0..MESSAGES {
        client.publish(&queue, b"500", with_id(&format!("order-{n}"))).await;
    }
    let (away, asked) = (Arc::new(AtomicBool::new(true)), Arc::default());
    let store = Absent { memory: MemoryStore::new(100), away: Arc::clone(&away), asked: Arc::clone(&asked) };
    let guard = Guard::new(store, Scope::new("ledger").expect("scope"));
    let settler = settler(&queue).build(&guard).expect("settler");
    let handler = Noting::default();
    let running = OwnLoop::start(&broker(), &queue, guard, handler.clone(), settler);
    let times = || asked.lock().expect("asked").clone();
    eventually("it is asked again and again", async || (times().len() >= 5).then_some(())).await;
    assert_eq!((client.ready(&queue).await, handler.seen().len()), (0, 0), "held, and not handled");
    away.store(false, SeqCst);
    eventually("all are handled", async || (handler.seen().len() >= MESSAGES).then_some(())).await;
    running.stop().await;
    assert!(times().windows(2).all(|pair| pair[1] - pair[0] >= millis(900)), "{:?}", times());
    assert_eq!((client.ready(&queue).await, handler.seen().len()), (0, MESSAGES));
    client.delete(&queue).await;
}
