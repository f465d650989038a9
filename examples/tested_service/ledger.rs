//! The ledger, and the handler that books into it.

use lapin_idempotent::{
    BoxError, HandlerResult, IdempotentHandler, IncomingMessage, OutgoingMessage, SqliteOutbox, SqliteStore,
    SqliteTransaction,
};
use serde::{Deserialize, Serialize};

/// Where it is announced what was booked.
pub(crate) const BOOKED: &str = "ledger.booked";

#[derive(Serialize, Deserialize)]
pub(crate) struct Debit {
    pub(crate) order: String,
    pub(crate) account: String,
    pub(crate) amount: i64,
}

/// A database with all tables that the service needs.
pub(crate) async fn open(url: &str) -> Result<SqliteStore, BoxError> {
    let store = SqliteStore::connect(url).await?;
    store.create_schema().await?;
    SqliteOutbox::new(store.pool().clone()).create_schema().await?;
    // Without a unique key, so that a second effect would show.
    let ledger = "CREATE TABLE IF NOT EXISTS ledger \
                  (order_id TEXT NOT NULL, account TEXT NOT NULL, amount INTEGER NOT NULL)";
    sqlx::query(ledger).execute(store.pool()).await?;
    Ok(store)
}

pub(crate) async fn book(debit: &Debit, tx: &mut SqliteTransaction) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO ledger VALUES (?, ?, ?)")
        .bind(&debit.order)
        .bind(&debit.account)
        .bind(debit.amount)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Books a debit, and announces that through the outbox: all of it in the session, so that it is
/// committed with the ID of the message or not at all.
pub(crate) struct Book {
    pub(crate) outbox: SqliteOutbox,
}

impl IdempotentHandler<SqliteStore> for Book {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let debit: Debit = message.json()?;
        book(&debit, tx).await?;
        let booked = OutgoingMessage::to("", BOOKED).caused_by(message, "booked")?.json(&debit)?;
        self.outbox.enqueue(&mut **tx, booked).await?;
        Ok(())
    }
}
