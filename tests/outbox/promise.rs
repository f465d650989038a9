//! What is committed is published, and nothing else.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use lapin_idempotent::{
    outbox::{Relay, RelayState},
    publisher::PublishErrorKind,
};
use tokio::sync::Semaphore;

use super::*;

#[tokio::test(start_paused = true)]
async fn committed_is_published_under_the_committed_id() {
    let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new());
    let relay = start(&outbox, &publisher);
    let key = enqueue(&outbox, None, text("1").idempotency_key("placed/1").header("a", 1)).await;
    let random = enqueue(&outbox, Some("order-2"), text("2")).await;
    until("published", || outbox.is_empty()).await;
    let messages = publisher.published();
    let of = |id| messages.iter().find(|message| message.id() == Some(id)).unwrap();
    assert_eq!((body(of(&key)), of(&key).headers().unwrap().len()), ("1".to_owned(), 1));
    assert_eq!(of(&random).properties().content_type, Some("text/plain; charset=utf-8"));
    assert_eq!(messages.len(), 2);
    let status = relay.monitor().status();
    assert_eq!((status.state, status.lanes, status.relayed), (RelayState::Relaying, 16, 2));
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn enqueued_and_rolled_back_is_never_published() {
    let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new());
    let relay = start(&outbox, &publisher);
    let mut dropped = outbox.begin();
    let mut rolled_back = outbox.begin();
    let mut open = outbox.begin();
    for transaction in [&mut dropped, &mut rolled_back, &mut open] {
        outbox.enqueue(transaction, text("never")).await.unwrap();
    }
    drop(dropped);
    rolled_back.rollback();
    outbox.wake();
    enqueue(&outbox, None, text("committed")).await;
    sleep(5 * MINUTE).await;
    assert_eq!(published(&publisher), ["committed"]);
    open.commit();
    until("the open one is committed", || outbox.is_empty()).await;
    assert_eq!(published(&publisher), ["committed", "never"]);
    relay.stop().await;
}

