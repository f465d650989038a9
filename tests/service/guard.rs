//! What the guard and its consumer do with one message.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IncomingMessage,
    MemoryStore, SqliteStore,
    idempotency::{KeySource, Lease, MismatchPolicy, MissingIdPolicy},
    store::SqliteTransaction,
};

use super::support::{
    amqp::{Client, header, with_id},
    broker,
    consumer::Running,
    eventually,
    ledger::{Debit, Ledger},
};

trials! {
    panics_in_a_key_source_and_an_observer_end_no_consumer,
    panics_that_a_handler_leaves_behind_end_no_consumer,
    handler_fails_then_succeeds_one_effect,
    same_id_with_another_body_is_a_duplicate_if_wanted,
    two_scopes_one_id_two_effects,
    key_from_a_json_pointer,
    handler_in_a_consumer_knows_the_identity,
    missing_id_derived_from_content,
    missing_id_handled_unguarded,
    shutdown_finishes_what_is_in_hand_and_leaves_the_rest,
    stuck_handler_is_given_up_after_the_drain_timeout,
    panicking_handler_counts_as_a_failed_attempt,
}

fn soon() -> (Duration, Duration) {
    (Duration::from_millis(20), Duration::from_millis(100))
}

pub async fn handler_fails_then_succeeds_one_effect() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("fails-first").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let handler = Debit { fail_first: 2, ..Debit::default() };
    let consumer =
        ledger.consume_with(&broker(), &queue, handler.clone(), |b| b.retry_delays(soon().0, soon().1));
    eventually("the effect", async || (ledger.rows().await.0 > 0).then_some(())).await;
    consumer.stop().await;
    assert_eq!(handler.runs(), 3);
    assert_eq!(ledger.rows().await, (1, 1), "the failed runs left nothing behind");
    assert_eq!(client.ready(&queue).await, 0);
    client.delete(&queue).await;
}

pub async fn same_id_with_another_body_is_a_duplicate_if_wanted() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("mismatch-duplicate").await;
    for body in ["500", "700", "500"] {
        client.publish(&queue, body.as_bytes(), with_id("order-42")).await;
    }
    let ledger = Ledger::create().await;
    let consumer = ledger.consume_with(&broker(), &queue, Debit::default(), |b| {
        b.fingerprint_mismatch(MismatchPolicy::Duplicate)
    });
    let monitor = consumer.monitor.clone();
    assert_eq!(consumer.decided(3).await, ["processed", "duplicate", "duplicate"]);
    consumer.stop().await;
    assert_eq!(
        monitor.status().duplicates.into_iter().collect::<Vec<_>>(),
        [("id_reuse", 1), ("republished", 1)]
    );
    assert_eq!((ledger.rows().await, ledger.sum().await), ((1, 1), 500), "the first one counts");
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}

pub async fn two_scopes_one_id_two_effects() {
    let client = Client::connect(&broker()).await;
    let ledger = Ledger::create().await;
    let mut queues = Vec::new();
    for scope in ["ledger", "statistics"] {
        let queue = client.queue(scope).await;
        for _ in 0..2 {
            client.publish(&queue, b"500", with_id("order-42")).await;
        }
        let consumer = ledger.consume_with(&broker(), &queue, Debit::default(), |b| b.scope(scope));
        queues.push((queue, consumer));
    }
    for (queue, consumer) in queues {
        assert_eq!(consumer.decided(2).await, ["processed", "duplicate"]);
        consumer.stop().await;
        client.delete(&queue).await;
    }
    assert_eq!(ledger.rows().await, (2, 1));
}

/// Counts its runs; for messages whose body is no amount.
#[derive(Clone, Default)]
struct Count(Arc<AtomicU32>);

impl IdempotentHandler<MemoryStore> for Count {
    async fn handle(&self, _: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

pub async fn key_from_a_json_pointer() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("pointer").await;
    let parked = format!("{queue}.parked");
    for body in [r#"{"order":{"id":1}}"#, r#"{"order":{"id":1}}"#, r#"{"order":{"id":2}}"#, r#"{"order":{}}"#]
    {
        client.publish(&queue, body.as_bytes(), BasicProperties::default()).await;
    }
    let count = Count::default();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let consumer = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100))
        .key(KeySource::json_pointers(["/order/id"]))
        .run_until(count.clone(), async { stopped.await.unwrap_or_default() });
    let consumer = tokio::spawn(consumer);
    eventually("the last is parked", async || {
        (client.ready(&queue).await == 0 && count.0.load(Ordering::SeqCst) == 2).then_some(())
    })
    .await;
    eventually("the last is parked", async || (client.ready(&parked).await == 1).then_some(())).await;
    drop(stop);
    consumer.await.expect("join").expect("consumer");
    assert_eq!(count.0.load(Ordering::SeqCst), 2, "one effect per order");
    let message = client.get(&parked).await.expect("parked");
    assert_eq!(header(&message, "x-idempotency-parked-reason").as_deref(), Some("missing-id"));
    client.delete(&queue).await;
    client.delete(&parked).await;
}

