//! What is tried: debits in SQLite, each one row of a ledger.

use std::sync::{Arc, Mutex};

use lapin_idempotent::{
    HandlerResult, IdempotentHandler, IncomingMessage, MessageId, OutgoingMessage, SqliteOutbox, SqliteStore,
    SqliteTransaction,
    sqlx::{self, SqlitePool},
    testing::Subject,
};

/// What is there for a run.
#[derive(Clone)]
pub struct Shop {
    pub store: SqliteStore,
    pub pool: SqlitePool,
    pub outbox: SqliteOutbox,
    /// What is there whatever becomes of a transaction.
    pub mails: Arc<Mutex<Vec<String>>>,
}

impl Shop {
    pub async fn open() -> Self {
        let store = SqliteStore::connect("sqlite::memory:").await.unwrap();
        store.create_schema().await.unwrap();
        let pool = store.pool().clone();
        let outbox = SqliteOutbox::new(pool.clone());
        outbox.create_schema().await.unwrap();
        for table in ["ledger", "seen"] {
            let sql = format!("CREATE TABLE {table} (id TEXT NOT NULL, amount INTEGER NOT NULL)");
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        }
        Self { store, pool, outbox, mails: Arc::default() }
    }

    /// All rows of a table, in the order of their IDs.
    pub async fn rows(&self, table: &str) -> Vec<(String, i64)> {
        let sql = format!("SELECT id, amount FROM {table} ORDER BY id");
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&self.pool).await.unwrap()
    }

    /// With this handler, and the ledger to be compared.
    pub fn subject<H: 'static>(self, handler: H) -> Subject<SqliteStore, H> {
        let store = self.store.clone();
        Subject::new(store, handler).state(async move || self.rows("ledger").await)
    }
}

pub fn debit(number: u32) -> OutgoingMessage {
    let id = MessageId::new(format!("debit/{number}")).unwrap();
    OutgoingMessage::to("payments", "debit").message_id(id).json(&500).unwrap()
}

pub async fn book(
    to: impl sqlx::SqliteExecutor<'_>,
    table: &'static str,
    message: &IncomingMessage,
) -> HandlerResult {
    let amount: i64 = message.json()?;
    let sql = format!("INSERT INTO {table} VALUES (?, ?)");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(message.raw_message_id()).bind(amount);
    row.execute(to).await?;
    Ok(())
}

/// All of its effects are in its session.
pub struct Debit;

impl IdempotentHandler<SqliteStore> for Debit {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        book(&mut **tx, "ledger", message).await
    }
}
