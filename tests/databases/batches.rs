//! Several messages in one transaction.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use lapin_idempotent::{
    Guard, HandlerError, HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, Outcome,
    idempotency::Scope, store::SqlStore,
};
use sqlx::{Postgres, Transaction};
use tokio::{sync::watch, time::timeout};

use super::{
    database::{
        Insert, Kind, Table, message,
        wire::{Cut, Wire},
    },
    support::{
        DEADLINE,
        amqp::{Client, header, with_id},
        broker, eventually,
    },
};

trials! {
    batch_is_one_transaction<Postgres, MySql, Sqlite>,
    duplicates_inside_a_batch_are_one_effect<Postgres, MySql, Sqlite>,
    one_poison_message_never_fails_its_neighbours<Postgres, MySql, Sqlite>,
    panic_in_a_batch_never_fails_its_neighbours<Postgres, MySql, Sqlite>,
    stuck_handler_is_ended_in_time<Postgres, MySql, Sqlite>,
    rival_of_one_message_does_not_hold_up_the_others<Postgres, MySql>,
    commit_of_a_batch_with_an_unknown_outcome_is_a_failure,
    consumers_handle_in_batches_and_ack_what_they_handled,
}

/// Writes effects; refuses poison, and counts how it was called.
#[derive(Clone)]
struct Picky {
    insert: Insert,
    batches: Arc<Mutex<Vec<usize>>>,
    singles: Arc<AtomicU32>,
    panics: bool,
}

impl Picky {
    fn new<K: Kind>(table: &Table<K>) -> Self {
        Self { insert: table.insert(), batches: Arc::default(), singles: Arc::default(), panics: false }
    }

    fn batches(&self) -> Vec<usize> {
        self.batches.lock().unwrap().clone()
    }
}

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Picky {
    async fn handle(&self, message: &IncomingMessage, tx: &mut Transaction<'static, K>) -> HandlerResult {
        self.singles.fetch_add(1, Ordering::SeqCst);
        let id = message.raw_message_id().unwrap_or_default();
        self.insert.write::<K>(id, tx).await?;
        assert!(!(self.panics && id.starts_with("poison")), "as the test wants");
        if id.starts_with("poison") { Err(HandlerError::reject("poison")) } else { Ok(()) }
    }

    async fn handle_batch(
        &self,
        messages: &[&IncomingMessage],
        tx: &mut Transaction<'static, K>,
    ) -> HandlerResult {
        self.batches.lock().unwrap().push(messages.len());
        for message in messages {
            IdempotentHandler::<SqlStore<K>>::handle(self, message, tx).await?;
        }
        Ok(())
    }
}

fn messages(ids: &[&str]) -> Vec<IncomingMessage> {
    ids.iter().map(|id| message(id)).collect()
}

fn names(outcomes: &[Outcome]) -> Vec<&'static str> {
    outcomes.iter().map(Outcome::name).collect()
}

pub async fn batch_is_one_transaction<K: Kind>() {
    let table = Table::<K>::create().await;
    let handler = Picky::new(&table);
    assert!(matches!(table.process("old").await, Outcome::Processed));
    let mut batch = messages(&["a", "old", "b", "c"]);
    batch.push(IncomingMessage::new("no ID"));
    batch.push(IncomingMessage::new("another body").with_message_id("old"));
    let outcomes = table.guard().process_batch(&batch, &handler).await;
    let expected = ["processed", "duplicate", "processed", "processed", "missing_id", "fingerprint_mismatch"];
    assert_eq!(names(&outcomes), expected);
    assert_eq!(handler.batches(), [3], "the new ones, at once");
    assert_eq!(handler.singles.load(Ordering::SeqCst), 3);
    assert_eq!(table.effects().await, (4, 4));
    let outcomes = table.guard().process_batch(&messages(&["c", "a"]), &handler).await;
    assert_eq!(names(&outcomes), ["duplicate", "duplicate"]);
    assert_eq!(handler.batches(), [3], "nothing was left to handle");
    assert!(table.guard().process_batch(&[], &handler).await.is_empty());
}

pub async fn duplicates_inside_a_batch_are_one_effect<K: Kind>() {
    let table = Table::<K>::create().await;
    let handler = Picky::new(&table);
    let mut batch = messages(&["a", "b", "a", "a"]);
    batch.push(IncomingMessage::new("another body").with_message_id("b"));
    let outcomes = table.guard().process_batch(&batch, &handler).await;
    let expected = ["processed", "processed", "duplicate", "duplicate", "fingerprint_mismatch"];
    assert_eq!(names(&outcomes), expected);
    assert_eq!(table.effects().await, (2, 2));
}

