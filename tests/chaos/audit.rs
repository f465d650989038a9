//! A second queue that gets every copy and that nobody consumes: what was published, in its order.

use std::collections::{BTreeMap, BTreeSet};

use lapin::{
    ExchangeKind,
    options::{BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions},
    types::FieldTable,
};

use super::{producer::Placed, stage::Stage, support::amqp::Client};

pub struct Audit {
    queue: String,
}

/// What the copies say, beside what was committed.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    pub committed: usize,
    pub copies: usize,
    /// Committed, and never published.
    pub unpublished: usize,
    /// Published, and not committed.
    pub uncommitted: usize,
    /// First copies behind the first copy of a later order of their account.
    pub overtaken: usize,
}

impl Findings {
    pub fn are_right(&self) -> bool {
        (self.unpublished, self.uncommitted, self.overtaken) == (0, 0, 0)
    }
}

impl Audit {
    /// Makes an exchange named like the queue, from which that gets all, and another one as well.
    pub async fn of(stage: &Stage, queue: &str) -> Self {
        let client = Client::connect(stage.nodes()[0]).await;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let exchange = client.channel.exchange_declare(
            queue.into(),
            ExchangeKind::Fanout,
            durable,
            FieldTable::default(),
        );
        exchange.await.expect("exchange");
        let copies = client.quorum_queue("audit").await;
        for bound in [queue, &copies] {
            let options = QueueBindOptions::default();
            let bind = client.channel.queue_bind(
                bound.into(),
                queue.into(),
                "".into(),
                options,
                FieldTable::default(),
            );
            bind.await.expect("bind");
        }
        for node in stage.cluster.nodes() {
            node.sync().await;
        }
        Self { queue: copies }
    }

    pub async fn judge(&self, stage: &Stage, tables: &str) -> Findings {
        let placed = stage.rows(&format!("SELECT number, seq FROM placed_{tables}")).await;
        let placed: BTreeMap<i64, i64> = placed.expect("the database answers").into_iter().collect();
        let client = Client::connect(stage.nodes()[0]).await;
        let mut findings = Findings { committed: placed.len(), ..Findings::default() };
        let (mut published, mut latest) = (BTreeSet::new(), BTreeMap::new());
        let no_ack = BasicGetOptions { no_ack: true };
        while let Some(copy) =
            client.channel.basic_get(self.queue.as_str().into(), no_ack).await.expect("get")
        {
            let copy: Placed = serde_json::from_slice(&copy.data).expect("an order");
            findings.copies += 1;
            if !published.insert(copy.number) {
                continue;
            }
            findings.uncommitted += usize::from(placed.get(&copy.number) != Some(&copy.seq));
            let latest = latest.entry(copy.account).or_insert(0);
            findings.overtaken += usize::from(copy.seq < *latest);
            *latest = copy.seq.max(*latest);
        }
        findings.unpublished = placed.keys().filter(|number| !published.contains(number)).count();
        client.delete(&self.queue).await;
        findings
    }
}
