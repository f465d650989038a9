//! The database loses commits, and gives their numbers to other messages.

use std::sync::{Arc, Mutex};

use lapin_idempotent::{
    outbox::{Outbox, Relay, Select},
    publisher::PublishErrorKind,
};
use proptest::{prelude::*, test_runner::Config};
use tokio::sync::Semaphore;

use super::*;

/// The order keys of a message that is lost and of the one that gets its number.
const KEYS: [[Option<&str>; 2]; 5] =
    [[None, None], [Some("a"), Some("a")], [Some("a"), Some("b")], [Some("a"), None], [None, Some("a")]];

/// Answers for `lost` when it is let, as it is told.
fn holding(answer: Result<(), PublishErrorKind>) -> (MemoryPublisher, Arc<Semaphore>) {
    let let_go = Arc::new(Semaphore::new(0));
    let awaited = Arc::clone(&let_go);
    let publisher = MemoryPublisher::answering(move |message| {
        let is_lost = body(message) == "lost";
        let awaited = Arc::clone(&awaited);
        async move {
            if !is_lost {
                return Ok(());
            }
            awaited.acquire().await.unwrap().forget();
            answer
        }
    });
    (publisher, let_go)
}

/// The relay has a message under way when its commit is lost, and another gets its number.
async fn lost_under_way(keys: [Option<&str>; 2], answer: Result<(), PublishErrorKind>) {
    let (publisher, let_go) = holding(answer);
    let outbox = MemoryOutbox::with_lanes(1);
    let relay = Relay::new(outbox.clone(), publisher.clone()).max_attempts(1).spawn();
    enqueue(&outbox, None, text("before")).await;
    enqueue(&outbox, keys[0], text("lost")).await;
    until("it is under way", || relay.monitor().status().in_flight == 1 && outbox.len() == 1).await;
    outbox.lose_last(1);
    enqueue(&outbox, keys[1], text("later")).await;
    enqueue(&outbox, None, text("behind")).await;
    until("the relay has read on", || published(&publisher).contains(&"behind".to_owned())).await;
    // Just after it has looked at everything.
    let reads = outbox.calls("read");
    until("it has read once more", || outbox.calls("read") > reads).await;
    let before = Instant::now();
    let_go.add_permits(1);
    until("all is published", || outbox.is_empty()).await;
    assert!(before.elapsed() < SECOND, "{keys:?}, {answer:?}: {:?}", before.elapsed());
    let later = published(&publisher).iter().filter(|body| *body == "later").count();
    assert_eq!((later, publisher.attempted().len()), (1, 4), "{keys:?}, {answer:?}");
    assert_eq!(outbox.list_parked(&Select::All, 0, 1).await.unwrap(), [], "{keys:?}, {answer:?}");
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn message_with_the_number_of_a_lost_one_is_published() {
    for keys in KEYS {
        lost_under_way(keys, Ok(())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn message_with_the_number_of_a_lost_one_is_not_parked_for_it() {
    for keys in KEYS {
        lost_under_way(keys, Err(PublishErrorKind::Invalid)).await;
        lost_under_way(keys, Err(PublishErrorKind::Unroutable)).await;
    }
}

/// A crash every now and then, whatever the relay knows, and a broker that refuses a lot.
async fn random_losses(mut losses: Vec<(u8, u8, u8)>, has_floor: bool) {
    let dice = Arc::new(Mutex::new(fastrand::Rng::with_seed(losses.len() as u64)));
    let publisher = MemoryPublisher::answering(move |_| {
        let mut dice = dice.lock().unwrap();
        let pause = Duration::from_millis(dice.u64(..200));
        let kinds = [PublishErrorKind::Unroutable, PublishErrorKind::Nacked, PublishErrorKind::Disconnected];
        let result = kinds.get(dice.usize(..12)).map_or(Ok(()), |kind| Err(*kind));
        async move {
            sleep(pause).await;
            result
        }
    });
    let outbox = MemoryOutbox::with_lanes(2);
    let outbox = if has_floor { outbox } else { outbox.without_floor() };
    let relay = Relay::new(outbox.clone(), publisher.clone())
        .max_attempts(u32::MAX)
        .retry_delays(SECOND, 2 * SECOND)
        .spawn();
    let mut committed = Vec::new();
    losses.push((0, 0, 0));
    for (more, lost, pause) in losses {
        for number in 0..more {
            let key = (number % 3 > 0).then(|| format!("key-{}", number % 5));
            // Each has the next number.
            committed.push(enqueue(&outbox, key.as_deref(), text("a message")).await);
        }
        sleep(Duration::from_millis(u64::from(pause) * 4)).await;
        committed.truncate(committed.len().saturating_sub(lost.into()));
        outbox.lose_last(lost.into());
    }
    until("all is published", || outbox.is_empty()).await;
    let copies = copies(&publisher);
    assert!(committed.iter().all(|id| copies.contains_key(id)), "what stays committed is published");
    relay.stop().await;
}

proptest! {
    #![proptest_config(Config::with_cases(32))]
    #[test]
    fn what_the_database_has_kept_is_published(
        losses in prop::collection::vec((0_u8..30, 0_u8..20, any::<u8>()), 1..12),
        has_floor: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(random_losses(losses, has_floor));
    }
}
