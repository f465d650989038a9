//! One message of many cannot be published, each in another way: it is the one that fails, and all
//! others are confirmed and there.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use lapin::{ExchangeKind, options::ExchangeDeclareOptions, types::FieldTable};
use lapin_idempotent::{
    IdempotentPublisher, MessageId, OutgoingMessage,
    message::HeaderValue,
    publisher::PublishErrorKind::{self, Invalid, Unroutable},
};
use tokio::time::timeout;

use super::support::{DEADLINE, amqp::Client, node::Node, unique};

trials! {
    publisher_names_exactly_the_bad_one,
}

/// Half of them before the bad one, half behind it.
const GOOD: usize = 200;

/// The limits of the broker that they are published to.
const FRAME_MAX: usize = 8192;
const MESSAGE_MAX: usize = 65_536;

const INTERNAL: &str = "test.internal";
const FORBIDDEN: &str = "test.forbidden";

type Make = fn(&str) -> OutgoingMessage;

/// How one message is bad, and what its error is, unless that is the broker's affair.
const WAYS: &[(&str, Option<PublishErrorKind>, Make)] = &[
    ("a queue that does not exist", Some(Unroutable), |_| to("test.no-such-queue")),
    ("an exchange that does not exist", Some(Unroutable), |_| {
        OutgoingMessage::to("test.none", "k").body("x")
    }),
    // RabbitMQ 4 closes the connection over it, and says nothing.
    ("an exchange that does not exist, with a long name", None, |_| {
        OutgoingMessage::to("é".repeat(120), "k").body("x")
    }),
    ("an exchange that the user may not write to", None, |_| OutgoingMessage::to(FORBIDDEN, "k").body("x")),
    ("an internal exchange", None, |_| OutgoingMessage::to(INTERNAL, "k").body("x")),
    ("a CC that is no list", None, |queue| to(queue).header("CC", "text")),
    ("a BCC that is no list", None, |queue| to(queue).header("BCC", 7)),
    ("a body above the broker's limit", None, |queue| to(queue).body(vec![b'x'; MESSAGE_MAX + 1])),
    ("a body above the publisher's limit", Some(Invalid), |queue| {
        to(queue).body(vec![b'x'; 2 * MESSAGE_MAX + 1])
    }),
    ("headers above the negotiated frame", Some(Invalid), |queue| {
        to(queue).header("h", "x".repeat(FRAME_MAX))
    }),
    ("headers above any frame", Some(Invalid), |queue| to(queue).header("h", "x".repeat(131_072))),
    ("a header that is not a number", Some(Invalid), |queue| to(queue).header("h", f64::NAN)),
    ("an infinite header", Some(Invalid), |queue| to(queue).header("h", f64::INFINITY)),
    ("an infinite header in a list", Some(Invalid), |queue| {
        to(queue).header("h", HeaderValue::List(vec![f64::NEG_INFINITY.into()]))
    }),
    ("a header name above 255 bytes", Some(Invalid), |queue| to(queue).header("h".repeat(256), 1)),
    ("an empty header name", Some(Invalid), |queue| to(queue).header("", 1)),
    ("a header name with a zero byte", Some(Invalid), |queue| to(queue).header("h\0", 1)),
    ("a reserved header", Some(Invalid), |queue| to(queue).header("x-idempotency-failures", 1)),
    ("headers nested too deep", Some(Invalid), |queue| {
        let deep = (0..1000).fold(HeaderValue::Void, |inner, _| HeaderValue::List(vec![inner]));
        to(queue).header("h", deep)
    }),
    ("a routing key above 255 bytes", Some(Invalid), |_| to(&"k".repeat(256))),
    ("a routing key with a zero byte", Some(Invalid), |_| to("k\0")),
    ("an exchange name above 255 bytes", Some(Invalid), |_| {
        OutgoingMessage::to("e".repeat(256), "k").body("x")
    }),
    ("a content type above 255 bytes", Some(Invalid), |queue| to(queue).content_type("t".repeat(256))),
    ("an expiration in a thousand years", Some(Invalid), |queue| {
        to(queue).expiration(Duration::from_hours(1000 * 365 * 24))
    }),
    ("an empty key", Some(Invalid), |queue| to(queue).idempotency_key("")),
];

