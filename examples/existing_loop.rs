//! The guard inside a plain lapin consume loop, for a service that has one already.
//!
//! `cargo run --example existing_loop`; stops when the queue has been quiet for five seconds.

use std::time::Duration;

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    Connection, ConnectionProperties,
    message::Delivery,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
        QueueDeclareOptions,
    },
    types::FieldTable,
};
use lapin_idempotent::{
    BoxError, Guard, HandlerResult, IdempotentHandler, IncomingMessage, MemoryStore,
    consumer::{Settlement, settle},
    idempotency::{Lease, Scope},
};
use tokio::time::{sleep, timeout};

struct Print;

impl IdempotentHandler<MemoryStore> for Print {
    async fn handle(&self, message: &IncomingMessage, _lease: &mut Lease) -> HandlerResult {
        println!("handling {}", message.text()?);
        Ok(())
    }
}

/// Held unacknowledged, and not given back: each return counts towards the delivery limit of a
/// quorum queue, 20 by default since RabbitMQ 4.0.
async fn held(delivery: Delivery, after: Duration) -> Delivery {
    sleep(after).await;
    delivery
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let amqp = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let connection = Connection::connect(&amqp, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    for queue in ["payments.debit", "payments.debit.parked"] {
        channel.queue_declare(queue.into(), durable, FieldTable::default()).await?;
    }
    channel.basic_qos(32, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries =
        channel.basic_consume("payments.debit".into(), "".into(), options, arguments).await?;

    let guard = Guard::new(MemoryStore::new(100_000), Scope::new("printer")?);
    let mut waiting = FuturesUnordered::new();
    loop {
        let delivery = tokio::select! {
            Some(delivery) = waiting.next() => delivery,
            next = timeout(Duration::from_secs(5), deliveries.next()) => match next {
                Ok(Some(delivery)) => delivery?,
                _ if waiting.is_empty() => return Ok(()),
                _ => continue,
            },
        };
        let outcome = guard.process(&IncomingMessage::from(&delivery), &Print).await;
        match settle(&outcome) {
            Settlement::Ack => drop(delivery.ack(BasicAckOptions::default()).await?),
            // The store is away, or somebody else is at it: ask the guard again.
            Settlement::Hold { after } | Settlement::Defer { after } => waiting.push(held(delivery, after)),
            // A real service counts these, and parks the message after some.
            Settlement::Retry { after, .. } => {
                waiting.push(held(delivery, after.unwrap_or(Duration::from_secs(1))));
            }
            // Acked only when the copy is confirmed: `mandatory`, so that it is in a queue.
            Settlement::Park(reason) => {
                eprintln!("parked: {}", reason.name());
                let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let (queue, properties) = ("payments.debit.parked".into(), delivery.properties.clone());
                let sent =
                    channel.basic_publish("".into(), queue, mandatory, &delivery.data, properties).await?;
                let confirmation = sent.await?;
                if confirmation.is_ack() && confirmation.take_message().is_none() {
                    delivery.ack(BasicAckOptions::default()).await?;
                } else {
                    waiting.push(held(delivery, Duration::from_secs(5)));
                }
            }
            _ => waiting.push(held(delivery, Duration::from_secs(1))),
        }
    }
}
