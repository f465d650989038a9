//! Debits accounts through the transaction that the store opens: identity, ledger and balance are
//! committed together, a whole batch with two statements.
//!
//! `cargo run --example transactional --features postgres`; Ctrl-C or SIGTERM stops it. `AMQP_URL`,
//! `POSTGRES_URL` and `QUEUE` say where.

use lapin_idempotent::{
    BoxError, HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, PostgresStore,
    message::DecodeError, store::PostgresTransaction,
};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS account (id text PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (message_id text NOT NULL, account text NOT NULL, amount bigint NOT NULL)";

#[derive(Deserialize)]
struct Debit {
    account: String,
    amount: i64,
}

struct DebitAccounts;

impl IdempotentHandler<PostgresStore> for DebitAccounts {
    async fn handle(&self, message: &IncomingMessage, tx: &mut PostgresTransaction) -> HandlerResult {
        self.handle_batch(&[message], tx).await
    }

    /// All or nothing: if one of them fails, each is handled alone.
    async fn handle_batch(
        &self,
        messages: &[&IncomingMessage],
        tx: &mut PostgresTransaction,
    ) -> HandlerResult {
        let debits: Vec<Debit> =
            messages.iter().map(|message| message.json()).collect::<Result<_, DecodeError>>()?;
        let ids: Vec<&str> = messages.iter().filter_map(|message| message.raw_message_id()).collect();
        let accounts: Vec<&str> = debits.iter().map(|debit| debit.account.as_str()).collect();
        let amounts: Vec<i64> = debits.iter().map(|debit| debit.amount).collect();
        sqlx::query("INSERT INTO ledger SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[])")
            .bind(&ids)
            .bind(&accounts)
            .bind(&amounts)
            .execute(&mut **tx)
            .await?;
        // Always in this order, so that two consumers do not wait for each other.
        sqlx::query(
            "INSERT INTO account SELECT id, -sum(amount) FROM unnest($1::text[], $2::bigint[]) AS debit (id, amount)
                 GROUP BY id ORDER BY id
             ON CONFLICT (id) DO UPDATE SET balance = account.balance + excluded.balance",
        )
        .bind(&accounts)
        .bind(&amounts)
        .execute(&mut **tx)
        .await?;
        Ok(())
    }
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let store =
        PostgresStore::connect(&setting("POSTGRES_URL", "postgres://postgres@localhost/postgres")).await?;
    store.create_schema().await?;
    sqlx::raw_sql(TABLES).execute(store.pool()).await?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
    };
    IdempotentConsumer::builder(
        setting("AMQP_URL", "amqp://localhost"),
        setting("QUEUE", "payments.debit"),
        store,
    )
    .scope("ledger")
    .batch(256)
    .on_outcome(|message, outcome| {
        println!("{} {}", message.raw_message_id().unwrap_or("-"), outcome.name());
    })
    .run_until(DebitAccounts, stopped)
    .await?;
    Ok(())
}
