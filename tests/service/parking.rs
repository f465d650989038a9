//! Messages that must not be tried again wait in the parking queue, with the reason.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::SeqCst},
};

use futures_util::future::join_all;
use lapin::{
    BasicProperties,
    message::BasicGetMessage,
    types::{AMQPValue, FieldTable},
};

use lapin_idempotent::{IdempotentConsumer, IdempotentPublisher, OutgoingMessage, consumer::Unpark};

use super::{
    limits::{limited, told},
    support::{
        amqp::{Client, header, with_id},
        broker,
        consumer::Running,
        eventually,
        ledger::{Debit, Ledger},
        node::Cluster,
        proxy::{Action, From, Proxy, method},
        unique,
    },
};

trials! {
    parking_outlives_the_node_that_it_began_on,
    reject_is_parked_with_its_reason,
    same_id_with_another_body_is_parked,
    no_id_is_parked,
    undecodable_body_is_parked,
    expiring_message_is_parked_for_good,
    message_stays_when_it_cannot_be_parked,
    message_without_an_id_stays_until_it_can_be_parked,
}

/// Publishes, lets a consumer park one message, and gives the parked copy.
async fn parked(name: &str, messages: &[(&[u8], BasicProperties)], effects: i64) -> BasicGetMessage {
    let client = Client::connect(&broker()).await;
    let queue = client.queue(name).await;
    let parking = format!("{queue}.parked");
    for (body, properties) in messages {
        client.publish(&queue, body, properties.clone()).await;
    }
    let ledger = Ledger::create().await;
    let handler = Debit::default();
    let consumer = ledger.consume(&broker(), &queue, handler.clone());
    eventually("the queue is empty", async || {
        (client.ready(&queue).await == 0 && client.ready(&parking).await == 1).then_some(())
    })
    .await;
    consumer.stop().await;
    assert_eq!(client.ready(&queue).await, 0, "the original was acked");
    assert_eq!(ledger.rows().await, (effects, effects));
    let message = client.get(&parking).await.expect("parked");
    assert!(client.get(&parking).await.is_none(), "parked once");
    assert_eq!(header(&message, "x-idempotency-original-queue").as_deref(), Some(queue.as_str()));
    assert_eq!(header(&message, "x-idempotency-original-routing-key").as_deref(), Some(queue.as_str()));
    assert_eq!(header(&message, "x-idempotency-parked-scope").as_deref(), Some("ledger"));
    assert!(header(&message, "x-idempotency-parked-at").is_some());
    client.delete(&queue).await;
    client.delete(&parking).await;
    message
}

fn reason(message: &BasicGetMessage) -> Option<String> {
    header(message, "x-idempotency-parked-reason")
}

pub async fn reject_is_parked_with_its_reason() {
    let message = parked("reject", &[(b"-500", with_id("order-42"))], 0).await;
    assert_eq!(reason(&message).as_deref(), Some("rejected"));
    assert_eq!(
        header(&message, "x-idempotency-parked-error").as_deref(),
        Some("a debit must not be negative")
    );
    assert_eq!(message.data, b"-500");
    assert_eq!(message.properties.message_id().as_ref().map(|id| id.as_str()), Some("order-42"));
}

pub async fn same_id_with_another_body_is_parked() {
    let messages: [(&[u8], _); 3] =
        [(b"500", with_id("order-42")), (b"500", with_id("order-42")), (b"700", with_id("order-42"))];
    let message = parked("mismatch", &messages, 1).await;
    assert_eq!(reason(&message).as_deref(), Some("fingerprint-mismatch"));
    assert_eq!(message.data, b"700");
}

pub async fn no_id_is_parked() {
    let message = parked("missing", &[(b"500", BasicProperties::default())], 0).await;
    assert_eq!(reason(&message).as_deref(), Some("missing-id"));
}

pub async fn undecodable_body_is_parked() {
    let message = parked("undecodable", &[(b"{", with_id("order-42"))], 0).await;
    assert_eq!(reason(&message).as_deref(), Some("rejected"));
    let error = header(&message, "x-idempotency-parked-error").expect("error");
    assert!(error.starts_with("the message body cannot be decoded: "), "{error}");
}

/// What would make the parked copy vanish, be refused or be sent elsewhere does not travel with it.
pub async fn expiring_message_is_parked_for_good() {
    let mut headers = FieldTable::default();
    headers.insert("tenant".into(), lapin::types::AMQPValue::LongString("t-1".into()));
    let properties = BasicProperties::default()
        .with_message_id("order-42".into())
        .with_expiration("60000".into())
        .with_user_id("guest".into())
        .with_app_id("orders".into())
        .with_delivery_mode(1)
        .with_headers(headers);
    let message = parked("expiring", &[(b"-1", properties)], 0).await;
    assert_eq!(*message.properties.expiration(), None);
    assert_eq!(*message.properties.delivery_mode(), Some(2));
    assert_eq!(header(&message, "x-idempotency-original-expiration").as_deref(), Some("60000"));
    assert_eq!(header(&message, "x-idempotency-original-user-id").as_deref(), Some("guest"));
    assert_eq!(header(&message, "tenant").as_deref(), Some("t-1"));
    assert_eq!(message.properties.app_id().as_ref().map(|id| id.as_str()), Some("orders"));
}

