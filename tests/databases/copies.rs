//! Copies of messages that a consumer has in its hands at the same time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use lapin_idempotent::{
    HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, Lease, RedisStore,
};

use super::{
    database::short,
    support::{
        amqp::{Client, with_id},
        broker,
        consumer::Running,
    },
};

trials! {
    copies_that_are_claimed_at_once_take_effect_once_in_redis,
}

/// How often each message took effect.
#[derive(Clone, Default)]
struct Effects(Arc<Mutex<HashMap<String, u32>>>);

impl IdempotentHandler<RedisStore> for Effects {
    async fn handle(&self, message: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        // Others come in between.
        tokio::task::yield_now().await;
        let id = message.raw_message_id().expect("ID").to_owned();
        *self.0.lock().unwrap().entry(id).or_default() += 1;
        Ok(())
    }
}

pub async fn copies_that_are_claimed_at_once_take_effect_once_in_redis() {
    const MESSAGES: usize = 100;
    const COPIES: usize = 3;
    let url = std::env::var("REDIS_URL").expect("REDIS_URL");
    let store = RedisStore::connect(&url).await.expect("connect").prefix(&short("copies"));
    let store = store.lease(Duration::from_secs(1)).retention(Duration::from_secs(60));
    let client = Client::connect(&broker()).await;
    let queue = client.queue("copies").await;
    for n in 0..MESSAGES {
        for _ in 0..COPIES {
            client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
        }
    }
    let effects = Effects::default();
    let builder = IdempotentConsumer::builder(broker(), &queue, store).workers(32);
    let consumer = Running::start(builder, effects.clone());
    // A copy is held while the first one is in progress, and that is an outcome, too.
    let of = |outcomes: &[&str], name: &str| outcomes.iter().filter(|outcome| **outcome == name).count();
    let mut outcomes = consumer.decided(MESSAGES * COPIES).await;
    while of(&outcomes, "processed") + of(&outcomes, "duplicate") < MESSAGES * COPIES {
        outcomes = consumer.decided(outcomes.len() + 1).await;
    }
    consumer.stop().await;
    assert_eq!(of(&outcomes, "processed"), MESSAGES);
    let effects = effects.0.lock().unwrap().clone();
    assert!(effects.len() == MESSAGES && effects.values().all(|times| *times == 1), "{effects:?}");
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}
