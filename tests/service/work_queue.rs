//! A work queue is declared as is best for the broker that is there, and what is there already is
//! left alone. On any version from 3.10 on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    message::BasicGetMessage,
    options::{BasicConsumeOptions, BasicGetOptions, BasicRejectOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::consumer::{DeclareError, DeclaredQueue, Unpark, WorkQueue};
use tokio::time::Instant;

use super::support::{
    amqp::{Client, with_id},
    broker, eventually,
    node::Node,
    unique,
};

trials! {
    declared_twice_is_fine,
    what_the_broker_takes_out_is_parked,
    what_the_broker_takes_out_waits_for_the_parking_queue,
    queue_that_differs_is_left_alone_and_told,
    question_about_a_queue_never_creates_it,
    missing_rights_are_told_by_what_to_do,
    delayed_retry_is_the_brokers_own_or_refused,
    consumer_timeout_is_the_queues_own_or_refused,
}

fn work_queue(name: &str) -> (String, WorkQueue) {
    let queue = unique(name);
    (queue.clone(), WorkQueue::new(broker(), queue))
}

async fn delete(client: &Client, queue: &str) {
    client.delete(queue).await;
    client.delete(&format!("{queue}.parked")).await;
}

/// The differences of one queue: what it has, and what is recommended.
fn differences<'a>(declared: &'a DeclaredQueue, queue: &str) -> BTreeMap<&'a str, (&'a str, &'a str)> {
    let of_queue = declared.differences.iter().filter(|difference| difference.queue == queue);
    of_queue.map(|d| (d.setting.as_str(), (d.current.as_str(), d.recommended.as_str()))).collect()
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn table(arguments: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    table
}

pub async fn declared_twice_is_fine() {
    let (queue, work) = work_queue("work");
    let client = Client::connect(&broker()).await;
    let declared = work.declare().await.expect("declare");
    assert_eq!((declared.queue.as_str(), declared.parking), (queue.as_str(), format!("{queue}.parked")));
    assert!(declared.created && declared.parking_created && declared.complete);
    assert_eq!(declared.differences, []);
    assert_eq!(client.ready(&queue).await, 0);
    let again = work.declare().await.expect("declare again");
    assert!(!again.created && !again.parking_created && again.is_as_recommended(), "{again:?}");
    // Only with another setting.
    let other = work.delivery_limit(7).declare().await.expect("declare otherwise");
    assert_eq!(differences(&other, &queue), [("x-delivery-limit", ("20", "7"))].into());
    assert!(other.complete && !other.is_as_recommended());
    delete(&client, &queue).await;
    let unlimited = WorkQueue::new(broker(), &queue).delivery_limit(None);
    for _ in 0..2 {
        assert!(unlimited.declare().await.expect("declare without a limit").is_as_recommended());
    }
    delete(&client, &queue).await;
}

/// What the broker takes out while the parking queue is away waits for it.
pub async fn what_the_broker_takes_out_waits_for_the_parking_queue() {
    const MESSAGES: u32 = 10;
    let node = Node::start().await;
    // How soon it tries again; three minutes by default.
    let soon = "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 500).";
    assert_eq!(node.ctl(&["eval", soon]).await, "ok");
    let queue = unique("waiting");
    let parking = format!("{queue}.parked");
    let work = WorkQueue::new(node.url(), &queue).delivery_limit(0);
    work.declare().await.expect("declare");
    let client = Client::connect(node.url()).await;
    client.delete(&parking).await;
    for n in 0..MESSAGES {
        client.publish(&queue, b"1", with_id(&format!("m{n}"))).await;
        let message = get(&client, &queue).await.expect("it is there");
        message.reject(BasicRejectOptions { requeue: true }).await.expect("reject");
    }
    assert!(get(&client, &queue).await.is_none(), "taken out");
    assert!(work.declare().await.expect("declare again").parking_created);
    eventually("all are parked", async || (client.ready(&parking).await == MESSAGES).then_some(())).await;
}

async fn get(client: &Client, queue: &str) -> Option<BasicGetMessage> {
    client.channel.basic_get(queue.into(), BasicGetOptions::default()).await.expect("get")
}

/// What comes back more often than the limit is in the parking queue, all of it, and can be brought
/// back.
pub async fn what_the_broker_takes_out_is_parked() {
    const MESSAGES: u32 = 50;
    let (queue, work) = work_queue("taken-out");
    let parking = format!("{queue}.parked");
    let client = Client::connect(&broker()).await;
    work.delivery_limit(2).declare().await.expect("declare");
    for n in 0..MESSAGES {
        client.publish(&queue, n.to_string().as_bytes(), with_id(&format!("m{n}"))).await;
    }
    let rejected = AtomicU32::new(0);
    eventually("the broker takes them out", async || {
        while let Some(message) = get(&client, &queue).await {
            message.reject(BasicRejectOptions { requeue: true }).await.expect("reject");
            rejected.fetch_add(1, Ordering::Relaxed);
        }
        (client.ready(&parking).await == MESSAGES).then_some(())
    })
    .await;
    assert_eq!(rejected.into_inner(), 3 * MESSAGES, "each came three times");
    assert_eq!(client.ready(&queue).await, 0);
    let unparked = Unpark::new(broker(), &parking).run().await.expect("unpark");
    assert_eq!((unparked.moved, unparked.failed), (u64::from(MESSAGES), 0));
    let mut back = BTreeSet::new();
    while let Some(message) = client.get(&queue).await {
        back.insert(String::from_utf8(message.data.clone()).expect("UTF-8"));
    }
    assert_eq!(back, (0..MESSAGES).map(|n| n.to_string()).collect());
    delete(&client, &queue).await;
}

