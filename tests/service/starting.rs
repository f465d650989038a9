//! What keeps a connection from being used, at the start and later.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use lapin::{options::QueueDeclareOptions, types::FieldTable};
use lapin_idempotent::{
    HandlerResult, IdempotentConsumer, IdempotentHandler, IdempotentPublisher, IncomingMessage, MemoryStore,
    OutgoingMessage,
    amqp::ConnectErrorKind,
    consumer::{ConsumeErrorKind, ConsumerBuilder, ConsumerState, Redelivery},
    idempotency::Lease,
};

use super::support::{amqp::Client, broker, consumer::Running, eventually, proxy::Proxy, unique};

trials! {
    panic_in_the_topology_is_a_failed_connect,
    reason_of_a_failed_reconnect_is_told,
    more_channels_than_the_broker_allows_are_refused,
    names_that_are_too_long_are_refused_with_what_helps,
    consumer_declares_its_topology_on_every_connection,
}

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

pub async fn names_that_are_too_long_are_refused_with_what_helps() {
    // Nothing listens there: it is refused before anybody is asked.
    let url = "amqp://127.0.0.1:9";
    let consumer =
        |queue: usize| IdempotentConsumer::builder(url, "q".repeat(queue), MemoryStore::new(1)).scope("s");
    let refused = async |builder: ConsumerBuilder<MemoryStore>| {
        let error = builder.run_until(Nothing, async {}).await.err()?;
        (error.kind() == ConsumeErrorKind::Invalid).then(|| error.source().expect("source").to_string())
    };
    let said = refused(consumer(256)).await.expect("no queue has that name");
    assert!(said.contains("256 bytes"), "{said}");
    let said = refused(consumer(249)).await.expect("parking");
    assert!(
        said.contains("`<queue>.parked`") && said.contains("256 bytes") && said.contains("`parking`"),
        "{said}"
    );
    let said = refused(consumer(249).parking("", "elsewhere")).await.expect("delay queue");
    assert!(said.contains("`<queue>.retry.3600000`") && said.contains("263 bytes"), "{said}");
    assert!(said.contains("Redelivery::Held"), "{said}");
    let said = refused(consumer(9).parking("", "k".repeat(256))).await.expect("routing key");
    assert!(said.contains("routing key"), "{said}");
    let held = consumer(255).parking("", "elsewhere").redelivery(Redelivery::Held);
    assert_eq!(refused(held).await, None);
    assert_eq!(refused(consumer(241)).await, None, "the longest that has room for all");
}

/// Never called.
struct Nothing;

impl IdempotentHandler<MemoryStore> for Nothing {
    async fn handle(&self, _: &IncomingMessage, _: &mut Lease) -> HandlerResult {
        Ok(())
    }
}

pub async fn consumer_declares_its_topology_on_every_connection() {
    let client = Client::connect(&broker()).await;
    let (queue, proxy) = (unique("declared"), Proxy::start(&broker()).await);
    let name = queue.clone();
    let consumer = IdempotentConsumer::builder(proxy.url(), &queue, MemoryStore::new(10))
        .scope("s")
        .consume_argument("x-priority", 7)
        .topology(move |channel| {
            let name = name.clone();
            async move {
                let durable = QueueDeclareOptions { durable: true, ..Default::default() };
                channel.queue_declare(name.as_str().into(), durable, FieldTable::default()).await.map(|_| ())
            }
        });
    let running = Running::start(consumer, Nothing);
    running.until(ConsumerState::Consuming).await;
    client.delete(&queue).await;
    eventually("it is declared again", async || {
        (running.monitor.status().reconnects > 0 && running.monitor.status().is_ready()).then_some(())
    })
    .await;
    assert_eq!(client.ready(&queue).await, 0);
    running.stop().await;
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;

    let refused = IdempotentConsumer::builder(broker(), &queue, MemoryStore::new(10))
        .scope("s")
        .topology(|_| async { Err::<(), _>("not today") });
    let error = refused.run_until(Nothing, std::future::pending()).await.expect_err("refused");
    assert!(error.source().expect("source").to_string().contains("topology"), "{error:?}");
}
