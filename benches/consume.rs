//! Consuming a filled queue, against raw lapin without any guard and against one transaction per
//! message, in the same run: paired, interleaved, medians.
//!
//! `make bench`, or `cargo bench --all-features --bench consume -- [messages] [rounds]`, with the
//! URLs of the servers as `scripts/services env` prints them. Writes into `target/bench`.

#![allow(missing_docs, clippy::expect_used, clippy::cast_precision_loss)]

#[allow(dead_code, reason = "the recipes of outboxes are there, too")]
mod by_hand;
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use by_hand::{KEPT, Stopwatch, by_hand, raw, redis_by_hand, table, variable};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IdempotentPublisher,
    IncomingMessage, OutgoingMessage, PostgresStore, RedisStore, SqliteStore,
    consumer::ConsumerBuilder,
    idempotency::Lease,
    message::MessageId,
    store::{PostgresTransaction, SqliteTransaction},
};
use sqlx::{AssertSqlSafe, postgres::PgPoolOptions};
use support::{Bench, Queue, Took, body};
use tokio::sync::Notify;

const RAW: &str = "raw lapin, ack multiple, no guard";

/// One transaction for each message, so many at once.
const BY_HAND: [(&str, usize); 3] = [
    ("PostgreSQL by hand, one at a time", 1),
    ("PostgreSQL by hand, 8 at once", 8),
    ("PostgreSQL by hand, 32 at once", 32),
];

const SINGLE: &str = "PostgreSQL, one a transaction";
const EIGHT: &str = "PostgreSQL, one a transaction, 8 workers";
const MANY_WORKERS: &str = "PostgreSQL, one a transaction, 32 workers";
const BATCHES: &str = "PostgreSQL, batches of 256";
const MANY: &str = "PostgreSQL, batches of 256, handle_batch";
const MOST: &str = "PostgreSQL, batches of 1,024, handle_batch";
const SQLITE: &str = "SQLite, one a transaction";
const SQLITE_BATCHES: &str = "SQLite, batches of 256";
const SET_NX: &str = "Redis SET NX by hand, 32 at once";
const REDIS: &str = "Redis, 32 workers";
const PACED_BY_HAND: &str = "100 msg/s, PostgreSQL by hand";
const PACED: &str = "100 msg/s, PostgreSQL";

const CASES: [&str; 16] = [
    RAW,
    BY_HAND[0].0,
    BY_HAND[1].0,
    BY_HAND[2].0,
    SINGLE,
    EIGHT,
    MANY_WORKERS,
    BATCHES,
    MANY,
    MOST,
    SQLITE,
    SQLITE_BATCHES,
    SET_NX,
    REDIS,
    PACED_BY_HAND,
    PACED,
];

/// Five seconds of them.
const PACED_MESSAGES: usize = 500;

fn main() {
    match support::child() {
        Some((case, kind, messages)) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("runtime").block_on(once(&case, &kind, messages));
        }
        None => compare(Bench::from_args(80_000, 5)),
    }
}

fn compare(mut bench: Bench) {
    for kind in ["classic", "quorum"] {
        for round in 0..bench.rounds {
            for case in support::in_turn(&CASES, round) {
                let messages = match case {
                    PACED | PACED_BY_HAND => PACED_MESSAGES,
                    RAW | MANY | MOST => bench.messages,
                    SINGLE | SQLITE => bench.messages / 20,
                    _ if case == BY_HAND[0].0 => bench.messages / 20,
                    _ => bench.messages / 4,
                };
                bench.measure(case, kind, messages);
            }
        }
    }
    bench.report("consume", support::servers::servers());
}

