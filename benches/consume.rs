//! Consuming a filled queue, against raw lapin without any guard and against one transaction per message, in the same run: paired,
//! interleaved, medians.
//!
//! `make bench`, or `cargo bench --all-features --bench consume -- [messages] [rounds]`, with the URLs of the servers as `scripts/services env`
//! prints them. Writes `target/bench/consume.json`.

#![allow(missing_docs, clippy::expect_used, clippy::cast_precision_loss)]

#[path = "support/mod.rs"]
mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    Connection, ConnectionProperties, Consumer,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IdempotentPublisher,
    IncomingMessage, OutgoingMessage, PostgresStore, RedisStore, SqliteStore,
    consumer::ConsumerBuilder,
    idempotency::Lease,
    store::{PostgresTransaction, SqliteTransaction},
};
use sqlx::AssertSqlSafe;
use support::{Bench, Queue, body};
use tokio::sync::Notify;

const RAW: &str = "raw lapin, ack multiple, no guard";

/// By hand: one transaction for each message, so many at once.
const BY_HAND: [(&str, usize); 3] = [
    ("PostgreSQL by hand, one at a time", 1),
    ("PostgreSQL by hand, 8 at once", 8),
    ("PostgreSQL by hand, 32 at once", 32),
];

const SLOW: [&str; 4] = [
    "PostgreSQL by hand, one at a time",
    "PostgreSQL, batch 1",
    "SQLite, batch 1",
    "Redis SET NX by hand, 32 at once",
];

const CASES: [&str; 13] = [
    RAW,
    BY_HAND[0].0,
    BY_HAND[1].0,
    BY_HAND[2].0,
    "PostgreSQL, batch 1",
    "PostgreSQL, batch 1, 8 workers",
    "PostgreSQL, batch 256",
    "PostgreSQL, batch 256, handle_batch",
    "PostgreSQL, batch 1,024, handle_batch",
    "SQLite, batch 1",
    "SQLite, batch 256",
    "Redis SET NX by hand, 32 at once",
    "Redis, 32 workers",
];

fn main() {
    match support::child() {
        Some((case, kind, messages)) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("runtime").block_on(once(&case, &kind, messages));
        }
        None => compare(Bench::from_args(40_000, 5)),
    }
}

fn compare(mut bench: Bench) {
    for kind in ["classic", "quorum"] {
        for round in 0..bench.rounds {
            for case in support::in_turn(&CASES, round) {
                let messages = if SLOW.contains(&case) { bench.messages / 8 } else { bench.messages };
                bench.measure(case, kind, messages);
            }
        }
    }
    bench.report("consume", |_| RAW);
}

async fn once(case: &str, kind: &str, messages: usize) {
    let amqp = support::amqp();
    let queue = Queue::declare(&amqp, kind).await;
    fill(&amqp, &queue.name, messages).await;
    let name = queue.name.as_str();
    let run: BoxFuture<'_, Duration> = match case {
        RAW => raw(&amqp, name, messages).boxed(),
        "PostgreSQL, batch 1" => postgres(&amqp, name, messages, 1, 1, false).boxed(),
        "PostgreSQL, batch 1, 8 workers" => postgres(&amqp, name, messages, 1, 8, false).boxed(),
        "PostgreSQL, batch 256" => postgres(&amqp, name, messages, 256, 1, false).boxed(),
        "PostgreSQL, batch 256, handle_batch" => postgres(&amqp, name, messages, 256, 2, true).boxed(),
        "PostgreSQL, batch 1,024, handle_batch" => postgres(&amqp, name, messages, 1024, 2, true).boxed(),
        "SQLite, batch 1" => sqlite(&amqp, name, messages, 1).boxed(),
        "SQLite, batch 256" => sqlite(&amqp, name, messages, 256).boxed(),
        "Redis SET NX by hand, 32 at once" => redis_by_hand(&amqp, name, messages).boxed(),
        "Redis, 32 workers" => redis(&amqp, name, messages).boxed(),
        case => {
            let (_, tasks) = BY_HAND.into_iter().find(|(name, _)| *name == case).expect("a case");
            by_hand(&amqp, name, messages, tasks).boxed()
        }
    };
    support::once(messages, run).await;
    queue.delete().await;
}

async fn fill(amqp: &str, queue: &str, messages: usize) {
    let publisher = IdempotentPublisher::builder(amqp).connect().await.expect("connect");
    let body = body();
    let message = |_| OutgoingMessage::to("", queue).body(body.clone()).content_type("application/json");
    let mut results = publisher.publish_all((0..messages).map(message));
    while let Some(result) = results.next().await {
        result.expect("published");
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name}: run `make bench`"))
}

fn table(name: &str) -> String {
    format!("{name}_{}", &uuid::Uuid::new_v4().simple().to_string()[..16])
}

async fn subscribe(amqp: &str, queue: &str, prefetch: u16) -> (Connection, lapin::Channel, Consumer) {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await.expect("connect");
    let channel = connection.create_channel().await.expect("channel");
    channel.basic_qos(prefetch, BasicQosOptions::default()).await.expect("qos");
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let consumer = consumer.await.expect("consume");
    (connection, channel, consumer)
}

/// The fastest way to consume with lapin that we know; acks every 256, and no effect at all.
async fn raw(amqp: &str, queue: &str, messages: usize) -> Duration {
    let started = Instant::now();
    let (_connection, channel, mut consumer) = subscribe(amqp, queue, 2048).await;
    for n in 1..=messages {
        let delivery = consumer.next().await.expect("delivery").expect("delivery");
        if n % 256 == 0 || n == messages {
            let multiple = BasicAckOptions { multiple: true };
            channel.basic_ack(delivery.delivery_tag, multiple).await.expect("ack");
        }
    }
    started.elapsed()
}

