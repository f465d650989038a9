//! Consuming a filled queue, against raw lapin without any guard and against one transaction per
//! message, in the same run: paired, interleaved, medians.
//!
//! `make bench`, or `cargo bench --all-features --bench consume -- [messages] [rounds]`, with the
//! URLs of the servers as `scripts/services env` prints them. Writes into `target/bench`.

#![allow(missing_docs, clippy::expect_used, clippy::cast_precision_loss)]

#[allow(dead_code, reason = "the recipes of outboxes are there, too")]
mod by_hand;
mod guarded;
mod support;

use std::{sync::Arc, time::Duration};

use by_hand::{Stopwatch, in_mariadb, in_postgres, in_sqlite, outbox::File, raw, redis_by_hand, variable};
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use guarded::{CONNECTIONS, consume_with, mariadb, postgres, postgres_store, redis, sqlite};
use lapin_idempotent::{
    IdempotentConsumer, IdempotentPublisher, IncomingMessage, OutgoingMessage, SqliteStore,
    message::MessageId,
};
use sqlx::{mysql::MySqlPoolOptions, postgres::PgPoolOptions};
use support::{Bench, Queue, Took, body};

const RAW: &str = "raw lapin, ack multiple, no guard";

const BATCHES: &str = "PostgreSQL, batches of 256";
const MANY: &str = "PostgreSQL, batches of 256, handle_batch";
const MOST: &str = "PostgreSQL, batches of 1,024, handle_batch";
const SQLITE_BATCHES: &str = "SQLite, batches of 256";
const SET_NX: &str = "Redis SET NX by hand, 32 at once";
const REDIS: &str = "Redis, 32 workers";
const PACED_BY_HAND: &str = "100 msg/s, PostgreSQL by hand";
const PACED: &str = "100 msg/s, PostgreSQL";

const CASES: [&str; 27] = [
    RAW,
    "PostgreSQL by hand, one at a time",
    "PostgreSQL by hand, 8 at once",
    "PostgreSQL by hand, 32 at once",
    "PostgreSQL, one a transaction",
    "PostgreSQL, one a transaction, 8 workers",
    "PostgreSQL, one a transaction, 32 workers",
    BATCHES,
    MANY,
    MOST,
    "MariaDB by hand, one at a time",
    "MariaDB by hand, 8 at once",
    "MariaDB by hand, 32 at once",
    "MariaDB, one a transaction",
    "MariaDB, one a transaction, 8 workers",
    "MariaDB, one a transaction, 32 workers",
    "SQLite by hand, one at a time",
    "SQLite by hand, 8 at once",
    "SQLite by hand, 32 at once",
    "SQLite, one a transaction",
    "SQLite, one a transaction, 8 workers",
    "SQLite, one a transaction, 32 workers",
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
                    _ if at_once(case) == Some(1) => bench.messages / 20,
                    _ if at_once(case).is_some() => bench.messages / 8,
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
    let run: BoxFuture<'_, Took> = match (case, at_once(case)) {
        (_, Some(tasks)) => singly(case, tasks, &amqp, name, messages).map(Took::from).boxed(),
        (RAW, _) => raw(&amqp, name, messages).map(Took::from).boxed(),
        (BATCHES, _) => postgres(&amqp, name, messages, 256, 1, false).map(Took::from).boxed(),
        (MANY, _) => postgres(&amqp, name, messages, 256, 1, true).map(Took::from).boxed(),
        (MOST, _) => postgres(&amqp, name, messages, 1024, 1, true).map(Took::from).boxed(),
        (SQLITE_BATCHES, _) => sqlite(&amqp, name, messages, 256, 1).map(Took::from).boxed(),
        (SET_NX, _) => redis_by_hand(&amqp, name, messages).map(Took::from).boxed(),
        (REDIS, _) => redis(&amqp, name, messages).map(Took::from).boxed(),
        (PACED | PACED_BY_HAND, _) => paced_run(&amqp, name, messages, case == PACED).boxed(),
        _ => panic!("no such case: {case}"),
    };
    support::once(messages, run).await;
    queue.delete().await;
}

/// How many messages are in hand at once, each in a transaction of its own.
fn at_once(case: &str) -> Option<usize> {
    let (_, how) = case.split_once(", ")?;
    match how {
        "one a transaction" | "one at a time" => Some(1),
        "one a transaction, 8 workers" | "8 at once" => Some(8),
        "one a transaction, 32 workers" | "32 at once" => (!case.contains("Redis")).then_some(32),
        _ => None,
    }
}

/// One message in each transaction.
async fn singly(case: &str, tasks: usize, amqp: &str, queue: &str, messages: usize) -> Duration {
    match (case.split([' ', ',']).next(), case.contains("by hand")) {
        (Some("PostgreSQL"), false) => postgres(amqp, queue, messages, 1, tasks, false).await,
        (Some("MariaDB"), false) => mariadb(amqp, queue, messages, tasks).await,
        (Some("SQLite"), false) => sqlite(amqp, queue, messages, 1, tasks).await,
        (Some("PostgreSQL"), true) => {
            in_postgres(postgres_pool().await, amqp, queue, messages, tasks, None).await
        }
        (Some("MariaDB"), true) => {
            let pool = MySqlPoolOptions::new().max_connections(CONNECTIONS);
            let pool = pool.connect(&variable("MYSQL_URL")).await.expect("MariaDB");
            in_mariadb(pool, amqp, queue, messages, tasks, None).await
        }
        (Some("SQLite"), true) => {
            let file = File::new();
            let pool = SqliteStore::connect(&file.url()).await.expect("SQLite").pool().clone();
            in_sqlite(pool, amqp, queue, messages, tasks, None).await
        }
        _ => panic!("no such case: {case}"),
    }
}

async fn postgres_pool() -> sqlx::PgPool {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
    pool.connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL")
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
            let stopwatch = Some(Arc::clone(&stopwatch));
            return in_postgres(postgres_pool().await, amqp, queue, messages, 8, stopwatch).await;
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