async fn poisoned<K: Kind>(panics: bool) {
    let table = Table::<K>::create().await;
    let handler = Picky { panics, ..Picky::new(&table) };
    let ids: Vec<String> =
        (0..64).map(|n| if n == 40 { "poison".to_owned() } else { format!("m{n}") }).collect();
    let batch = messages(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let outcomes = table.guard().process_batch(&batch, &handler).await;
    for (id, outcome) in ids.iter().zip(&outcomes) {
        let bad = if panics { "retry" } else { "reject" };
        assert_eq!(outcome.name(), if id == "poison" { bad } else { "processed" }, "{id}");
    }
    assert_eq!(handler.batches(), [64]);
    assert_eq!(table.effects().await, (63, 63), "the others, and each once");
}

pub async fn one_poison_message_never_fails_its_neighbours<K: Kind>() {
    poisoned::<K>(false).await;
}

pub async fn panic_in_a_batch_never_fails_its_neighbours<K: Kind>() {
    poisoned::<K>(true).await;
}

/// A handler that never ends for one message holds neither that one nor its neighbours up.
pub async fn stuck_handler_is_ended_in_time<K: Kind>() {
    let table = Table::<K>::create().await;
    let stuck = Insert { dawdle: DEADLINE * 10, ..table.insert() };
    let guard = table.guard().handler_timeout(Duration::from_millis(200));
    let outcomes =
        timeout(DEADLINE, guard.process_batch(&messages(&["a", "b"]), &stuck)).await.expect("in time");
    assert_eq!(names(&outcomes), ["retry", "retry"]);
    assert_eq!(table.effects().await, (0, 0));
    let outcomes = guard.process_batch(&messages(&["a", "b"]), &table.insert()).await;
    assert_eq!(names(&outcomes), ["processed", "processed"]);
    assert_eq!(table.effects().await, (2, 2));
}

async fn cut(cut: Cut) -> (Vec<&'static str>, Table<Postgres>) {
    let table = Table::<Postgres>::create().await;
    let wire = Wire::start(&table.url, cut, Arc::new(AtomicBool::new(true))).await;
    let through = Table::<Postgres>::open(&wire.through(&table.url), &table.name, &table.effects).await;
    let guard = Guard::new(through.store.clone(), Scope::new("test").unwrap());
    let batch = messages(&["a", "b", "a"]);
    let outcomes = guard.process_batch(&batch, &Picky::new(&through)).await;
    assert_eq!(names(&outcomes), ["store_unavailable"; 3], "unknown is not done");
    assert_eq!(wire.fired(), 1);
    (names(&guard.process_batch(&batch, &Picky::new(&through)).await), table)
}

pub async fn commit_of_a_batch_with_an_unknown_outcome_is_a_failure() {
    let (again, table) = cut(Cut::Before).await;
    assert_eq!(again, ["processed", "processed", "duplicate"]);
    assert_eq!(table.effects().await, (2, 2));
    let (again, table) = cut(Cut::After).await;
    assert_eq!(again, ["duplicate", "duplicate", "duplicate"]);
    assert_eq!(table.effects().await, (2, 2));
}

/// A message that a rival has in its hands keeps only itself waiting.
pub async fn rival_of_one_message_does_not_hold_up_the_others<K: Kind>() {
    let table = Table::<K>::create().await;
    let slow = Insert { dawdle: Duration::from_secs(4), ..table.insert() };
    let (guard, runs) = (table.guard(), Arc::clone(&slow.runs));
    let rival = tokio::spawn(async move { guard.process(&message("c"), &slow).await.name() });
    eventually("the rival is in its handler", async || (runs.load(Ordering::SeqCst) > 0).then_some(())).await;
    let store = table.again().await.store.lock_timeout(Duration::from_secs(1));
    let guard = Guard::new(store, Scope::new("test").unwrap());
    let outcomes = guard.process_batch(&messages(&["a", "b", "c", "d"]), &Picky::new(&table)).await;
    assert_eq!(names(&outcomes), ["processed", "processed", "in_progress", "processed"]);
    assert_eq!(rival.await.expect("rival"), "processed");
    assert_eq!(table.effects().await, (4, 4));
}

/// 1,000 messages, some of them twice or poison, in batches and by several workers, under two
/// consumers.
pub async fn consumers_handle_in_batches_and_ack_what_they_handled() {
    const MESSAGES: i64 = 1000;
    let table = Table::<Postgres>::create().await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("batches").await;
    let parked = format!("{queue}.parked");
    for n in 0..MESSAGES {
        let id = if n % 250 == 100 { format!("poison{n}") } else { format!("m{n}") };
        for _ in 0..if n % 10 == 0 { 2 } else { 1 } {
            client.publish(&queue, id.as_bytes(), with_id(&id)).await;
        }
    }
    let (stop, stopped) = watch::channel(false);
    let handler = Picky::new(&table);
    let consumers: Vec<_> = (0..2)
        .map(|_| {
            let consumer = IdempotentConsumer::builder(broker(), &queue, table.store.clone());
            let consumer = consumer.scope("test").prefetch(200).batch(64).workers(2);
            let (handler, mut stopped) = (handler.clone(), stopped.clone());
            let shutdown = async move { drop(stopped.wait_for(|stop| *stop).await) };
            tokio::spawn(async move { consumer.run_until(handler, shutdown).await })
        })
        .collect();
    eventually("all are handled", async || (table.effects().await.1 == MESSAGES - 4).then_some(())).await;
    // The poison is parked as often as it was published: a message that was never completed is no
    // duplicate.
    eventually("the poison is parked", async || (client.ready(&parked).await == 8).then_some(())).await;
    stop.send(true).expect("running");
    for consumer in consumers {
        timeout(DEADLINE, consumer).await.expect("stops").expect("task").expect("consumer");
    }
    assert_eq!(table.effects().await, (MESSAGES - 4, MESSAGES - 4), "none lost, none twice");
    assert_eq!(client.ready(&queue).await, 0, "all are acked");
    let largest = handler.batches().into_iter().max().unwrap_or_default();
    assert!((2..=64).contains(&largest), "{largest}");
    let message = client.get(&parked).await.expect("parked");
    assert_eq!(header(&message, "x-idempotency-parked-reason").as_deref(), Some("rejected"));
    client.delete(&queue).await;
    client.delete(&parked).await;
}
