//! What a broker takes back: lost connections, consumer timeouts, and consumers that may not
//! declare or publish.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use lapin::types::{AMQPValue, FieldTable};
use lapin_idempotent::consumer::Redelivery;
use tokio::time::{Instant, sleep};

use super::{
    limits::{LIMITS, limited, told},
    redelivery::{Flaky, delete, millis, wait_for_parked},
    support::{
        amqp::{Client, header, with_id},
        broker, eventually,
        ledger::{Debit, Ledger},
        node::Node,
        proxy::Proxy,
        raw::{HEADERS, MESSAGE_ID, Message, Raw, long, short, table},
    },
};

trials! {
    headers_of_strangers_are_not_obeyed,
    consumer_that_may_not_declare_loses_nothing,
    consumer_timeout_loses_and_doubles_nothing,
    graceful_stops_bring_nothing_under_suspicion,
    suspect_that_is_held_holds_nobody_up,
    message_that_fills_the_frame_comes_back_and_is_handled,
    lost_connections_lose_double_and_park_nothing,
    memory_alarm_loses_and_parks_nothing_that_did_not_fail,
}

/// A user that may read and write, and declare nothing.
async fn powerless(node: &Node) -> String {
    node.ctl(&["add_user", "powerless", "secret"]).await;
    node.ctl(&["set_permissions", "powerless", "^$", ".*", ".*"]).await;
    node.url().replace("guest:guest@", "powerless:secret@")
}

/// Neither delay queues nor a parking queue can be declared. What fails is held, and what is to be
/// parked waits until somebody declares the queue.
pub async fn consumer_that_may_not_declare_loses_nothing() {
    let node = Node::start().await;
    let url = powerless(&node).await;
    // Together: each waits until a refusal to declare is not taken to hold any more.
    join_all(LIMITS.map(|limit| may_not_declare(&node, &url, limit))).await;
}

async fn may_not_declare(node: &Node, url: &str, limit: i64) {
    let client = Client::connect(node.url()).await;
    let queue = client.queue_with("powerless", limited(limit)).await;
    for (id, amount) in [("bad", "-1"), ("a", "500"), ("b", "500")] {
        client.publish(&queue, amount.as_bytes(), with_id(id)).await;
    }
    let ledger = Ledger::create().await;
    // More failures than the limit would take, were they given back.
    let handler = Debit { fail_first: 60, ..Debit::default() };
    let consumer = ledger.consume_with(url, &queue, handler, |b| {
        let b = b.batch(1).delivery_limit(told(limit)).immediate_retries(0).max_attempts(1000);
        b.retry_delays(millis(10), millis(10))
    });
    let monitor = consumer.monitor.clone();
    eventually("the effects", async || (ledger.rows().await == (2, 2)).then_some(())).await;
    let status = monitor.status();
    assert_eq!((status.reconnects, status.parked.len(), status.held), (0, 0, 1), "{status:?}");
    assert!(status.last_error.is_some_and(|error| error.contains("ACCESS_REFUSED")));
    client.declare(&format!("{queue}.parked")).await;
    wait_for_parked(&client, &queue, 1).await;
    consumer.stop().await;
    client.delete(&queue).await;
}

