//! What a publisher can be set to.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all};
use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::FieldTable,
};
use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage, RetryPolicy,
    amqp::{ConnectErrorKind, Credentials},
    message::{InvalidMessage, TraceContext},
    publisher::{PublishErrorKind, PublisherState},
};
use tokio::time::{Instant, timeout};

use super::support::{
    DEADLINE,
    amqp::{Client, header},
    broker, eventually,
    proxy::{Action, From, Proxy, method, nth},
    unique,
};

trials! {
    topology_is_there_before_publishing_resumes,
    topology_that_is_refused_is_a_typed_error,
    without_mandatory_an_unroutable_message_is_published_into_the_void,
    a_message_has_its_own_deadline,
    every_attempt_is_shown_with_its_result,
    trace_context_travels_in_the_headers,
    bytes_in_flight_are_bounded,
    too_large_a_body_is_refused_before_sending,
    several_connections_and_channels_share_the_load,
    messages_go_over_the_connection_that_is_up,
    credentials_come_from_a_provider_at_every_connect,
    nacked_messages_wait_for_room_and_fail_alone,
}

fn durable() -> QueueDeclareOptions {
    QueueDeclareOptions { durable: true, ..Default::default() }
}

/// Declared before the first publish, and again on every new connection.
pub async fn topology_is_there_before_publishing_resumes() {
    let client = Client::connect(&broker()).await;
    let proxy = Proxy::start(&broker()).await;
    let queue = unique("topology");
    let name = queue.clone();
    let publisher = IdempotentPublisher::builder(proxy.url())
        .topology(move |channel| {
            let name = name.clone();
            async move {
                channel
                    .queue_declare(name.as_str().into(), durable(), FieldTable::default())
                    .await
                    .map(|_| ())
            }
        })
        .connect()
        .await
        .expect("connect");
    publisher
        .publish_idempotent(OutgoingMessage::to("", &queue).body("1"))
        .await
        .expect("there from the start");
    client.delete(&queue).await;
    proxy.cut_all();
    eventually("it has reconnected", async || (publisher.status().reconnects == 1).then_some(())).await;
    publisher.publish_idempotent(OutgoingMessage::to("", &queue).body("2")).await.expect("there again");
    assert_eq!(client.ready(&queue).await, 1);
    client.delete(&queue).await;
}

pub async fn topology_that_is_refused_is_a_typed_error() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("other-arguments").await;
    let name = queue.clone();
    let builder = IdempotentPublisher::builder(broker()).topology(move |channel| {
        let name = name.clone();
        async move {
            let transient = QueueDeclareOptions::default();
            channel.queue_declare(name.as_str().into(), transient, FieldTable::default()).await.map(|_| ())
        }
    });
    let error = builder.connect().await.expect_err("declared with other arguments");
    assert_eq!(error.kind(), ConnectErrorKind::Topology);
    let source = std::error::Error::source(&error).expect("the broker's words").to_string();
    assert!(source.contains("PRECONDITION_FAILED"), "{source}");
    client.delete(&queue).await;
}

pub async fn without_mandatory_an_unroutable_message_is_published_into_the_void() {
    let publisher = IdempotentPublisher::builder(broker()).mandatory(false).connect().await.expect("connect");
    let message = OutgoingMessage::to("amq.topic", unique("nobody-listens")).body("x");
    publisher.publish_idempotent(message).await.expect("confirmed");
    assert_eq!(publisher.status().returned, 0);
}

pub async fn a_message_has_its_own_deadline() {
    let proxy = Proxy::start(&broker()).await;
    let publisher = IdempotentPublisher::builder(proxy.url()).connect().await.expect("connect");
    proxy.rule(|frame| if frame.is(From::Broker, method::BASIC_ACK) { Action::Drop } else { Action::Pass });
    let client = Client::connect(&broker()).await;
    let queue = client.queue("deadline").await;
    let started = Instant::now();
    let message = OutgoingMessage::to("", &queue).body("x").deadline(Duration::from_millis(300));
    let error = timeout(DEADLINE, publisher.publish_idempotent(message)).await.expect("no hang").unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::TimedOut);
    assert!(error.may_have_been_published());
    assert!(started.elapsed() < Duration::from_secs(20), "not the policy's 30 seconds");
    client.delete(&queue).await;
}

