//! The broker dies, connections are cut and queues deleted under a consumer with several batches in
//! hand.

use std::{collections::HashSet, time::Duration};

use lapin_idempotent::{
    HandlerResult, IdempotentHandler, IncomingMessage, PostgresStore, consumer::ConsumerState,
};
use sqlx::{Postgres, Transaction};
use tokio::{sync::watch, time::sleep};

use super::{
    consuming::{assert_one_effect_each, consumer, delete, effects},
    database::{Insert, Table},
    flow::Flow,
    support::{
        amqp::{Client, with_id},
        broker,
        consumer::Running,
        eventually, load,
        node::Node,
        proxy::Proxy,
    },
    tags::Tags,
};

trials! {
    broker_killed_three_times_under_load_one_effect_each,
    connection_cut_again_and_again_under_load_one_effect_each,
    queue_deleted_and_created_anew_under_load_is_consumed_again,
    connection_lost_under_a_handler_that_finishes_one_effect,
    connection_lost_under_a_handler_that_is_stuck_one_effect,
}

pub async fn broker_killed_three_times_under_load_one_effect_each() {
    let node = Node::start().await;
    let queue = Client::connect(node.url()).await.queue("killed").await;
    node.sync().await;
    let table = Table::<Postgres>::create().await;
    let proxy = Proxy::start(node.url()).await;
    let tags = Tags::watch(&proxy);
    let consumers: Vec<_> =
        (0..2).map(|_| Running::start(consumer(&table, proxy.url(), &queue), table.insert())).collect();
    let flow = Flow::start(node.url(), &queue, 500).await;
    for _ in 0..3 {
        let (effects, _) = table.effects().await;
        eventually("it is under load", async || (table.effects().await.0 >= effects + 200).then_some(()))
            .await;
        node.kill().await;
        node.start_again().await;
    }
    let (effects, _) = table.effects().await;
    eventually("it goes on", async || (table.effects().await.0 > effects).then_some(())).await;
    let messages = flow.stop().await;
    // One may have worked off the load alone while the other still paused.
    eventually("each is back", async || {
        consumers.iter().all(|consumer| consumer.monitor.status().reconnects >= 1).then_some(())
    })
    .await;
    let client = Client::connect(node.url()).await;
    assert_one_effect_each(messages, &table, (&client, node.url(), &queue), consumers).await;
    tags.assert_no_foreign_tag();
}

/// Each subscription lasts a few hundred milliseconds.
pub async fn connection_cut_again_and_again_under_load_one_effect_each() {
    const CUTS: u64 = 8;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cut").await;
    let table = Table::<Postgres>::create().await;
    let flow = Flow::start(&broker(), &queue, 500).await;
    let (mut consumers, mut cutting) = (Vec::new(), Vec::new());
    for seed in 0..2 {
        let proxy = Proxy::start(&broker()).await;
        let tags = Tags::watch(&proxy);
        let handler = Insert { dawdle: Duration::from_millis(2), ..table.insert() };
        let consumer = Running::start(consumer(&table, proxy.url(), &queue), handler);
        let monitor = consumer.monitor.clone();
        consumers.push(consumer);
        cutting.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(seed);
            for cut in 0..CUTS {
                eventually("it consumes", async || {
                    let status = monitor.status();
                    (status.reconnects == cut && status.state == ConsumerState::Consuming).then_some(())
                })
                .await;
                sleep(Duration::from_millis(random.u64(100..500))).await;
                proxy.cut_all();
                eventually("it is noticed", async || {
                    let status = monitor.status();
                    (status.reconnects > cut || status.state != ConsumerState::Consuming).then_some(())
                })
                .await;
            }
            eventually("it is back", async || (monitor.status().reconnects == CUTS).then_some(())).await;
            (proxy, tags)
        }));
    }
    let mut proxies = Vec::new();
    for cutting in cutting {
        proxies.push(cutting.await.expect("cuts"));
    }
    let messages = flow.stop().await;
    let duplicates = |consumer: &Running| consumer.monitor.status().outcomes.contains_key("duplicate");
    assert!(consumers.iter().any(duplicates), "no ack was lost: nothing was tested");
    assert_one_effect_each(messages, &table, (&client, &broker(), &queue), consumers).await;
    for (_, tags) in &proxies {
        tags.assert_no_foreign_tag();
    }
    delete(&queue).await;
}

