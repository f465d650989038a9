//! A relay over a real table.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lapin_idempotent::{
    OutgoingMessage,
    outbox::{NewRow, Outbox, Placement, Relay},
    testing::MemoryPublisher,
};
use tokio::time::timeout;

use super::{Boxed, Kind, support::eventually};

trials! {
    two_relays_publish_what_was_committed_once_and_in_order<Postgres, MySql, Sqlite>,
}

pub async fn two_relays_publish_what_was_committed_once_and_in_order<K: Kind>() {
    const MESSAGES: usize = 3000;
    let boxed = Boxed::<K>::create().await;
    let placement = Placement::new(boxed.outbox.lanes());
    let publisher = MemoryPublisher::default();
    let mut relays = Vec::new();
    for _ in 0..2 {
        relays.push(Relay::new(boxed.again().await.outbox, publisher.clone()).spawn());
    }
    for chunk in 0..MESSAGES / 100 {
        let rows: Vec<NewRow> = (chunk * 100..chunk * 100 + 100)
            .map(|n| {
                let message = OutgoingMessage::to("orders", "placed").text(n.to_string());
                let key = format!("key-{}", n % 50);
                let placed = if n % 2 == 0 {
                    placement.place_in_order(&key, message)
                } else {
                    placement.place(message)
                };
                placed.expect("placed")
            })
            .collect();
        let mut tx = boxed.begin().await;
        boxed.outbox.put(&mut tx, &rows).await.expect("put");
        if chunk % 5 == 0 {
            tx.rollback().await.expect("rollback");
        } else {
            tx.commit().await.expect("commit");
            boxed.outbox.wake();
        }
    }
    let empty = async || boxed.all().await.is_empty().then_some(());
    eventually("all are published", empty).await;
    let published: Vec<usize> = publisher
        .published()
        .iter()
        .map(|message| std::str::from_utf8(message.payload()).expect("text").parse().expect("number"))
        .collect();
    let distinct: BTreeSet<usize> = published.iter().copied().collect();
    assert_eq!((published.len(), distinct.len()), (MESSAGES * 4 / 5, MESSAGES * 4 / 5));
    assert!(distinct.iter().all(|n| n / 100 % 5 != 0), "nothing that was rolled back");
    let mut of_key: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for n in published.iter().filter(|n| **n % 2 == 0) {
        of_key.entry(n % 50).or_default().push(*n);
    }
    assert!(of_key.values().all(|numbers| numbers.is_sorted()));
    for relay in relays {
        timeout(Duration::from_secs(10), relay.stop()).await.expect("stops");
    }
}
