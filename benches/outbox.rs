//! The outbox: enqueue, relay, confirm, delete, against `publish_all` of the same messages and
//! against the common recipe by hand, in the same run: paired, interleaved, medians.
//!
//! `make bench`, or `cargo bench --all-features --bench outbox -- [messages] [rounds]`, with the
//! URLs of the servers as `scripts/services env` prints them. Writes into `target/bench`.

#![allow(missing_docs, clippy::expect_used, clippy::cast_precision_loss)]

#[allow(dead_code, reason = "the recipes of consumers are there, too")]
mod by_hand;
mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use by_hand::{
    Stopwatch,
    outbox::{self, BATCH, Publisher},
    table, variable,
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use lapin_idempotent::{
    IdempotentPublisher, MySqlOutbox, OutgoingMessage, PostgresOutbox, Relay, SqliteOutbox,
    outbox::Outbox,
    store::{SqlDatabase, SqlOutbox},
};
use sqlx::{AssertSqlSafe, PgPool};
use support::{Bench, Queue, Took, body};
use tokio::sync::Notify;

const PUBLISH_ALL: &str = "publish_all";
const POSTGRES: &str = "PostgreSQL, drain";
const HELD: &str = "PostgreSQL, drain, snapshot held";
const END_TO_END: &str = "PostgreSQL, enqueue and drain";
const POSTGRES_BY_HAND: &str = "PostgreSQL by hand, drain";
const MYSQL: &str = "MariaDB, drain";
const MYSQL_BY_HAND: &str = "MariaDB by hand, drain";
const SQLITE: &str = "SQLite, drain";
const SQLITE_BY_HAND: &str = "SQLite by hand, drain";
const PACED: &str = "100 msg/s, one process";
const PACED_OTHERS: &str = "100 msg/s, across processes";
const IDLE: &str = "idle relay, 30 s";
const PLAIN: &str = "16 producers, one row each";
const ENQUEUES: &str = "16 producers, one row and a message each";

const CASES: [&str; 11] = [
    PUBLISH_ALL,
    POSTGRES,
    HELD,
    END_TO_END,
    POSTGRES_BY_HAND,
    MYSQL,
    MYSQL_BY_HAND,
    SQLITE,
    SQLITE_BY_HAND,
    PACED,
    PACED_OTHERS,
];

const ROWS_BY_HAND: &str = "16 producers, one row and a message each, by hand";

/// Of the database alone; the kind of queue is nothing to them.
const OTHERS: [&str; 4] = [IDLE, PLAIN, ENQUEUES, ROWS_BY_HAND];

/// Five seconds of them.
const PACED_MESSAGES: usize = 500;

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
                let paced = case == PACED || case == PACED_OTHERS;
                bench.measure(case, kind, if paced { PACED_MESSAGES } else { bench.messages });
            }
        }
    }
    for round in 0..bench.rounds {
        for case in support::in_turn(&OTHERS, round) {
            bench.measure(case, "none", bench.messages / 4);
        }
    }
    bench.report("outbox", support::servers::servers());
}

async fn once(case: &str, kind: &str, messages: usize) {
    let amqp = support::amqp();
    if OTHERS.contains(&case) {
        let run: BoxFuture<'_, Took> = match case {
            IDLE => idle(&amqp).boxed(),
            _ => producers(case, messages).boxed(),
        };
        return support::once(messages, run).await;
    }
    let queue = Queue::declare(&amqp, kind).await;
    let name = queue.name.as_str();
    let run: BoxFuture<'_, Took> = match case {
        PUBLISH_ALL => publish_all(&amqp, name, messages).map(Took::from).boxed(),
        POSTGRES => postgres(&amqp, name, messages, false).boxed(),
        HELD => postgres(&amqp, name, messages, true).boxed(),
        END_TO_END => end_to_end(&amqp, name, messages).boxed(),
        MYSQL => mysql(&amqp, name, messages).boxed(),
        SQLITE => sqlite(&amqp, name, messages).boxed(),
        PACED => paced(&amqp, name, messages, false).boxed(),
        PACED_OTHERS => paced(&amqp, name, messages, true).boxed(),
        _ => by_hand(case, &amqp, name, messages).map(Took::from).boxed(),
    };
    support::once(messages, run).await;
    queue.delete().await;
}

/// As most are: its ID is the default one.
fn message(queue: &str, body: &Bytes) -> OutgoingMessage {
    OutgoingMessage::to("", queue).body(body.clone()).content_type("application/json")
}

async fn publisher(amqp: &str) -> IdempotentPublisher {
    IdempotentPublisher::builder(amqp).max_in_flight(1024).connect().await.expect("connect")
}

async fn publish_all(amqp: &str, queue: &str, messages: usize) -> Duration {
    let (publisher, body, queue) = (publisher(amqp).await, body(), queue.to_owned());
    let started = Instant::now();
    let publishing = tokio::spawn(async move {
        let mut results = publisher.publish_all((0..messages).map(|_| message(&queue, &body)));
        while let Some(result) = results.next().await {
            result.expect("published");
        }
    });
    publishing.await.expect("publish");
    started.elapsed()
}

