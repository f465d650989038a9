//! The delivery limit of quorum queues: what is not a message's own failure never spends it, and
//! what comes near it is published anew.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join_all;
use lapin::{
    options::{BasicGetOptions, BasicRejectOptions},
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IncomingMessage, MemoryStore,
    consumer::ConsumerState,
    idempotency::{ClaimRequest, Claims, Lease, StoreError, StoreErrorKind},
};

use super::{
    redelivery::{Flaky, delete, millis, wait_for_parked},
    support::{
        amqp::{Client, header, with_id},
        broker,
        consumer::Running,
        eventually,
        ledger::{Debit, Ledger},
        unique,
    },
};

trials! {
    conflicts_before_the_handler_ran_are_not_its_failures,
    deleted_parking_queue_is_declared_anew,
    failing_message_that_cannot_be_delayed_is_parked_after_its_attempts,
    held_failures_do_not_spend_the_limit,
    identity_that_is_busy_elsewhere_loses_and_parks_nothing,
    lease_whose_owner_died_is_waited_for,
    message_near_the_limit_is_published_anew,
    message_that_cannot_be_parked_is_held_until_it_can_be,
    store_that_hangs_loses_and_parks_nothing,
    store_that_is_away_loses_and_parks_nothing,
}

/// Those of quorum queues that are tried.
pub(super) const LIMITS: [i64; 3] = [2, 5, 20];

pub(super) fn limited(limit: i64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
    arguments
}

/// The limit as a consumer is told it.
pub(super) fn told(limit: i64) -> u32 {
    limit.try_into().expect("not negative")
}

/// How a store is away.
#[derive(Debug, Clone, Copy)]
enum Away {
    /// It answers at once that it cannot.
    Refuses,
    /// It answers late that it cannot.
    Hangs,
    /// Somebody has the lease who does not come back.
    Leased,
    /// A rival's transaction stands in the way each time.
    Contended,
}

/// Memory, unless it is away.
#[derive(Clone)]
struct Unreliable {
    memory: MemoryStore,
    away: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    how: Away,
}

