//! The broker is away, or what it leads to is full; the table is away.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use lapin_idempotent::{
    outbox::{Outbox, RelayState, Select},
    publisher::PublishErrorKind,
};

use tokio::task::coop;

use super::*;

/// Answers for what goes to `full` as it is told: 0 confirmed, 1 nacked, 2 without a confirm.
fn partly_full(how: u8) -> (MemoryPublisher, Arc<AtomicU8>) {
    let full = Arc::new(AtomicU8::new(how));
    let told = Arc::clone(&full);
    let publisher = MemoryPublisher::answering(move |message| {
        let how = if message.routing_key() == "full" { told.load(Relaxed) } else { 0 };
        async move {
            sleep(Duration::from_millis(20)).await;
            match how {
                0 => Ok(()),
                1 => Err(PublishErrorKind::Nacked),
                _ => Err(PublishErrorKind::TimedOut),
            }
        }
    });
    (publisher, full)
}

async fn full_queue_is_waited_for(how: u8) {
    let (publisher, full) = partly_full(how);
    let outbox = MemoryOutbox::with_lanes(4);
    for number in 0..5_000 {
        let key = (number % 2 == 0).then(|| format!("key-{}", number % 100));
        let message = OutgoingMessage::to("orders", "full").text(number.to_string());
        enqueue(&outbox, key.as_deref(), message).await;
    }
    let relay = start(&outbox, &publisher);
    until("it is held back", || relay.monitor().status().held_routes == 1).await;
    let before = Instant::now();
    for number in 0..500 {
        let key = (number % 2 == 0).then(|| format!("other-{number}"));
        enqueue(&outbox, key.as_deref(), text(format!("other {number}"))).await;
    }
    until("others are published", || publisher.published().len() == 500).await;
    assert!(before.elapsed() < 10 * SECOND, "{:?}", before.elapsed());
    sleep(10 * MINUTE).await;
    let attempts = publisher.attempted().len();
    sleep(10 * MINUTE).await;
    assert!(publisher.attempted().len() - attempts < 50, "it is tried by one at a time");
    assert_eq!((outbox.calls("fail"), outbox.len()), (0, 5_000), "nothing is counted");
    full.store(0, Relaxed);
    let before = Instant::now();
    until("all is published", || outbox.is_empty()).await;
    assert!(before.elapsed() < 2 * MINUTE, "{:?}", before.elapsed());
    let numbers: Vec<usize> = published(&publisher).iter().filter_map(|body| body.parse().ok()).collect();
    assert_eq!(numbers.len(), 5_000);
    for key in (0..100).step_by(2) {
        assert!(numbers.iter().filter(|number| *number % 100 == key).is_sorted());
    }
    assert_eq!(relay.monitor().status().held_routes, 0);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn full_queue_is_waited_for_and_not_counted() {
    full_queue_is_waited_for(1).await;
}

/// As a quorum queue without its majority.
#[tokio::test(start_paused = true)]
async fn queue_that_confirms_nothing_is_waited_for_and_not_counted() {
    full_queue_is_waited_for(2).await;
}

/// Many confirms that are missed at once use up what tokio lets a task do in one go. That is no
/// broker that is away.
#[tokio::test(start_paused = true)]
async fn busy_relay_does_not_take_a_silent_queue_for_a_broker_that_is_away() {
    let publisher = MemoryPublisher::answering(|message| {
        let is_silent = message.routing_key() == "full";
        async move {
            if is_silent {
                for _ in 0..100 {
                    coop::consume_budget().await;
                }
                return Err(PublishErrorKind::TimedOut);
            }
            Ok(())
        }
    });
    let outbox = MemoryOutbox::new();
    for number in 0..100 {
        enqueue(&outbox, None, OutgoingMessage::to("orders", "full").text(number.to_string())).await;
    }
    let relay = start(&outbox, &publisher);
    let is_held = || {
        let status = relay.monitor().status();
        assert_ne!(status.state, RelayState::BrokerAway);
        status.held_routes == 1
    };
    until("it is held back", is_held).await;
    enqueue(&outbox, None, text("another")).await;
    until("the others go", || publisher.published().len() == 1).await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn broker_away_for_a_day_writes_no_row_and_reads_none() {
    let there = Arc::new(AtomicU8::new(1));
    let told = Arc::clone(&there);
    let publisher = MemoryPublisher::answering(move |_| {
        let is_there = told.load(Relaxed) > 0;
        async move {
            sleep(Duration::from_millis(20)).await;
            if is_there { Ok(()) } else { Err(PublishErrorKind::Disconnected) }
        }
    });
    let outbox = MemoryOutbox::new();
    let relay = start(&outbox, &publisher);
    enqueue(&outbox, None, text("before")).await;
    until("published", || outbox.is_empty()).await;
    there.store(0, Relaxed);
    publisher.set_ready(false);
    for number in 0..300 {
        let key = (number % 2 == 0).then(|| format!("key-{}", number % 10));
        enqueue(&outbox, key.as_deref(), text(number.to_string())).await;
    }
    until("it is noticed", || relay.monitor().status().state == RelayState::BrokerAway).await;
    let (reads, removals) = (outbox.calls("read"), outbox.calls("remove"));
    sleep(24 * 60 * MINUTE).await;
    assert_eq!((outbox.calls("read"), outbox.calls("remove"), outbox.calls("fail")), (reads, removals, 0));
    let status = relay.monitor().status();
    assert!(status.lanes == 16 && !status.is_ready() && status.is_live(), "{status:?}");
    there.store(1, Relaxed);
    publisher.set_ready(true);
    let before = Instant::now();
    until("all is published", || outbox.is_empty()).await;
    assert!(before.elapsed() < 10 * SECOND, "{:?}", before.elapsed());
    assert_eq!(publisher.published().len(), 301);
    assert_eq!((outbox.calls("fail"), relay.monitor().status().state), (0, RelayState::Relaying));
    relay.stop().await;
}

/// It was never there, so nothing is on its way that a stop would have to wait for.
#[tokio::test(start_paused = true)]
async fn relay_that_starts_without_a_broker_says_so_and_stops_at_once() {
    let publisher = MemoryPublisher::answering(|_| std::future::pending());
    publisher.set_ready(false);
    let outbox = MemoryOutbox::new();
    let relay = start(&outbox, &publisher);
    enqueue(&outbox, None, text("early")).await;
    until("it has lanes", || relay.monitor().status().lanes == 16).await;
    sleep(MINUTE).await;
    let status = relay.monitor().status();
    assert_eq!((status.state, status.in_flight), (RelayState::BrokerAway, 0));
    let before = Instant::now();
    relay.stop().await;
    assert!(before.elapsed() < SECOND, "{:?}", before.elapsed());
    assert!(publisher.attempted().is_empty() && outbox.calls("read") == 0);

    // And it begins when the broker comes.
    let publisher = MemoryPublisher::new();
    publisher.set_ready(false);
    let relay = start(&outbox, &publisher);
    until("it waits", || relay.monitor().status().state == RelayState::BrokerAway).await;
    publisher.set_ready(true);
    until("it is published", || outbox.is_empty()).await;
    assert_eq!(relay.monitor().status().state, RelayState::Relaying);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn publisher_that_was_closed_is_told_of() {
    let publisher = MemoryPublisher::answering(|_| std::future::ready(Err(PublishErrorKind::Closed)));
    let outbox = MemoryOutbox::new();
    let relay = start(&outbox, &publisher);
    enqueue(&outbox, None, text("1")).await;
    until("it is told", || relay.monitor().status().state == RelayState::PublisherClosed).await;
    sleep(10 * MINUTE).await;
    assert!(!relay.monitor().status().is_live() && publisher.attempted().len() < 300);
    assert_eq!((outbox.len(), outbox.calls("fail")), (1, 0));
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn table_away_loses_nothing() {
    let outbox = MemoryOutbox::new().latency(Duration::from_millis(2));
    let publisher = MemoryPublisher::new().delay(50 * Duration::from_millis(1));
    let cut = outbox.elsewhere();
    let relay = start(&cut, &publisher);
    until("it has all", || relay.monitor().status().lanes == 16).await;
    for number in 0..200 {
        enqueue(&outbox, None, text(number.to_string())).await;
    }
    until("they are under way", || !publisher.attempted().is_empty()).await;
    cut.set_away(true);
    until("it is noticed", || relay.monitor().status().state == RelayState::TableAway).await;
    sleep(10 * MINUTE).await;
    assert!(relay.monitor().status().last_error.unwrap().contains("away"));
    cut.set_away(false);
    until("all is published", || outbox.is_empty()).await;
    assert_eq!(copies(&publisher).len(), 200);
    assert!(outbox.list_parked(&Select::All, 0, 1).await.unwrap().is_empty());
    relay.stop().await;
}