async fn once(case: &str, kind: &str, messages: usize) {
    let amqp = support::amqp();
    let queue = Queue::declare(&amqp, kind).await;
    let paced = case == PACED || case == PACED_BY_HAND;
    if !paced {
        fill(&amqp, &queue.name, messages).await;
    }
    let name = queue.name.as_str();
    let run: BoxFuture<'_, Took> = match case {
        RAW => raw(&amqp, name, messages).map(Took::from).boxed(),
        SINGLE => postgres(&amqp, name, messages, 1, 1, false).map(Took::from).boxed(),
        EIGHT => postgres(&amqp, name, messages, 1, 8, false).map(Took::from).boxed(),
        MANY_WORKERS => postgres(&amqp, name, messages, 1, 32, false).map(Took::from).boxed(),
        BATCHES => postgres(&amqp, name, messages, 256, 1, false).map(Took::from).boxed(),
        MANY => postgres(&amqp, name, messages, 256, 1, true).map(Took::from).boxed(),
        MOST => postgres(&amqp, name, messages, 1024, 1, true).map(Took::from).boxed(),
        SQLITE => sqlite(&amqp, name, messages, 1).map(Took::from).boxed(),
        SQLITE_BATCHES => sqlite(&amqp, name, messages, 256).map(Took::from).boxed(),
        SET_NX => redis_by_hand(&amqp, name, messages).map(Took::from).boxed(),
        REDIS => redis(&amqp, name, messages).map(Took::from).boxed(),
        PACED | PACED_BY_HAND => paced_run(&amqp, name, messages, case == PACED).boxed(),
        case => {
            let (_, tasks) = BY_HAND.into_iter().find(|(name, _)| *name == case).expect("a case");
            by_hand(&amqp, name, messages, tasks, None).map(Took::from).boxed()
        }
    };
    support::once(messages, run).await;
    queue.delete().await;
}

fn message(queue: &str) -> OutgoingMessage {
    OutgoingMessage::to("", queue).body(body()).content_type("application/json")
}

async fn fill(amqp: &str, queue: &str, messages: usize) {
    let publisher = IdempotentPublisher::builder(amqp).connect().await.expect("connect");
    let mut results = publisher.publish_all((0..messages).map(|_| message(queue)));
    while let Some(result) = results.next().await {
        result.expect("published");
    }
}

/// One message every 10 ms, to a consumer that waits for them; the time from publishing to the
/// commit.
async fn paced_run(amqp: &str, queue: &str, messages: usize, ours: bool) -> Took {
    let stopwatch = Arc::new(Stopwatch::default());
    let publisher = IdempotentPublisher::builder(amqp).connect().await.expect("connect");
    let publishing = async {
        // The consumer is there by then, with its tables.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut tick = tokio::time::interval(Duration::from_millis(10));
        for _ in 0..messages {
            tick.tick().await;
            let id = MessageId::from(uuid::Uuid::now_v7());
            stopwatch.start(id.as_str());
            let message = message(queue).message_id(id);
            publisher.publish_idempotent(message).await.expect("published");
        }
    };
    let consuming = async {
        if !ours {
            return by_hand(amqp, queue, messages, 8, Some(Arc::clone(&stopwatch))).await;
        }
        let (store, effect) = postgres_store(false).await;
        let stopwatch = Arc::clone(&stopwatch);
        let builder = IdempotentConsumer::builder(amqp, queue, store);
        let stop = move |message: &IncomingMessage| stopwatch.stop(message.raw_message_id().expect("ID"));
        consume_with(builder, effect, messages, stop).await
    };
    let (took, ()) = tokio::join!(consuming, publishing);
    Took { took, latencies: stopwatch.took(), ..Took::default() }
}

/// Runs a consumer until so many deliveries are decided and, as it returns then, settled.
async fn consume<S, H>(builder: ConsumerBuilder<S>, handler: H, messages: usize) -> Duration
where
    S: IdempotencyStore,
    H: IdempotentHandler<S> + 'static,
{
    consume_with(builder, handler, messages, |_| ()).await
}

async fn consume_with<S, H>(
    builder: ConsumerBuilder<S>,
    handler: H,
    messages: usize,
    committed: impl Fn(&IncomingMessage) + Send + Sync + 'static,
) -> Duration
where
    S: IdempotencyStore,
    H: IdempotentHandler<S> + 'static,
{
    let (count, done) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let last = Arc::clone(&done);
    let builder = builder.on_outcome(move |message, outcome| {
        assert!(outcome.is_handled(), "{outcome:?}");
        committed(message);
        if count.fetch_add(1, Ordering::Relaxed) + 1 == messages {
            last.notify_one();
        }
    });
    let started = Instant::now();
    tokio::spawn(async move { builder.run_until(handler, async move { done.notified().await }).await })
        .await
        .expect("task")
        .expect("consumer");
    started.elapsed()
}

