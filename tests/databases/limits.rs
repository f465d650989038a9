//! Quorum queues with a delivery limit, when databases are down and consumers die.

use std::os::unix::process::ExitStatusExt;

use futures_util::future::join_all;
use lapin::types::{AMQPValue, FieldTable};
use lapin_idempotent::consumer::ConsumerState;
use sqlx::Postgres;
use tokio::time::{Duration, Instant, sleep};

use super::{
    consuming::{consumer, delete},
    database::{Kind, Table, short},
    support::{
        amqp::{Client, header, with_id},
        broker,
        consumer::Running,
        eventually,
        server::Server,
    },
    worker::Worker,
};

trials! {
    database_that_is_down_loses_and_parks_nothing,
    message_that_ends_its_consumers_is_parked_and_no_other,
}

const SIGABRT: i32 = 6;

fn limited(limit: u32) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit.into()));
    arguments
}

/// Down for longer than the limit would take, were anything given back; `DOWN_SECONDS` says how
/// long.
pub async fn database_that_is_down_loses_and_parks_nothing() {
    const MESSAGES: u64 = 5;
    let seconds = std::env::var("DOWN_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(20);
    let server = Server::start("postgres", &[]).await;
    let scenes = join_all([2, 5, 20].map(|limit| {
        let url = server.url().to_owned();
        async move {
            let table = Table::<Postgres>::create_on(&url).await;
            let client = Client::connect(&broker()).await;
            let queue = client.queue_with("database-down", limited(limit)).await;
            let running =
                Running::start(consumer(&table, &broker(), &queue).delivery_limit(limit), table.insert());
            running.until(ConsumerState::Consuming).await;
            (table, client, queue, running)
        }
    }))
    .await;
    server.stop().await;
    for (_, client, queue, running) in &scenes {
        for n in 0..MESSAGES {
            client.publish(queue, b"500", with_id(&format!("m{n}"))).await;
        }
        running.until(ConsumerState::StoreAway).await;
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for (_, client, queue, running) in &scenes {
            assert_eq!(running.monitor.status().state, ConsumerState::StoreAway);
            assert_eq!(client.ready(queue).await, 0, "all of them stay with the consumer");
        }
        sleep(Duration::from_millis(100)).await;
    }
    server.start_again().await;
    for (table, client, queue, running) in scenes {
        let all = async || (table.effects().await == (5, 5)).then_some(());
        eventually("all are handled", all).await;
        let status = running.monitor.status();
        assert_eq!((status.reconnects, status.moved, status.parked.len()), (0, 0, 0), "{status:?}");
        assert_eq!(status.outcomes.get("processed"), Some(&MESSAGES));
        running.stop().await;
        assert_eq!(client.ready(&queue).await, 0);
        delete(&queue).await;
    }
}

/// One message of 300 ends each process that handles it. It is parked; all others take effect once,
/// and none is parked with it.
pub async fn message_that_ends_its_consumers_is_parked_and_no_other() {
    const MESSAGES: i64 = 300;
    const STARTS: u32 = 60;
    join_all([2, 20].map(|limit| async move {
        // The worker creates the tables.
        let table = Table::<Postgres>::open(&Postgres::url(), &short("ids"), &short("eff")).await;
        let client = Client::connect(&broker()).await;
        let queue = client.queue_with("killer", limited(limit)).await;
        for n in 0..MESSAGES {
            client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
        }
        let amqp = broker();
        let limit_text = limit.to_string();
        let arguments: Vec<String> = [
            "--amqp",
            &amqp,
            "--queue",
            &queue,
            "--store",
            &table.url,
            "--table",
            &table.name,
            "--effects-table",
            &table.effects,
            "--abort-on",
            "m150",
            "--delivery-limit",
            &limit_text,
        ]
        .map(str::to_owned)
        .to_vec();
        let parking = format!("{queue}.parked");
        let mut deaths = 0;
        let mut worker = Worker::start(&arguments);
        let deadline = Instant::now() + Duration::from_secs(180);
        loop {
            assert!(Instant::now() < deadline && deaths < STARTS, "limit {limit}: {deaths} deaths");
            if worker.has_ended() {
                assert_eq!(worker.ends().await.signal(), Some(SIGABRT));
                deaths += 1;
                worker = Worker::start(&arguments);
            }
            // Queues and tables are there when one has died.
            if deaths > 0
                && client.ready(&queue).await == 0
                && client.ready(&parking).await >= 1
                && table.effects().await.1 == MESSAGES - 1
            {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        worker.stop().await;
        assert_eq!(table.effects().await, (MESSAGES - 1, MESSAGES - 1), "limit {limit}");
        assert!((6..=12).contains(&deaths), "limit {limit}: {deaths} deaths");
        let parked = client.get(&parking).await.expect("parked");
        assert_eq!(header(&parked, "x-idempotency-parked-reason").as_deref(), Some("consumer-died"));
        // A worker that died between a copy of it and the ack has left it twice.
        let mut left = vec![parked];
        for queue in [&queue, &parking] {
            while let Some(message) = client.get(queue).await {
                left.push(message);
            }
        }
        for message in left {
            assert_eq!(message.properties.message_id().as_ref().map(|id| id.as_str()), Some("m150"));
        }
        delete(&queue).await;
    }))
    .await;
}
