use lapin_idempotent::{
    HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, SqliteStore,
    store::SqliteTransaction,
};
# #[derive(serde::Deserialize)]
# struct Debit { account: String, amount: i64 }

struct DebitAccount;

impl IdempotentHandler<SqliteStore> for DebitAccount {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let debit: Debit = message.json()?; // not decodable: rejected and parked
        sqlx::query("UPDATE account SET balance = balance - ? WHERE id = ?")
            .bind(debit.amount)
            .bind(&debit.account)
            .execute(&mut **tx)
            .await?; // any other error: rolled back and tried again
        Ok(())
    }
}

# async fn example() -> Result<(), lapin_idempotent::BoxError> {
let store = SqliteStore::connect("sqlite:ledger.db").await?;
store.create_schema().await?;
IdempotentConsumer::builder("amqp://localhost", "payments.debit", store)
    .scope("ledger")
    .run_until(DebitAccount, async { tokio::signal::ctrl_c().await.unwrap_or_default() })
    .await?;
# Ok(())
# }