/// Notes under which identity each message takes effect.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<(String, String)>>>);

impl<S: IdempotencyStore> IdempotentHandler<S> for Notes {
    async fn handle(&self, message: &IncomingMessage, _: &mut S::Session) -> HandlerResult {
        let identity = message.identity().expect("a guard calls this");
        assert_eq!(message.effect_key("charge"), Some(identity.effect_key("charge")));
        let (scope, id) = (identity.scope().to_string(), identity.message_id().as_str().to_owned());
        self.0.lock().unwrap().push((scope, id));
        Ok(())
    }
}

/// One by one through leases, asked for together, and in the batches of a store with transactions.
pub async fn handler_in_a_consumer_knows_the_identity() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("identity").await;
    let ids: Vec<String> = (0..20).map(|order| format!("order-{order}")).collect();
    let publish = async || {
        for id in &ids {
            let properties = with_id(&format!("message-of-{id}")).with_headers({
                let mut headers = FieldTable::default();
                headers.insert("order".into(), AMQPValue::LongString(id.as_str().into()));
                headers
            });
            client.publish(&queue, b"500", properties).await;
        }
    };
    let expected: Vec<_> = ids.iter().map(|id| ("billing".to_owned(), id.clone())).collect();
    let noted = |notes: &Notes| {
        let mut noted = notes.0.lock().unwrap().clone();
        noted.sort_by_key(|(_, id)| id.trim_start_matches("order-").parse::<u32>().unwrap());
        noted
    };

    publish().await;
    let leased = Notes::default();
    let builder = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100)).workers(4);
    let consumer = Running::start(builder.scope("billing").key(KeySource::header("order")), leased.clone());
    assert_eq!(consumer.decided(ids.len()).await, vec!["processed"; ids.len()]);
    consumer.stop().await;
    assert_eq!(noted(&leased), expected);

    publish().await;
    let batched = Notes::default();
    let ledger = Ledger::create().await;
    let consumer = ledger.consume_with(&broker(), &queue, batched.clone(), |b| {
        b.scope("billing").key(KeySource::header("order"))
    });
    assert_eq!(consumer.decided(ids.len()).await, vec!["processed"; ids.len()]);
    consumer.stop().await;
    assert_eq!(noted(&batched), expected);
    client.delete(&queue).await;
}

async fn without_ids(policy: MissingIdPolicy) -> (i64, i64) {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("no-id").await;
    for body in ["1", "1", "2"] {
        client.publish(&queue, body.as_bytes(), BasicProperties::default()).await;
    }
    let ledger = Ledger::create().await;
    let consumer = ledger.consume_with(&broker(), &queue, Debit::default(), |b| b.missing_id(policy));
    consumer.decided(3).await;
    consumer.stop().await;
    assert_eq!(client.ready(&queue).await, 0);
    client.delete(&queue).await;
    (ledger.rows().await.0, ledger.sum().await)
}

pub async fn missing_id_derived_from_content() {
    assert_eq!(without_ids(MissingIdPolicy::DeriveFromContent).await, (2, 3), "equal bodies are one message");
}

pub async fn missing_id_handled_unguarded() {
    assert_eq!(without_ids(MissingIdPolicy::HandleUnguarded).await, (3, 4), "every delivery is handled");
}

pub async fn shutdown_finishes_what_is_in_hand_and_leaves_the_rest() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("shutdown").await;
    for n in 0..10 {
        client.publish(&queue, b"1", with_id(&format!("order-{n}"))).await;
    }
    let ledger = Ledger::create().await;
    let handler = Debit { dawdle: Duration::from_millis(500), ..Debit::default() };
    let consumer = ledger.consume(&broker(), &queue, handler.clone());
    eventually("a handler runs", async || (handler.runs() == 1).then_some(())).await;
    consumer.stop().await;
    assert_eq!(handler.runs(), 1, "nothing else was started");
    assert_eq!(ledger.rows().await.0, 1, "what was in hand is done");
    eventually("the rest is back", async || (client.ready(&queue).await == 9).then_some(())).await;
    client.delete(&queue).await;
}

