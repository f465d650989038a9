//! Consumers of this crate, as they are measured.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IncomingMessage, MySqlStore,
    PostgresStore, RedisStore, SqliteStore,
    consumer::ConsumerBuilder,
    idempotency::Lease,
    store::{MySqlTransaction, PostgresTransaction, SqliteTransaction},
};
use sqlx::{AssertSqlSafe, mysql::MySqlPoolOptions, postgres::PgPoolOptions};
use tokio::sync::Notify;

use super::by_hand::{KEPT, outbox::File, table, variable};

/// Of a pool: as many by hand, and for 32 workers.
pub(crate) const CONNECTIONS: u32 = 32;

/// Runs a consumer until so many deliveries are decided and, as it returns then, settled.
async fn consume<S, H>(builder: ConsumerBuilder<S>, handler: H, messages: usize) -> Duration
where
    S: IdempotencyStore,
    H: IdempotentHandler<S> + 'static,
{
    consume_with(builder, handler, messages, |_| ()).await
}

pub(crate) async fn consume_with<S, H>(
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

pub(crate) struct Effect {
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

impl IdempotentHandler<MySqlStore> for Effect {
    async fn handle(&self, message: &IncomingMessage, tx: &mut MySqlTransaction) -> HandlerResult {
        let insert = sqlx::query(AssertSqlSafe(self.insert.as_str())).bind(message.raw_message_id());
        insert.bind(500_i64).execute(&mut **tx).await?;
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

pub(crate) async fn postgres_store(many: bool) -> (PostgresStore, Effect) {
    let pool = |pool: PgPoolOptions| pool.max_connections(CONNECTIONS);
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

pub(crate) async fn postgres(
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

pub(crate) async fn mariadb(amqp: &str, queue: &str, messages: usize, workers: usize) -> Duration {
    let pool = |pool: MySqlPoolOptions| pool.max_connections(CONNECTIONS);
    let store = MySqlStore::connect_with(&variable("MYSQL_URL"), pool).await.expect("MariaDB");
    let store = store.table(&table("ids")).expect("name");
    store.create_schema().await.expect("schema");
    let effects = table("effects");
    let create = format!("CREATE TABLE {effects} (id varchar(255) NOT NULL, amount bigint NOT NULL)");
    sqlx::raw_sql(AssertSqlSafe(create)).execute(store.pool()).await.expect("table");
    let insert = format!("INSERT INTO {effects} VALUES (?, ?)");
    let builder = IdempotentConsumer::builder(amqp, queue, store).batch(1).workers(workers);
    consume(builder.prefetch(prefetch(1)), Effect { insert, many: None }, messages).await
}

pub(crate) async fn sqlite(
    amqp: &str,
    queue: &str,
    messages: usize,
    batch: usize,
    workers: usize,
) -> Duration {
    let file = File::new();
    let store = SqliteStore::connect(&file.url()).await.expect("SQLite");
    store.create_schema().await.expect("schema");
    let create = "CREATE TABLE effects (id TEXT NOT NULL, amount INTEGER NOT NULL)";
    sqlx::raw_sql(create).execute(store.pool()).await.expect("table");
    let builder = IdempotentConsumer::builder(amqp, queue, store).batch(batch).workers(workers);
    consume(builder.prefetch(prefetch(batch)), Effect::new("effects", false), messages).await
}

pub(crate) async fn redis(amqp: &str, queue: &str, messages: usize) -> Duration {
    let store = RedisStore::connect(&variable("REDIS_URL")).await.expect("Redis");
    let store = store.prefix(&table("bench")).retention(KEPT);
    consume(IdempotentConsumer::builder(amqp, queue, store).workers(32), Nothing, messages).await
}
