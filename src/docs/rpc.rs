use lapin_idempotent::{
    IdempotentConsumer, IncomingMessage, PostgresStore, PostgresTransaction,
    consumer::UnclaimedReply,
    idempotency::{RpcHandler, RpcResult},
    message::Reply,
    store::Replies,
};

struct Reserve;

impl RpcHandler<PostgresStore> for Reserve {
    async fn handle(&self, request: &IncomingMessage, tx: &mut PostgresTransaction) -> RpcResult {
        let seats: i32 = request.json()?; // not decodable: rejected and parked, no reply
        let taken = sqlx::query("UPDATE hall SET free = free - $1 WHERE free >= $1")
            .bind(seats)
            .execute(&mut **tx)
            .await?; // any other error: rolled back and tried again, no reply
        let kind = if taken.rows_affected() == 1 { "reserved" } else { "refused" };
        Ok(Reply::json(&seats)?.kind(kind))
    }
}

# async fn example() -> Result<(), lapin_idempotent::BoxError> {
let store = PostgresStore::connect("postgres://localhost/cinema").await?.with_replies(Replies::new())?;
store.create_schema().await?; // both tables
IdempotentConsumer::builder("amqp://localhost", "seats.reserve", store)
    .scope("cinema")
    .replies(UnclaimedReply::Drop)
    .run_rpc_until(Reserve, async { tokio::signal::ctrl_c().await.unwrap_or_default() })
    .await?;
# Ok(())
# }