pub async fn message_stays_when_it_cannot_be_parked() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("nowhere").await;
    client.publish(&queue, b"-500", with_id("order-42")).await;
    let ledger = Ledger::create().await;
    let handler = Debit::default();
    let consumer =
        ledger.consume_with(&broker(), &queue, handler.clone(), |b| b.parking("", "test.no-such-queue"));
    eventually("it was refused", async || (handler.runs() == 1).then_some(())).await;
    consumer.stop().await;
    eventually("it is back", async || (client.ready(&queue).await == 1).then_some(())).await;
    client.delete(&queue).await;
}

/// The parking queue is full, or is not there and cannot be declared, for more tries than the
/// broker would let a message come back.
pub async fn message_without_an_id_stays_until_it_can_be_parked() {
    let one = async |(limit, full): (i64, bool)| {
        let (client, parking) = (Client::connect(&broker()).await, unique("parking"));
        let queue = client.queue_with("no-id", limited(limit)).await;
        if full {
            let mut small = FieldTable::default();
            small.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
            small.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
            client.declare_as(&parking, small).await;
            client.publish(&parking, b"in the way", BasicProperties::default()).await;
        }
        client.publish(&queue, b"500", BasicProperties::default()).await;
        let (proxy, tries) = (Proxy::start(&broker()).await, Arc::new(AtomicI64::new(0)));
        let seen = Arc::clone(&tries);
        proxy.rule(move |frame| {
            if frame.is(From::Client, method::BASIC_PUBLISH) {
                seen.fetch_add(1, SeqCst);
            }
            Action::Pass
        });
        let ledger = Ledger::create().await;
        let consumer = ledger.consume_with(proxy.url(), &queue, Debit::default(), |b| {
            b.parking("", parking.as_str()).delivery_limit(told(limit))
        });
        let enough = async || (tries.load(SeqCst) >= limit + 2).then_some(());
        eventually("it is tried again and again", enough).await;
        assert_eq!(client.ready(&queue).await, 0, "limit {limit}, full {full}: it was given back");
        if full {
            client.get(&parking).await.expect("what is in the way");
        } else {
            client.declare(&parking).await;
        }
        let status = || consumer.monitor.status();
        eventually("it is parked", async || (status().parked.get("missing-id") == Some(&1)).then_some(()))
            .await;
        assert_eq!(consumer.decided(1).await, ["missing_id"], "decided once");
        consumer.stop().await;
        assert_eq!(client.ready(&queue).await, 0, "the original was acked");
        let message = client.get(&parking).await.expect("parked");
        assert_eq!((reason(&message).as_deref(), &*message.data), (Some("missing-id"), &b"500"[..]));
        assert_eq!(header(&message, "x-idempotency-deliveries"), None, "not published anew, either");
        assert!(client.get(&parking).await.is_none(), "parked once");
        client.delete(&queue).await;
        client.delete(&parking).await;
    };
    join_all([(2, true), (2, false), (5, true), (5, false)].map(one)).await;
}

/// A queue that lived on one node would be gone with it, and no consumer could start without its
/// parking queue.
pub async fn parking_outlives_the_node_that_it_began_on() {
    let cluster = Cluster::start(3).await;
    let (first, second) = (cluster.urls()[0], cluster.urls()[1]);
    let client = Client::connect(first).await;
    let queue = client.quorum_queue("outlives").await;
    let ledger = Ledger::create().await;
    client.publish(&queue, b"-500", with_id("order-42")).await;
    let consumer = ledger.consume(first, &queue, Debit::default());
    consumer.decided(1).await;
    consumer.stop().await;
    for node in cluster.nodes() {
        node.sync().await;
    }
    cluster.nodes()[0].kill().await;

    // Nodes that are dead are passed over.
    let nodes = cluster.urls();
    let builder =
        IdempotentConsumer::builder_for_cluster(nodes, &queue, ledger.store.clone()).scope("ledger");
    let consumer = Running::start(builder, Debit::default());
    // Tries again while the queue has no leader.
    let publisher = IdempotentPublisher::builder(second).connect().await.expect("connect");
    let message = OutgoingMessage::to("", &queue).idempotency_key("order-43").body("-700");
    publisher.publish_idempotent(message).await.expect("published");
    consumer.decided(1).await;
    consumer.stop().await;
    let (parking, client) = (format!("{queue}.parked"), Client::connect(second).await);
    let unpark = Unpark::for_cluster(cluster.urls(), &parking).only(|message| &message.body()[..] == b"-700");
    let unparked = unpark.run().await.expect("unpark");
    assert_eq!((unparked.moved, unparked.left), (1, 1));
    let body = async |queue: &str| client.get(queue).await.expect("a message").data.clone();
    assert_eq!((body(&parking).await, body(&queue).await), (b"-500".to_vec(), b"-700".to_vec()));
}