pub async fn stuck_handler_is_given_up_after_the_drain_timeout() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("stuck").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let stuck = Debit { dawdle: Duration::from_secs(3600), ..Debit::default() };
    let limit = Duration::from_millis(500);
    let consumer = ledger.consume_with(&broker(), &queue, stuck.clone(), |b| b.drain_timeout(limit));
    eventually("a handler runs", async || (stuck.runs() == 1).then_some(())).await;
    // Well before the default of half a minute.
    tokio::time::timeout(limit * 30, consumer.stop()).await.expect("the limit holds");
    assert_eq!(ledger.rows().await, (0, 0), "it was rolled back");
    eventually("the message is back", async || (client.ready(&queue).await == 1).then_some(())).await;
    let successor = ledger.consume(&broker(), &queue, Debit::default());
    assert_eq!(successor.decided(1).await, ["processed"]);
    successor.stop().await;
    assert_eq!(ledger.rows().await, (1, 1));
    assert_eq!((stuck.runs(), client.ready(&queue).await), (1, 0));
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}

/// Panics at its first run.
#[derive(Clone, Default)]
struct Panics(Count);

impl IdempotentHandler<MemoryStore> for Panics {
    async fn handle(&self, _: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        assert!(self.0.0.fetch_add(1, Ordering::SeqCst) > 0, "the first run panics on purpose");
        Ok(())
    }
}

pub async fn panicking_handler_counts_as_a_failed_attempt() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("panics").await;
    client.publish(&queue, b"x", with_id("order-42")).await;
    let handler = Panics::default();
    let runs = Arc::clone(&handler.0.0);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let consumer = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100))
        .run_until(handler, async { stopped.await.unwrap_or_default() });
    let consumer = tokio::spawn(consumer);
    eventually("the second run", async || (runs.load(Ordering::SeqCst) == 2).then_some(())).await;
    drop(stop);
    consumer.await.expect("join").expect("consumer");
    assert_eq!(client.ready(&queue).await, 0);
    client.delete(&queue).await;
}

/// A key source that panics makes its message one without a usable ID; an observer that panics
/// changes nothing.
pub async fn panics_in_a_key_source_and_an_observer_end_no_consumer() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("panicking").await;
    client.publish(&queue, b"bad", with_id("bad")).await;
    client.publish(&queue, b"500", with_id("good")).await;
    let ledger = Ledger::create().await;
    let key = KeySource::from_fn(|message| {
        assert!(message.body().as_ref() != b"bad", "the key source panics on purpose");
        Ok(message.id()?)
    });
    let consumer = ledger.consume_with(&broker(), &queue, Debit::default(), |builder| {
        builder.key(key).on_outcome(|_, _| panic!("the observer panics on purpose"))
    });
    let parking = format!("{queue}.parked");
    eventually("both are decided", async || {
        (ledger.rows().await == (1, 1) && client.ready(&queue).await == 0).then_some(())
    })
    .await;
    consumer.stop().await;
    let parked = client.get(&parking).await.expect("parked");
    assert_eq!(header(&parked, "x-idempotency-parked-reason").as_deref(), Some("invalid-id"));
    assert!(
        header(&parked, "x-idempotency-parked-error").expect("error").contains("the key source panicked")
    );
    client.delete(&queue).await;
    client.delete(&parking).await;
}

/// Leaves a panic behind: in its error, or in what is dropped with it.
struct LeavesPanics;

#[derive(Debug)]
struct Untold;

impl fmt::Display for Untold {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("it cannot be told, on purpose")
    }
}

impl std::error::Error for Untold {}

struct Dropped;

impl Drop for Dropped {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "it cannot be dropped, on purpose");
    }
}

impl IdempotentHandler<SqliteStore> for LeavesPanics {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        match &message.body()[..] {
            b"untold" => Err(HandlerError::reject(Untold)),
            b"thrown" => std::panic::panic_any(Dropped),
            b"late" => {
                let _dropped = Dropped;
                std::future::pending().await
            }
            _ => Debit::default().handle(message, tx).await,
        }
    }
}

pub async fn panics_that_a_handler_leaves_behind_end_no_consumer() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("leaves-panics").await;
    let bad = ["untold", "thrown", "late"];
    for body in bad {
        client.publish(&queue, body.as_bytes(), with_id(body)).await;
    }
    client.publish(&queue, b"500", with_id("good")).await;
    let ledger = Ledger::create().await;
    let consumer = ledger.consume_with(&broker(), &queue, LeavesPanics, |builder| {
        builder.max_attempts(1).handler_timeout(Duration::from_millis(200))
    });
    let parking = format!("{queue}.parked");
    eventually("all are decided", async || {
        (ledger.rows().await == (1, 1) && client.ready(&queue).await == 0).then_some(())
    })
    .await;
    consumer.stop().await;
    let mut said = Vec::new();
    while let Some(parked) = client.get(&parking).await {
        said.push(header(&parked, "x-idempotency-parked-error").expect("error"));
    }
    assert_eq!(said.len(), bad.len(), "{said:?}");
    for part in
        ["the handler's error panicked: it cannot", "the handler panicked: no text", "it cannot be dropped"]
    {
        assert!(said.iter().any(|said| said.contains(part)), "{part}: {said:?}");
    }
    client.delete(&queue).await;
    client.delete(&parking).await;
}