pub async fn every_attempt_is_shown_with_its_result() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("attempts").await;
    let proxy = Proxy::start(&broker()).await;
    proxy.rule(nth(0, From::Broker, method::BASIC_ACK, Action::CutBefore));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let attempts = Arc::clone(&seen);
    let publisher = IdempotentPublisher::builder(proxy.url())
        .on_attempt(move |attempt| {
            let id = attempt.message_id.to_string();
            attempts.lock().expect("seen").push((id, attempt.number, attempt.result));
            panic!("an observer that fails harms nothing");
        })
        .connect()
        .await
        .expect("connect");
    let receipt =
        publisher.publish_idempotent(OutgoingMessage::to("", &queue).body("x")).await.expect("published");
    let id = receipt.message_id().to_string();
    let expected = [(id.clone(), 1, Err(PublishErrorKind::Disconnected)), (id, 2, Ok(()))];
    assert_eq!(*seen.lock().expect("seen"), expected);
    let status = publisher.status();
    assert_eq!((status.confirmed, status.retried, status.disconnected, status.reconnects), (1, 1, 1, 1));
    client.delete(&queue).await;
}

pub async fn trace_context_travels_in_the_headers() {
    const OWN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const CURRENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let client = Client::connect(&broker()).await;
    let queue = client.queue("trace").await;
    let publisher = IdempotentPublisher::builder(broker())
        .trace_context(|| TraceContext::new(CURRENT).ok().map(|context| context.with_state("vendor=1")))
        .connect()
        .await
        .expect("connect");
    let own = TraceContext::new(OWN).expect("context");
    for (message, expected) in [
        (OutgoingMessage::to("", &queue).trace_context(&own), OWN),
        (OutgoingMessage::to("", &queue), CURRENT),
    ] {
        publisher.publish_idempotent(message).await.expect("published");
        let seen = client.get(&queue).await.expect("message");
        assert_eq!(header(&seen, "traceparent").as_deref(), Some(expected));
        assert_eq!(header(&seen, "tracestate").is_some(), expected == CURRENT);
    }
    client.delete(&queue).await;
}

/// The bytes in flight are bounded, and a message larger than the bound still passes, alone.
pub async fn bytes_in_flight_are_bounded() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("bytes").await;
    let proxy = Proxy::start(&broker()).await;
    let builder = IdempotentPublisher::builder(proxy.url()).max_bytes_in_flight(1000);
    let publisher = builder.connect().await.expect("connect");
    proxy.rule(nth(0, From::Broker, method::BASIC_ACK, Action::Freeze));
    let calls = (0..10).map(|_| {
        let publisher = publisher.clone();
        let message = OutgoingMessage::to("", &queue).body(vec![b'x'; 400]);
        tokio::spawn(async move { publisher.publish_idempotent(message).await })
    });
    let calls: Vec<_> = calls.collect();
    let full = async || (publisher.status().in_flight == 2).then(|| publisher.status());
    assert_eq!(eventually("two fit", full).await.bytes_in_flight, 800);
    proxy.thaw();
    for call in join_all(calls).await {
        call.expect("join").expect("published");
    }
    let large = OutgoingMessage::to("", &queue).body(vec![b'x'; 5000]);
    publisher.publish_idempotent(large).await.expect("published");
    assert_eq!(publisher.status().bytes_in_flight, 0);
    client.delete(&queue).await;
}

