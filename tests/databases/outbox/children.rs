//! Consume, effect and publish in one commit: messages that a handler enqueues in its transaction.

use std::{
    collections::BTreeSet,
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lapin_idempotent::{
    Guard, HandlerError, HandlerResult, IdempotentHandler, IdempotentPublisher, IncomingMessage, MessageId,
    Outcome, OutgoingMessage, Publish, PublishError, Receipt, Scope,
    outbox::{Listen, Relay},
    store::{SqlOutbox, SqlStore},
    testing::MemoryPublisher,
};
use sqlx::Transaction;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Boxed, Kind, short,
    support::{
        DEADLINE,
        amqp::{Client, with_id},
        broker,
        consumer::Running,
        eventually,
    },
};
use crate::databases::{
    consuming,
    database::{
        Insert, Table, message,
        wire::{Cut, Wire},
    },
};

trials! {
    effect_and_children_are_committed_together<Postgres, MySql, Sqlite>,
    handler_fails_after_enqueue_nothing_is_sent<Postgres, MySql, Sqlite>,
    commit_unknown_children_exactly_if_identity<Postgres, MySql>,
    children_of_a_batch_with_one_bad_message<Postgres, MySql, Sqlite>,
    duplicate_sends_no_children_again<Postgres, MySql, Sqlite>,
    relay_is_woken_by_the_commit<Postgres, MySql, Sqlite>,
    chain_of_three_services_one_effect_each<Postgres, MySql, Sqlite>,
}

const STEPS: [&str; 2] = ["mail", "ship"];

/// Identities, effects and outgoing messages in one database.
struct Service<K: Kind> {
    table: Table<K>,
    boxed: Boxed<K>,
}

impl<K: Kind> Service<K> {
    async fn create() -> Self {
        let table = Table::<K>::create().await;
        let boxed = Boxed::open(&table.url, &short("ob")).await;
        boxed.outbox.create_schema().await.expect("schema");
        Self { table, boxed }
    }

    fn handler(&self) -> Handler<K> {
        Handler::new(&self.table, &self.boxed.name, "children", &STEPS)
    }

    /// Identities, effects and rows, as another process sees them.
    async fn there(&self) -> (i64, i64, usize) {
        (self.table.identities().await, self.table.effects().await.0, self.boxed.all().await.len())
    }

    async fn children(&self) -> BTreeSet<String> {
        self.boxed.ids().await.into_iter().collect()
    }

    /// A relay with a pool of its own.
    async fn relay<P: Publish>(&self, publisher: P) -> Relay<SqlOutbox<K>, P> {
        Relay::new(self.boxed.again().await.outbox, publisher)
    }
}

/// Writes its effect, and enqueues a message for each step. What its message is called says how it
/// ends.
struct Handler<K: Kind> {
    insert: Insert,
    outbox: SqlOutbox<K>,
    to: String,
    steps: &'static [&'static str],
    /// Whether `late` fails yet.
    fails: AtomicBool,
    /// The IDs of all runs.
    made: Mutex<Vec<MessageId>>,
    /// What `gated` waits for behind its last statement.
    gate: (Semaphore, Semaphore),
}

