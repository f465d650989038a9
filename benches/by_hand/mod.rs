//! What one would write with lapin alone.

pub(crate) mod outbox;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Connection, ConnectionProperties, Consumer,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use sqlx::AssertSqlSafe;

/// For how long Redis keeps what it is told, so that runs leave little behind.
pub(crate) const KEPT: Duration = Duration::from_secs(300);

/// How long messages take, from the call that publishes them to the commit.
#[derive(Default)]
pub(crate) struct Stopwatch {
    started: Mutex<HashMap<String, Instant>>,
    took: Mutex<Vec<Duration>>,
}

impl Stopwatch {
    pub(crate) fn start(&self, id: &str) {
        self.started.lock().expect("lock").insert(id.to_owned(), Instant::now());
    }

    pub(crate) fn stop(&self, id: &str) {
        let started = self.started.lock().expect("lock")[id];
        self.took.lock().expect("lock").push(started.elapsed());
    }

    pub(crate) fn took(&self) -> Vec<Duration> {
        self.took.lock().expect("lock").clone()
    }
}

pub(crate) fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name}: run `make bench`"))
}

pub(crate) fn table(name: &str) -> String {
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

/// The fastest known way to consume with lapin; acks every 256, and no effect at all.
pub(crate) async fn raw(amqp: &str, queue: &str, messages: usize) -> Duration {
    let started = Instant::now();
    let (_connection, channel, mut consumer) = subscribe(amqp, queue, 4096).await;
    for n in 1..=messages {
        let delivery = consumer.next().await.expect("delivery").expect("delivery");
        if n % 256 == 0 || n == messages {
            let multiple = BasicAckOptions { multiple: true };
            channel.basic_ack(delivery.delivery_tag, multiple).await.expect("ack");
        }
    }
    started.elapsed()
}

/// The vendor's recipe, by hand, so many at once: begin, insert the ID, insert the effect, commit,
/// ack.
macro_rules! by_hand {
    ($name:ident, $DB:ty, ($ids:ident, $effects:ident): $create:expr, $values:expr) => {
        pub(crate) async fn $name(
            pool: sqlx::Pool<$DB>,
            amqp: &str,
            queue: &str,
            messages: usize,
            tasks: usize,
            stopwatch: Option<Arc<Stopwatch>>,
        ) -> Duration {
            let ($ids, $effects) = (table("ids"), table("effects"));
            let create = format!($create);
            sqlx::raw_sql(AssertSqlSafe(create)).execute(&pool).await.expect("tables");
            let (one, two) = $values;
            let claim: Arc<str> = format!("INSERT INTO {} VALUES ({one})", $ids).into();
            let effect: Arc<str> = format!("INSERT INTO {} VALUES ({one}, {two})", $effects).into();
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
                let (pool, channel) = (pool.clone(), channel.clone());
                let (claim, effect) = (Arc::clone(&claim), Arc::clone(&effect));
                let stopwatch = stopwatch.clone();
                working.push(tokio::spawn(async move {
                    let id = delivery.properties.message_id().as_ref().expect("ID").as_str();
                    let mut tx = pool.begin().await.expect("begin");
                    sqlx::query(AssertSqlSafe(claim)).bind(id).execute(&mut *tx).await.expect("new");
                    let effect = sqlx::query(AssertSqlSafe(effect)).bind(id).bind(500_i64);
                    effect.execute(&mut *tx).await.expect("effect");
                    tx.commit().await.expect("commit");
                    if let Some(stopwatch) = stopwatch {
                        stopwatch.stop(id);
                    }
                    let ack = channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default());
                    ack.await.expect("ack");
                }));
            }
            started.elapsed()
        }
    };
}

by_hand! {
    in_postgres, sqlx::Postgres,
    (ids, effects): "CREATE TABLE {ids} (id text PRIMARY KEY); CREATE TABLE {effects} (id text NOT NULL, amount bigint NOT NULL)",
    ("$1", "$2")
}
by_hand! {
    in_mariadb, sqlx::MySql,
    (ids, effects): "CREATE TABLE {ids} (id varchar(255) PRIMARY KEY); CREATE TABLE {effects} (id varchar(255) NOT NULL, amount bigint NOT NULL)",
    ("?", "?")
}
by_hand! {
    in_sqlite, sqlx::Sqlite,
    (ids, effects): "CREATE TABLE {ids} (id TEXT PRIMARY KEY); CREATE TABLE {effects} (id TEXT NOT NULL, amount INTEGER NOT NULL)",
    ("?1", "?2")
}

/// What one would write by hand with Redis: `SET NX` with an expiry, then the ack. It loses the
/// message if the process dies in between.
pub(crate) async fn redis_by_hand(amqp: &str, queue: &str, messages: usize) -> Duration {
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
            set.arg(format!("{prefix}:{id}")).arg(1).arg("NX").arg("EX").arg(KEPT.as_secs());
            let new: Option<String> = set.query_async(&mut redis).await.expect("answer");
            assert!(new.is_some());
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await.expect("ack");
        });
    }
    started.elapsed()
}