pub async fn too_large_a_body_is_refused_before_sending() {
    let publisher =
        IdempotentPublisher::builder(broker()).max_message_bytes(10).connect().await.expect("connect");
    let message = OutgoingMessage::to("", "test.any").body("eleven byte");
    let error = publisher.publish_idempotent(message).await.expect_err("too large");
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Invalid, 0));
    let source = std::error::Error::source(&error).expect("why");
    let invalid = source.downcast_ref::<InvalidMessage>().expect("typed");
    assert!(matches!(invalid, InvalidMessage::BodyTooLarge { bytes: 11, limit: 10 }), "{invalid}");
    assert_eq!(error.into_message().payload().len(), 11, "nothing is lost");

    let headers = OutgoingMessage::to("", "test.any").header("h", "x".repeat(40_000));
    let error = publisher.publish_idempotent(headers.clone()).await.expect_err("more than a frame");
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Invalid, 0));
    let client = Client::connect(&broker()).await;
    let queue = client.queue("long-headers").await;
    let large = IdempotentPublisher::builder(format!("{}?frame_max=131072", broker())).connect().await;
    let message = OutgoingMessage::to("", &queue).header("h", "x".repeat(100_000));
    large.expect("connect").publish_idempotent(message).await.expect("it fits into that");
    // As much as the default allows, beside all other properties at their longest.
    let long = "x".repeat(255);
    let message = OutgoingMessage::to("", &queue)
        .message_id(lapin_idempotent::MessageId::new(long.as_str()).expect("ID"))
        .kind(&long)
        .content_type(&long)
        .content_encoding(&long)
        .correlation_id(&long)
        .reply_to(&long)
        .expiration(Duration::from_secs(86_400))
        .header("h", "x".repeat(32_768 - 3_072 - 11));
    let publisher = IdempotentPublisher::builder(broker()).app_id(&long).connect().await.expect("connect");
    publisher.publish_idempotent(message).await.expect("it fits into a frame");
    client.delete(&queue).await;
}

pub async fn several_connections_and_channels_share_the_load() {
    const MESSAGES: usize = 2_000;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("several").await;
    let proxy = Proxy::start(&broker()).await;
    let sent = Arc::new(Mutex::new([0_usize; 2]));
    let count = Arc::clone(&sent);
    // No confirm comes before all are sent: a connection that is confirmed faster would get more.
    proxy.rule(move |frame| {
        let mut sent = count.lock().expect("count");
        if frame.is(From::Client, method::BASIC_PUBLISH) {
            sent[frame.connection] += 1;
        }
        let is_early = frame.is(From::Broker, method::BASIC_ACK) && sent.iter().sum::<usize>() < MESSAGES;
        if is_early { Action::Freeze } else { Action::Pass }
    });
    let builder = IdempotentPublisher::builder(proxy.url()).connections(2).channels_per_connection(2);
    let builder = builder.max_in_flight(MESSAGES);
    let publisher = builder.connect().await.expect("connect");
    let status = publisher.status();
    assert_eq!((status.connections, status.connected, proxy.connections()), (2, 2, 2));
    let messages = (0..MESSAGES).map(|n| OutgoingMessage::to("", &queue).body(n.to_string()));
    let thawing = async {
        let all = async || (sent.lock().expect("sent").iter().sum::<usize>() == MESSAGES).then_some(());
        eventually("all are sent", all).await;
        proxy.thaw();
    };
    let publishing = publisher.publish_all(messages).collect();
    let (results, ()): (Vec<_>, ()) = tokio::join!(publishing, thawing);
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(client.ready(&queue).await, u32::try_from(MESSAGES).expect("count"));
    let sent = *sent.lock().expect("sent");
    assert!(sent.iter().all(|count| (MESSAGES * 4 / 10..=MESSAGES * 6 / 10).contains(count)), "{sent:?}");
    client.delete(&queue).await;
}

/// One of two nodes is gone: messages go over the other connection, and do not wait for the first.
pub async fn messages_go_over_the_connection_that_is_up() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("one-up").await;
    let proxy = Proxy::start(&broker()).await;
    let builder = IdempotentPublisher::builder(proxy.url()).connections(2);
    let publisher = builder.connect().await.expect("connect");
    // The first connection is cut, and no new one gets through its handshake.
    proxy.rule(|frame| if frame.connection == 1 { Action::Pass } else { Action::CutBefore });
    let message =
        |n: usize| OutgoingMessage::to("", &queue).body(n.to_string()).deadline(Duration::from_secs(20));
    let results: Vec<_> = publisher.publish_all((0..200).map(message)).collect().await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let status = publisher.status();
    assert_eq!((status.state, status.connected), (PublisherState::Connected, 1));
    client.delete(&queue).await;
}

