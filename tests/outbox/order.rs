//! Messages of a key are published in their order, whatever fails.

use std::sync::{Arc, Mutex};

use lapin_idempotent::{outbox::Relay, publisher::PublishErrorKind};
use proptest::{prelude::*, test_runner::Config};

use super::*;

/// Bodies are numbers, in the order of commits; the key of one is its number modulo `keys`.
pub(crate) fn assert_in_order(publisher: &MemoryPublisher, keys: usize) {
    let mut last: BTreeMap<usize, usize> = BTreeMap::new();
    for body in published(publisher) {
        let number: usize = body.parse().unwrap();
        if let Some(before) = last.insert(number % keys, number) {
            assert_eq!(number, before + keys, "of key {}", number % keys);
        }
    }
}

/// The transaction that began first does not commit first: it comes behind what was committed
/// before its message was enqueued.
#[tokio::test(start_paused = true)]
async fn transaction_that_began_first_does_not_overtake() {
    let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new());
    let mut first = outbox.begin();
    outbox.enqueue_in_order(&mut first, "other", text("0")).await.unwrap();
    enqueue(&outbox, Some("key"), text("a")).await;
    outbox.enqueue_in_order(&mut first, "key", text("b")).await.unwrap();
    first.commit();
    let relay = start(&outbox, &publisher);
    until("all is published", || outbox.is_empty()).await;
    let of_key: Vec<String> = published(&publisher).into_iter().filter(|body| body != "0").collect();
    assert_eq!(of_key, ["a", "b"]);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn one_message_of_a_key_is_under_way_at_a_time() {
    let open: Arc<Mutex<Vec<String>>> = Arc::default();
    let now = Arc::clone(&open);
    let publisher = MemoryPublisher::answering(move |message| {
        let key = body(message).split('/').next().unwrap().to_owned();
        assert!(!now.lock().unwrap().contains(&key), "two of {key}");
        now.lock().unwrap().push(key.clone());
        let now = Arc::clone(&now);
        async move {
            sleep(Duration::from_millis(10)).await;
            now.lock().unwrap().retain(|open| *open != key);
            Ok(())
        }
    });
    let outbox = MemoryOutbox::new();
    for number in 0..200 {
        let key = format!("key-{}", number % 5);
        enqueue(&outbox, Some(&key), text(format!("{key}/{number}"))).await;
    }
    let relay = start(&outbox, &publisher);
    until("all is published", || outbox.is_empty()).await;
    assert_eq!(publisher.published().len(), 200);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn hot_key_starves_nobody() {
    let outbox = MemoryOutbox::with_lanes(1);
    let publisher = MemoryPublisher::new().delay(Duration::from_millis(10));
    for number in 0..5_000 {
        enqueue(&outbox, Some("hot"), text(number.to_string())).await;
    }
    for number in 0..500 {
        let key = (number % 2 == 0).then(|| format!("key-{number}"));
        enqueue(&outbox, key.as_deref(), text(format!("cold {number}"))).await;
    }
    let relay = start(&outbox, &publisher);
    let before = Instant::now();
    sleep(SECOND).await;
    let cold = publisher.published().iter().filter(|message| body(message).starts_with("cold")).count();
    assert_eq!(cold, 500);
    until("all is published", || outbox.is_empty()).await;
    assert!(before.elapsed() < 60 * SECOND, "one at a time is 50 s: {:?}", before.elapsed());
    let hot: Vec<String> = published(&publisher).into_iter().filter(|body| !body.starts_with('c')).collect();
    assert_eq!(hot, (0..5_000).map(|number| number.to_string()).collect::<Vec<String>>());
    relay.stop().await;
}

/// A small generator, the same at every run of one seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Everything fails now and then, in every way, with two relays, one of which is killed.
async fn random_failures(seed: u64, has_floor: bool) {
    let dice = Arc::new(Mutex::new(Dice(seed)));
    let rolled = Arc::clone(&dice);
    let publisher = MemoryPublisher::answering(move |_| {
        let mut dice = rolled.lock().unwrap();
        let pause = Duration::from_millis(dice.roll(40));
        let result = match dice.roll(20) {
            0 => Err(PublishErrorKind::Unroutable),
            1 => Err(PublishErrorKind::Nacked),
            2 => Err(PublishErrorKind::TimedOut),
            3 => Err(PublishErrorKind::Disconnected),
            4 => Err(PublishErrorKind::Refused),
            _ => Ok(()),
        };
        async move {
            sleep(pause).await;
            result
        }
    });
    let outbox = MemoryOutbox::with_lanes(4).latency(Duration::from_millis(6));
    let outbox = if has_floor { outbox } else { outbox.without_floor() };
    let relay = |outbox: &MemoryOutbox| {
        Relay::new(outbox.clone(), publisher.clone())
            .lease(3 * SECOND)
            .window(32)
            .retry_delays(Duration::from_millis(300), 2 * SECOND)
            .max_attempts(u32::MAX)
    };
    let cut = outbox.elsewhere();
    let first = relay(&cut).spawn();
    let second = tokio::spawn(relay(&outbox).run_until(std::future::pending()));
    for number in 0..400_usize {
        // Its key is its number modulo 12; each goes one of three ways.
        let message = OutgoingMessage::to("orders", (number % 5 % 3).to_string()).text(number.to_string());
        enqueue(&outbox, Some(&format!("key-{}", number % 12)), message).await;
        let chance = dice.lock().unwrap().roll(60);
        match chance {
            0 => sleep(SECOND).await,
            1 => cut.set_away(true),
            2 => cut.set_away(false),
            _ => {}
        }
        if number == 200 {
            second.abort();
        }
    }
    cut.set_away(false);
    let third = relay(&outbox).spawn();
    until("all is published", || outbox.is_empty()).await;
    assert_in_order(&publisher, 12);
    assert_eq!(copies(&publisher).len(), 400);
    first.stop().await;
    third.stop().await;
}

proptest! {
    #![proptest_config(Config::with_cases(32))]
    #[test]
    fn messages_of_a_key_arrive_in_order_whatever_fails(seed: u64, has_floor: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(random_failures(seed, has_floor));
    }
}