/// Under a memory alarm nothing can be published: neither delayed nor parked.
pub async fn memory_alarm_loses_and_parks_nothing_that_did_not_fail() {
    let node = Node::start().await;
    let client = Client::connect(node.url()).await;
    let ledger = Ledger::create().await;
    let mut running = Vec::new();
    for limit in LIMITS {
        let queue = client.queue_with("alarm", limited(limit)).await;
        for n in 0..3 {
            client.publish(&queue, b"500", with_id(&format!("{limit}-{n}"))).await;
        }
        running.push((limit, queue));
    }
    node.memory_alarm(true).await;
    let running: Vec<_> = running
        .into_iter()
        .map(|(limit, queue)| {
            let handler = Flaky::new(6);
            let consumer = ledger.consume_with(node.url(), &queue, handler.clone(), |b| {
                let b = b.batch(1).immediate_retries(0).delivery_limit(told(limit));
                b.retry_delays(millis(20), millis(20))
            });
            (queue, handler, consumer)
        })
        .collect();
    // The publisher of what failed gives up after half a minute.
    eventually("they are held", async || {
        running.iter().all(|(_, _, consumer)| consumer.monitor.status().last_error.is_some()).then_some(())
    })
    .await;
    node.memory_alarm(false).await;
    eventually("the effects", async || (ledger.rows().await == (9, 9)).then_some(())).await;
    for (queue, handler, consumer) in running {
        let status = consumer.monitor.status();
        assert_eq!((status.reconnects, status.parked.len()), (0, 0), "{status:?}");
        consumer.stop().await;
        assert!(handler.seen().iter().all(|seen| seen.message.delivery_count().is_none()));
        assert_eq!(client.ready(&queue).await, 0);
    }
}

/// Lost again and again, by an operator, on the way, and with the node; `LOST_CONNECTIONS` says how
/// often.
pub async fn lost_connections_lose_double_and_park_nothing() {
    const MESSAGES: i64 = 1000;
    let times = std::env::var("LOST_CONNECTIONS").ok().and_then(|times| times.parse().ok()).unwrap_or(40);
    let node = Node::start().await;
    let client = Client::connect(node.url()).await;
    // No limit is said: 20 since RabbitMQ 4.0, which is tried on older ones too.
    let queue = client.queue_with("lost", limited(20)).await;
    for n in 0..MESSAGES {
        client.publish(&queue, b"1", with_id(&format!("m{n}"))).await;
    }
    node.sync().await;
    let proxy = Proxy::start(node.url()).await;
    let ledger = Ledger::create().await;
    let handler = Debit { dawdle: millis(400 * times / MESSAGES as u64), ..Debit::default() };
    let consumer = ledger.consume_with(proxy.url(), &queue, handler, |b| b.batch(1));
    let monitor = consumer.monitor.clone();
    for time in 0..times {
        let before = monitor.status();
        // What is lost is a connection over which something came.
        eventually("it works again", async || {
            let status = monitor.status();
            let handled = |outcomes: &std::collections::BTreeMap<&str, u64>| outcomes.values().sum::<u64>();
            (ledger.rows().await.1 == MESSAGES || handled(&status.outcomes) > handled(&before.outcomes))
                .then_some(())
        })
        .await;
        match time % 10 {
            9 if time % 20 == 19 => {
                node.kill().await;
                node.start_again().await;
            }
            0..5 => node.close_connections("operator").await,
            _ => proxy.cut_all(),
        }
    }
    let deadline = Instant::now() + Duration::from_secs(300);
    while ledger.rows().await != (MESSAGES, MESSAGES) {
        assert!(Instant::now() < deadline, "{:?} {:?}", ledger.rows().await, monitor.status());
        sleep(millis(50)).await;
    }
    let client = Client::connect(node.url()).await;
    eventually("it is empty", async || (client.ready(&queue).await == 0).then_some(())).await;
    consumer.stop().await;
    let status = monitor.status();
    assert!(status.parked.is_empty(), "{status:?}");
    assert_eq!(client.ready(&queue).await + client.ready(&format!("{queue}.parked")).await, 0, "{status:?}");
}

