//! Publishes one debit under an ID that survives a restart: run it twice, and a guarded consumer
//! handles it once.
//!
//! `cargo run --example publish -- order-42`

use lapin_idempotent::{BoxError, IdempotentPublisher, OutgoingMessage, PublishError};
use serde::Serialize;

#[derive(Serialize)]
struct Debit<'a> {
    account: &'a str,
    amount: i64,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let amqp = std::env::var("AMQP_URL").unwrap_or_else(|_| "amqp://localhost".to_owned());
    let order = std::env::args().nth(1).unwrap_or_else(|| "order-42".to_owned());
    let publisher = IdempotentPublisher::builder(amqp).app_id("orders").connect().await?;

    // The exchange "" leads to the queue that the routing key names; `consume` declares it.
    let message = OutgoingMessage::to("", "payments.debit")
        .idempotency_key(format!("debit/{order}"))
        .json(&Debit { account: "A", amount: 500 })?;
    match publisher.publish_idempotent(message).await {
        Ok(receipt) => println!("{} confirmed after {} attempt(s)", receipt.message_id(), receipt.attempts()),
        Err(error) => keep_for_later(error),
    }
    Ok(())
}

/// The message comes back with its ID: whenever it is published again, it is the same message.
fn keep_for_later(error: PublishError) {
    eprintln!("not confirmed: {error}");
    if error.may_have_been_published() {
        eprintln!("it may be in the queue all the same; publishing it again does no harm");
    }
    let message = error.into_message();
    eprintln!("to be stored: {:?} with {} bytes", message.id(), message.payload().len());
}