impl<K: Kind> Handler<K> {
    fn new(table: &Table<K>, outbox: &str, to: &str, steps: &'static [&'static str]) -> Self {
        Self {
            insert: table.insert(),
            outbox: SqlOutbox::new(table.store.pool().clone()).table(outbox).expect("name"),
            to: to.to_owned(),
            steps,
            fails: AtomicBool::new(true),
            made: Mutex::default(),
            gate: (Semaphore::new(0), Semaphore::new(0)),
        }
    }

    fn children(&self, message: &IncomingMessage) -> Vec<OutgoingMessage> {
        let child = |step: &&str| {
            OutgoingMessage::to("", &*self.to).text(*step).caused_by(message, step).expect("an identity")
        };
        let children: Vec<OutgoingMessage> = self.steps.iter().map(child).collect();
        let ids = children.iter().map(|child| child.id().expect("an ID").clone());
        self.made.lock().unwrap().extend(ids);
        children
    }

    fn end(&self, message: &IncomingMessage) -> HandlerResult {
        match message.raw_message_id().unwrap_or_default() {
            "late" if self.fails.swap(false, Ordering::SeqCst) => Err(HandlerError::retry("not yet")),
            "panics" => panic!("as the test wants"),
            "bad" => Err(HandlerError::reject("bad")),
            _ => Ok(()),
        }
    }
}

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Handler<K> {
    async fn handle(&self, message: &IncomingMessage, tx: &mut Transaction<'static, K>) -> HandlerResult {
        let id = message.raw_message_id().unwrap_or_default();
        self.insert.write::<K>(id, tx).await?;
        for child in self.children(message) {
            self.outbox.enqueue(&mut **tx, child).await?;
        }
        if id == "gated" {
            self.gate.0.add_permits(1);
            self.gate.1.acquire().await?.forget();
        }
        self.end(message)
    }

    async fn handle_batch(
        &self,
        messages: &[&IncomingMessage],
        tx: &mut Transaction<'static, K>,
    ) -> HandlerResult {
        for message in messages {
            self.insert.write::<K>(message.raw_message_id().unwrap_or_default(), tx).await?;
        }
        let children = messages.iter().flat_map(|message| self.children(message));
        self.outbox.enqueue_all(&mut **tx, children).await?;
        messages.iter().try_for_each(|message| self.end(message))
    }
}

/// The IDs of the messages that a service of scope `test` sends because of one.
fn children_of(id: &str) -> BTreeSet<String> {
    STEPS.iter().map(|step| child_of("test", id, step)).collect()
}

fn child_of(scope: &str, id: &str, step: &str) -> String {
    let (scope, id) = (Scope::new(scope).expect("scope"), MessageId::new(id).expect("ID"));
    let cause = IncomingMessage::new("").with_identity(scope, id);
    cause.effect_key(step).expect("an identity").to_string()
}

fn sent(publisher: &MemoryPublisher) -> Vec<String> {
    let mut ids: Vec<String> =
        publisher.published().iter().map(|message| message.id().expect("an ID").to_string()).collect();
    ids.sort_unstable();
    ids
}

fn all(ids: &[&str]) -> Vec<String> {
    let children: BTreeSet<String> = ids.iter().flat_map(|id| children_of(id)).collect();
    children.into_iter().collect()
}

pub async fn effect_and_children_are_committed_together<K: Kind>() {
    let service = Service::<K>::create().await;
    let other = Service { table: service.table.again().await, boxed: service.boxed.again().await };
    let handler = Arc::new(service.handler());
    let (guard, running) = (service.table.guard(), Arc::clone(&handler));
    let task = tokio::spawn(async move { guard.process(&message("gated"), &running).await });
    timeout(DEADLINE, handler.gate.0.acquire()).await.expect("in time").expect("open").forget();
    assert_eq!(other.there().await, (0, 0, 0), "all of it is written, and nothing is committed");
    handler.gate.1.add_permits(1);
    assert!(matches!(task.await.expect("no panic"), Outcome::Processed));
    assert_eq!(other.there().await, (1, 1, 2));
    assert_eq!(other.children().await, children_of("gated"));
}

pub async fn handler_fails_after_enqueue_nothing_is_sent<K: Kind>() {
    let service = Service::<K>::create().await;
    let publisher = MemoryPublisher::new();
    let relay = service.relay(publisher.clone()).await.spawn();
    let (guard, handler) = (service.table.guard(), service.handler());
    for (id, expected) in [("bad", "reject"), ("panics", "retry"), ("late", "retry")] {
        let outcome = guard.process(&message(id), &handler).await;
        assert_eq!(outcome.name(), expected, "{id}");
        assert_eq!(service.there().await, (0, 0, 0), "{id}");
    }
    assert!(matches!(guard.process(&message("late"), &handler).await, Outcome::Processed));
    eventually("the children are sent", async || service.children().await.is_empty().then_some(())).await;
    relay.stop().await;
    assert_eq!(sent(&publisher), all(&["late"]), "and nothing else ever was");
    let made = handler.made.lock().unwrap();
    assert_eq!((made.len(), &made[4..6]), (8, &made[6..8]), "both runs gave them the same IDs");
}