struct Effect {
    insert: String,
    many: Option<String>,
}

impl Effect {
    fn new(table: &str, many: bool) -> Self {
        Self {
            insert: format!("INSERT INTO {table} VALUES ($1, $2)"),
            many: many.then(|| format!("INSERT INTO {table} SELECT unnest($1::text[]), $2")),
        }
    }
}

impl IdempotentHandler<PostgresStore> for Effect {
    async fn handle(&self, message: &IncomingMessage, tx: &mut PostgresTransaction) -> HandlerResult {
        let insert = sqlx::query(AssertSqlSafe(self.insert.as_str())).bind(message.raw_message_id());
        insert.bind(500_i64).execute(&mut **tx).await?;
        Ok(())
    }

    async fn handle_batch(
        &self,
        messages: &[&IncomingMessage],
        tx: &mut PostgresTransaction,
    ) -> HandlerResult {
        let Some(many) = &self.many else {
            for message in messages {
                IdempotentHandler::<PostgresStore>::handle(self, message, tx).await?;
            }
            return Ok(());
        };
        let ids: Vec<_> = messages.iter().filter_map(|message| message.raw_message_id()).collect();
        sqlx::query(AssertSqlSafe(many.as_str())).bind(ids).bind(500_i64).execute(&mut **tx).await?;
        Ok(())
    }
}

impl IdempotentHandler<SqliteStore> for Effect {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let insert = sqlx::query(AssertSqlSafe(self.insert.as_str())).bind(message.raw_message_id());
        insert.bind(500_i64).execute(&mut **tx).await?;
        Ok(())
    }
}

/// No effect, as with `SET NX` by hand: what the guard costs.
struct Nothing;

impl IdempotentHandler<RedisStore> for Nothing {
    async fn handle(&self, _: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        Ok(())
    }
}

async fn postgres_store(many: bool) -> (PostgresStore, Effect) {
    // As many connections as by hand, and for 32 workers.
    let pool = |pool: PgPoolOptions| pool.max_connections(32);
    let store = PostgresStore::connect_with(&variable("POSTGRES_URL"), pool).await.expect("PostgreSQL");
    let store = store.table(&table("ids")).expect("name");
    store.create_schema().await.expect("schema");
    let effects = table("effects");
    let create = format!("CREATE TABLE {effects} (id text NOT NULL, amount bigint NOT NULL)");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(store.pool()).await.expect("table");
    (store, Effect::new(&effects, many))
}

/// Of three batches at least: one is handled, one is there, one is on its way.
fn prefetch(batch: usize) -> u16 {
    u16::try_from((batch * 4).max(256)).expect("prefetch")
}

async fn postgres(
    amqp: &str,
    queue: &str,
    messages: usize,
    batch: usize,
    workers: usize,
    many: bool,
) -> Duration {
    let (store, effect) = postgres_store(many).await;
    let builder = IdempotentConsumer::builder(amqp, queue, store).batch(batch).workers(workers);
    consume(builder.prefetch(prefetch(batch)), effect, messages).await
}

async fn sqlite(amqp: &str, queue: &str, messages: usize, batch: usize) -> Duration {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(table("consume"));
    let store = SqliteStore::connect(&format!("sqlite:{}", file.display())).await.expect("SQLite");
    store.create_schema().await.expect("schema");
    let create = "CREATE TABLE effects (id TEXT NOT NULL, amount INTEGER NOT NULL)";
    sqlx::raw_sql(create).execute(store.pool()).await.expect("table");
    let builder = IdempotentConsumer::builder(amqp, queue, store).batch(batch).prefetch(prefetch(batch));
    let took = consume(builder, Effect::new("effects", false), messages).await;
    let _ = std::fs::remove_file(file);
    took
}

async fn redis(amqp: &str, queue: &str, messages: usize) -> Duration {
    let store = RedisStore::connect(&variable("REDIS_URL")).await.expect("Redis");
    let store = store.prefix(&table("bench")).retention(KEPT);
    consume(IdempotentConsumer::builder(amqp, queue, store).workers(32), Nothing, messages).await
}
