//! RabbitMQ 4.3 delays what failed by itself.

use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IncomingMessage,
    MemoryStore,
    consumer::{ConsumeErrorKind, Redelivery, WorkQueue},
};

use super::{
    limits::Noting,
    redelivery::{delete, millis, wait_for_parked},
    support::{
        amqp::{Client, header, with_id},
        broker,
        consumer::Running,
        unique,
    },
};

trials! {
    delayed_retries_of_the_broker_are_used_where_it_has_them,
}

/// Fails for one message and notes the rest.
struct Picky(Noting);

impl<S: IdempotencyStore> IdempotentHandler<S> for Picky {
    async fn handle(&self, message: &IncomingMessage, session: &mut S::Session) -> HandlerResult {
        IdempotentHandler::<S>::handle(&self.0, message, session).await?;
        match message.raw_message_id() {
            Some("bad") => Err(HandlerError::retry("bad")),
            _ => Ok(()),
        }
    }
}

/// RabbitMQ 4.3 holds what failed, and counts it; an older one is refused rather than rejected into
/// for ever.
pub async fn delayed_retries_of_the_broker_are_used_where_it_has_them() {
    let client = Client::connect(&broker()).await;
    let queue = unique("delayed-retries");
    let work = WorkQueue::new(broker(), &queue).delivery_limit(20).delayed_retry(millis(300), millis(900));
    let handler = Noting::default();
    let builder = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(100))
        .redelivery(Redelivery::DelayedRetry)
        .immediate_retries(0)
        .max_attempts(4);
    if work.declare().await.is_err() {
        client.declare(&queue).await;
        let error = builder.run_until(handler, std::future::pending()).await.expect_err("an older broker");
        assert_eq!(error.kind(), ConsumeErrorKind::Invalid);
        let text = std::error::Error::source(&error).expect("a source").to_string();
        assert!(text.contains("4.3"), "{text}");
        client.delete(&queue).await;
        return;
    }
    client.publish(&queue, b"1", with_id("bad")).await;
    client.publish(&queue, b"1", with_id("good")).await;
    let started = tokio::time::Instant::now();
    let consumer = Running::start(builder, Picky(handler.clone()));
    wait_for_parked(&client, &queue, 1).await;
    let took = started.elapsed();
    consumer.stop().await;
    let counts: Vec<_> = handler
        .seen()
        .iter()
        .filter(|message| message.raw_message_id() == Some("bad"))
        .map(|message| message.delivery_count().unwrap_or_default())
        .collect();
    assert_eq!(counts, [0, 1, 2, 3], "the count is the broker's");
    assert!(took >= millis(300 + 600 + 900), "{took:?}");
    assert_eq!(handler.seen().len(), 5);
    let parked = client.get(&format!("{queue}.parked")).await.expect("parked");
    assert_eq!(header(&parked, "x-idempotency-parked-reason").as_deref(), Some("attempts-exhausted"));
    assert_eq!(header(&parked, "x-idempotency-parked-attempts").as_deref(), Some("LongLongInt(4)"));
    delete(&client, &queue, &[]).await;
}