fn to(queue: &str) -> OutgoingMessage {
    OutgoingMessage::to("", queue).body("x")
}

pub async fn publisher_names_exactly_the_bad_one() {
    let node = Node::start().await;
    node.ctl(&["eval", &format!("application:set_env(rabbit, frame_max, {FRAME_MAX}).")]).await;
    for setting in [
        // Kept where it is read since 3.13.
        format!("catch persistent_term:put(max_message_size, {MESSAGE_MAX})."),
        format!("application:set_env(rabbit, max_message_size, {MESSAGE_MAX})."),
    ] {
        node.ctl(&["eval", &setting]).await;
    }
    node.ctl(&["add_user", "writer", "secret"]).await;
    node.ctl(&["set_permissions", "writer", ".*", "^(?!test\\.forbidden$).*", ".*"]).await;
    let client = Client::connect(node.url()).await;
    for (name, internal) in [(INTERNAL, true), (FORBIDDEN, false)] {
        let options = ExchangeDeclareOptions { internal, ..Default::default() };
        let declared = client.channel.exchange_declare(
            name.into(),
            ExchangeKind::Fanout,
            options,
            FieldTable::default(),
        );
        declared.await.expect("exchange");
    }
    let url = node.url().replace("guest:guest@", "writer:secret@");
    // `ONLY_WAY=CC` tries those that have it in their names.
    let only = std::env::var("ONLY_WAY").unwrap_or_default();
    let mut wrong = Vec::new();
    for (name, kind, make) in WAYS.iter().filter(|(name, ..)| name.contains(&only)) {
        if let Err(why) = published(&client, &url, *kind, *make).await {
            wrong.push(format!("{name}: {why}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

async fn published(
    client: &Client,
    url: &str,
    kind: Option<PublishErrorKind>,
    make: Make,
) -> Result<(), String> {
    let queue = client.queue_with(&unique("one-bad"), FieldTable::default()).await;
    let builder = IdempotentPublisher::builder(url).max_message_bytes(2 * MESSAGE_MAX);
    let publisher = builder.connect().await.map_err(|error| format!("{error:?}"))?;
    let calls = (0..=GOOD).map(|n| {
        if n == GOOD / 2 {
            publisher.publish_idempotent(make(&queue))
        } else {
            let id = MessageId::new(format!("m{n}")).expect("id");
            publisher.publish_idempotent(to(&queue).message_id(id))
        }
    });
    let results = timeout(DEADLINE, join_all(calls)).await.map_err(|_| "calls that hang".to_owned())?;
    let mut failed = results.iter().enumerate().filter_map(|(n, result)| Some((n, result.as_ref().err()?)));
    let (Some((n, error)), rest) = (failed.next(), failed.count()) else { return Err("none failed".into()) };
    if (n, rest) != (GOOD / 2, 0) {
        return Err(format!("{} failed, of which number {n} is the first: {error:?}", rest + 1));
    }
    if kind.is_some_and(|kind| kind != error.kind()) {
        return Err(format!("not {kind:?}: {error:?}"));
    }
    let mut there = BTreeSet::new();
    while let Some(message) = client.get(&queue).await {
        there.insert(message.properties.message_id().as_ref().map(ToString::to_string));
    }
    let good: BTreeSet<_> = (0..=GOOD).filter(|n| *n != GOOD / 2).map(|n| Some(format!("m{n}"))).collect();
    if there != good {
        return Err(format!("{} are there", there.len()));
    }
    client.delete(&queue).await;
    Ok(())
}
