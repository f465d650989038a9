//! A service that reserves seats, and a client that asks it twice: the seat is reserved once, and
//! both questions have the same answer.
//!
//! ```sh
//! cargo run --example rpc --features sqlite -- serve   # until Ctrl-C
//! cargo run --example rpc --features sqlite -- ask 5
//! ```
//!
//! `AMQP_URL`, `QUEUE` and `DATABASE` say where.

use futures_util::StreamExt;
use lapin::{
    options::{BasicConsumeOptions, QueueDeclareOptions},
    types::FieldTable,
};
use lapin_idempotent::{
    BoxError, IdempotentConsumer, IdempotentPublisher, IncomingMessage, OutgoingMessage, SqliteStore,
    SqliteTransaction,
    consumer::{UnclaimedReply, WorkQueue},
    idempotency::{RpcHandler, RpcResult},
    message::Reply,
    store::Replies,
};

struct Reserve;

impl RpcHandler<SqliteStore> for Reserve {
    async fn handle(&self, request: &IncomingMessage, tx: &mut SqliteTransaction) -> RpcResult {
        let seat: i64 = request.json()?; // not decodable: rejected and parked
        let reserved = sqlx::query("INSERT INTO reservation (seat) VALUES (?) ON CONFLICT DO NOTHING")
            .bind(seat)
            .execute(&mut **tx)
            .await?; // any other error: rolled back and tried again
        // That somebody has it is an answer, not an error.
        let kind = if reserved.rows_affected() == 1 { "reserved" } else { "refused" };
        Ok(Reply::json(&seat)?.kind(kind))
    }
}

fn setting(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

async fn serve(amqp: &str, queue: &str) -> Result<(), BoxError> {
    let store = SqliteStore::connect(&setting("DATABASE", "sqlite:rpc.db")).await?;
    let store = store.with_replies(Replies::new())?;
    store.create_schema().await?;
    let table = "CREATE TABLE IF NOT EXISTS reservation (seat INTEGER PRIMARY KEY)";
    sqlx::raw_sql(table).execute(store.pool()).await?;
    WorkQueue::new(amqp, queue).declare().await?;
    println!("serving");
    IdempotentConsumer::builder(amqp, queue, store)
        .scope("cinema")
        .replies(UnclaimedReply::Drop)
        .on_outcome(|request, outcome| {
            println!("{} {}", request.raw_message_id().unwrap_or("-"), outcome.name());
        })
        .run_rpc_until(Reserve, async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .await?;
    Ok(())
}

/// Asks twice, as if the first answer had been lost.
async fn ask(amqp: &str, queue: &str, seat: i64) -> Result<(), BoxError> {
    let connection = lapin::Connection::connect(amqp, lapin::ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let exclusive = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
    let mailbox = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let name = mailbox.name().clone();
    let mut answers = channel.basic_consume(name.clone(), "".into(), no_ack, FieldTable::default()).await?;
    let publisher = IdempotentPublisher::builder(amqp).connect().await?;
    // One ID for one question, however often it is asked.
    let question = OutgoingMessage::to("", queue)
        .idempotency_key(format!("reserve/{seat}/{}", std::process::id()))
        .reply_to(name.as_str())
        .json(&seat)?;
    for time in ["first", "second"] {
        publisher.publish_idempotent(question.clone().correlation_id(time)).await?;
        let answer = answers.next().await.ok_or("the broker cancelled the consumer")??;
        let text =
            |of: &Option<lapin::types::ShortString>| of.as_ref().map_or("-".into(), ToString::to_string);
        let (kind, time) = (text(answer.properties.kind()), text(answer.properties.correlation_id()));
        println!("{time}: {kind} {}", String::from_utf8_lossy(&answer.data));
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (amqp, queue) = (setting("AMQP_URL", "amqp://localhost"), setting("QUEUE", "seats.reserve"));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve(&amqp, &queue).await,
        ["ask", seat] => ask(&amqp, &queue, seat.parse()?).await,
        _ => Err("serve, or ask SEAT".into()),
    }
}