pub async fn queue_that_differs_is_left_alone_and_told() {
    let client = Client::connect(&broker()).await;
    let declare = async |queue: &str| WorkQueue::new(broker(), queue).declare().await.expect("declare");
    let parking = |queue: &str| format!("{queue}.parked");
    let common = |queue: &str| {
        let parking: &'static str = parking(queue).leak();
        [
            ("x-dead-letter-exchange", ("none", "\"\"")),
            ("x-dead-letter-routing-key", ("none", parking)),
            ("x-overflow", ("none", "reject-publish")),
        ]
    };

    let classic = client.queue("differs-classic").await;
    client.publish(&classic, b"1", with_id("kept")).await;
    let declared = declare(&classic).await;
    let mut expected = BTreeMap::from(common(&classic));
    expected.insert("x-queue-type", ("classic", "quorum"));
    assert_eq!(differences(&declared, &classic), expected);
    assert!(declared.complete && !declared.created && declared.parking_created);
    let line = declared.differences.iter().find(|d| d.setting == "x-queue-type").expect("type").to_string();
    assert!(line.starts_with(&format!("{classic}: x-queue-type is classic; recommended quorum: ")), "{line}");
    client.declare(&classic).await;
    assert_eq!(client.get(&classic).await.expect("kept").data, b"1");

    let quorum = client.quorum_queue("differs-quorum").await;
    let parked = parking(&quorum);
    let quorum_only = table(&[("x-queue-type", text("quorum"))]);
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    client.channel.queue_declare(parked.as_str().into(), durable, quorum_only).await.expect("parking");
    let declared = declare(&quorum).await;
    let mut expected = BTreeMap::from(common(&quorum));
    expected.insert("x-delivery-limit", ("none", "20"));
    expected.insert("x-dead-letter-strategy", ("none", "at-least-once"));
    assert_eq!(differences(&declared, &quorum), expected);
    let expected = [("x-delivery-limit", ("none", "2147483647"))];
    assert_eq!(differences(&declared, &parked), expected.into());
    assert!(declared.complete && !declared.created && !declared.parking_created);

    let other = client.queue_with(
        "differs-other",
        table(&[
            ("x-queue-type", text("quorum")),
            ("x-delivery-limit", AMQPValue::LongInt(5)),
            ("x-dead-letter-exchange", text("elsewhere")),
            ("x-dead-letter-strategy", text("at-most-once")),
            ("x-overflow", text("drop-head")),
            ("x-max-length", AMQPValue::LongInt(1000)),
            ("x-message-ttl", AMQPValue::LongInt(86_400_000)),
            ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ]),
    );
    let other = other.await;
    let declared = declare(&other).await;
    let key = parking(&other);
    let expected = [
        ("x-delivery-limit", ("5", "20")),
        ("x-dead-letter-exchange", ("elsewhere", "\"\"")),
        ("x-dead-letter-routing-key", ("none", key.as_str())),
        ("x-dead-letter-strategy", ("at-most-once", "at-least-once")),
        ("x-overflow", ("drop-head", "reject-publish")),
        ("x-max-length", ("1000", "none")),
        ("x-message-ttl", ("86400000", "none")),
        ("x-single-active-consumer", ("true", "none")),
    ];
    assert_eq!(differences(&declared, &other), expected.into());
    assert!(declared.complete);

    let stream = client.queue_with("differs-stream", table(&[("x-queue-type", text("stream"))])).await;
    let declared = declare(&stream).await;
    assert_eq!(differences(&declared, &stream)["x-queue-type"], ("stream", "quorum"));
    for queue in [&classic, &quorum, &other, &stream] {
        delete(&client, queue).await;
    }
}

/// What is asked about a queue that was deleted meanwhile must not bring it back as it was.
pub async fn question_about_a_queue_never_creates_it() {
    let connection = Connection::connect(&broker(), ConnectionProperties::default()).await.expect("connect");
    let client = Client::connect(&broker()).await;
    for kind in ["quorum", "classic"] {
        let queue = unique("question");
        let question = table(&[("x-queue-type", text(kind)), ("x-max-age", text("never"))]);
        let durable = QueueDeclareOptions { durable: true, ..Default::default() };
        let channel = connection.create_channel().await.expect("channel");
        let refused = channel.queue_declare(queue.as_str().into(), durable, question).await;
        assert!(refused.is_err_and(|error| error.is_amqp_soft_error()), "{kind}");
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = connection.create_channel().await.expect("channel");
        let there = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await;
        assert!(there.is_err(), "{kind}");
        client.delete(&queue).await;
    }
}

