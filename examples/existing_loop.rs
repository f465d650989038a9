//! The guard inside a plain lapin consume loop, for a service that has one already.
//!
//! `cargo run --example existing_loop`; stops when the queue has been quiet for five seconds.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions},
    types::FieldTable,
};
use lapin_idempotent::{
    BoxError, Guard, HandlerResult, IdempotentHandler, IncomingMessage, MemoryStore,
    consumer::{Settlement, settle},
    idempotency::{Lease, Scope},
};

struct Print;

impl IdempotentHandler<MemoryStore> for Print {
    async fn handle(&self, message: &IncomingMessage, _lease: &mut Lease) -> HandlerResult {
        println!("handling {}", message.text()?);
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let amqp = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::connect(&amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("payments.debit".into(), durable, FieldTable::default()).await?;
    channel.basic_qos(32, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries =
        channel.basic_consume("payments.debit".into(), "".into(), options, arguments).await?;

    let guard = Guard::new(MemoryStore::new(100_000), Scope::new("printer")?);
    while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_secs(5), deliveries.next()).await {
        let delivery = delivery?;
        let outcome = guard.process(&IncomingMessage::from(&delivery), &Print).await;
        match settle(&outcome) {
            Settlement::Ack => delivery.ack(BasicAckOptions::default()).await?,
            // A real service publishes it to its own parking queue, with a confirm, and then acks.
            Settlement::Park(reason) => {
                eprintln!("to be parked: {}", reason.as_str());
                delivery.nack(BasicNackOptions { requeue: false, multiple: false }).await?
            }
            // Later: by the delay that the settlement names. Here: at once.
            _ => delivery.nack(BasicNackOptions { requeue: true, multiple: false }).await?,
        };
    }
    Ok(())
}
