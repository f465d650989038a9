//! A relay over a real table.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use lapin_idempotent::{
    OutgoingMessage,
    outbox::{NewRow, Outbox, Placement, Relay},
    publisher::PublishErrorKind,
    testing::MemoryPublisher,
};
use tokio::{sync::Semaphore, time::timeout};

use super::{Boxed, Kind, row, support::eventually};

trials! {
    two_relays_publish_what_was_committed_once_and_in_order<Postgres, MySql, Sqlite>,
    message_with_the_number_of_a_lost_one_is_published<Postgres, MySql, Sqlite>,
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

/// The database has lost a commit while its message was on its way, and gives its number again.
pub async fn message_with_the_number_of_a_lost_one_is_published<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let answers = Arc::new(Semaphore::new(0));
    let awaited = Arc::clone(&answers);
    let publisher = MemoryPublisher::answering(move |message| {
        let how = message.routing_key().to_owned();
        let awaited = Arc::clone(&awaited);
        async move {
            if how != "later" {
                awaited.acquire().await.expect("open").forget();
            }
            if how == "refused" { Err(PublishErrorKind::Unroutable) } else { Ok(()) }
        }
    });
    boxed.put(&["confirmed", "refused"].map(|way| NewRow { routing_key: way.to_owned(), ..row(way) })).await;
    // What is counted is parked at once.
    let relay = Relay::new(boxed.again().await.outbox, publisher.clone()).max_attempts(1).spawn();
    let attempted = async |count| {
        let is_so = async || (publisher.attempted().len() == count).then_some(());
        eventually(&format!("{count} are sent"), is_so).await;
    };
    attempted(2).await;
    let lost = boxed.all().await;
    boxed.sql(&format!("DELETE FROM {}", boxed.name)).await;
    let body = if K::NAME == "SQLite" { "x''" } else { "''" };
    for row in &lost {
        let (seq, id) = (row.id.seq, row.message_id.as_str());
        let insert = format!(
            "INSERT INTO {} (lane, seq, message_id, exchange, routing_key, body) \
             VALUES (0, {seq}, 'after {id}', '', 'later', {body})",
            boxed.name
        );
        boxed.sql(&insert).await;
    }
    // It reads, and has these numbers.
    boxed.put(&[NewRow { routing_key: "later".to_owned(), ..row("behind") }]).await;
    boxed.outbox.wake();
    attempted(3).await;
    let before = Instant::now();
    answers.add_permits(2);
    boxed.drained("all are published").await;
    assert!(before.elapsed() < Duration::from_secs(30), "not by the look that it takes each minute");
    let ids = |messages: Vec<OutgoingMessage>| -> BTreeSet<String> {
        messages.iter().filter_map(|message| Some(message.id()?.to_string())).collect()
    };
    let expected = ["after confirmed", "after refused", "behind", "confirmed"].map(str::to_owned);
    assert_eq!(ids(publisher.published()), BTreeSet::from(expected));
    assert_eq!(publisher.attempted().len(), 5, "each once");
    assert_eq!(boxed.outbox.status().await.expect("status").parked, 0);
    timeout(Duration::from_secs(10), relay.stop()).await.expect("stops");
}
