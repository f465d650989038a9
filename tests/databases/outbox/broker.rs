//! A relay between a real table and a real broker, whose answers differ between its versions.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use lapin::{
    message::BasicGetMessage,
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage, PostgresOutbox,
    outbox::{Outbox, ParkedRow, Relay, RelayHandle, Select},
};
use sqlx::Postgres;

use super::{
    Boxed,
    support::{amqp::Client, broker, eventually, node::Node, server::Server, unique},
};

trials! {
    messages_of_all_kinds_arrive_as_they_were_enqueued,
    what_has_no_way_is_parked_in_the_brokers_words_and_goes_when_it_is_put_back,
    queue_that_is_full_holds_up_what_goes_to_it_alone,
    body_that_the_broker_refuses_is_parked_and_holds_up_nothing,
    broker_that_is_killed_in_the_middle_gets_every_message,
    rows_that_a_crash_of_the_server_brings_back_are_published_once_more,
}

const PAUSE: Duration = Duration::from_millis(50);

fn relay(outbox: &PostgresOutbox, url: &str) -> RelayHandle {
    let publisher = IdempotentPublisher::builder(url).max_message_bytes(20 << 20).connect_lazy();
    let relay = Relay::new(outbox.clone(), publisher.expect("publisher"));
    relay.max_attempts(3).retry_delays(PAUSE, PAUSE).spawn()
}

async fn enqueue(outbox: &PostgresOutbox, key: Option<&str>, messages: Vec<OutgoingMessage>) {
    let mut tx = outbox.pool().begin().await.expect("begin");
    for message in messages {
        let enqueued = match key {
            Some(key) => outbox.enqueue_in_order(&mut tx, key, message).await,
            None => outbox.enqueue(&mut tx, message).await,
        };
        enqueued.expect("enqueued");
    }
    tx.commit().await.expect("commit");
    outbox.wake();
}

async fn parked(outbox: &PostgresOutbox, count: usize) -> Vec<ParkedRow> {
    eventually(&format!("{count} are parked"), async || {
        let parked = outbox.list_parked(&Select::All, 0, 100).await.expect("list");
        (parked.len() == count).then_some(parked)
    })
    .await
}

/// At least so many: what was under way on a channel that the broker closed may be there twice.
async fn ready(client: &Client, queue: &str, count: u32) {
    eventually(&format!("{count} are in {queue}"), async || {
        (client.ready(queue).await >= count).then_some(())
    })
    .await;
}

fn texts(queue: &str, texts: impl IntoIterator<Item = u32>) -> Vec<OutgoingMessage> {
    texts.into_iter().map(|n| OutgoingMessage::to("", queue).text(n.to_string())).collect()
}

fn number(message: &BasicGetMessage) -> u32 {
    std::str::from_utf8(&message.data).expect("text").parse().expect("number")
}

pub async fn messages_of_all_kinds_arrive_as_they_were_enqueued() {
    let (boxed, client) = (Boxed::<Postgres>::create().await, Client::connect(&broker()).await);
    let (classic, quorum) = (client.queue("outbox").await, client.quorum_queue("outbox").await);
    for queue in [&classic, &quorum] {
        let of_all = OutgoingMessage::to("", queue)
            .idempotency_key("k".repeat(10_000))
            .kind("order.placed")
            .priority(3)
            .correlation_id("c".repeat(255))
            .reply_to("answers")
            .header("number", i64::MIN)
            .header("text", "ü\0\u{1f980}")
            .header("flag", true)
            .header("real", 1.5);
        // Of one priority: by it a quorum queue sorts, since 4.0.
        let large = (0..3).map(|n| OutgoingMessage::to("", queue).priority(3).body(vec![n; 1 << 20]));
        let messages = std::iter::once(of_all.body("\u{0}\u{1}")).chain(large).collect();
        enqueue(&boxed.outbox, Some("k".repeat(255).as_str()), messages).await;
    }
    let relay = relay(&boxed.outbox, &broker());
    for queue in [&classic, &quorum] {
        ready(&client, queue, 4).await;
        let message = client.get(queue).await.expect("the first");
        let properties = &message.properties;
        assert!(message.data == [0, 1], "{} bytes", message.data.len());
        assert_eq!((*properties.delivery_mode(), *properties.priority()), (Some(2), Some(3)));
        assert_eq!(properties.correlation_id().as_ref().map(|id| id.as_str().len()), Some(255));
        let headers = properties.headers().as_ref().expect("headers").inner();
        assert_eq!(headers.get("number"), Some(&AMQPValue::LongLongInt(i64::MIN)));
        assert_eq!(headers.get("text"), Some(&AMQPValue::LongString("ü\0\u{1f980}".into())));
        assert_eq!(headers.get("flag"), Some(&AMQPValue::Boolean(true)));
        assert_eq!(headers.get("real"), Some(&AMQPValue::Double(1.5)));
        for n in 0..3 {
            let large = client.get(queue).await.expect("a large one");
            assert!(large.data.len() == 1 << 20 && large.data.iter().all(|byte| *byte == n));
        }
        client.delete(queue).await;
    }
    relay.stop().await;
    assert_eq!(boxed.ids().await, [""; 0]);
}