async fn cut<K: Kind>(cut: Cut) {
    let service = Service::<K>::create().await;
    let wire = Wire::start(&service.table.url, cut, Arc::new(AtomicBool::new(true))).await;
    let url = wire.through(&service.table.url);
    let through = Table::<K>::open(&url, &service.table.name, &service.table.effects).await;
    let handler = Handler::new(&through, &service.boxed.name, "children", &STEPS);
    let guard = Guard::new(through.store.clone(), Scope::new("test").expect("scope"));
    let outcome = guard.process(&message("order-42"), &handler).await;
    assert_eq!((outcome.name(), wire.fired()), ("store_unavailable", 1), "{cut:?}");
    let is_committed = cut == Cut::After;
    let there = if is_committed { (1, 1, 2) } else { (0, 0, 0) };
    assert_eq!(service.there().await, there, "{cut:?}");
    // It comes again, and finds out.
    let outcome = guard.process(&message("order-42"), &handler).await;
    assert_eq!(outcome.name(), if is_committed { "duplicate" } else { "processed" });
    assert_eq!(service.there().await, (1, 1, 2), "{cut:?}");
    assert_eq!(service.children().await, children_of("order-42"), "{cut:?}");
}

pub async fn commit_unknown_children_exactly_if_identity<K: Kind>() {
    cut::<K>(Cut::Before).await;
    cut::<K>(Cut::After).await;
}

pub async fn children_of_a_batch_with_one_bad_message<K: Kind>() {
    let service = Service::<K>::create().await;
    let handler = service.handler();
    let batch = ["a", "b", "bad", "c"].map(message);
    let outcomes = service.table.guard().process_batch(&batch, &handler).await;
    let names: Vec<&str> = outcomes.iter().map(Outcome::name).collect();
    assert_eq!(names, ["processed", "processed", "reject", "processed"]);
    assert_eq!(service.there().await, (3, 3, 6));
    assert_eq!(service.children().await, all(&["a", "b", "c"]).into_iter().collect());
    // A batch without one is one statement, and as exact.
    let outcomes = service.table.guard().process_batch(&["d", "a", "e"].map(message), &handler).await;
    let names: Vec<&str> = outcomes.iter().map(Outcome::name).collect();
    assert_eq!(names, ["processed", "duplicate", "processed"]);
    assert_eq!(service.there().await, (5, 5, 10));
    assert_eq!(service.children().await, all(&["a", "b", "c", "d", "e"]).into_iter().collect());
}

pub async fn duplicate_sends_no_children_again<K: Kind>() {
    let service = Service::<K>::create().await;
    let publisher = MemoryPublisher::new();
    let relay = service.relay(publisher.clone()).await.spawn();
    let (guard, handler) = (service.table.guard(), service.handler());
    assert!(matches!(guard.process(&message("a"), &handler).await, Outcome::Processed));
    assert!(matches!(guard.process(&message("a"), &handler).await, Outcome::Duplicate(_)));
    eventually("the children are sent", async || service.children().await.is_empty().then_some(())).await;
    // Their rows are gone, and a duplicate does not bring them back.
    for _ in 0..3 {
        assert!(matches!(guard.process(&message("a"), &handler).await, Outcome::Duplicate(_)));
        assert_eq!(service.there().await, (1, 1, 0));
    }
    assert!(matches!(guard.process(&message("b"), &handler).await, Outcome::Processed));
    eventually("the next are sent", async || service.children().await.is_empty().then_some(())).await;
    relay.stop().await;
    assert_eq!(sent(&publisher), all(&["a", "b"]));
}

