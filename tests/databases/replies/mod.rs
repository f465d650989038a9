//! Requests and their replies, with a real broker and in each database.

mod answers;
mod children;
mod faults;
mod replayed;
mod tables;
mod unanswered;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lapin::{BasicProperties, message::BasicGetMessage};
use lapin_idempotent::{
    HandlerError, IdempotentConsumer, IncomingMessage, MessageId, Scope,
    consumer::{ConsumerBuilder, ConsumerMonitor},
    idempotency::{RpcHandler, RpcResult, effect_key},
    message::Reply,
    store::{Replies, SqlStore},
};
use libtest_mimic::Trial;
use sqlx::Transaction;
use tokio::{sync::watch, task::JoinHandle, time::timeout};

pub use self::children::serve;
use super::{
    database::{Insert, Kind, Table},
    support::{
        DEADLINE,
        amqp::{Client, header, with_id},
        broker, eventually,
    },
};

pub fn trials(there: bool) -> Vec<Trial> {
    [answers::trials, children::trials, faults::trials, replayed::trials, tables::trials, unanswered::trials]
        .iter()
        .flat_map(|trials| trials(there))
        .collect()
}

/// A failed request comes again after this: one delay queue.
const DELAY: Duration = Duration::from_millis(100);
const SCOPE: &str = "test";

/// Writes the effect, and says in which run it did.
#[derive(Clone)]
struct Quote {
    insert: Insert,
    name: &'static str,
    /// The requests of each batch.
    batches: Arc<Mutex<Vec<usize>>>,
    /// So many runs end their own transaction.
    meddles: Arc<AtomicU32>,
}

impl Quote {
    fn new<K: Kind>(table: &Table<K>) -> Self {
        Self { insert: table.insert(), name: "run", batches: Arc::default(), meddles: Arc::default() }
    }

    fn meddling(self, runs: u32) -> Self {
        self.meddles.store(runs, Ordering::SeqCst);
        self
    }
}

impl<K: Kind> RpcHandler<SqlStore<K>> for Quote {
    async fn handle(&self, request: &IncomingMessage, tx: &mut Transaction<'static, K>) -> RpcResult {
        let run = self.insert.runs.fetch_add(1, Ordering::SeqCst);
        self.insert.write::<K>(request.raw_message_id().unwrap_or_default(), tx).await?;
        if self.meddles.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            K::run(tx, "ROLLBACK").await?;
        }
        if request.body() == "fail" {
            return Err(HandlerError::reject("it says so"));
        }
        if request.body() == "at length" {
            return Ok(Reply::text("q").header("why", "x".repeat(20_000)));
        }
        Ok(Reply::text(format!("{} {run}", self.name)).kind("quote").header("tenant", "t-1"))
    }

    async fn handle_batch(
        &self,
        requests: &[&IncomingMessage],
        tx: &mut Transaction<'static, K>,
    ) -> Result<Vec<Reply>, HandlerError> {
        self.batches.lock().expect("batches").push(requests.len());
        let mut replies = Vec::new();
        for request in requests {
            replies.push(RpcHandler::<SqlStore<K>>::handle(self, request, tx).await?);
        }
        Ok(replies)
    }
}

/// A queue of requests, a table, and a client that asks.
struct Desk<K: Kind> {
    table: Table<K>,
    client: Client,
    queue: String,
}

impl<K: Kind> Desk<K> {
    async fn open() -> Self {
        Self::open_with(Replies::new()).await
    }

    async fn open_with(replies: Replies) -> Self {
        let mut table = Table::<K>::create().await;
        table.store = table.store.clone().with_replies(replies).expect("name");
        table.store.create_schema().await.expect("schema");
        let client = Client::connect(&broker()).await;
        let queue = client.quorum_queue("requests").await;
        Self { table, client, queue }
    }

    fn consumer(&self) -> ConsumerBuilder<SqlStore<K>> {
        self.consumer_over(&broker())
    }

