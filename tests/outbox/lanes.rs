//! Several relays share the lanes.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use lapin_idempotent::outbox::{Relay, RelayState};

use super::*;

#[tokio::test(start_paused = true)]
async fn two_relays_share_lanes_and_send_each_message_once() {
    let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new().delay(Duration::from_millis(7)));
    let first = start(&outbox, &publisher);
    until("it has all", || first.monitor().status().lanes == 16).await;
    let second = start(&outbox.elsewhere(), &publisher);
    let halves = || (first.monitor().status().lanes, second.monitor().status().lanes) == (8, 8);
    until("they share", halves).await;
    for number in 0..2_000 {
        let key = (number % 3 > 0).then(|| format!("key-{}", number % 50));
        enqueue(&outbox, key.as_deref(), text(number.to_string())).await;
    }
    until("all is published", || outbox.is_empty()).await;
    assert_eq!(copies(&publisher).len(), 2_000);
    assert!(copies(&publisher).values().all(|copies| *copies == 1));
    let both = (first.monitor().status().relayed, second.monitor().status().relayed);
    assert!(both.0 > 500 && both.1 > 500, "{both:?}");
    first.stop().await;
    until("the other has all", || second.monitor().status().lanes == 16).await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn more_relays_than_lanes_stand_by() {
    let (outbox, publisher) = (MemoryOutbox::with_lanes(1), MemoryPublisher::new());
    let relays = [start(&outbox, &publisher), start(&outbox, &publisher)];
    sleep(MINUTE).await;
    let states = relays.each_ref().map(|relay| relay.monitor().status().state);
    assert!(states.contains(&RelayState::Relaying) && states.contains(&RelayState::Standby), "{states:?}");
    assert!(relays.iter().all(|relay| relay.monitor().status().is_ready()));
    for relay in relays {
        relay.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn lanes_of_a_dead_relay_are_taken_over() {
    let outbox = MemoryOutbox::new();
    let stuck = MemoryPublisher::answering(|_| std::future::pending());
    let dead = Relay::new(outbox.clone(), stuck.clone()).lease(15 * SECOND);
    let dead = tokio::spawn(dead.run_until(std::future::pending()));
    for number in 0..100 {
        enqueue(&outbox, Some(&format!("key-{}", number % 7)), text(number.to_string())).await;
    }
    until("they are under way", || stuck.attempted().len() == 7).await;
    dead.abort();
    let publisher = MemoryPublisher::new();
    let before = Instant::now();
    let relay = start(&outbox, &publisher);
    until("all is published", || outbox.is_empty()).await;
    assert!(before.elapsed() < 21 * SECOND, "{:?}", before.elapsed());
    assert!(before.elapsed() > 10 * SECOND, "not before the lease has run out");
    assert_eq!(publisher.published().len(), 100);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn lane_is_released_only_when_it_is_empty() {
    let answers = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&answers);
    let publisher = MemoryPublisher::answering(move |_| {
        let told = Arc::clone(&told);
        async move {
            while !told.load(Relaxed) {
                sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        }
    });
    let outbox = MemoryOutbox::new();
    let first = start(&outbox, &publisher);
    for _ in 0..16 {
        enqueue(&outbox, None, text("1")).await; // one in each lane
    }
    until("they are under way", || publisher.attempted().len() == 16).await;
    let second = start(&outbox, &publisher);
    sleep(5 * MINUTE).await;
    let lanes = || (first.monitor().status().lanes, second.monitor().status().lanes);
    assert_eq!((lanes(), publisher.attempted().len()), ((16, 0), 16));
    enqueue(&outbox, None, text("2")).await;
    answers.store(true, Relaxed);
    until("they share", || lanes() == (8, 8)).await;
    until("all is published", || outbox.is_empty()).await;
    assert_eq!(publisher.published().len(), 17);
    first.stop().await;
    second.stop().await;
}

/// A connection that breaks just then costs no lease.
#[tokio::test(start_paused = true)]
async fn lanes_are_given_back_though_the_table_is_away_for_a_moment() {
    let outbox = MemoryOutbox::new();
    let relay = start(&outbox, &MemoryPublisher::new());
    until("it has all", || relay.monitor().status().lanes == 16).await;
    outbox.set_away(true);
    tokio::join!(relay.stop(), async {
        until("it tries", || outbox.calls("release") > 0).await;
        outbox.set_away(false);
    });
    let there = outbox.ownership(MINUTE).await.unwrap();
    assert_eq!((owned(&outbox).await, there.relays.len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn relay_ends_though_its_table_is_away() {
    let outbox = MemoryOutbox::new();
    let relay = start(&outbox, &MemoryPublisher::new());
    until("it has all", || relay.monitor().status().lanes == 16).await;
    outbox.set_away(true);
    let before = Instant::now();
    relay.stop().await;
    assert!(before.elapsed() < 4 * SECOND, "{:?}", before.elapsed());
    assert!(outbox.calls("release") > 3, "it has tried again and again");
    outbox.set_away(false);
    assert_eq!(owned(&outbox).await, 16, "until the lease has run out");
}

/// Its table does not answer for longer than its lease, and then does again.
#[tokio::test(start_paused = true)]
async fn frozen_relay_wakes_up_and_first_copies_stay_in_order() {
    let outbox = MemoryOutbox::new();
    let publisher = MemoryPublisher::new().delay(Duration::from_millis(40));
    let cut = outbox.elsewhere();
    let frozen = start(&cut, &publisher);
    until("it has all", || frozen.monitor().status().lanes == 16).await;
    for number in 0..400 {
        enqueue(&outbox, Some(&format!("key-{}", number % 4)), text(number.to_string())).await;
    }
    until("some are published", || publisher.published().len() > 20).await;
    cut.set_away(true);
    let other = start(&outbox, &publisher);
    until("it is noticed", || frozen.monitor().status().state == RelayState::TableAway).await;
    until("the other has taken over", || other.monitor().status().lanes == 16).await;
    cut.set_away(false);
    until("they share", || other.monitor().status().lanes == 8).await;
    until("all is published", || outbox.is_empty()).await;
    order::assert_in_order(&publisher, 4);
    assert_eq!(copies(&publisher).len(), 400);
    frozen.stop().await;
    other.stop().await;
}

#[tokio::test(start_paused = true)]
async fn relay_whose_lease_has_run_out_sends_nothing_new() {
    let outbox = MemoryOutbox::new();
    let publisher = MemoryPublisher::new().delay(SECOND);
    for number in 0..60 {
        enqueue(&outbox, Some("key"), text(number.to_string())).await;
    }
    let cut = outbox.elsewhere();
    let relay = Relay::new(cut.clone(), publisher.clone()).lease(6 * SECOND).spawn();
    until("some are published", || publisher.published().len() == 10).await;
    cut.set_away(true);
    sleep(6 * SECOND).await;
    let attempts = publisher.attempted().len();
    sleep(MINUTE).await;
    assert_eq!(publisher.attempted().len(), attempts, "others may have the lanes");
    cut.set_away(false);
    until("all is published", || outbox.is_empty()).await;
    order::assert_in_order(&publisher, 1);
    relay.stop().await;
}

/// Relays come, stop and are killed all the time.
#[tokio::test(start_paused = true)]
async fn relays_that_come_and_go_lose_nothing_and_keep_order() {
    let outbox = MemoryOutbox::new().latency(Duration::from_millis(4));
    let publisher = MemoryPublisher::new().delay(Duration::from_millis(90));
    let relay = || Relay::new(outbox.elsewhere(), publisher.clone()).lease(2 * SECOND);
    let mut running = Vec::new();
    for round in 0..60 {
        for number in 0..20 {
            let number = round * 20 + number;
            enqueue(&outbox, Some(&format!("key-{}", number % 9)), text(number.to_string())).await;
        }
        match round % 5 {
            0 | 1 => running.push(tokio::spawn(relay().run_until(sleep(7 * SECOND)))),
            2 => running.push(tokio::spawn(relay().run_until(sleep(20 * SECOND)))),
            3 => running.remove(0).abort(),
            _ => sleep(3 * SECOND).await,
        }
        sleep(Duration::from_millis(700)).await;
    }
    let last = relay().spawn();
    until("all is published", || outbox.is_empty()).await;
    order::assert_in_order(&publisher, 9);
    assert_eq!(copies(&publisher).len(), 1_200);
    last.stop().await;
    for relay in running {
        let _ = relay.await;
    }
    assert_eq!(owned(&outbox).await, 0);
}