/// The broker takes back what is held for longer than its consumer timeout. Handlers are slower
/// than that.
pub async fn consumer_timeout_loses_and_doubles_nothing() {
    const MESSAGES: i64 = 12;
    let node = Node::start().await;
    // In milliseconds; the broker looks every tick.
    node.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 500)."]).await;
    node.ctl(&["eval", "application:set_env(rabbit, consumer_timeout, 3000)."]).await;
    let client = Client::connect(node.url()).await;
    for redelivery in [Redelivery::Delayed, Redelivery::Held] {
        let mut arguments = limited(20);
        arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(3000));
        let queue = client.queue_with("timeout", arguments).await;
        for n in 0..MESSAGES {
            client.publish(&queue, b"1", with_id(&format!("m{n}"))).await;
        }
        let ledger = Ledger::create().await;
        // One takes longer than the broker allows, and all together much longer.
        let handler = Slow { debit: Debit::default() };
        let consumer = ledger.consume_with(node.url(), &queue, handler, |b| {
            b.batch(1).consumer_timeout(Duration::from_secs(3)).redelivery(redelivery)
        });
        let monitor = consumer.monitor.clone();
        eventually("all have an effect", async || {
            (ledger.rows().await == (MESSAGES, MESSAGES)).then_some(())
        })
        .await;
        eventually("nothing is left", async || {
            let left = client.ready(&queue).await;
            (left == 0 && monitor.status().in_hand == 0).then_some(())
        })
        .await;
        consumer.stop().await;
        let status = monitor.status();
        assert!(status.moved > 0, "what waits too long is published anew: {status:?}");
        assert!(status.parked.is_empty(), "{status:?}");
        assert_eq!(ledger.rows().await, (MESSAGES, MESSAGES));
        assert_eq!(client.ready(&queue).await + client.ready(&format!("{queue}.parked")).await, 0);
        client.delete(&queue).await;
    }
}

/// Takes 1 s for a message, and 8 s for one of them.
struct Slow {
    debit: Debit,
}

impl lapin_idempotent::IdempotentHandler<lapin_idempotent::SqliteStore> for Slow {
    async fn handle(
        &self,
        message: &lapin_idempotent::IncomingMessage,
        tx: &mut lapin_idempotent::store::SqliteTransaction,
    ) -> lapin_idempotent::HandlerResult {
        let slow = message.raw_message_id() == Some("m3");
        sleep(if slow { Duration::from_secs(8) } else { Duration::from_secs(1) }).await;
        lapin_idempotent::IdempotentHandler::handle(&self.debit, message, tx).await
    }
}

/// Stopped again and again with a message in hand that waits for an hour: nobody died.
pub async fn graceful_stops_bring_nothing_under_suspicion() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("graceful", limited(20)).await;
    client.publish(&queue, b"500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let handler = Flaky::new(usize::MAX).after(Duration::from_secs(3600));
    for start in 1..=9 {
        let consumer =
            ledger.consume_with(&broker(), &queue, handler.clone(), |b| b.redelivery(Redelivery::Held));
        let monitor = consumer.monitor.clone();
        eventually("it is held", async || (monitor.status().held == 1).then_some(())).await;
        consumer.stop().await;
        assert!(monitor.status().parked.is_empty(), "start {start}: {:?}", monitor.status());
    }
    let kept = eventually("it is there", async || client.get(&queue).await).await;
    assert_eq!(header(&kept, "x-idempotency-suspected"), None);
    // Where the broker counts what a stop gives back it is published anew before that weighs, with
    // what is left of its delay. 4.3 does not count it.
    if header(&kept, "x-idempotency-deliveries").is_some() {
        assert!(header(&kept, "x-idempotency-not-before").is_some());
        assert!(handler.seen().len() < 9, "it does not run at each start: {}", handler.seen().len());
    }
    delete(&client, &queue, &[]).await;
}

