//! Consumers in this process: several batches at once.

use std::time::Duration;

use lapin_idempotent::{IdempotentConsumer, consumer::ConsumerBuilder, store::SqlStore};
use sqlx::{AssertSqlSafe, Postgres};

use super::{
    database::{Kind, Table},
    support::{amqp::Client, broker, consumer::Running, eventually},
};

/// A message whose handler met a fault comes again after this: one delay queue.
const DELAY: Duration = Duration::from_millis(100);

pub fn consumer<K: Kind>(table: &Table<K>, url: &str, queue: &str) -> ConsumerBuilder<SqlStore<K>> {
    IdempotentConsumer::builder(url, queue, table.store.clone())
        .scope("test")
        .workers(4)
        .batch(16)
        .retry_delays(DELAY, DELAY)
}

/// The message of each effect.
pub async fn effects(table: &Table<Postgres>) -> Vec<String> {
    let ids = format!("SELECT message_id FROM {}", table.effects);
    sqlx::query_scalar(AssertSqlSafe(ids)).fetch_all(table.store.pool()).await.expect("effects")
}

/// Waits until all messages have taken effect, and stops the consumers. Each has one effect, and
/// nothing is left in the queue of `client`.
pub async fn assert_one_effect_each<K: Kind>(
    messages: i64,
    table: &Table<K>,
    (client, url, queue): (&Client, &str, &str),
    consumers: Vec<Running>,
) {
    eventually("all take effect", async || (table.effects().await.1 >= messages).then_some(())).await;
    for consumer in consumers {
        consumer.stop().await;
    }
    // Copies of messages that took effect may have gone back to the queue.
    for _ in 0..5 {
        let left = client.ready(queue).await;
        if left > 0 {
            let last = Running::start(consumer(table, url, queue), table.insert());
            let outcomes = last.decided(left as usize).await;
            assert!(outcomes.iter().all(|outcome| *outcome == "duplicate"), "{outcomes:?}");
            last.stop().await;
        }
    }
    assert_eq!(table.effects().await, (messages, messages), "none lost, none twice");
    assert_eq!(table.identities().await, messages);
    assert_eq!(client.ready(queue).await, 0, "all are acked");
    assert_eq!(client.ready(&format!("{queue}.parked")).await, 0, "none is parked");
}

/// Deletes a queue of the shared broker, and those beside it.
pub async fn delete(queue: &str) {
    let client = Client::connect(&broker()).await;
    for suffix in ["", ".parked", &format!(".retry.{}", DELAY.as_millis())] {
        client.delete(&format!("{queue}{suffix}")).await;
    }
}