pub async fn what_has_no_way_is_parked_in_the_brokers_words_and_goes_when_it_is_put_back() {
    let (boxed, client) = (Boxed::<Postgres>::create().await, Client::connect(&broker()).await);
    let (later, other) = (unique("later"), client.queue("other").await);
    let relay = relay(&boxed.outbox, &broker());
    enqueue(&boxed.outbox, Some("order-1"), texts(&later, 0..3)).await;
    enqueue(&boxed.outbox, None, vec![OutgoingMessage::to(unique("exchange"), "k")]).await;
    enqueue(&boxed.outbox, Some("order-2"), texts(&other, 0..100)).await;
    ready(&client, &other, 100).await;
    let rows = parked(&boxed.outbox, 4).await;
    let told: Vec<&str> = rows.iter().filter_map(|row| row.error.as_deref()).collect();
    assert!(told[0].contains("312 NO_ROUTE") && told[1].contains("earlier message"), "{told:?}");
    assert!(told[3].contains("no exchange"), "{told:?}");
    assert_eq!(rows.iter().map(|row| row.row.attempts).collect::<Vec<_>>(), [3, 0, 0, 3]);
    client.declare(&later).await;
    assert_eq!(boxed.outbox.unpark(&Select::Key("order-1".to_owned())).await.expect("unpark"), 3);
    ready(&client, &later, 3).await;
    for n in 0..3 {
        assert_eq!(client.get(&later).await.expect("message").data, n.to_string().as_bytes());
    }
    relay.stop().await;
    for queue in [later, other] {
        client.delete(&queue).await;
    }
}

pub async fn queue_that_is_full_holds_up_what_goes_to_it_alone() {
    let (boxed, client) = (Boxed::<Postgres>::create().await, Client::connect(&broker()).await);
    let other = client.queue("other").await;
    let relay = relay(&boxed.outbox, &broker());
    for kind in ["classic", "quorum"] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        arguments.insert("x-max-length".into(), AMQPValue::LongInt(5));
        let full = client.queue_with("full", arguments).await;
        enqueue(&boxed.outbox, Some("a"), texts(&full, 0..60)).await;
        eventually("it is held back", async || (relay.monitor().status().held_routes == 1).then_some(()))
            .await;
        enqueue(&boxed.outbox, Some("b"), texts(&other, 0..100)).await;
        ready(&client, &other, 100).await;
        let failed = format!("SELECT count(*) FROM {} WHERE attempts > 0 OR lane < 0", boxed.name);
        assert_eq!(boxed.number(&failed).await, 0, "{kind}: that is no fault of a message");
        let got = Mutex::new(Vec::new());
        eventually("all come when there is room", async || {
            while let Some(message) = client.get(&full).await {
                got.lock().expect("got").push(number(&message));
            }
            let all = got.lock().expect("got").len() >= 60;
            (all && boxed.outbox.status().await.expect("status").backlog == 0).then_some(())
        })
        .await;
        // A quorum queue says no to what it took, now and then: first copies are in order.
        let (mut got, mut seen) = (got.into_inner().expect("got"), BTreeSet::new());
        got.retain(|n| seen.insert(*n));
        assert_eq!(got, (0..60).collect::<Vec<u32>>(), "{kind}");
        while client.get(&other).await.is_some() {}
        client.delete(&full).await;
    }
    relay.stop().await;
    client.delete(&other).await;
}