impl IdempotencyStore for Unreliable {
    type Session = Lease;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Lease>, StoreError> {
        if !self.away.load(SeqCst) {
            return self.memory.claim(requests).await;
        }
        self.asked.fetch_add(1, SeqCst);
        match self.how {
            Away::Refuses => Err(StoreErrorKind::Unavailable.into()),
            Away::Hangs => {
                tokio::time::sleep(millis(500)).await;
                Err(StoreErrorKind::Unavailable.into())
            }
            Away::Leased => Err(StoreErrorKind::Busy.into()),
            Away::Contended => Err(StoreErrorKind::Conflict.into()),
        }
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

/// Notes what it was given.
#[derive(Clone, Default)]
pub(super) struct Noting(Arc<Mutex<Vec<IncomingMessage>>>);

impl Noting {
    pub(super) fn seen(&self) -> Vec<IncomingMessage> {
        self.0.lock().expect("seen").clone()
    }
}

impl<S: IdempotencyStore> IdempotentHandler<S> for Noting {
    async fn handle(&self, message: &IncomingMessage, _: &mut S::Session) -> HandlerResult {
        self.0.lock().expect("seen").push(message.clone());
        Ok(())
    }
}

/// For as long as so many claims take, of one message or of the store itself; `AWAY_CLAIMS` says
/// another number.
fn claims() -> u32 {
    std::env::var("AWAY_CLAIMS").ok().and_then(|claims| claims.parse().ok()).unwrap_or(12)
}

async fn away_once(limit: i64, how: Away) {
    const MESSAGES: usize = 5;
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("away", limited(limit)).await;
    for n in 0..MESSAGES {
        client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
    }
    let memory = MemoryStore::new(100);
    let store = Unreliable { memory, away: Arc::new(true.into()), asked: Arc::default(), how };
    let handler = Noting::default();
    let builder = IdempotentConsumer::builder(broker(), &queue, store.clone()).delivery_limit(told(limit));
    // What counted as a run of the handler would be parked at once.
    let consumer = Running::start(builder.max_attempts(1), handler.clone());
    let enough = match how {
        // Each message asks for itself.
        Away::Leased | Away::Contended => claims() * u32::try_from(MESSAGES).unwrap(),
        Away::Refuses | Away::Hangs => claims(),
    };
    let deadline = tokio::time::Instant::now() + Duration::from_secs(600);
    while store.asked.load(SeqCst) < enough {
        assert!(tokio::time::Instant::now() < deadline, "{limit} {how:?}: it asks again and again");
        tokio::time::sleep(millis(20)).await;
    }
    assert!(handler.seen().is_empty(), "{limit} {how:?}");
    let monitor = consumer.monitor.clone();
    match how {
        Away::Leased | Away::Contended => assert_eq!(monitor.status().state, ConsumerState::Consuming),
        Away::Refuses | Away::Hangs => assert_eq!(monitor.status().state, ConsumerState::StoreAway),
    }
    store.away.store(false, SeqCst);
    eventually("all are handled", async || (handler.seen().len() == MESSAGES).then_some(())).await;
    let outcomes = consumer.decided(MESSAGES).await;
    consumer.stop().await;
    assert!(!outcomes.contains(&"retry"), "{limit} {how:?}: {outcomes:?}");
    assert!(handler.seen().iter().all(|message| message.failures() == 0), "{limit} {how:?}");
    let counts: Vec<_> = handler.seen().iter().map(IncomingMessage::delivery_count).collect();
    assert!(counts.iter().all(|count| count.unwrap_or_default() <= 1), "{limit} {how:?}: {counts:?}");
    let ids: Vec<_> =
        handler.seen().iter().map(|message| message.raw_message_id().map(str::to_owned)).collect();
    if !matches!(how, Away::Leased | Away::Contended) {
        let expected: Vec<_> = (0..MESSAGES).map(|n| Some(format!("m{n}"))).collect();
        assert_eq!(ids, expected, "in the order of the queue");
    }
    assert_eq!(client.ready(&queue).await + client.ready(&format!("{queue}.parked")).await, 0);
    delete(&client, &queue, &[]).await;
}

pub async fn store_that_is_away_loses_and_parks_nothing() {
    join_all(LIMITS.map(|limit| away_once(limit, Away::Refuses))).await;
}

pub async fn store_that_hangs_loses_and_parks_nothing() {
    join_all(LIMITS.map(|limit| away_once(limit, Away::Hangs))).await;
}

pub async fn identity_that_is_busy_elsewhere_loses_and_parks_nothing() {
    join_all(LIMITS.map(|limit| away_once(limit, Away::Leased))).await;
}

/// What stands in the way before the handler ran is none of its failures, however often.
pub async fn conflicts_before_the_handler_ran_are_not_its_failures() {
    join_all(LIMITS.map(|limit| away_once(limit, Away::Contended))).await;
}

/// The owner has a lease of half a minute and dies: longer than two returns would take.
pub async fn lease_whose_owner_died_is_waited_for() {
    let one = async |limit: i64| {
        let client = Client::connect(&broker()).await;
        let queue = client.queue_with("leased", limited(limit)).await;
        let memory = MemoryStore::new(100).lease(Duration::from_secs(35));
        let request = ClaimRequest::new(
            lapin_idempotent::Scope::new("ledger").unwrap(),
            lapin_idempotent::MessageId::new("order-42").unwrap(),
            lapin_idempotent::message::Fingerprint::of(b"500"),
        );
        // Neither completed nor released nor renewed.
        drop(memory.claim(&[request]).await.expect("claim"));
        client.publish(&queue, b"500", with_id("order-42")).await;
        let handler = Noting::default();
        let builder = IdempotentConsumer::builder(broker(), &queue, memory).scope("ledger");
        let consumer = Running::start(builder.delivery_limit(told(limit)), handler.clone());
        eventually("it is handled", async || (handler.seen().len() == 1).then_some(())).await;
        let outcomes = consumer.decided(3).await;
        consumer.stop().await;
        assert!(outcomes.len() >= 4, "it was asked for again and again: {outcomes:?}");
        assert_eq!((outcomes[0], outcomes.last()), ("in_progress", Some(&"processed")));
        assert_eq!(handler.seen()[0].delivery_count(), None, "never given back");
        delete(&client, &queue, &[]).await;
    };
    join_all(LIMITS.map(one)).await;
}

/// What comes near the limit is published anew, and its count with it.
pub async fn message_near_the_limit_is_published_anew() {
    for (limit, threshold) in [(2, 1), (5, 3), (20, 10)] {
        let client = Client::connect(&broker()).await;
        let queue = client.queue_with("near", limited(limit)).await;
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("t-1".into()));
        client.publish(&queue, b"500", with_id("order-42").with_headers(headers)).await;
        // Another client that gives it back: `basic.reject` counts on every version.
        for _ in 0..threshold {
            let got = eventually("it is there", async || {
                client
                    .channel
                    .basic_get(queue.as_str().into(), BasicGetOptions::default())
                    .await
                    .expect("get")
            })
            .await;
            got.reject(BasicRejectOptions { requeue: true }).await.expect("reject");
        }
        let ledger = Ledger::create().await;
        let handler = Flaky::new(0);
        let consumer =
            ledger.consume_with(&broker(), &queue, handler.clone(), |b| b.delivery_limit(told(limit)));
        let monitor = consumer.monitor.clone();
        eventually("the effect", async || (ledger.rows().await == (1, 1)).then_some(())).await;
        consumer.stop().await;
        assert!(monitor.status().moved >= 1, "{limit}");
        let message = &handler.seen()[0].message;
        assert_eq!((message.delivery_count(), message.redelivered()), (None, false), "{limit}: a copy");
        assert_eq!(
            message.header("x-idempotency-deliveries").and_then(|count| count.as_i64()),
            Some(threshold)
        );
        assert_eq!(message.routing_key(), queue);
        assert_eq!(message.header("tenant").and_then(|tenant| tenant.as_str()), Some("t-1"));
        assert_eq!(client.ready(&queue).await, 0);
        delete(&client, &queue, &[]).await;
    }
}

/// A handler that always fails, where its messages cannot be delayed: as many runs as are allowed,
/// and then it is parked.
pub async fn failing_message_that_cannot_be_delayed_is_parked_after_its_attempts() {
    let mut kinds = vec![FieldTable::default()];
    kinds.extend(LIMITS.map(limited));
    join_all(kinds.into_iter().enumerate().map(|(n, arguments)| async move {
        let client = Client::connect(&broker()).await;
        let queue = client.queue_with("undelayed", arguments).await;
        // Somebody else's, with other arguments: declaring it fails.
        let name = format!("{queue}.retry.30");
        client.declare(&name).await;
        client.publish(&queue, b"500", with_id("order-42")).await;
        client.publish(&queue, b"501", with_id("order-43")).await;
        let ledger = Ledger::create().await;
        let handler = Flaky::new(usize::MAX);
        let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
            let b = b.batch(1).immediate_retries(1).max_attempts(25).retry_delays(millis(30), millis(30));
            b.delivery_limit(if n == 0 { None } else { Some(told(LIMITS[n - 1])) })
        });
        let monitor = consumer.monitor.clone();
        wait_for_parked(&client, &queue, 2).await;
        consumer.stop().await;
        assert_eq!(handler.seen().len(), 50, "no more runs than that");
        let error = monitor.status().last_error.expect("an error");
        assert!(error.contains("PRECONDITION_FAILED"), "{error}");
        let parked = client.get(&format!("{queue}.parked")).await.expect("parked");
        assert_eq!(header(&parked, "x-idempotency-parked-attempts").as_deref(), Some("LongLongInt(25)"));
        assert_eq!(client.ready(&name).await, 0, "nothing was put where nobody brings it back");
        delete(&client, &queue, &[30]).await;
    }))
    .await;
}