/// The vendor's recipe, by hand: begin, insert the ID, insert the effect, commit, ack.
async fn by_hand(amqp: &str, queue: &str, messages: usize, tasks: usize) -> Duration {
    let (ids, effects) = (table("ids"), table("effects"));
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(32);
    let pool = pool.connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
    let create = format!(
        "CREATE TABLE {ids} (id text PRIMARY KEY); CREATE TABLE {effects} (id text NOT NULL, amount bigint NOT NULL)"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await.expect("tables");
    let claim = format!("INSERT INTO {ids} VALUES ($1)");
    let effect = format!("INSERT INTO {effects} VALUES ($1, $2)");
    let started = Instant::now();
    let (_connection, channel, mut consumer) = subscribe(amqp, queue, 256).await;
    let mut working = FuturesUnordered::new();
    let mut left = messages;
    while left > 0 || !working.is_empty() {
        if left == 0 || working.len() >= tasks {
            working.next().await;
            continue;
        }
        left -= 1;
        let delivery = consumer.next().await.expect("delivery").expect("delivery");
        let (pool, channel, claim, effect) = (pool.clone(), channel.clone(), claim.clone(), effect.clone());
        working.push(tokio::spawn(async move {
            let id = delivery.properties.message_id().as_ref().expect("ID").as_str();
            let mut tx = pool.begin().await.expect("begin");
            sqlx::query(AssertSqlSafe(claim)).bind(id).execute(&mut *tx).await.expect("new");
            sqlx::query(AssertSqlSafe(effect))
                .bind(id)
                .bind(500_i64)
                .execute(&mut *tx)
                .await
                .expect("effect");
            tx.commit().await.expect("commit");
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.expect("ack");
        }));
    }
    started.elapsed()
}

/// Runs a consumer until so many deliveries are decided and, as it returns then, settled.
async fn consume<S, H>(builder: ConsumerBuilder<S>, handler: H, messages: usize) -> Duration
where
    S: IdempotencyStore,
    H: IdempotentHandler<S> + 'static,
{
    let (count, done) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let last = Arc::clone(&done);
    let builder = builder.on_outcome(move |_, outcome| {
        assert!(outcome.is_handled(), "{outcome:?}");
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

async fn postgres(
    amqp: &str,
    queue: &str,
    messages: usize,
    batch: usize,
    workers: usize,
    many: bool,
) -> Duration {
    let store = PostgresStore::connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
    let store = store.with_table(&table("ids")).expect("name");
    store.create_schema().await.expect("schema");
    let effects = table("effects");
    let create = format!("CREATE TABLE {effects} (id text NOT NULL, amount bigint NOT NULL)");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(store.pool()).await.expect("table");
    let prefetch = u16::try_from((batch * 4).max(256)).expect("prefetch");
    let builder =
        IdempotentConsumer::builder(amqp, queue, store).batch(batch).workers(workers).prefetch(prefetch);
    consume(builder, Effect::new(&effects, many), messages).await
}

async fn sqlite(amqp: &str, queue: &str, messages: usize, batch: usize) -> Duration {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(table("consume"));
    let store = SqliteStore::connect(&format!("sqlite:{}", file.display())).await.expect("SQLite");
    store.create_schema().await.expect("schema");
    let create = "CREATE TABLE effects (id TEXT NOT NULL, amount INTEGER NOT NULL)";
    sqlx::raw_sql(create).execute(store.pool()).await.expect("table");
    let prefetch = u16::try_from((batch * 4).max(256)).expect("prefetch");
    let builder = IdempotentConsumer::builder(amqp, queue, store).batch(batch).prefetch(prefetch);
    let took = consume(builder, Effect::new("effects", false), messages).await;
    let _ = std::fs::remove_file(file);
    took
}

async fn redis(amqp: &str, queue: &str, messages: usize) -> Duration {
    let store = RedisStore::connect(&variable("REDIS_URL")).await.expect("Redis");
    let store = store.prefix(&table("bench")).expect("prefix");
    consume(IdempotentConsumer::builder(amqp, queue, store).workers(32), Nothing, messages).await
}

/// What one would write by hand with Redis: `SET NX` with an expiry, then the ack. It loses the message if the process dies in between.
async fn redis_by_hand(amqp: &str, queue: &str, messages: usize) -> Duration {
    let client = redis::Client::open(variable("REDIS_URL")).expect("URL");
    let redis = client.get_multiplexed_async_connection().await.expect("Redis");
    let prefix = table("bench");
    let started = Instant::now();
    let (_connection, channel, mut consumer) = subscribe(amqp, queue, 256).await;
    let mut working = FuturesUnordered::new();
    let mut left = messages;
    while left > 0 || !working.is_empty() {
        if left == 0 || working.len() >= 32 {
            working.next().await;
            continue;
        }
        left -= 1;
        let delivery = consumer.next().await.expect("delivery").expect("delivery");
        let (mut redis, channel, prefix) = (redis.clone(), channel.clone(), prefix.clone());
        working.push(async move {
            let id = delivery.properties.message_id().as_ref().expect("ID").as_str();
            let mut set = redis::cmd("SET");
            set.arg(format!("{prefix}:{id}")).arg(1).arg("NX").arg("EX").arg(604_800);
            let new: Option<String> = set.query_async(&mut redis).await.expect("answer");
            assert!(new.is_some());
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.expect("ack");
        });
    }
    started.elapsed()
}
