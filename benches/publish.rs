//! Publishing, against raw lapin in the same run: paired, interleaved, medians.
//!
//! `make bench`, or `AMQP_URL=... cargo bench --bench publish -- [messages] [rounds]`. Writes
//! into `target/bench`.

#![allow(missing_docs, clippy::expect_used, clippy::cast_precision_loss)]

mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use lapin_idempotent::{IdempotentPublisher, OutgoingMessage, amqp::ServerVersion};
use support::{Bench, Queue, body};

const WINDOW: usize = 1024;

const RAW: &str = "raw lapin, fused";
const RAW_TWO: &str = "raw lapin, fused, 2 connections";
const ONE_BY_ONE: &str = "one at a time";

const CASES: [&str; 7] = [
    RAW,
    "publish_all",
    "1,024 concurrent calls",
    RAW_TWO,
    "publish_all, 2 connections",
    "1,024 concurrent calls, 2 connections",
    ONE_BY_ONE,
];

fn main() {
    match support::child() {
        Some((case, kind, messages)) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("runtime").block_on(once(&case, &kind, messages));
        }
        None => compare(Bench::from_args(20_000, 7)),
    }
}

/// Every case in turn, each on a queue of its own: a queue that has been filled and purged is not
/// as fast as a new one.
fn compare(mut bench: Bench) {
    for kind in ["classic", "quorum"] {
        for round in 0..bench.rounds {
            for case in support::in_turn(&CASES, round) {
                let messages = if case == ONE_BY_ONE { bench.messages / 20 } else { bench.messages };
                bench.measure(case, kind, messages);
            }
        }
    }
    let asking = ServerVersion::ask(support::amqp());
    let broker = tokio::runtime::Runtime::new().expect("runtime").block_on(asking).expect("broker");
    bench.report("publish", vec![("RabbitMQ", broker.to_string())]);
}

/// One case, once.
async fn once(case: &str, kind: &str, messages: usize) {
    let amqp = support::amqp();
    let queue = Queue::declare(&amqp, kind).await;
    let connections = if case.ends_with("2 connections") { 2 } else { 1 };
    let run: BoxFuture<'_, Duration> = match case {
        RAW | RAW_TWO => raw_fused(&amqp, &queue.name, messages, connections).boxed(),
        ONE_BY_ONE => one_at_a_time(&amqp, &queue.name, messages).boxed(),
        _ if case.starts_with("publish_all") => {
            publish_all(&amqp, &queue.name, messages, connections).boxed()
        }
        _ => concurrent(&amqp, &queue.name, messages, connections).boxed(),
    };
    support::once(messages, run).await;
    queue.delete().await;
}

/// The fastest known way to use lapin: publish and confirm in one future, all of them in one
/// task a connection.
async fn raw_fused(amqp: &str, queue: &str, messages: usize, connections: usize) -> Duration {
    let body = body();
    let mut channels = Vec::new();
    for _ in 0..connections {
        let connection = Connection::connect(amqp, ConnectionProperties::default()).await.expect("connect");
        let channel = connection.create_channel().await.expect("channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm");
        channels.push((connection, channel));
    }
    let started = Instant::now();
    let publishing: Vec<_> = channels
        .iter()
        .map(|(_, channel)| {
            let (channel, queue, body) = (channel.clone(), queue.to_owned(), body.clone());
            tokio::spawn(async move {
                let mut window = FuturesUnordered::new();
                for n in 0..messages / connections {
                    if window.len() >= WINDOW / connections {
                        window.next().await;
                    }
                    window.push(raw_publish(channel.clone(), queue.clone(), body.clone(), n));
                }
                while window.next().await.is_some() {}
            })
        })
        .collect();
    for task in publishing {
        task.await.expect("publish");
    }
    started.elapsed()
}

async fn raw_publish(channel: Channel, queue: String, body: Bytes, n: usize) {
    let properties = BasicProperties::default()
        .with_message_id(format!("00000000-0000-7000-8000-{n:012}").into())
        .with_content_type("application/json".into())
        .with_delivery_mode(2);
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let confirm =
        channel.basic_publish("".into(), queue.into(), options, &body, properties).await.expect("publish");
    assert_eq!(confirm.await.expect("confirm"), Confirmation::Ack(None));
}

async fn publisher(amqp: &str, connections: usize) -> IdempotentPublisher {
    let builder = IdempotentPublisher::builder(amqp).max_in_flight(WINDOW).connections(connections);
    builder.connect().await.expect("connect")
}

fn message(queue: &str, body: &Bytes) -> OutgoingMessage {
    OutgoingMessage::to("", queue).body(body.clone()).content_type("application/json")
}

async fn publish_all(amqp: &str, queue: &str, messages: usize, connections: usize) -> Duration {
    let publisher = publisher(amqp, connections).await;
    let (body, queue) = (body(), queue.to_owned());
    let started = Instant::now();
    let publishing = tokio::spawn(async move {
        let mut results = publisher.publish_all((0..messages).map(|_| message(&queue, &body)));
        while let Some(result) = results.next().await {
            result.expect("published");
        }
    });
    publishing.await.expect("publish");
    started.elapsed()
}

async fn concurrent(amqp: &str, queue: &str, messages: usize, connections: usize) -> Duration {
    let publisher = publisher(amqp, connections).await;
    let body = body();
    let started = Instant::now();
    let tasks: Vec<_> = (0..WINDOW)
        .map(|task| {
            let (publisher, queue, body) = (publisher.clone(), queue.to_owned(), body.clone());
            tokio::spawn(async move {
                for _ in (task..messages).step_by(WINDOW) {
                    publisher.publish_idempotent(message(&queue, &body)).await.expect("published");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("publish");
    }
    started.elapsed()
}

async fn one_at_a_time(amqp: &str, queue: &str, messages: usize) -> Duration {
    let publisher = publisher(amqp, 1).await;
    let body = body();
    let started = Instant::now();
    for _ in 0..messages {
        publisher.publish_idempotent(message(queue, &body)).await.expect("published");
    }
    started.elapsed()
}