/// Held by the consumer itself: more failures than the limit would take.
pub async fn held_failures_do_not_spend_the_limit() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("held-failures", limited(5)).await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let handler = Flaky::new(30);
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |b| {
        b.redelivery(lapin_idempotent::consumer::Redelivery::Held)
            .delivery_limit(5)
            .immediate_retries(0)
            .max_attempts(100)
            .retry_delays(millis(5), millis(5))
    });
    eventually("the effect", async || (ledger.rows().await == (1, 1)).then_some(())).await;
    consumer.stop().await;
    let seen = handler.seen();
    assert_eq!(seen.len(), 31);
    assert_eq!(seen[30].message.failures(), 30);
    assert_eq!(seen[30].message.delivery_count(), None);
    delete(&client, &queue, &[]).await;
}

/// The parking queue is full, and later it is not.
pub async fn message_that_cannot_be_parked_is_held_until_it_can_be() {
    join_all(LIMITS.map(|limit| async move {
        let client = Client::connect(&broker()).await;
        let queue = unique("unparkable");
        let mut full = FieldTable::default();
        full.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
        full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let parking = format!("{queue}.parked");
        client.declare_as(&queue, limited(limit)).await;
        client.declare_as(&parking, full).await;
        client.publish(&queue, b"-1", with_id("bad")).await;
        client.publish(&queue, b"500", with_id("good")).await;
        let ledger = Ledger::create().await;
        let handler = Debit::default();
        let consumer = ledger
            .consume_with(&broker(), &queue, handler.clone(), |b| b.batch(1).delivery_limit(told(limit)));
        let monitor = consumer.monitor.clone();
        eventually("it cannot be parked", async || {
            let status = monitor.status();
            (status.held == 1 && status.last_error.is_some()).then_some(())
        })
        .await;
        eventually("its neighbour", async || (ledger.rows().await == (1, 1)).then_some(())).await;
        // Somebody repairs it: the queue is deleted, and the consumer declares one.
        client.delete(&parking).await;
        eventually("it is parked", async || {
            // Asking for a queue that is not there would close the channel.
            (monitor.status().parked.get("rejected") == Some(&1)).then_some(())
        })
        .await;
        consumer.stop().await;
        assert_eq!((client.ready(&queue).await, client.ready(&parking).await), (0, 1));
        assert_eq!(handler.runs(), 2, "parked without another run");
        delete(&client, &queue, &[]).await;
    }))
    .await;
}

pub async fn deleted_parking_queue_is_declared_anew() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("parking-deleted", limited(2)).await;
    let ledger = Ledger::create().await;
    let consumer = ledger.consume(&broker(), &queue, Debit::default());
    client.publish(&queue, b"-1", with_id("a")).await;
    wait_for_parked(&client, &queue, 1).await;
    client.delete(&format!("{queue}.parked")).await;
    client.publish(&queue, b"-1", with_id("b")).await;
    eventually("it is parked", async || {
        // Asking for a queue that is not there would close the channel.
        (consumer.monitor.status().parked.get("rejected") == Some(&2)).then_some(())
    })
    .await;
    consumer.stop().await;
    assert_eq!(client.ready(&format!("{queue}.parked")).await, 1);
    delete(&client, &queue, &[]).await;
}
