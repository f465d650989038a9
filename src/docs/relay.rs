use lapin_idempotent::{
    OutgoingMessage,
    outbox::Relay,
    testing::{MemoryOutbox, MemoryPublisher},
};

# #[tokio::main(flavor = "current_thread")]
# async fn main() -> Result<(), lapin_idempotent::BoxError> {
// Elsewhere a table of a database, and an `IdempotentPublisher`.
let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new());
let relay = Relay::new(outbox.clone(), publisher.clone()).name("orders-7f");
relay.check().await?;
let relay = relay.spawn();

let mut transaction = outbox.begin();
let placed = OutgoingMessage::to("orders", "placed").idempotency_key("placed/42").text("42");
outbox.enqueue_in_order(&mut transaction, "order-42", placed).await?;
transaction.commit();
outbox.wake(); // or the next poll finds it

# while !outbox.is_empty() { tokio::task::yield_now().await; }
relay.stop().await;
assert_eq!(publisher.published().len(), 1);
# Ok(())
# }
