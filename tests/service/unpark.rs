//! Parked messages are brought back once the reason is repaired, and take effect once.

use std::time::Duration;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::{
    IncomingMessage, SqliteStore,
    amqp::Credentials,
    consumer::{ConsumerBuilder, Unpark, Unparked},
    idempotency::StalePolicy,
};

use super::{
    redelivery::{Flaky, delete, millis, wait_for_parked},
    support::{
        amqp::{Client, with_id},
        broker, eventually,
        ledger::Ledger,
    },
};

pub async fn unparked_message_takes_effect_once() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("unpark").await;
    let parking = format!("{queue}.parked");
    // Two copies of one message, both of which fail.
    for _ in 0..2 {
        client.publish(&queue, b"500", with_id("order-42")).await;
    }
    let ledger = Ledger::create().await;
    let failing = |b: ConsumerBuilder<SqliteStore>| {
        b.immediate_retries(0).max_attempts(2).retry_delays(millis(30), millis(30))
    };
    let consumer = ledger.consume_builder(&broker(), &queue, failing).start(Flaky::new(usize::MAX));
    wait_for_parked(&client, &queue, 2).await;
    consumer.stop().await;
    let unparked = Unpark::new(broker(), &parking).run().await.expect("unpark");
    assert_eq!((unparked.moved, unparked.left, unparked.failed), (2, 0, 0));
    assert_eq!((client.ready(&queue).await, client.ready(&parking).await), (2, 0));
    let repaired = Flaky::new(0);
    let consumer = ledger.consume_builder(&broker(), &queue, failing);
    let monitor = consumer.monitor();
    let consumer = consumer.start(repaired.clone());
    assert_eq!(consumer.decided(2).await, ["processed", "duplicate"]);
    consumer.stop().await;
    assert_eq!(monitor.status().duplicates.get("replayed"), Some(&1));
    assert_eq!(ledger.rows().await, (1, 1));
    let message = &repaired.seen()[0].message;
    assert_eq!((message.failures(), message.is_replay()), (0, true), "it has all its attempts again");
    assert_eq!(message.routing_key(), queue);
    assert_eq!(message.parked_reason(), None);
    assert_eq!(client.ready(&queue).await, 0);
    delete(&client, &queue, &[30]).await;
}

/// Whoever puts a message back has looked at it: the age gate lets it through.
pub async fn unparked_message_is_handled_though_it_is_old() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("unpark-old").await;
    client.publish(&queue, b"500", with_id("order-42").with_timestamp(1_700_000_000)).await;
    let ledger = Ledger::create().await;
    let gated = |b: ConsumerBuilder<SqliteStore>| b.retention(Duration::from_secs(3600), StalePolicy::Park);
    let consumer = ledger.consume_builder(&broker(), &queue, gated).start(Flaky::new(0));
    wait_for_parked(&client, &queue, 1).await;
    assert_eq!(consumer.decided(1).await, ["indeterminate"]);
    Unpark::new(broker(), format!("{queue}.parked")).run().await.expect("unpark");
    eventually("the effect", async || (ledger.rows().await == (1, 1)).then_some(())).await;
    consumer.stop().await;
    delete(&client, &queue, &[]).await;
}

pub async fn unpark_moves_what_is_chosen_and_loses_nothing() {
    let client = Client::connect(&broker()).await;
    let (queue, other) = (client.queue("unpark-some").await, client.queue("unpark-other").await);
    let parking = client.queue("parking").await;
    for n in 0..6 {
        let mut headers = FieldTable::default();
        let target = if n == 5 { "test.no-such-queue" } else { queue.as_str() };
        headers.insert("x-idempotency-original-queue".into(), AMQPValue::LongString(target.into()));
        let reason = if n % 2 == 0 { "rejected" } else { "attempts-exhausted" };
        headers.insert("x-idempotency-parked-reason".into(), AMQPValue::LongString(reason.into()));
        client.publish(&parking, b"1", with_id(&format!("m{n}")).with_headers(headers)).await;
    }
    client.publish(&parking, b"1", BasicProperties::default()).await;
    let rejected = |message: &IncomingMessage| message.parked_reason() == Some("rejected");
    let unpark = || Unpark::new(broker(), &parking);
    let counts = |unparked: &Unparked| (unparked.moved, unparked.left, unparked.failed);

    let some = unpark().only(rejected).limit(2).run().await.expect("unpark");
    assert_eq!(counts(&some), (2, 1, 0));
    assert_eq!((client.ready(&queue).await, client.ready(&parking).await), (2, 5));
    let rest = unpark().run().await.expect("unpark");
    assert_eq!(counts(&rest), (3, 0, 2), "one says no queue, one a queue that is not there");
    assert!(rest.last_error.is_some());
    assert_eq!((client.ready(&queue).await, client.ready(&parking).await), (5, 2));
    let elsewhere = unpark().to(&other).run().await.expect("unpark");
    assert_eq!(counts(&elsewhere), (2, 0, 0));
    assert_eq!((client.ready(&other).await, client.ready(&parking).await), (2, 0));
    let error = unpark().credentials(Credentials::new("a", "b")).run().await;
    assert!(error.is_err(), "credentials twice");
    for queue in [&queue, &other, &parking] {
        client.delete(queue).await;
    }
    assert!(unpark().run().await.is_err(), "no such queue");
}
