//! Several consumers on one queue.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable};
use lapin_idempotent::consumer::ConsumerState;
use sqlx::Postgres;

use super::{
    consuming::{assert_one_effect_each, consumer, delete},
    database::{Insert, Table},
    flow::Flow,
    support::{amqp::Client, broker, consumer::Running, eventually},
};

trials! {
    consumers_in_one_process_share_a_queue_one_effect_each,
    single_active_consumer_is_followed_by_the_next_one_effect_each,
}

pub async fn consumers_in_one_process_share_a_queue_one_effect_each() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("shared").await;
    let table = Table::<Postgres>::create().await;
    let consumers: Vec<_> = (0..4)
        .map(|_| consumer(&table, &broker(), &queue).workers(2).prefetch(32))
        .map(|builder| Running::start(builder, table.insert()))
        .collect();
    eventually("all are there", async || (client.consumers(&queue).await == 4).then_some(())).await;
    let flow = Flow::start(&broker(), &queue, 2000).await;
    for consumer in &consumers {
        consumer.decided(100).await;
    }
    let messages = flow.stop().await;
    assert_one_effect_each(messages, &table, (&client, &broker(), &queue), consumers).await;
    delete(&queue).await;
}

/// A quorum queue that delivers to one consumer at a time: only when that one is gone, to the next.
pub async fn single_active_consumer_is_followed_by_the_next_one_effect_each() {
    let client = Client::connect(&broker()).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    let queue = client.queue_with("single-active", arguments).await;
    let table = Table::<Postgres>::create().await;
    let flow = Flow::start(&broker(), &queue, 500).await;
    let start = || {
        let handler = Insert { dawdle: Duration::from_millis(2), ..table.insert() };
        Running::start(consumer(&table, &broker(), &queue).single_active(), handler)
    };
    let mut active = start();
    active.decided(200).await;
    // The active one stops, then the next one dies, each with messages in hand.
    for dies in [false, true] {
        let next = start();
        next.until(ConsumerState::Consuming).await;
        let decided = active.decided(0).await.len();
        active.decided(decided + 100).await;
        assert_eq!(next.decided(0).await.len(), 0, "one at a time");
        if dies {
            active.die().await;
        } else {
            active.stop().await;
        }
        next.decided(200).await;
        active = next;
    }
    let messages = flow.stop().await;
    assert_one_effect_each(messages, &table, (&client, &broker(), &queue), vec![active]).await;
    delete(&queue).await;
}