pub async fn credentials_come_from_a_provider_at_every_connect() {
    let proxy = Proxy::start(&broker()).await;
    let (_, address) = proxy.url().rsplit_once('@').expect("credentials");
    let url = format!("amqp://{address}");
    let asked = Arc::new(Mutex::new(0));
    let count = Arc::clone(&asked);
    let publisher = IdempotentPublisher::builder(&url)
        .credentials_provider(move || {
            *count.lock().expect("count") += 1;
            async { Ok(Credentials::new("guest", "guest")) }
        })
        .connect()
        .await
        .expect("connect");
    proxy.cut_all();
    eventually("it has reconnected", async || (publisher.status().reconnects == 1).then_some(())).await;
    assert!(*asked.lock().expect("asked") >= 2);

    let wrong =
        IdempotentPublisher::builder(&url).credentials(Credentials::new("guest", "wrong")).connect().await;
    assert_eq!(wrong.expect_err("wrong password").kind(), ConnectErrorKind::Refused);
    let none = IdempotentPublisher::builder(&url)
        .credentials_provider(|| async { Err("the vault is sealed".into()) });
    assert_eq!(none.connect().await.expect_err("none").kind(), ConnectErrorKind::Credentials);
    let twice = IdempotentPublisher::builder(proxy.url()).credentials(Credentials::new("guest", "guest"));
    assert_eq!(twice.connect().await.expect_err("twice").kind(), ConnectErrorKind::InvalidUri);
}

/// Full, then drained: backoff, then Ok. Never drained: `Nacked` at the deadline. A batch: only the
/// nacked ones fail.
pub async fn nacked_messages_wait_for_room_and_fail_alone() {
    let client = Client::connect(&broker()).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), lapin::types::AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), lapin::types::AMQPValue::LongString("reject-publish".into()));
    let full = client.queue_with("full", arguments).await;
    let open = client.queue("open").await;
    let policy = RetryPolicy::default().max_elapsed(Duration::from_secs(2)).max_attempts(1000);
    let builder = IdempotentPublisher::builder(broker()).retry(policy);
    let publisher = builder.connect().await.expect("connect");
    publisher.publish_idempotent(OutgoingMessage::to("", &full).body("first")).await.expect("it is empty");

    let error =
        publisher.publish_idempotent(OutgoingMessage::to("", &full).body("second")).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::Nacked);
    assert!(error.attempts() > 1 && error.may_have_been_published(), "{error}");

    let thrice = RetryPolicy::default().max_attempts(3).max_delay(Duration::from_millis(50));
    let thrice = IdempotentPublisher::builder(broker()).retry(thrice).connect().await.expect("connect");
    let error = thrice.publish_idempotent(error.into_message()).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Nacked, 3));

    let mixed = (0..100).map(|n| OutgoingMessage::to("", if n % 4 == 0 { &full } else { &open }).body("x"));
    let results: Vec<_> = publisher.publish_all(mixed).collect().await;
    for (n, result) in results.iter().enumerate() {
        let expected = if n % 4 == 0 { Err(PublishErrorKind::Nacked) } else { Ok(()) };
        assert_eq!(result.as_ref().map(|_| ()).map_err(|error| error.kind()), expected, "message {n}");
    }
    assert_eq!(client.ready(&open).await, 75);

    let before = publisher.status().nacked;
    let message = error.into_message().deadline(DEADLINE);
    let id = message.id().cloned();
    let calling = publisher.clone();
    let waiting = tokio::spawn(async move { calling.publish_idempotent(message).await });
    eventually("it was nacked", async || (publisher.status().nacked > before).then_some(())).await;
    client.get(&full).await.expect("the first");
    let receipt = waiting.await.expect("join").expect("there is room now");
    assert!(receipt.attempts() > 1);
    assert_eq!(Some(receipt.message_id()), id.as_ref());
    let options = QueueDeleteOptions::default();
    client.channel.queue_delete(full.as_str().into(), options).await.expect("delete");
    client.delete(&open).await;
}
