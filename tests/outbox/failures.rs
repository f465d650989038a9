//! Messages that cannot be published.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use lapin_idempotent::{
    Publish, PublishError, Receipt,
    outbox::{OnPoison, Outbox, Relay, RelayState, Select},
    publisher::PublishErrorKind,
};

use super::*;

/// Refuses bodies that start with `poison`, until it is cured.
fn poisoned() -> (MemoryPublisher, Arc<AtomicBool>) {
    let cured = Arc::new(AtomicBool::new(false));
    let is_cured = Arc::clone(&cured);
    let publisher = MemoryPublisher::answering(move |message| {
        let is_bad = body(message).starts_with("poison") && !is_cured.load(Relaxed);
        async move { if is_bad { Err(PublishErrorKind::Unroutable) } else { Ok(()) } }
    });
    (publisher, cured)
}

#[tokio::test(start_paused = true)]
async fn poison_blocks_its_key_and_nobody_else() {
    let (publisher, cured) = poisoned();
    let outbox = MemoryOutbox::with_lanes(1);
    let relay = Relay::new(outbox.clone(), publisher.clone()).max_attempts(3).spawn();
    for (key, body) in [("a", "a1"), ("a", "poison a2"), ("a", "a3"), ("b", "b1"), ("b", "b2"), ("a", "a4")] {
        enqueue(&outbox, Some(key), text(body)).await;
    }
    enqueue(&outbox, None, text("poison")).await;
    until("the others are published", || published(&publisher).len() == 3).await;
    until("the rest is parked", || outbox.is_empty()).await;
    assert_eq!(published(&publisher), ["a1", "b1", "b2"]);
    let parked = outbox.list_parked(&Select::Key("a".to_owned()), 0, 10).await.unwrap();
    let attempts: Vec<u32> = parked.iter().map(|parked| parked.row.attempts).collect();
    assert_eq!(attempts, [3, 0, 0]);
    let told: Vec<&str> = parked.iter().filter_map(|parked| parked.error.as_deref()).collect();
    assert!(told[0].contains("no route") && told[1].contains("earlier message"), "{told:?}");
    // What comes later follows, also after a restart.
    enqueue(&outbox, Some("a"), text("a5")).await;
    until("it follows", || outbox.is_empty()).await;
    relay.stop().await;
    let relay = start(&outbox, &publisher);
    enqueue(&outbox, Some("a"), text("a6")).await;
    until("it follows", || outbox.is_empty()).await;
    enqueue(&outbox, Some("b"), text("b3")).await;
    until("others do not", || published(&publisher).len() == 4).await;
    cured.store(true, Relaxed);
    assert_eq!(outbox.unpark(&Select::Key("a".to_owned())).await.unwrap(), 5);
    until("the key goes on", || outbox.is_empty()).await;
    let order = ["a1", "b1", "b2", "b3", "poison a2", "a3", "a4", "a5", "a6"];
    assert_eq!(published(&publisher), order);
    assert_eq!(outbox.discard(&Select::All).await.unwrap(), 1);
    relay.stop().await;
}

