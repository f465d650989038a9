//! One message of many is bad, each in another way: it is the one that is named, and no other is
//! touched.

use std::sync::{Arc, Mutex};

use futures_util::{StreamExt, stream};
use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions},
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotentHandler, IncomingMessage, SqliteStore, consumer::Unpark,
    store::SqliteTransaction,
};
use tokio::time::Duration;

use super::support::{
    amqp::Client,
    eventually,
    ledger::Ledger,
    node::Node,
    raw::{
        CORRELATION_ID, DELIVERY_MODE, EXPIRATION, HEADERS, MESSAGE_ID, Message, PRIORITY, Raw, long, nested,
        short, table,
    },
    unique,
};

trials! {
    consumer_parks_exactly_the_bad_one_on_a_classic_queue,
    consumer_parks_exactly_the_bad_one_on_a_quorum_queue,
}

/// Half of them before the bad one, half behind it.
const GOOD: usize = 200;

/// What the headers of a parked copy take, at the most here: with them it still fits into a frame.
const OURS: usize = 1500;

/// What a message asks of its handler in its body, which is JSON.
const REJECT: &[u8] = b"\"reject\"";
const FAIL: &[u8] = b"\"fail\"";
const PANIC: &[u8] = b"\"panic\"";
const TAKE: &[u8] = b"\"take\"";

/// How one message is bad, and what it is parked for.
struct Way {
    name: &'static str,
    reason: &'static str,
    message: Message,
}

fn way(name: &'static str, reason: &'static str, body: &[u8], properties: Vec<(u8, Vec<u8>)>) -> Way {
    let message = Message { properties, body: body.to_vec(), ..Message::default() };
    Way { name, reason, message }
}

/// With an ID that is good, and headers.
fn headers(name: &'static str, body: &'static [u8], headers: Vec<u8>) -> Way {
    let reason = if body == REJECT { "rejected" } else { "attempts-exhausted" };
    way(name, reason, body, vec![id(b"bad"), (HEADERS, headers)])
}

fn id(id: &[u8]) -> (u8, Vec<u8>) {
    (MESSAGE_ID, short(id))
}

/// As large as the frame allows: what is left is for the class, the length of the body, the flags
/// and the ID.
fn frame_filling(around: usize) -> usize {
    131_072 - 8 - 14 - short(b"bad").len() - around
}

/// With headers that fill the frame but for some room.
fn filling(name: &'static str, body: &'static [u8], room: usize) -> Way {
    // Of a persistent message, as its copies are.
    let text = long(&vec![b'x'; frame_filling(4 + 2 + 1 + 4 + 1) - room]);
    let mut way = headers(name, body, table(&[(b"h", b'S', text)]));
    if room < 150 {
        // Not even that.
        way.reason = "";
    }
    way.message.properties.push((DELIVERY_MODE, vec![2]));
    way
}