/// The broker closes the channel over it, with other messages on it.
pub async fn body_that_the_broker_refuses_is_parked_and_holds_up_nothing() {
    const LIMIT: &str = "ok = application:set_env(rabbit, max_message_size, 1000000), \
                         ok = persistent_term:put(max_message_size, 1000000), limited.";
    let (boxed, node) = (Boxed::<Postgres>::create().await, Node::start().await);
    assert_eq!(node.ctl(&["eval", LIMIT]).await, "limited");
    let client = Client::connect(node.url()).await;
    let queue = client.queue("outbox").await;
    let large = OutgoingMessage::to("", &queue).body(vec![0; 1_000_001]);
    let mut messages = texts(&queue, 0..200);
    messages.insert(100, large);
    enqueue(&boxed.outbox, None, messages).await;
    let relay = relay(&boxed.outbox, node.url());
    let rows = parked(&boxed.outbox, 1).await;
    let told = rows[0].error.as_deref().unwrap_or_default();
    assert!(told.contains("message size") && rows[0].row.attempts == 3, "{told}");
    boxed.drained("all others are published").await;
    relay.stop().await;
    let mut got = BTreeMap::<Vec<u8>, usize>::new();
    while let Some(message) = client.get(&queue).await {
        *got.entry(message.data.clone()).or_default() += 1;
    }
    assert_eq!(got.len(), 200);
}

pub async fn broker_that_is_killed_in_the_middle_gets_every_message() {
    const MESSAGES: u32 = 3_000;
    let (boxed, node) = (Boxed::<Postgres>::create().await, Node::start().await);
    let client = Client::connect(node.url()).await;
    let queue = client.quorum_queue("outbox").await;
    node.sync().await;
    for n in 0..MESSAGES / 100 {
        let key = format!("key-{}", n % 10);
        enqueue(&boxed.outbox, Some(&key), texts(&queue, n * 100..n * 100 + 100)).await;
    }
    let relay = relay(&boxed.outbox, node.url());
    eventually("it relays", async || (relay.monitor().status().relayed > 300).then_some(())).await;
    node.kill().await;
    node.start_again().await;
    boxed.drained("all are published").await;
    assert_eq!(boxed.outbox.status().await.expect("status").parked, 0);
    relay.stop().await;
    let client = Client::connect(node.url()).await;
    let (mut last, mut seen) = (BTreeMap::new(), BTreeSet::new());
    while let Some(message) = client.get(&queue).await {
        let n = number(&message);
        if seen.insert(n) {
            let before = last.insert(n / 100 % 10, n);
            assert!(before < Some(n), "first copies are in order: {n} after {before:?}");
        }
    }
    assert_eq!(seen.len(), MESSAGES as usize);
}

/// A removal does not wait until the disk has it.
pub async fn rows_that_a_crash_of_the_server_brings_back_are_published_once_more() {
    let server = Server::start("postgres", &[]).await;
    let (boxed, client) =
        (Boxed::<Postgres>::open(server.url(), "ob").await, Client::connect(&broker()).await);
    boxed.outbox.create_schema().await.expect("schema");
    let queue = client.queue("outbox").await;
    enqueue(&boxed.outbox, Some("order-1"), texts(&queue, 0..10)).await;
    let before: Vec<String> = boxed.ids().await;
    // It writes what no commit waits for.
    let writer = "SELECT pid::bigint FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let writer = boxed.number(writer).await.to_string();
    assert!(Command::new("kill").args(["-STOP", &writer]).status().expect("kill").success());
    let relay = self::relay(&boxed.outbox, &broker());
    ready(&client, &queue, 10).await;
    boxed.drained("all are removed").await;
    server.kill().await;
    relay.stop().await;
    server.start_again().await;
    let there = async || boxed.outbox.status().await.ok().filter(|status| status.backlog > 0);
    eventually("it is there again", there).await;
    assert_eq!(boxed.ids().await, before);
    boxed.sql("DELETE FROM ob_relays").await;
    let relay = self::relay(&boxed.outbox, &broker());
    boxed.drained("all are removed again").await;
    relay.stop().await;
    let mut got = Vec::new();
    while let Some(message) = client.get(&queue).await {
        got.push(message.properties.message_id().as_ref().expect("an ID").to_string());
    }
    assert_eq!(got, [before.clone(), before].concat());
    client.delete(&queue).await;
}
