//! Consumes debits through the guard: identity and effect in one SQLite transaction, ack after the
//! commit.
//!
//! `cargo run --example consume --features sqlite`, then `cargo run --example publish` a few times;
//! Ctrl-C stops it.

use lapin::{Connection, ConnectionProperties, options::QueueDeclareOptions, types::FieldTable};
use lapin_idempotent::{
    BoxError, HandlerError, HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage,
    SqliteStore, store::SqliteTransaction,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Debit {
    account: String,
    amount: i64,
}

struct DebitAccount;

impl IdempotentHandler<SqliteStore> for DebitAccount {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let debit: Debit = message.json()?; // not decodable: parked
        if debit.amount <= 0 {
            return Err(HandlerError::reject("a debit must be positive")); // parked, too
        }
        sqlx::query("INSERT INTO ledger (account, amount) VALUES (?, ?)")
            .bind(&debit.account)
            .bind(debit.amount)
            .execute(&mut **tx)
            .await?; // any other error: rolled back, and delivered again
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let amqp = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    declare(&amqp, "payments.debit").await?;
    let store = SqliteStore::connect("sqlite:ledger.db").await?;
    store.create_schema().await?;
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS ledger (account TEXT NOT NULL, amount INTEGER NOT NULL)")
        .execute(store.pool())
        .await?;

    IdempotentConsumer::builder(&amqp, "payments.debit", store)
        .scope("ledger")
        .on_outcome(|message, outcome| println!("{:?}: {}", message.raw_message_id(), outcome.name()))
        .run_until(DebitAccount, async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .await?;
    Ok(())
}

async fn declare(amqp: &str, queue: &str) -> Result<(), BoxError> {
    let channel = Connection::connect(amqp, ConnectionProperties::default()).await?.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), durable, FieldTable::default()).await?;
    Ok(())
}