fn ways() -> Vec<Way> {
    let bad = || vec![id(b"bad")];
    let deepest = |kind: u8| {
        // With the name of the outermost.
        let inner = nested(kind, frame_filling(4 + 2 + 1) - OURS);
        table(&[(b"h", kind, inner)])
    };
    vec![
        way("no ID", "missing-id", TAKE, vec![]),
        way("an ID with a line break", "invalid-id", TAKE, vec![id(b"a\nb")]),
        way("an ID that is not UTF-8", "invalid-id", TAKE, vec![id(b"\xff\xfe")]),
        way("an ID cut in the middle of a character", "invalid-id", TAKE, vec![id(b"caf\xc3")]),
        way("a known ID with another body", "fingerprint-mismatch", b"\"other\"", vec![id(b"m0")]),
        way("a body that is no JSON", "rejected", b"{", bad()),
        way("a body that is not UTF-8", "rejected", b"\"\xff\"", bad()),
        way("a large body that is no JSON", "rejected", &vec![0xff; 1 << 20], bad()),
        way("a handler that rejects", "rejected", REJECT, bad()),
        way("a handler that always fails", "attempts-exhausted", FAIL, bad()),
        way("a handler that panics", "attempts-exhausted", PANIC, bad()),
        headers("the deepest table for which there is room", FAIL, deepest(b'F')),
        headers("the deepest list for which there is room", FAIL, deepest(b'A')),
        headers("the deepest table, and rejected", REJECT, deepest(b'F')),
        headers("a header name that is not UTF-8", FAIL, table(&[(b"\xff\xfe", b'V', vec![])])),
        headers("a header that is not UTF-8", FAIL, table(&[(b"h", b'S', long(b"\xff\xfe"))])),
        filling("headers that nearly fill the frame", REJECT, OURS),
        filling("headers that fill the frame, and rejected", REJECT, 0),
        filling("headers that leave room for a failure's count, but not for what the broker adds", FAIL, 500),
        filling("headers that leave room for some of what is said, and rejected", REJECT, 100),
        filling("headers that leave room for most of what is said, and rejected", REJECT, 400),
        filling("headers that fill the frame", FAIL, 0),
        filling("headers that leave room for some of what is said", FAIL, 900),
        headers(
            "a record of deaths that is a list of texts",
            FAIL,
            table(&[(b"x-death", b'A', long(&[b"S".to_vec(), long(b"died")].concat()))]),
        ),
        headers("a record of deaths that is a text", FAIL, table(&[(b"x-death", b'S', long(b"often"))])),
        headers(
            "counts that are texts",
            FAIL,
            table(&[(b"x-delivery-count", b'S', long(b"many")), (b"x-acquired-count", b'S', long(b"more"))]),
        ),
        headers(
            "reserved headers of wrong types",
            FAIL,
            table(&[
                (b"x-idempotency-failures", b'S', long(b"many")),
                (b"x-idempotency-not-before", b'F', long(b"")),
                (b"x-idempotency-deliveries", b'A', long(b"")),
                (b"x-idempotency-attempt", b'V', vec![]),
                (b"x-idempotency-first-seen", b'S', long(b"long ago")),
            ]),
        ),
        way(
            "a priority and an expiration",
            "attempts-exhausted",
            FAIL,
            vec![id(b"bad"), (PRIORITY, vec![255]), (EXPIRATION, short(b"600000"))],
        ),
        way(
            "a correlation ID that is not UTF-8",
            "attempts-exhausted",
            FAIL,
            vec![id(b"bad"), (CORRELATION_ID, short(b"\xff"))],
        ),
        {
            let mut way = way("a routing key that is not UTF-8", "attempts-exhausted", FAIL, bad());
            way.message.routing_key = b"\xff\xfe".to_vec();
            way
        },
    ]
}

/// Notes the message in the ledger, and does as its body says.
struct Obey;

impl IdempotentHandler<SqliteStore> for Obey {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let asked: String = message.json()?;
        sqlx::query("INSERT INTO ledger (message_id, amount) VALUES (?, 1)")
            .bind(message.raw_message_id())
            .execute(&mut **tx)
            .await?;
        match asked.as_str() {
            "reject" => Err(HandlerError::reject("as it asked")),
            "fail" => Err(HandlerError::retry("as it asked")),
            "panic" => panic!("as it asked"),
            _ => Ok(()),
        }
    }
}

pub async fn consumer_parks_exactly_the_bad_one_on_a_quorum_queue() {
    each_way("quorum").await;
}

pub async fn consumer_parks_exactly_the_bad_one_on_a_classic_queue() {
    each_way("classic").await;
}

/// All ways are tried, and those that failed are named.
async fn each_way(kind: &'static str) {
    // What such messages do to a broker is no other test's business.
    let node = Node::start().await;
    // `ONLY_WAY=deepest` tries those that have it in their names.
    let only = std::env::var("ONLY_WAY").unwrap_or_default();
    let ways = ways().into_iter().filter(|way| way.name.contains(&only));
    let tried = stream::iter(ways).map(|way| (way, node.url().to_owned())).map(|(way, url)| async move {
        let name = way.name;
        tokio::spawn(async move { consumed(kind, &url, way).await }).await.err().map(|_| name)
    });
    let failed: Vec<&str> = tried.buffer_unordered(4).filter_map(async |failed| failed).collect().await;
    assert!(failed.is_empty(), "on a {kind} queue: {failed:?}; the broker's errors: {:#?}", node.errors());
}

