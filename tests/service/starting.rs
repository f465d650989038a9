//! What keeps a connection from being used, at the start and later.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use lapin::{options::QueueDeclareOptions, types::FieldTable};
use lapin_idempotent::{IdempotentPublisher, OutgoingMessage, amqp::ConnectErrorKind};

use super::support::{amqp::Client, broker, eventually, proxy::Proxy, unique};

pub async fn panic_in_the_topology_is_a_failed_connect() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("topology-panics").await;
    let proxy = Proxy::start(&broker()).await;
    let called = Arc::new(AtomicU32::new(0));
    let builder = IdempotentPublisher::builder(proxy.url()).topology({
        let called = Arc::clone(&called);
        move |channel| {
            let number = called.fetch_add(1, Ordering::SeqCst);
            assert_ne!(number, 1, "panicked when called");
            async move {
                let name = if number < 4 && number != 2 { unique("topology") } else { "n".repeat(256) };
                // lapin panics on a name of more than 255 bytes.
                let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
                channel.queue_declare(name.into(), options, FieldTable::default()).await.map(|_| ())
            }
        }
    });
    let publisher = builder.clone().connect().await.expect("connect");
    publisher.publish_idempotent(OutgoingMessage::to("", &queue)).await.expect("published");
    proxy.cut_all();
    eventually("it has reconnected", async || (publisher.status().reconnects == 1).then_some(())).await;
    assert_eq!(called.load(Ordering::SeqCst), 4, "two failed");
    let error = publisher.status().last_error.expect("an error");
    assert!(error.contains("`topology` panicked"), "{error}");
    publisher.publish_idempotent(OutgoingMessage::to("", &queue)).await.expect("published");

    let error = builder.connect().await.expect_err("panicked");
    assert_eq!(error.kind(), ConnectErrorKind::Topology);
    assert!(error.source().expect("source").to_string().contains("panicked"));
    client.delete(&queue).await;
}

pub async fn reason_of_a_failed_reconnect_is_told() {
    let client = Client::connect(&broker()).await;
    let proxy = Proxy::start(&broker()).await;
    let queue = unique("other-arguments");
    let name = queue.clone();
    let publisher = IdempotentPublisher::builder(proxy.url())
        .topology(move |channel| {
            let name = name.clone();
            async move {
                let transient = QueueDeclareOptions::default();
                channel
                    .queue_declare(name.as_str().into(), transient, FieldTable::default())
                    .await
                    .map(|_| ())
            }
        })
        .connect()
        .await
        .expect("connect");
    client.delete(&queue).await;
    client.declare(&queue).await;
    proxy.cut_all();
    let told = eventually("it says what the broker said", async || {
        publisher.status().last_error.filter(|error| error.contains("topology"))
    });
    let told = told.await;
    assert!(told.contains("PRECONDITION_FAILED") && told.contains(&queue), "{told}");
    client.delete(&queue).await;
}

pub async fn more_channels_than_the_broker_allows_are_refused() {
    let url = format!("{}?channel_max=4", broker());
    let builder = IdempotentPublisher::builder(&url).topology(|_| async { Ok::<_, lapin::Error>(()) });
    let error = builder.clone().channels_per_connection(5).connect().await.expect_err("too many");
    assert_eq!(error.kind(), ConnectErrorKind::Setting);
    let source = error.source().expect("source").to_string();
    assert!(source.contains("channels_per_connection is 5") && source.contains("allows 4"), "{source}");
    builder.channels_per_connection(4).connect().await.expect("as many as there may be");

    let beyond = IdempotentPublisher::builder(broker()).channels_per_connection(3_000).connect().await;
    assert_eq!(beyond.expect_err("RabbitMQ allows 2,047").kind(), ConnectErrorKind::Setting);
}