    fn consumer_over(&self, url: &str) -> ConsumerBuilder<SqlStore<K>> {
        let consumer = IdempotentConsumer::builder(url, &self.queue, self.table.store.clone());
        consumer.scope(SCOPE).retry_delays(DELAY, DELAY)
    }

    fn serve(&self) -> (Serving, Quote) {
        let quote = Quote::new(&self.table);
        (Serving::start(self.consumer(), quote.clone()), quote)
    }

    /// A queue for answers.
    async fn mailbox(&self) -> String {
        self.client.queue("answers").await
    }

    async fn ask(&self, id: &str, body: &str, properties: BasicProperties) {
        let properties = properties
            .with_message_id(with_id(id).message_id().clone().expect("an ID"))
            .with_delivery_mode(2);
        self.client.publish(&self.queue, body.as_bytes(), properties).await;
    }

    async fn answer(&self, mailbox: &str) -> Answer {
        let got = eventually("an answer", async || self.client.get(mailbox).await).await;
        Answer::read(&got)
    }

    /// How many replies are kept.
    async fn kept(&self) -> i64 {
        let count = format!("SELECT count(*) FROM {}_replies", self.table.name);
        K::number(self.table.store.pool(), &count).await.expect("count")
    }

    /// When the consumer has stopped.
    async fn all_settled(&self) {
        assert_eq!(self.client.ready(&self.queue).await, 0, "all are acked");
    }

    /// The reason of the one message that is parked.
    async fn parked(&self, serving: &Serving) -> String {
        eventually("it is parked", async || (!serving.monitor.status().parked.is_empty()).then_some(()))
            .await;
        let parked = self.client.get(&format!("{}.parked", self.queue)).await.expect("it is there");
        header(&parked, "x-idempotency-parked-reason").expect("a reason")
    }
}

fn to(mailbox: &str) -> BasicProperties {
    BasicProperties::default().with_reply_to(mailbox.into())
}

/// The ID of all copies of the reply to a request.
fn reply_id(request: &str) -> String {
    let (scope, id) = (Scope::new(SCOPE).expect("scope"), MessageId::new(request).expect("ID"));
    effect_key(&scope, &id, "reply").to_string()
}

/// What a requester sees.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    body: String,
    correlation: String,
    id: String,
}

impl Answer {
    fn read(got: &BasicGetMessage) -> Self {
        let text = |text: &Option<lapin::types::ShortString>| text.clone().unwrap_or_default().to_string();
        Self {
            body: String::from_utf8(got.data.clone()).expect("text"),
            correlation: text(got.properties.correlation_id()),
            id: text(got.properties.message_id()),
        }
    }

    fn of(request: &str, correlation: &str, body: &str) -> Self {
        Self { body: body.to_owned(), correlation: correlation.to_owned(), id: reply_id(request) }
    }
}

/// A consumer that answers in the background of a test.
struct Serving {
    monitor: ConsumerMonitor,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Serving {
    fn start<K: Kind>(consumer: ConsumerBuilder<SqlStore<K>>, handler: Quote) -> Self {
        let monitor = consumer.monitor();
        let (stop, mut stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let shutdown = async move { drop(stopped.wait_for(|stop| *stop).await) };
            consumer.run_rpc_until(handler, shutdown).await.expect("consumer");
        });
        Self { monitor, stop, task }
    }

    /// Waits until so many deliveries were answered in this way.
    async fn answered(&self, how: &str, count: u64) {
        eventually(how, async || {
            (self.monitor.status().replies.get(how).copied().unwrap_or_default() == count).then_some(())
        })
        .await;
    }

    fn replies(&self) -> BTreeMap<&'static str, u64> {
        self.monitor.status().replies
    }

    async fn stop(self) {
        let _ = self.stop.send(true);
        timeout(DEADLINE, self.task).await.expect("stops in time").expect("consumer");
    }

    /// Drops it, in the middle of whatever it does.
    async fn die(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
