//! Messages that are committed to an outbox, and what has arrived of them at the broker.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use futures_util::StreamExt;
use lapin::{options::BasicConsumeOptions, types::FieldTable};
use lapin_idempotent::{
    OutgoingMessage,
    outbox::{Outbox, Select},
};
use tokio::task::JoinHandle;

use super::{
    Boxed, Kind,
    support::{amqp::Client, broker, eventually, unique},
};

/// What was committed, and what has arrived at the queue that it goes to.
pub struct Orders {
    pub arrivals: Arrivals,
    /// The bodies, by ID.
    committed: BTreeMap<String, String>,
    /// The IDs of each key, in their order.
    keys: BTreeMap<String, Vec<String>>,
    /// The IDs of what cannot be published, and of what follows it.
    pub poison: Vec<String>,
}

impl Orders {
    /// None yet, for a queue of a new name.
    pub async fn create() -> Self {
        let arrivals = Arrivals::watch().await;
        Self { arrivals, committed: BTreeMap::new(), keys: BTreeMap::new(), poison: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.committed.len()
    }

    /// The IDs of this key, in their order; of those without one, under "".
    pub fn of_key(&self, key: &str) -> &[String] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// Commits messages of each of these keys, and some without one. A transaction that does the
    /// same is rolled back before.
    pub async fn commit<K: Kind>(&mut self, boxed: &Boxed<K>, part: &str, keys: &[&str], of_each: usize) {
        for rolls_back in [true, false] {
            let mut tx = boxed.begin().await;
            for n in 0..of_each {
                for key in keys.iter().copied().map(Some).chain([None]) {
                    let never = if rolls_back { "never " } else { "" };
                    let body = format!("{never}{part} {} {n}", key.unwrap_or("-"));
                    let message = OutgoingMessage::to("", &self.arrivals.queue).text(&*body);
                    let id = match key {
                        Some(key) => boxed.outbox.enqueue_in_order(&mut tx, key, message).await,
                        None => boxed.outbox.enqueue(&mut tx, message).await,
                    };
                    let id = id.expect("enqueued").to_string();
                    if !rolls_back {
                        self.committed.insert(id.clone(), body);
                        self.keys.entry(key.unwrap_or_default().to_owned()).or_default().push(id);
                    }
                }
            }
            if rolls_back {
                tx.rollback().await.expect("rollback");
            } else {
                tx.commit().await.expect("commit");
            }
        }
    }

    /// Commits a message that no queue takes, and one that follows it in its key.
    pub async fn commit_poison<K: Kind>(&mut self, boxed: &Boxed<K>) {
        let mut tx = boxed.begin().await;
        for queue in [&unique("nowhere"), &self.arrivals.queue] {
            let message = OutgoingMessage::to("", queue).text("poison");
            let id = boxed.outbox.enqueue_in_order(&mut tx, "poison", message).await.expect("enqueued");
            self.poison.push(id.to_string());
        }
        tx.commit().await.expect("commit");
    }

    /// Waits until all that was committed has arrived: nothing else has, each under its ID, and the
    /// first copies of each key in their order. Gives how many copies there are of each ID.
    pub async fn arrived(&self, what: &str) -> BTreeMap<String, usize> {
        let all = async || {
            let arrived = self.arrivals.all();
            let distinct: BTreeSet<_> = arrived.iter().map(|(id, _)| id).collect();
            (distinct.len() >= self.len()).then_some(arrived)
        };
        let arrived = eventually(&format!("{what}: all arrive"), all).await;
        let mut copies: BTreeMap<String, usize> = BTreeMap::new();
        let mut firsts = Vec::new();
        for (id, body) in &arrived {
            assert_eq!(self.committed.get(id), Some(body), "{what}: {id} was not committed like this");
            let copies = copies.entry(id.clone()).or_default();
            *copies += 1;
            if *copies == 1 {
                firsts.push(id);
            }
        }
        for (key, ids) in self.keys.iter().filter(|(key, _)| !key.is_empty()) {
            let of_key: BTreeSet<_> = ids.iter().collect();
            let seen: Vec<_> = firsts.iter().copied().filter(|id| of_key.contains(id)).collect();
            assert!(seen.iter().copied().eq(ids), "{what}: {key} is out of order: {arrived:?}");
        }
        copies
    }

    /// Waits until the table holds nothing but the poison and what follows it, each parked once.
    /// Gives the attempts that are counted.
    pub async fn settled<K: Kind>(&self, boxed: &Boxed<K>, what: &str) -> Vec<u32> {
        boxed.drained(&format!("{what}: all is published or parked")).await;
        let parked = boxed.outbox.list_parked(&Select::All, 0, 100).await.expect("list");
        let ids: Vec<_> = parked.iter().map(|parked| parked.row.message_id.to_string()).collect();
        assert_eq!(ids, self.poison, "{what}");
        parked.iter().map(|parked| parked.row.attempts).collect()
    }
}

/// What comes out of a queue, in its order.
pub struct Arrivals {
    pub queue: String,
    client: Client,
    arrived: Arc<Mutex<Vec<(String, String)>>>,
    reading: JoinHandle<()>,
}

impl Arrivals {
    /// At a queue of a new name.
    pub async fn watch() -> Self {
        let client = Client::connect(&broker()).await;
        let queue = client.queue("outbox").await;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let consuming =
            client.channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
        let mut deliveries = consuming.await.expect("consume");
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&arrived);
        let reading = tokio::spawn(async move {
            while let Some(Ok(delivery)) = deliveries.next().await {
                let id = delivery.properties.message_id().as_ref().map(ToString::to_string);
                let body = String::from_utf8(delivery.data.clone()).expect("text");
                noted.lock().expect("arrived").push((id.expect("an ID"), body));
            }
        });
        Self { queue, client, arrived, reading }
    }

    /// All that has arrived so far.
    pub fn all(&self) -> Vec<(String, String)> {
        self.arrived.lock().expect("arrived").clone()
    }

    pub fn count(&self) -> usize {
        self.arrived.lock().expect("arrived").len()
    }

    pub async fn delete(self) {
        self.client.delete(&self.queue).await;
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.reading.abort();
    }
}