async fn by_hand(case: &str, amqp: &str, queue: &str, messages: usize) -> Duration {
    let (publisher, body) = (Publisher::connect(amqp, queue).await, body());
    match case {
        POSTGRES_BY_HAND => {
            let pool = PgPool::connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
            outbox::postgres(&pool, &publisher, &body, messages).await
        }
        MYSQL_BY_HAND => {
            let pool = sqlx::MySqlPool::connect(&variable("MYSQL_URL")).await.expect("MariaDB");
            outbox::mysql(&pool, &publisher, &body, messages).await
        }
        _ => {
            let file = outbox::File::new();
            let pool = SqliteOutbox::connect(&file.url()).await.expect("SQLite").pool().clone();
            outbox::sqlite(&pool, &publisher, &body, messages).await
        }
    }
}

/// A relay that tells when so many messages are confirmed. It is connected, as the others are when
/// their time begins.
async fn relay<O: Outbox + Clone>(
    outbox: &O,
    amqp: &str,
    messages: usize,
    confirmed: impl Fn(&str) + Send + Sync + 'static,
) -> (Relay<O, IdempotentPublisher>, Arc<Notify>) {
    let (count, all) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let last = Arc::clone(&all);
    let relay = Relay::new(outbox.clone(), publisher(amqp).await).on_outcome(move |relayed| {
        assert!(relayed.result.is_ok(), "{relayed:?}");
        confirmed(relayed.message_id.as_str());
        if count.fetch_add(1, Ordering::Relaxed) + 1 == messages {
            last.notify_one();
        }
    });
    relay.check().await.expect("a relay");
    (relay, all)
}

async fn enqueue<DB: SqlDatabase>(outbox: &SqlOutbox<DB>, queue: &str, messages: usize) {
    let body = body();
    for start in (0..messages).step_by(BATCH) {
        let mut tx = outbox.pool().begin().await.expect("begin");
        let batch = (start..messages.min(start + BATCH)).map(|_| message(queue, &body));
        outbox.enqueue_all(&mut tx, batch).await.expect("enqueue");
        tx.commit().await.expect("commit");
    }
}

/// What was enqueued before is published and deleted.
async fn drain<DB: SqlDatabase>(outbox: &SqlOutbox<DB>, amqp: &str, messages: usize) -> Duration {
    let (relay, all) = relay(outbox, amqp, messages, |_| ()).await;
    let started = Instant::now();
    let relay = relay.spawn();
    all.notified().await;
    relay.stop().await;
    let took = started.elapsed();
    assert_eq!(outbox.status().await.expect("status").backlog, 0, "all are deleted");
    took
}

async fn postgres_outbox() -> (PostgresOutbox, String) {
    let name = table("outbox");
    let outbox = PostgresOutbox::connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
    let outbox = outbox.table(&name).expect("name");
    outbox.create_schema().await.expect("schema");
    (outbox, name)
}

async fn number(pool: &PgPool, sql: &str) -> f64 {
    sqlx::query_scalar(AssertSqlSafe(format!("SELECT ({sql})::float8")))
        .fetch_one(pool)
        .await
        .expect("number")
}

const WAL: &str = "pg_current_wal_insert_lsn() - '0/0'";

async fn postgres(amqp: &str, queue: &str, messages: usize, held: bool) -> Took {
    let (outbox, name) = postgres_outbox().await;
    let pool = outbox.pool();
    let wal = number(pool, WAL).await;
    let mut holder = pool.acquire().await.expect("connection");
    if held {
        let hold = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1";
        sqlx::raw_sql(hold).execute(&mut *holder).await.expect("snapshot");
    }
    enqueue(&outbox, queue, messages).await;
    let took = drain(&outbox, amqp, messages).await;
    let mut others = BTreeMap::new();
    let written = (number(pool, WAL).await - wal) / messages as f64;
    others.insert("wal_bytes_per_msg".to_owned(), written);
    for (what, size) in [("table_mb", "pg_table_size"), ("index_mb", "pg_indexes_size")] {
        let size = number(pool, &format!("{size}('{name}') / 1e6")).await;
        others.insert(what.to_owned(), size);
    }
    Took { took, others, ..Took::default() }
}

/// Producers and the relay at the same time.
async fn end_to_end(amqp: &str, queue: &str, messages: usize) -> Took {
    let (outbox, _) = postgres_outbox().await;
    let (relay, all) = relay(&outbox, amqp, messages, |_| ()).await;
    let started = Instant::now();
    let relay = relay.spawn();
    enqueue(&outbox, queue, messages).await;
    outbox.wake();
    all.notified().await;
    relay.stop().await;
    started.elapsed().into()
}