async fn consumed(kind: &str, url: &str, way: Way) {
    let Way { name, reason, mut message } = way;
    let client = Client::connect(url).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
    let queue = client.queue_with("one-bad", arguments).await;
    let parking = format!("{queue}.parked");
    let exchange = fanout(&client, &queue).await;
    message.exchange = exchange.clone().into_bytes();
    let mut raw = Raw::connect(url).await;
    for n in 0..=GOOD {
        if n == GOOD / 2 {
            raw.publish(&message).await;
        } else {
            let properties = vec![id(format!("m{n}").as_bytes())];
            let good = Message {
                exchange: exchange.clone().into(),
                properties,
                body: TAKE.to_vec(),
                ..Message::default()
            };
            raw.publish(&good).await;
        }
    }
    raw.confirmed().await;
    let ledger = Ledger::create().await;
    let running = ledger.consume_with(url, &queue, Obey, |builder| {
        builder
            .batch(64)
            .immediate_retries(0)
            .max_attempts(2)
            .retry_delays(Duration::from_millis(100), Duration::from_millis(100))
            .delivery_limit(None)
    });
    // Then the parking queue is there.
    running.decided(1).await;
    let good = i64::try_from(GOOD).expect("few");
    eventually(name, async || {
        let parked = client.ready(&parking).await == 1;
        (parked && client.ready(&queue).await == 0 && ledger.rows().await == (good, good)).then_some(())
    })
    .await;
    running.stop().await;
    assert_eq!(ledger.rows().await, (good, good), "{name}");
    assert_eq!(client.ready(&queue).await, 0, "{name}: all are acked");
    let parked = look(&client, url, &parking).await;
    assert_eq!(parked.len(), 1, "{name}: parked once, and no other");
    // Where there is no room for a reason there is none.
    assert_eq!(parked[0].parked_reason().unwrap_or_default(), reason, "{name}");
    assert_eq!(parked[0].body()[..], message.body[..], "{name}");
    assert_eq!(parked[0].raw_message_id().map(ToOwned::to_owned), sent_id(&message), "{name}");
    for queue in [&queue, &parking] {
        client.delete(queue).await;
    }
    let _ = client.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await;
}

/// An exchange that takes any routing key to this queue.
async fn fanout(client: &Client, queue: &str) -> String {
    let (channel, exchange) = (&client.channel, unique("fanout"));
    let declared = channel.exchange_declare(
        exchange.as_str().into(),
        ExchangeKind::Fanout,
        ExchangeDeclareOptions::default(),
        FieldTable::default(),
    );
    declared.await.expect("exchange");
    let bound = channel.queue_bind(
        queue.into(),
        exchange.as_str().into(),
        "".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.expect("binding");
    exchange
}

/// What is parked, over a connection of this crate: lapin by itself gives up over what a quorum
/// queue adds to a full frame.
async fn look(client: &Client, url: &str, parking: &str) -> Vec<IncomingMessage> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&seen);
    let looking = Unpark::new(url, parking).only(move |message| {
        noting.lock().expect("seen").push(message.clone());
        false
    });
    let looked = looking.run().await.expect("unpark");
    assert_eq!(looked.left, 1, "{looked:?}, and {} are there", client.ready(parking).await);
    seen.lock().expect("seen").clone()
}

/// Its ID as this crate shows it.
fn sent_id(message: &Message) -> Option<String> {
    let (_, id) = message.properties.iter().find(|(flag, _)| *flag == MESSAGE_ID)?;
    let text = String::from_utf8_lossy(&id[1..]).into_owned();
    // One for each byte: the two of the second way, the one of the third.
    Some(text.replace('\u{fffd}', "\u{1a}"))
}