/// A message that ended its consumers and cannot be parked: the others have their turn.
pub async fn suspect_that_is_held_holds_nobody_up() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("suspect", limited(20)).await;
    let parking = format!("{queue}.parked");
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    client.declare_as(&parking, full).await;
    let mut headers = FieldTable::default();
    headers.insert("x-idempotency-deliveries".into(), AMQPValue::LongLongInt(9));
    headers.insert("x-idempotency-suspected".into(), AMQPValue::LongLongInt(3));
    // As one of its consumers left it.
    headers.insert("x-idempotency-original-queue".into(), AMQPValue::LongString(queue.as_str().into()));
    client.publish(&queue, b"1", with_id("killer").with_headers(headers)).await;
    for n in 0..50 {
        client.publish(&queue, b"1", with_id(&format!("m{n}"))).await;
    }
    let ledger = Ledger::create().await;
    let consumer = ledger.consume(&broker(), &queue, Debit::default());
    eventually("all others are handled", async || (ledger.rows().await == (50, 50)).then_some(())).await;
    let monitor = consumer.monitor.clone();
    client.delete(&parking).await;
    eventually("it is parked", async || {
        (monitor.status().parked.get("consumer-died") == Some(&1)).then_some(())
    })
    .await;
    consumer.stop().await;
    delete(&client, &queue, &[]).await;
}

/// A publisher filled the frame, and a quorum queue puts its count on top of that: more than the
/// broker and lapin had agreed upon.
pub async fn message_that_fills_the_frame_comes_back_and_is_handled() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue_with("full-frame", limited(20)).await;
    let around = 8 + 14 + short(b"full").len() + (4 + 2 + 1 + 4);
    let headers = table(&[(b"h", b'S', long(&vec![b'x'; 131_072 - around]))]);
    let properties = vec![(MESSAGE_ID, short(b"full")), (HEADERS, headers)];
    let full =
        Message { routing_key: queue.clone().into(), properties, body: b"1".to_vec(), ..Message::default() };
    let mut raw = Raw::connect(&broker()).await;
    raw.publish(&full).await;
    raw.confirmed().await;
    client.publish(&queue, b"1", with_id("behind")).await;
    let proxy = Proxy::start(&broker()).await;
    let ledger = Ledger::create().await;
    let handler = Debit { dawdle: millis(300), ..Debit::default() };
    // Less than the handler takes, so that the cut ends it, and enough for the last ack.
    let consumer =
        ledger.consume_with(proxy.url(), &queue, handler.clone(), |b| b.drain_timeout(millis(200)));
    eventually("it is in hand", async || (handler.runs() == 1).then_some(())).await;
    proxy.cut_all();
    eventually("both are handled", async || (ledger.rows().await == (2, 2)).then_some(())).await;
    assert_eq!(consumer.monitor.status().reconnects, 1, "it ended no connection");
    consumer.stop().await;
    assert_eq!(client.ready(&queue).await, 0);
    delete(&client, &queue, &[]).await;
}

/// Whoever copies all headers of a message into another one, or makes some up: that one is handled,
/// and tried as often as any.
pub async fn headers_of_strangers_are_not_obeyed() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("strangers").await;
    let tomorrow = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis()
        + 86_400_000;
    let mut headers = FieldTable::default();
    for (name, value) in
        [("failures", 1000), ("deliveries", 1000), ("suspected", 1), ("not-before", tomorrow)]
    {
        let value = AMQPValue::LongLongInt(value.try_into().expect("small"));
        headers.insert(format!("x-idempotency-{name}").into(), value);
    }
    headers.insert("x-idempotency-original-queue".into(), AMQPValue::LongString("elsewhere".into()));
    client.publish(&queue, b"1", with_id("stranger").with_headers(headers)).await;
    let ledger = Ledger::create().await;
    let handler = Flaky::new(2);
    let consumer = ledger.consume_with(&broker(), &queue, handler.clone(), |builder| {
        builder.immediate_retries(0).max_attempts(3).retry_delays(millis(50), millis(50))
    });
    eventually("it is handled", async || (ledger.rows().await == (1, 1)).then_some(())).await;
    consumer.stop().await;
    let seen = handler.seen();
    let failures: Vec<u32> = seen.iter().map(|seen| seen.message.failures()).collect();
    assert_eq!(failures, [0, 1, 2], "counted from nought, and here");
    assert_eq!(seen[2].message.header("x-idempotency-deliveries"), None);
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
    client.delete(&format!("{queue}.retry.50")).await;
}