pub async fn missing_rights_are_told_by_what_to_do() {
    let node = Node::start().await;
    let (user, password) = ("worker", "canary");
    node.ctl(&["add_user", user, password]).await;
    let url = node.url().replace("guest:guest@", &format!("{user}:{password}@"));
    let queue = unique("rights");
    let parking = format!("{queue}.parked");
    let declare = async || WorkQueue::new(&url, &queue).declare().await;
    for (configure, write, at) in [("^$", ".*", &parking), (r"\.parked$", ".*", &queue), (".*", "^$", &queue)]
    {
        node.ctl(&["set_permissions", user, configure, write, ".*"]).await;
        let error = declare().await.expect_err("no right");
        let DeclareError::NotPermitted { queue, reason } = &error else { panic!("{error:?}") };
        assert_eq!(queue, at, "{reason}");
        let text = error.to_string();
        assert!(text.contains("set_permissions") && text.contains("ACCESS_REFUSED"), "{text}");
        assert!(!format!("{error:?} {text}").contains(password), "{text}");
    }
    node.ctl(&["set_permissions", user, ".*", ".*", ".*"]).await;
    let declared = declare().await.expect("all rights");
    assert!(declared.created && !declared.parking_created);
    assert_eq!(node.ctl(&["version"]).await, declared.version.to_string());
}

/// Held back for `min`, then twice that; or refused by name where the broker would ignore it.
pub async fn delayed_retry_is_the_brokers_own_or_refused() {
    let min = Duration::from_millis(700);
    let (queue, work) = work_queue("delayed-retry");
    let plain = WorkQueue::new(broker(), &queue).declare().await.expect("declare");
    let client = Client::connect(&broker()).await;
    let delayed = work.delayed_retry(min, 10 * min);
    if plain.version < (4, 3) {
        let error = delayed.declare().await.expect_err("too old");
        assert!(matches!(&error, DeclareError::TooOld { needs: (4, 3), .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("delayed_retry") && text.contains(&plain.version.to_string()), "{text}");
        delete(&client, &queue).await;
        return;
    }
    let declared = delayed.declare().await.expect("declare");
    let settings: Vec<_> = differences(&declared, &queue).into_keys().collect();
    assert_eq!(settings, ["x-delayed-retry-max", "x-delayed-retry-min", "x-delayed-retry-type"]);
    delete(&client, &queue).await;
    assert!(delayed.declare().await.expect("declare").created);
    client.publish(&queue, b"1", with_id("failing")).await;
    let mut message = eventually("it is there", async || get(&client, &queue).await).await;
    for failures in 1..3 {
        let begun = Instant::now();
        message.reject(BasicRejectOptions { requeue: true }).await.expect("reject");
        message = eventually("it comes back", async || get(&client, &queue).await).await;
        // The broker may count in whole ticks of its clock.
        let waited = begun.elapsed() + Duration::from_millis(100);
        assert!(waited > failures * min, "{failures}: {waited:?}");
    }
    delete(&client, &queue).await;
}

pub async fn consumer_timeout_is_the_queues_own_or_refused() {
    let (queue, work) = work_queue("timeout");
    let client = Client::connect(&broker()).await;
    match work.consumer_timeout(Duration::from_secs(7200)).declare().await {
        Ok(declared) => {
            assert!(declared.created && declared.is_as_recommended() && declared.version >= (3, 12));
            let plain = WorkQueue::new(broker(), &queue).declare().await.expect("declare");
            let expected = match plain.version.to_string() {
                _ if plain.version < (4, 3) => vec![],
                version if ["4.3.0", "4.3.1"].contains(&version.as_str()) => vec![],
                _ => vec![("x-consumer-timeout", ("7200000", "none"))],
            };
            assert_eq!(differences(&plain, &queue), expected.into_iter().collect());
            delete(&client, &queue).await;
            // Before, the broker looks once a minute.
            if plain.version >= (4, 3) {
                held_for_too_long_comes_back(&client, &queue).await;
            }
        }
        Err(DeclareError::TooOld { needs: (3, 12), version, .. }) => assert!(version < (3, 12)),
        Err(error) => panic!("{error:?}"),
    }
}

async fn held_for_too_long_comes_back(client: &Client, queue: &str) {
    let work = WorkQueue::new(broker(), queue).consumer_timeout(Duration::from_millis(500));
    assert!(work.declare().await.expect("declare").created);
    client.publish(queue, b"1", with_id("held")).await;
    let holding = Client::connect(&broker()).await;
    let (tag, options) = ("".into(), BasicConsumeOptions::default());
    let consumer = holding.channel.basic_consume(queue.into(), tag, options, FieldTable::default());
    let mut consumer = consumer.await.expect("consume");
    let held = consumer.next().await.expect("a delivery").expect("a delivery");
    let back = eventually("it is taken back", async || get(client, queue).await).await;
    assert!(back.redelivered && held.data == back.data);
    drop(consumer);
    delete(client, queue).await;
}