pub async fn queue_deleted_and_created_anew_under_load_is_consumed_again() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("recreated").await;
    let table = Table::<Postgres>::create().await;
    let proxy = Proxy::start(&broker()).await;
    let tags = Tags::watch(&proxy);
    let consumer = Running::start(consumer(&table, proxy.url(), &queue), table.insert());
    let flow = Flow::start(&broker(), &queue, 500).await;
    consumer.decided(200).await;
    client.delete(&queue).await;
    consumer.until(ConsumerState::Reconnecting).await;
    let status = consumer.monitor.status();
    assert!(status.last_error.is_some() && status.is_live() && !status.is_ready(), "{status:?}");
    client.declare(&queue).await;
    let first = flow.next();
    consumer.until(ConsumerState::Consuming).await;
    assert!(consumer.monitor.status().reconnects >= 1);
    eventually("publishing goes on", async || (flow.confirmed() > first + 500).then_some(())).await;
    let last = flow.stop().await;
    eventually("what was published since takes effect", async || {
        let effects: HashSet<String> = effects(&table).await.into_iter().collect();
        (first..usize::try_from(last).expect("number")).all(|n| effects.contains(&load::id(n))).then_some(())
    })
    .await;
    consumer.stop().await;
    let (effects, of_messages) = table.effects().await;
    assert_eq!(effects, of_messages, "none twice");
    tags.assert_no_foreign_tag();
    delete(&queue).await;
}

/// Holds one message in its handler, after the effect is written, until it is told.
#[derive(Clone)]
struct Gated {
    insert: Insert,
    held: &'static str,
    gate: watch::Receiver<bool>,
}

impl IdempotentHandler<PostgresStore> for Gated {
    async fn handle(
        &self,
        message: &IncomingMessage,
        tx: &mut Transaction<'static, Postgres>,
    ) -> HandlerResult {
        self.insert.handle(message, tx).await?;
        if message.raw_message_id() == Some(self.held) {
            let _ = self.gate.clone().wait_for(|open| *open).await;
        }
        Ok(())
    }
}

/// Four messages that are done, and one that is held, through a proxy.
struct Holding {
    table: Table<Postgres>,
    client: Client,
    queue: String,
    proxy: Proxy,
    tags: Tags,
    gate: watch::Sender<bool>,
    consumer: Running,
}

impl Holding {
    const MESSAGES: usize = 5;

    /// Cuts the connection while one message is held.
    async fn cut(drain_timeout: Duration) -> Self {
        let client = Client::connect(&broker()).await;
        let queue = client.queue("held").await;
        let table = Table::<Postgres>::create().await;
        for n in 0..Self::MESSAGES {
            client.publish(&queue, n.to_string().as_bytes(), with_id(&load::id(n))).await;
        }
        let proxy = Proxy::start(&broker()).await;
        let tags = Tags::watch(&proxy);
        let gate = watch::channel(false).0;
        let held = Gated { insert: table.insert(), held: "m-4", gate: gate.subscribe() };
        let builder = consumer(&table, proxy.url(), &queue).workers(1).batch(1).drain_timeout(drain_timeout);
        let consumer = Running::start(builder, held.clone());
        eventually("the last is held", async || (held.insert.runs() == 5).then_some(())).await;
        eventually("the others are acked", async || (tags.seen().acked == 4).then_some(())).await;
        proxy.cut_all();
        Self { table, client, queue, proxy, tags, gate, consumer }
    }

    /// On its new channel the message has the first tag; on the old one it had the fifth.
    async fn assert_one_effect(self, outcomes: &[&str]) {
        assert_eq!(self.consumer.decided(outcomes.len()).await, outcomes);
        assert!(self.proxy.connections() > 1);
        let messages = i64::try_from(Self::MESSAGES).expect("few");
        let queue = (&self.client, broker(), &self.queue);
        assert_one_effect_each(messages, &self.table, (queue.0, &queue.1, queue.2), vec![self.consumer])
            .await;
        let acks = self.tags.seen().acks;
        assert_eq!(acks.iter().filter(|(connection, _)| *connection > 0).count(), 1, "{acks:?}");
        assert_eq!(acks.last().map(|(_, tag)| *tag), Some(1), "{acks:?}");
        self.tags.assert_no_foreign_tag();
        delete(&self.queue).await;
    }
}

/// The handler finishes after its connection is lost: its ack goes nowhere, and the copy on the new
/// channel is a duplicate.
pub async fn connection_lost_under_a_handler_that_finishes_one_effect() {
    let holding = Holding::cut(Duration::from_secs(3600)).await;
    holding.consumer.until(ConsumerState::Reconnecting).await;
    holding.gate.send(true).expect("held");
    let done = "processed";
    holding.assert_one_effect(&[done, done, done, done, done, "duplicate"]).await;
}

/// The handler never finishes: it is given up after the drain timeout, and what it did is undone.
pub async fn connection_lost_under_a_handler_that_is_stuck_one_effect() {
    let holding = Holding::cut(Duration::from_millis(300)).await;
    eventually("it is delivered again", async || (holding.proxy.connections() > 1).then_some(())).await;
    assert_eq!(holding.table.effects().await, (4, 4), "rolled back");
    holding.gate.send(true).expect("held");
    holding.assert_one_effect(&["processed"; 5]).await;
}
