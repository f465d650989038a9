//! How a publisher starts, and what it is not started with.

use std::{error::Error, time::Duration};

use lapin_idempotent::{
    Guard, HandlerResult, IdStrategy, IdempotentConsumer, IdempotentHandler, IdempotentPublisher,
    IncomingMessage, MemoryStore, RetryPolicy, Scope,
    amqp::ConnectErrorKind,
    consumer::{ConsumeErrorKind, ConsumerBuilder, DeliverySettler, Redelivery},
    idempotency::{KeySource, Lease},
    publisher::{PublishErrorKind, PublisherBuilder, PublisherState},
};
use tokio::{net::TcpListener, time::timeout};

use super::{
    DEADLINE, connected, message, publish,
    scripted::{ScriptedBroker, nack},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lazy_start_connects_as_soon_as_there_is_a_broker() {
    let broker = ScriptedBroker::start().await;
    let publisher = IdempotentPublisher::builder(broker.url()).connect_lazy().expect("usable settings");
    assert_eq!(publisher.status().state, PublisherState::Connecting);
    let mut status = publisher.watch();
    broker.turn_away().await;
    let told = timeout(DEADLINE, status.wait_for(|status| status.last_error.is_some()));
    let told = told.await.expect("in time").expect("watch").clone();
    assert_eq!((told.state, told.connected), (PublisherState::Connecting, 0));
    let waiting = publish(&publisher, "before there is a connection");
    broker.turn_away().await;
    let mut peer = broker.accept().await;
    let published = peer.next().await;
    peer.ack(published.tag, false).await;
    let receipt = timeout(DEADLINE, waiting).await.expect("in time").unwrap().expect("published");
    assert_eq!(receipt.attempts(), 1);
    let status = publisher.status();
    assert_eq!((status.state, status.connected, status.reconnects), (PublisherState::Connected, 1, 0));
    drop(peer);
    let mut status = publisher.watch();
    let lost = timeout(DEADLINE, status.wait_for(|status| status.state == PublisherState::Reconnecting));
    lost.await.expect("in time").expect("watch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_that_found_no_connection_was_not_published() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("amqp://{}", silent.local_addr().expect("address"));
    let publisher = IdempotentPublisher::builder(url).connect_lazy().expect("usable settings");
    let message = message("too early").deadline(Duration::from_millis(300));
    let call = timeout(DEADLINE, publisher.publish_idempotent(message));
    let error = call.await.expect("no call hangs").expect_err("no connection");
    assert_eq!((error.attempts(), error.may_have_been_published()), (0, false));
    timeout(DEADLINE, publisher.close(DEADLINE)).await.expect("in time").expect("nothing is in flight");
    assert_eq!(publisher.status().state, PublisherState::Closed);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_by_name() {
    type Set = fn(PublisherBuilder) -> PublisherBuilder;
    let refused: [(&str, Set); 10] = [
        ("connection_name", |builder| builder.connection_name("n".repeat(1_025))),
        ("app_id", |builder| builder.app_id("a".repeat(256))),
        ("app_id", |builder| builder.app_id("a\0b")),
        ("confirm_timeout", |builder| builder.confirm_timeout(Duration::ZERO)),
        ("connect_timeout", |builder| builder.connect_timeout(Duration::ZERO)),
        ("max_elapsed", |builder| builder.retry(RetryPolicy::default().max_elapsed(Duration::ZERO))),
        ("connections", |builder| builder.connections(1_001)),
        ("connections", |builder| builder.connections(usize::MAX)),
        ("channels_per_connection", |builder| builder.channels_per_connection(usize::MAX)),
        ("channels_per_connection", |builder| builder.connections(1_000).channels_per_connection(1_000)),
    ];
    for (name, set) in refused {
        let builder = set(IdempotentPublisher::builder("amqp://localhost"));
        let error = builder.connect_lazy().expect_err(name);
        assert_eq!(error.kind(), ConnectErrorKind::Setting, "{name}");
        let source = error.source().expect("source").to_string();
        assert!(source.contains(name), "{source}");
    }
}

struct Idle;

impl IdempotentHandler<MemoryStore> for Idle {
    async fn handle(&self, _: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        Ok(())
    }
}

#[tokio::test]
async fn settings_of_a_consumer_that_cannot_work_are_refused_by_name() {
    type Set = fn(ConsumerBuilder<MemoryStore>) -> ConsumerBuilder<MemoryStore>;
    let long = "q".repeat(249);
    let refused: [(&str, &str, Set); 7] = [
        ("connection_name", "queue", |builder| builder.connection_name("n".repeat(1_025))),
        ("connect_timeout", "queue", |builder| builder.connect_timeout(Duration::ZERO)),
        ("JSON pointer", "queue", |builder| builder.key(KeySource::json_pointers(["no-slash"]))),
        ("JSON pointer", "queue", |builder| builder.key(KeySource::json_pointers::<[&str; 0]>([]))),
        ("from a body", "queue", |builder| builder.key(KeySource::body(IdStrategy::uuid_v7()))),
        ("256 bytes", &long, |builder| builder),
        ("reserved", "amq.gen-x", |builder| builder),
    ];
    for (name, queue, set) in refused {
        let builder = IdempotentConsumer::builder("amqp://127.0.0.1:1", queue, MemoryStore::new(1));
        let error = set(builder).run_until(Idle, std::future::pending()).await.expect_err(name);
        assert_eq!(error.kind(), ConsumeErrorKind::Invalid, "{name}: {error:?}");
        let source = error.source().expect("source").to_string();
        assert!(source.contains(name), "{source}");
    }
    let guard = Guard::new(MemoryStore::new(1), Scope::new("ledger").expect("scope"));
    for (name, uri, queue) in [
        ("256 bytes", "amqp://127.0.0.1:1", long.as_str()),
        ("reserved", "amqp://127.0.0.1:1", "amq.gen-x"),
        ("amqp", "http://127.0.0.1:1", "queue"),
    ] {
        let error = DeliverySettler::builder(uri, queue).build(&guard).expect_err(name);
        assert_eq!(error.kind(), ConsumeErrorKind::Invalid, "{name}: {error:?}");
        let source = error.source().expect("source").to_string();
        assert!(source.contains(name), "{source}");
    }
    let elsewhere = IdempotentConsumer::builder("amqp://127.0.0.1:1", long, MemoryStore::new(1));
    let error = elsewhere
        .parking("", "parked")
        .redelivery(Redelivery::Held)
        .run_until(Idle, std::future::pending())
        .await;
    assert_eq!(error.expect_err("nobody is there").kind(), ConsumeErrorKind::Connect);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_duration_and_no_count_is_too_large() {
    let (publisher, mut peer) = connected(|builder| {
        let policy = RetryPolicy::default().max_attempts(u32::MAX).max_elapsed(Duration::MAX);
        let policy =
            policy.initial_delay(Duration::MAX).max_delay(Duration::MAX).factor(f64::MAX).jitter(0.0);
        builder
            .retry(policy)
            .confirm_timeout(Duration::MAX)
            .connect_timeout(Duration::MAX)
            .max_in_flight(usize::MAX)
            .max_bytes_in_flight(usize::MAX)
            .max_message_bytes(usize::MAX)
    })
    .await;
    let call = {
        let publisher = publisher.clone();
        let message = message("nacked").deadline(Duration::MAX);
        tokio::spawn(async move { publisher.publish_idempotent(message).await })
    };
    let published = peer.next().await;
    peer.say(&[nack(published.tag, false)]).await;
    let error =
        timeout(DEADLINE, call).await.expect("in time").unwrap().expect_err("no time for another attempt");
    assert_eq!(error.kind(), PublishErrorKind::Nacked);
    let call = publish(&publisher, "acked");
    let published = peer.next().await;
    peer.ack(published.tag, false).await;
    timeout(DEADLINE, call).await.expect("in time").unwrap().expect("published");
    let closing = async { tokio::join!(publisher.close(Duration::MAX), peer.next_or_end()) };
    timeout(DEADLINE, closing).await.expect("in time").0.expect("nothing is left");
}

#[tokio::test]
async fn failed_connect_says_where_without_the_password() {
    let nodes: Vec<String> = vec!["amqp://orders:canary@127.0.0.1:1/shop".into()];
    let error = IdempotentPublisher::builder_for_cluster(&nodes).connect().await.expect_err("nobody listens");
    assert_eq!(error.kind(), ConnectErrorKind::Unreachable);
    assert_eq!(error.endpoint(), Some("amqp://orders:***@127.0.0.1:1 (virtual host shop)"));
    let owned = IdempotentPublisher::builder_for_cluster(nodes).connect().await.expect_err("nobody listens");
    assert!(!format!("{owned} {owned:?}").contains("canary"));
}
