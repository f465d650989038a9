//! Parked messages are brought back once the reason is repaired, and take effect once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
    limits::limited,
    redelivery::{Flaky, delete, millis, wait_for_parked},
    support::{
        amqp::{Client, header, with_id},
        broker, eventually,
        ledger::{Debit, Ledger},
        unique,
    },
};

trials! {
    unparked_message_takes_effect_once,
    unparked_message_is_handled_as_long_as_its_effect_is_known,
    unparked_message_has_all_its_attempts_though_it_was_held_first,
    looking_at_parked_messages_never_uses_them_up,
    unpark_moves_what_is_chosen_and_loses_nothing,
}

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
    let consumer = ledger.consume_with(&broker(), &queue, Flaky::new(usize::MAX), failing);
    wait_for_parked(&client, &queue, 2).await;
    consumer.stop().await;
    let unparked = Unpark::new(broker(), &parking).run().await.expect("unpark");
    assert_eq!((unparked.moved, unparked.left, unparked.failed), (2, 0, 0));
    assert_eq!((client.ready(&queue).await, client.ready(&parking).await), (2, 0));
    let repaired = Flaky::new(0);
    let consumer = ledger.consume_with(&broker(), &queue, repaired.clone(), failing);
    let monitor = consumer.monitor.clone();
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

/// It could not be parked when its attempts were over, and was held until it could.
pub async fn unparked_message_has_all_its_attempts_though_it_was_held_first() {
    let (client, parking) = (Client::connect(&broker()).await, unique("parking"));
    let queue = client.queue("unpark").await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let (ledger, handler) = (Ledger::create().await, Flaky::new(usize::MAX));
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |consumer| {
        let consumer = consumer.parking("", &parking).immediate_retries(0).max_attempts(3);
        consumer.retry_delays(millis(30), millis(30))
    });
    let is_held = async || (consumer.monitor.status().held == 1 && handler.seen().len() == 3).then_some(());
    eventually("it is held", is_held).await;
    client.declare(&parking).await;
    let parked = async |runs| {
        let parked = async || (client.ready(&parking).await == 1).then_some(());
        eventually("it is parked", parked).await;
        assert_eq!(handler.seen().len(), runs);
    };
    parked(3).await;
    let unparked = Unpark::new(broker(), &parking).run().await.expect("unpark");
    assert_eq!(unparked.moved, 1);
    eventually("it is handled", async || (handler.seen().len() > 3).then_some(())).await;
    parked(6).await;
    consumer.stop().await;
    client.delete(&parking).await;
    delete(&client, &queue, &[30]).await;
}

fn ago(seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_secs() - seconds
}

/// A handler that failed says that the message had not taken effect by then. That holds for as long
/// as the store remembers, and then somebody has to vouch for it.
pub async fn unparked_message_is_handled_as_long_as_its_effect_is_known() {
    const HOUR: u64 = 3600;
    let client = Client::connect(&broker()).await;
    let (queue, parking) = (client.queue("unpark-old").await, client.queue("unpark-old-parked").await);
    // All three were published long ago.
    for (id, reason, parked) in [
        ("failed lately", "attempts-exhausted", 60),
        ("failed long ago", "attempts-exhausted", 2 * HOUR),
        ("never known", "indeterminate", 60),
    ] {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut headers = FieldTable::default();
        headers.insert("x-idempotency-original-queue".into(), text(&queue));
        headers.insert("x-idempotency-parked-reason".into(), text(reason));
        headers.insert("x-idempotency-parked-at".into(), AMQPValue::Timestamp(ago(parked)));
        let properties = with_id(id).with_headers(headers).with_timestamp(ago(3 * HOUR));
        client.publish(&parking, b"500", properties).await;
    }
    let ledger = Ledger::create().await;
    let gated = |b: ConsumerBuilder<SqliteStore>| {
        b.retention(Duration::from_secs(HOUR), StalePolicy::Park).parking("", parking.as_str())
    };
    let consumer = ledger.consume_with(&broker(), &queue, Flaky::new(0), gated);
    let unpark = || Unpark::new(broker(), &parking);
    assert_eq!(unpark().run().await.expect("unpark").moved, 3);
    assert_eq!(consumer.decided(3).await, ["processed", "indeterminate", "indeterminate"]);
    eventually("two are parked again", async || (client.ready(&parking).await == 2).then_some(())).await;
    assert_eq!(unpark().assume_unprocessed().run().await.expect("unpark").moved, 2);
    eventually("the effects", async || (ledger.rows().await == (3, 3)).then_some(())).await;
    consumer.stop().await;
    client.delete(&queue).await;
    client.delete(&parking).await;
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

/// What is looked at and left is never used up, in the parking queue that a consumer declares and
/// in an existing one with a limit.
pub async fn looking_at_parked_messages_never_uses_them_up() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("looked-at").await;
    let ours = format!("{queue}.parked");
    let ledger = Ledger::create().await;
    let consumer = ledger.consume(&broker(), &queue, Debit::default());
    let theirs = client.queue_with("looked-at-limited", limited(20)).await;
    let small = client.queue_with("looked-at-small", limited(5)).await;
    let mut headers = FieldTable::default();
    for (name, value) in [("reason", "rejected"), ("error", "an error"), ("scope", "ledger")] {
        headers.insert(format!("x-idempotency-parked-{name}").into(), AMQPValue::LongString(value.into()));
    }
    headers.insert("x-idempotency-original-queue".into(), AMQPValue::LongString("test.nowhere".into()));
    for n in 0..3 {
        let id = with_id(&format!("order-{n}"));
        client.publish(&queue, b"-1", id.clone()).await;
        for parking in [&theirs, &small] {
            client.publish(parking, b"-1", id.clone().with_headers(headers.clone())).await;
        }
    }
    wait_for_parked(&client, &queue, 3).await;
    consumer.stop().await;
    for (parking, limit) in [(&ours, Some(20)), (&theirs, Some(20)), (&small, Some(5))] {
        for run in 0..30 {
            let there = async || (client.ready(parking).await == 3).then_some(());
            eventually("all are there again", there).await;
            let unpark = Unpark::new(broker(), parking).delivery_limit(limit);
            // In turn: none is chosen, and none can be put back.
            let unparked = match run % 2 {
                0 => unpark.only(|_| false).run().await.expect("unpark"),
                _ => unpark.to("test.no.such.queue").run().await.expect("unpark"),
            };
            let left = if run % 2 == 0 { unparked.left } else { unparked.failed };
            assert_eq!((unparked.moved, left), (0, 3), "run {run} on {parking}: {unparked:?}");
        }
        eventually("they are there", async || (client.ready(parking).await == 3).then_some(())).await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            let parked = client.get(parking).await.expect("parked");
            assert_eq!(parked.data, b"-1");
            assert_eq!(header(&parked, "x-idempotency-parked-reason").as_deref(), Some("rejected"));
            ids.extend(parked.properties.message_id().as_ref().map(ToString::to_string));
        }
        ids.sort();
        assert_eq!(ids, ["order-0", "order-1", "order-2"]);
        client.delete(parking).await;
    }
    client.delete(&queue).await;
}