async fn mysql(amqp: &str, queue: &str, messages: usize) -> Took {
    let outbox = MySqlOutbox::connect(&variable("MYSQL_URL")).await.expect("MariaDB");
    let outbox = outbox.table(&table("outbox")).expect("name");
    outbox.create_schema().await.expect("schema");
    enqueue(&outbox, queue, messages).await;
    drain(&outbox, amqp, messages).await.into()
}

async fn sqlite(amqp: &str, queue: &str, messages: usize) -> Took {
    let file = outbox::File::new();
    let outbox = SqliteOutbox::connect(&file.url()).await.expect("SQLite");
    outbox.create_schema().await.expect("schema");
    enqueue(&outbox, queue, messages).await;
    drain(&outbox, amqp, messages).await.into()
}

/// A message every 10 ms; the time from its commit to its confirm. `others`: the relay has an
/// outbox of its own, and hears of commits by the database only, as another process does.
async fn paced(amqp: &str, queue: &str, messages: usize, others: bool) -> Took {
    let (outbox, name) = postgres_outbox().await;
    let theirs = if others {
        let other = PostgresOutbox::connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
        other.table(&name).expect("name")
    } else {
        outbox.clone()
    };
    let stopwatch = Arc::new(Stopwatch::default());
    let stopping = Arc::clone(&stopwatch);
    let (relay, all) = relay(&theirs, amqp, messages, move |id| stopping.stop(id)).await;
    let relay = relay.spawn();
    let monitor = relay.monitor();
    while !monitor.status().is_ready() || (others && !monitor.status().listening) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (started, body) = (Instant::now(), body());
    let mut tick = tokio::time::interval(Duration::from_millis(10));
    for _ in 0..messages {
        tick.tick().await;
        let mut tx = outbox.pool().begin().await.expect("begin");
        let id = outbox.enqueue(&mut tx, message(queue, &body)).await.expect("enqueue");
        // Before the answer to the commit: a relay may be faster than that.
        stopwatch.start(id.as_str());
        tx.commit().await.expect("commit");
        outbox.wake();
    }
    all.notified().await;
    let took = started.elapsed();
    relay.stop().await;
    Took { took, latencies: stopwatch.took(), ..Took::default() }
}

/// What a relay takes of a core, and PostgreSQL for it, while there is nothing to be published.
async fn idle(amqp: &str) -> Took {
    let (outbox, _) = postgres_outbox().await;
    let (relay, _) = relay(&outbox, amqp, 0, |_| ()).await;
    let relay = relay.spawn();
    let monitor = relay.monitor();
    while !monitor.status().is_ready() || !monitor.status().listening {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (started, cpu) = (Instant::now(), support::cpu());
    tokio::time::sleep(Duration::from_secs(30)).await;
    let (took, cpu) = (started.elapsed(), support::cpu().saturating_sub(cpu));
    relay.stop().await;
    let percent = cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
    Took { took, others: BTreeMap::from([("cpu_percent".to_owned(), percent)]), ..Took::default() }
}

/// Transactions of one row, with a message each or without.
async fn producers(case: &str, messages: usize) -> Took {
    let (enqueues, by_hand) = (case == ENQUEUES, case == ROWS_BY_HAND);
    let (outbox, _) = postgres_outbox().await;
    let pool = sqlx::postgres::PgPoolOptions::new().min_connections(16).max_connections(16);
    let pool = pool.connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
    let rows = table("rows");
    let create = format!(
        "CREATE TABLE {rows} (id int PRIMARY KEY, balance bigint NOT NULL); \
         INSERT INTO {rows} SELECT n, 0 FROM generate_series(0, 15) n; \
         CREATE TABLE {rows}_out (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, \
         message_id varchar(36) NOT NULL, body bytea NOT NULL, sent_at bigint); \
         CREATE INDEX ON {rows}_out (sent_at, id)"
    );
    sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await.expect("table");
    let insert = Arc::new(format!("INSERT INTO {rows}_out (message_id, body) VALUES ($1, $2)"));
    let update = Arc::new(format!("UPDATE {rows} SET balance = balance + 1 WHERE id = $1"));
    let (started, body) = (Instant::now(), body());
    let tasks: Vec<_> = (0_i32..16)
        .map(|row| {
            let (pool, outbox, update, body) =
                (pool.clone(), outbox.clone(), Arc::clone(&update), body.clone());
            let insert = Arc::clone(&insert);
            tokio::spawn(async move {
                for _ in 0..messages / 16 {
                    let mut tx = pool.begin().await.expect("begin");
                    let query = sqlx::query(AssertSqlSafe(update.as_str())).bind(row);
                    query.execute(&mut *tx).await.expect("update");
                    if enqueues {
                        outbox.enqueue(&mut tx, message("q", &body)).await.expect("enqueue");
                    }
                    if by_hand {
                        let id = uuid::Uuid::new_v4().to_string();
                        let query = sqlx::query(AssertSqlSafe(insert.as_str())).bind(id).bind(&*body);
                        query.execute(&mut *tx).await.expect("insert");
                    }
                    tx.commit().await.expect("commit");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("producer");
    }
    started.elapsed().into()
}