/// An operator who is quicker than the relay's looks into the table, of which none has seen the row
/// parked.
#[tokio::test(start_paused = true)]
async fn what_was_parked_just_now_is_soon_published_when_it_is_put_back() {
    let (publisher, cured) = poisoned();
    let outbox = MemoryOutbox::new();
    let relay = Relay::new(outbox.clone(), publisher.clone()).max_attempts(1).spawn();
    let asked = || outbox.calls("status");
    until("it has looked", || asked() == 1).await;
    for key in [Some("a"), None] {
        for number in 0..3 {
            enqueue(&outbox, key, text(format!("poison {number}"))).await;
        }
    }
    until("parked", || outbox.is_empty() && relay.monitor().status().parked == 6).await;
    cured.store(true, Relaxed);
    let (first, before) = (outbox.list_parked(&Select::All, 0, 1).await.unwrap()[0].row.id, Instant::now());
    assert_eq!(outbox.discard(&Select::Seq(first.seq)).await.unwrap(), 1);
    assert_eq!(outbox.unpark(&Select::Key("a".to_owned())).await.unwrap(), 2);
    assert_eq!(asked(), 1, "and it has not looked since");
    until("they are published", || publisher.published().len() == 2).await;
    assert!(before.elapsed() < 10 * SECOND, "{:?}", before.elapsed());
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn key_that_is_in_use_goes_on_in_order_when_it_is_put_back() {
    let (publisher, cured) = poisoned();
    let outbox = MemoryOutbox::new();
    let relay = Relay::new(outbox.clone(), publisher.clone()).max_attempts(1).spawn();
    enqueue(&outbox, Some("a"), text("poison 0")).await;
    until("parked", || outbox.is_empty()).await;
    for number in 1..=120 {
        enqueue(&outbox, Some("a"), text(number.to_string())).await;
        sleep(Duration::from_millis(500)).await;
        if number == 40 {
            cured.store(true, Relaxed);
            assert_eq!(outbox.unpark(&Select::Key("a".to_owned())).await.unwrap(), 41);
        }
    }
    until("all is published", || outbox.is_empty()).await;
    let order = std::iter::once("poison 0".to_owned()).chain((1..=120).map(|number| number.to_string()));
    assert_eq!(published(&publisher), order.collect::<Vec<String>>());
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn poison_is_skipped_if_that_is_wanted() {
    let (publisher, _) = poisoned();
    let outbox = MemoryOutbox::new();
    let relay =
        Relay::new(outbox.clone(), publisher.clone()).max_attempts(2).on_poison(OnPoison::Skip).spawn();
    for body in ["1", "poison", "2", "3"] {
        enqueue(&outbox, Some("a"), text(body)).await;
    }
    until("all is published or parked", || outbox.is_empty()).await;
    assert_eq!(published(&publisher), ["1", "2", "3"]);
    enqueue(&outbox, Some("a"), text("4")).await;
    until("the key is open", || published(&publisher).len() == 4).await;
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn pauses_between_attempts_grow() {
    let (publisher, _) = poisoned();
    let outbox = MemoryOutbox::new();
    let relay =
        Relay::new(outbox.clone(), publisher.clone()).retry_delays(SECOND, 8 * SECOND).max_attempts(6);
    let relay = relay.spawn();
    let before = Instant::now();
    enqueue(&outbox, None, text("poison")).await;
    enqueue(&outbox, Some("key"), text("poison key")).await;
    until("parked", || outbox.is_empty()).await;
    let took = before.elapsed();
    // 1, 2, 4, 8 and 8 seconds, each shorter by up to a fifth.
    assert!(took >= 18 * SECOND && took <= 25 * SECOND, "{took:?}");
    assert_eq!(publisher.attempted().len(), 12);
    relay.stop().await;
}

/// More than fit into memory by far.
#[tokio::test(start_paused = true)]
async fn many_bad_messages_hold_nobody_up() {
    let (publisher, _) = poisoned();
    let outbox = MemoryOutbox::with_lanes(2);
    for number in 0..3_000 {
        let message = OutgoingMessage::to("orders", format!("gone-{}", number % 1_500)).text("poison");
        enqueue(&outbox, None, message).await;
    }
    enqueue(&outbox, None, text("good")).await;
    let relay = Relay::new(outbox.clone(), publisher.clone()).window(64).spawn();
    let before = Instant::now();
    until("the good one is published", || !publisher.published().is_empty()).await;
    assert!(before.elapsed() < MINUTE, "{:?}", before.elapsed());
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn row_that_cannot_be_read_is_parked() {
    let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new());
    let mut row = lapin_idempotent::outbox::Placement::new(16).place(text("1")).unwrap();
    row.properties = Some("{\"version\":\"99\"}".to_owned());
    let mut transaction = outbox.begin();
    outbox.put(&mut transaction, &[row]).await.unwrap();
    transaction.commit();
    let relay = start(&outbox, &publisher);
    until("parked", || outbox.is_empty()).await;
    let parked = outbox.list_parked(&Select::All, 0, 10).await.unwrap();
    assert!(parked[0].error.as_ref().unwrap().contains("cannot be read"));
    assert!(publisher.attempted().is_empty());
    relay.stop().await;
}

/// Panics over some messages: at once, or when it waits.
struct Panicky(MemoryPublisher);

impl Publish for Panicky {
    fn publish(
        &self,
        message: OutgoingMessage,
    ) -> impl Future<Output = Result<Receipt, PublishError>> + Send {
        assert_ne!(body(&message), "at once", "a publisher that panics");
        async move {
            assert_ne!(body(&message), "later", "a publisher that panics");
            self.0.publish(message).await
        }
    }

    async fn ready(&self) {}
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_publisher_is_a_failure_of_its_message() {
    let (outbox, publisher) = (MemoryOutbox::new(), MemoryPublisher::new());
    let relay = Relay::new(outbox.clone(), Panicky(publisher.clone())).max_attempts(3).spawn();
    for (key, body) in [(None, "at once"), (Some("a"), "later"), (Some("b"), "b1"), (None, "1")] {
        enqueue(&outbox, key, text(body)).await;
    }
    until("all is published or parked", || outbox.is_empty()).await;
    enqueue(&outbox, Some("b"), text("b2")).await;
    until("it goes on", || outbox.is_empty()).await;
    let mut all = published(&publisher);
    all.sort_unstable();
    assert_eq!(all, ["1", "b1", "b2"]);
    let parked = outbox.list_parked(&Select::All, 0, 10).await.unwrap();
    assert_eq!(parked.iter().map(|parked| parked.row.attempts).collect::<Vec<u32>>(), [3, 3]);
    for parked in parked {
        let error = parked.error.unwrap();
        assert!(
            error.contains("the publisher panicked") && error.contains("publisher that panics"),
            "{error}"
        );
    }
    let status = relay.monitor().status();
    assert_eq!((status.state, status.failed["refused"], status.parked), (RelayState::Relaying, 6, 2));
    relay.stop().await;
}

/// Does not know whether it is ready, and panics over it.
struct Clueless(MemoryPublisher);

impl Publish for Clueless {
    async fn publish(&self, message: OutgoingMessage) -> Result<Receipt, PublishError> {
        self.0.publish(message).await
    }

    fn ready(&self) -> impl Future<Output = ()> + Send {
        panic!("it does not know");
        #[allow(unreachable_code)]
        async {}
    }
}

#[tokio::test(start_paused = true)]
async fn publisher_that_panics_over_whether_it_is_ready_is_used_all_the_same() {
    let outbox = MemoryOutbox::new();
    let failing = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&failing);
    let publisher = MemoryPublisher::answering(move |_| {
        let is_away = told.load(Relaxed);
        async move { if is_away { Err(PublishErrorKind::Disconnected) } else { Ok(()) } }
    });
    let relay = Relay::new(outbox.clone(), Clueless(publisher.clone())).spawn();
    enqueue(&outbox, None, text("1")).await;
    until("it is tried again and again", || publisher.attempted().len() > 5).await;
    assert!(publisher.attempted().len() < 20, "with pauses");
    failing.store(false, Relaxed);
    until("it is published", || outbox.is_empty()).await;
    relay.stop().await;
}
