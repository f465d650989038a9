//! Accounts and a ledger in SQLite, and the handler that debits them. The ledger has no unique key:
//! a second effect shows.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, SqliteStore,
    consumer::ConsumerBuilder, store::SqliteTransaction,
};
use sqlx::SqlitePool;

use super::{consumer::Running, unique};

#[derive(Clone)]
pub struct Ledger {
    pub store: SqliteStore,
    pool: SqlitePool,
}

impl Ledger {
    pub async fn create() -> Self {
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("ledger") + ".db");
        let store = SqliteStore::connect(&format!("sqlite:{}", file.display())).await.expect("open");
        store.create_schema().await.expect("schema");
        sqlx::raw_sql("CREATE TABLE ledger (message_id TEXT NOT NULL, amount INTEGER NOT NULL)")
            .execute(store.pool())
            .await
            .expect("table");
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
        let pool = SqlitePool::connect_with(options).await.expect("reader");
        Self { store, pool }
    }

    /// Rows of the ledger, and how many different messages they are of.
    pub async fn rows(&self) -> (i64, i64) {
        sqlx::query_as("SELECT count(*), count(DISTINCT message_id) FROM ledger")
            .fetch_one(&self.pool)
            .await
            .expect("count")
    }

    pub async fn sum(&self) -> i64 {
        let (sum,): (Option<i64>,) =
            sqlx::query_as("SELECT sum(amount) FROM ledger").fetch_one(&self.pool).await.expect("sum");
        sum.unwrap_or_default()
    }

    /// Starts a consumer of `queue` that debits through this ledger.
    pub fn consume(&self, url: &str, queue: &str, handler: Debit) -> Running {
        self.consume_with(url, queue, handler, |builder| builder)
    }

    pub fn consume_with(
        &self,
        url: &str,
        queue: &str,
        handler: impl IdempotentHandler<SqliteStore> + 'static,
        set: impl FnOnce(ConsumerBuilder<SqliteStore>) -> ConsumerBuilder<SqliteStore>,
    ) -> Running {
        let builder = IdempotentConsumer::builder(url, queue, self.store.clone()).scope("ledger");
        Running::start(set(builder), handler)
    }
}

/// Debits `amount`, which is the body. Counts its runs; can fail, reject or dawdle first.
#[derive(Clone, Default)]
pub struct Debit {
    pub runs: Arc<AtomicU32>,
    pub fail_first: u32,
    pub dawdle: Duration,
    pub order: Arc<Mutex<Vec<String>>>,
}

impl Debit {
    pub fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }
}

impl IdempotentHandler<SqliteStore> for Debit {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        let amount: i64 = message.json()?;
        if amount < 0 {
            return Err(HandlerError::reject("a debit must not be negative"));
        }
        let id = message.raw_message_id().unwrap_or_default();
        sqlx::query("INSERT INTO ledger (message_id, amount) VALUES (?, ?)")
            .bind(id)
            .bind(amount)
            .execute(&mut **tx)
            .await?;
        self.order.lock().expect("order").push(id.to_owned());
        tokio::time::sleep(self.dawdle).await;
        if run < self.fail_first {
            return Err(HandlerError::retry("not yet"));
        }
        Ok(())
    }
}