/// Nobody says that anything was committed.
#[tokio::test(start_paused = true)]
async fn poll_finds_what_nobody_tells_of() {
    let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new());
    let relay = start(&outbox.elsewhere(), &publisher);
    sleep(MINUTE).await;
    let before = Instant::now();
    enqueue(&outbox, None, text("1")).await;
    until("published", || !publisher.published().is_empty()).await;
    assert!(before.elapsed() <= Duration::from_millis(300), "{:?}", before.elapsed());
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn row_is_deleted_only_after_its_own_confirm() {
    let confirm = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&confirm);
    let publisher = MemoryPublisher::answering(move |message| {
        let held = (body(message) == "slow").then(|| Arc::clone(&held));
        async move {
            if let Some(held) = held {
                held.acquire().await.unwrap().forget();
            }
            Ok(())
        }
    });
    let outbox = MemoryOutbox::new();
    let relay = start(&outbox, &publisher);
    enqueue(&outbox, None, text("slow")).await;
    for number in 0..100 {
        enqueue(&outbox, None, text(number.to_string())).await;
    }
    until("the others are deleted", || outbox.len() == 1).await;
    sleep(10 * MINUTE).await;
    assert_eq!((outbox.len(), relay.monitor().status().in_flight), (1, 1));
    assert_eq!(publisher.attempted().len(), 101, "it is sent once");
    confirm.add_permits(1);
    until("it is deleted", || outbox.is_empty()).await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn low_number_that_commits_late_is_published() {
    for has_floor in [true, false] {
        let outbox = MemoryOutbox::new();
        let outbox = if has_floor { outbox } else { outbox.without_floor() };
        let publisher = MemoryPublisher::new();
        let relay = start(&outbox, &publisher);
        let mut late = outbox.begin();
        outbox.enqueue_in_order(&mut late, "a", text("late")).await.unwrap();
        for number in 0..2_000 {
            enqueue(&outbox, Some("a"), text(number.to_string())).await;
            if number % 100 == 0 {
                sleep(SECOND).await;
            }
        }
        until("all others are published", || outbox.is_empty()).await;
        let before = Instant::now();
        late.commit();
        until("published", || publisher.published().len() == 2_001).await;
        assert!(before.elapsed() < SECOND, "{:?}", before.elapsed());
        relay.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn stop_deletes_what_was_confirmed_and_gives_the_lanes_back() {
    let publisher = MemoryPublisher::new().delay(SECOND);
    let outbox = MemoryOutbox::new().latency(Duration::from_millis(3));
    let relay = start(&outbox, &publisher);
    for number in 0..500 {
        enqueue(&outbox, None, text(number.to_string())).await;
    }
    let under_way = publisher.attempted().len();
    assert!(under_way > 100, "{under_way}");
    let monitor = relay.monitor();
    relay.stop().await;
    assert_eq!((monitor.status().state, monitor.status().is_live()), (RelayState::Stopped, false));
    assert_eq!(outbox.len(), 500 - publisher.published().len());
    assert!(publisher.published().len() >= under_way);
    assert_eq!(owned(&outbox).await, 0);
    let again = start(&outbox, &publisher);
    until("the rest is published", || outbox.is_empty()).await;
    assert!(copies(&publisher).values().all(|copies| *copies == 1));
    again.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stop_waits_no_longer_than_it_may() {
    let publisher = MemoryPublisher::answering(|_| std::future::pending());
    let outbox = MemoryOutbox::new();
    let relay = Relay::new(outbox.clone(), publisher).drain_timeout(3 * SECOND).spawn();
    enqueue(&outbox, None, text("1")).await;
    until("it is under way", || relay.monitor().status().in_flight == 1).await;
    let before = Instant::now();
    relay.stop().await;
    assert!(before.elapsed() >= 3 * SECOND && before.elapsed() < 7 * SECOND);
    assert_eq!((outbox.len(), owned(&outbox).await), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn window_bounds_what_is_in_memory() {
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (opened, highest) = (Arc::clone(&open), Arc::clone(&most));
    let publisher = MemoryPublisher::answering(move |message| {
        highest
            .fetch_max(opened.fetch_add(message.payload().len(), Relaxed) + message.payload().len(), Relaxed);
        let opened = Arc::clone(&opened);
        let bytes = message.payload().len();
        async move {
            sleep(Duration::from_millis(5)).await;
            opened.fetch_sub(bytes, Relaxed);
            Ok(())
        }
    });
    let outbox = MemoryOutbox::new();
    for number in 0..400 {
        let bytes = if number == 200 { 50_000 } else { 100 };
        enqueue(&outbox, None, OutgoingMessage::to("e", "k").body(vec![0; bytes])).await;
    }
    let by_rows = Relay::new(outbox.clone(), publisher.clone()).window(10).spawn();
    until("most is published", || outbox.len() < 100).await;
    by_rows.stop().await;
    assert_eq!(most.load(Relaxed) % 50_000, 1_000 - 100, "the large one is one of ten");
    most.store(0, Relaxed);
    enqueue(&outbox, None, OutgoingMessage::to("e", "k").body(vec![0; 50_000])).await;
    let by_bytes = Relay::new(outbox.clone(), publisher.clone()).window_bytes(2_000).spawn();
    until("all is published", || outbox.is_empty()).await;
    assert_eq!(most.load(Relaxed), 50_000, "a large one is alone");
    by_bytes.stop().await;
}

#[tokio::test(start_paused = true)]
async fn outcomes_are_shown() {
    let publisher = MemoryPublisher::answering(|message| {
        let known = message.exchange() == "orders";
        async move { if known { Ok(()) } else { Err(PublishErrorKind::Unroutable) } }
    });
    let outbox = MemoryOutbox::new();
    let shown: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&shown);
    let relay =
        Relay::new(outbox.clone(), publisher).max_attempts(2).name("shown").on_outcome(move |relayed| {
            let told = format!("{} {:?} {}", relayed.exchange, relayed.result, relayed.is_parked);
            seen.lock().unwrap().push(told);
            panic!("is caught");
        });
    relay.check().await.unwrap();
    let relay = relay.spawn();
    enqueue(&outbox, None, text("1")).await;
    until("published", || outbox.is_empty()).await;
    enqueue(&outbox, None, OutgoingMessage::to("gone", "k")).await;
    until("parked", || outbox.is_empty()).await;
    let expected = ["orders Ok(()) false", "gone Err(Unroutable) false", "gone Err(Unroutable) true"];
    assert_eq!(*shown.lock().unwrap(), expected);
    until("it is told", || relay.monitor().status().table.is_some_and(|table| table.parked == 1)).await;
    let status = relay.monitor().status();
    assert_eq!((status.failed["unroutable"], status.parked, status.relayed), (2, 1, 1));
    relay.stop().await;
}

/// By the bodies' first letters: where each of them is among all that was published.
fn place(publisher: &MemoryPublisher, body: &str) -> usize {
    let published = published(publisher);
    published.iter().position(|published| published.starts_with(body)).unwrap_or(usize::MAX)
}

/// Fifteen lanes have more than there is room for, all the time.
#[tokio::test(start_paused = true)]
async fn no_lane_starves_while_others_are_busy() {
    for (rows, bytes, large) in [(1_024, 1_000, 300), (1_024, 1_000, 2_000), (2, 8 << 20, 100)] {
        let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new());
        for number in 0..1_600 {
            let bytes = if number == 15 { large } else { 100 };
            enqueue(&outbox, None, text(format!("{number} {}", "x".repeat(bytes)))).await;
        }
        let relay = Relay::new(outbox.clone(), publisher.clone()).window(rows).window_bytes(bytes).spawn();
        until("all is published", || outbox.is_empty()).await;
        relay.stop().await;
        let place = place(&publisher, "15 ");
        assert!(place < 100, "the first of the last lane came after {place} others of 1,600");
    }
}

/// A message without its confirm takes room that the next row needs.
#[tokio::test(start_paused = true)]
async fn row_without_room_is_not_read_again_and_again() {
    let publisher = MemoryPublisher::answering(|message| {
        let is_slow = message.payload().len() == 1;
        async move {
            if is_slow {
                sleep(10 * MINUTE).await;
            }
            Ok(())
        }
    });
    let outbox = MemoryOutbox::with_lanes(1);
    enqueue(&outbox, None, text("1")).await;
    for _ in 0..10 {
        enqueue(&outbox, None, text("x".repeat(1_000))).await;
    }
    let relay = Relay::new(outbox.clone(), publisher.clone()).window_bytes(1_000).spawn();
    until("it is under way", || relay.monitor().status().in_flight == 1).await;
    sleep(MINUTE).await;
    let reads = outbox.calls("read");
    sleep(5 * MINUTE).await;
    assert!(outbox.calls("read") - reads < 10, "{} reads", outbox.calls("read") - reads);
    until("all is published", || outbox.is_empty()).await;
    relay.stop().await;
}