/// The only thing that tells the relay of a commit is the consumer.
pub async fn relay_is_woken_by_the_commit<K: Kind>() {
    const POLL: Duration = Duration::from_secs(600);
    let service = Service::<K>::create().await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("wakes").await;
    let publisher = MemoryPublisher::new();
    let outbox = service.boxed.outbox.clone();
    let relay = Relay::new(outbox.clone(), publisher.clone()).poll(POLL).listen(Listen::Off).spawn();
    let consumer = consuming::consumer(&service.table, &broker(), &queue);
    let consumer = consumer.on_outcome(move |_, outcome| {
        if outcome.is_handled() {
            outbox.wake();
        }
    });
    let consumer = tokio::spawn(consumer.run_until(service.handler(), pending()));
    let mut expected = Vec::new();
    // The first may be found by the relay's first looks; the others are not.
    for id in ["a", "b", "c", "d"] {
        let begun = Instant::now();
        client.publish(&queue, id.as_bytes(), with_id(id)).await;
        expected.push(id);
        let is_sent = async || (sent(&publisher) == all(&expected)).then_some(());
        eventually("the children are sent", is_sent).await;
        // Sooner than any look that is not asked for.
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        let is_idle = async || service.children().await.is_empty().then_some(());
        eventually("their rows are gone", is_idle).await;
    }
    relay.stop().await;
    consumer.abort();
    consuming::delete(&queue).await;
}

/// Publishes everything twice, as after a confirm that was lost.
struct Twice(IdempotentPublisher);

impl Publish for Twice {
    async fn publish(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        self.0.publish(message.clone()).await?;
        self.0.publish(message).await
    }

    async fn ready(&self) {
        Publish::ready(&self.0).await;
    }
}

pub async fn chain_of_three_services_one_effect_each<K: Kind>() {
    const MESSAGES: i64 = 60;
    const SCOPES: [&str; 3] = ["sales", "stock", "mail"];
    let client = Client::connect(&broker()).await;
    let mut queues = Vec::new();
    for scope in SCOPES {
        queues.push(client.queue(scope).await);
    }
    let services = [Service::<K>::create().await, Service::create().await, Service::create().await];
    let start = |n: usize| {
        let service = &services[n];
        let (to, steps): (&str, &[&str]) = if n < 2 { (&queues[n + 1], &["next"]) } else { ("", &[]) };
        let handler = Handler::new(&service.table, &service.boxed.name, to, steps);
        Running::start(consuming::consumer(&service.table, &broker(), &queues[n]).scope(SCOPES[n]), handler)
    };
    let relay = async |n: usize| {
        let publisher = IdempotentPublisher::builder(broker()).connect().await.expect("connect");
        services[n].relay(Twice(publisher)).await.lease(Duration::from_secs(3)).spawn()
    };
    let mut consumers: Vec<Running> = (0..3).map(start).collect();
    let (first, second) = (relay(0).await, relay(1).await);
    let mut expected: Vec<String> = (0..MESSAGES).map(|n| format!("order-{n}")).collect();
    for id in &expected {
        for _ in 0..2 {
            client.publish(&queues[0], id.as_bytes(), with_id(id)).await;
        }
    }
    // In the middle of it one consumer and one relay die.
    let some = async || (services[1].table.effects().await.0 > MESSAGES / 4).then_some(());
    eventually("some are handled in the middle", some).await;
    drop(first);
    consumers.remove(1).die().await;
    consumers.push(start(1));
    let first = relay(0).await;
    let done = async || (services[2].table.effects().await.1 == MESSAGES).then_some(());
    eventually("all have come to the end of the chain", done).await;
    for (n, service) in services.iter().enumerate() {
        let sent = async || service.children().await.is_empty().then_some(());
        eventually("nothing is to be sent", sent).await;
        let empty = async || (client.ready(&queues[n]).await == 0).then_some(());
        eventually("all copies are handled", empty).await;
    }
    first.stop().await;
    second.stop().await;
    for consumer in consumers {
        consumer.stop().await;
    }
    for (n, service) in services.iter().enumerate() {
        assert_eq!(service.table.effects().await, (MESSAGES, MESSAGES), "{}", SCOPES[n]);
        let list = expected.iter().map(|id| format!("'{id}'")).collect::<Vec<String>>().join(", ");
        let known = format!("SELECT count(*) FROM {} WHERE message_id IN ({list})", service.table.effects);
        assert_eq!(service.boxed.number(&known).await, MESSAGES, "of its own messages: {}", SCOPES[n]);
        expected = expected.iter().map(|id| child_of(SCOPES[n], id, "next")).collect();
        assert_eq!(client.ready(&format!("{}.parked", queues[n])).await, 0);
    }
    for queue in queues {
        consuming::delete(&queue).await;
    }
}
