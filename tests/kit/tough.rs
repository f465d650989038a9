//! Odd handlers, and odd users: none of them is found at fault, hangs or looks green.

use std::{
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use lapin_idempotent::{
    BoxError, HandlerError, HandlerResult, IdempotentHandler, IncomingMessage, Lease, MemoryStore,
    OutgoingMessage, Publish, SqliteStore, SqliteTransaction, handler_fn,
    idempotency::StalePolicy,
    testing::{BedPublisher, MemoryOutbox, Point, Subject, TestBed, crash_everywhere},
};
use tokio::time::{sleep, timeout};

use super::{
    shop::{Debit, Shop, book, debit},
    told::{bound, refused},
};

/// Its session is rolled back then, and its connection is used again.
#[tokio::test]
async fn handler_that_panics_at_a_failed_statement_passes() {
    struct Unwrap;

    impl IdempotentHandler<SqliteStore> for Unwrap {
        async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
            book(&mut **tx, "ledger", message).await.unwrap();
            Ok(())
        }
    }

    let test = bound(crash_everywhere(async |_| Shop::open().await.subject(Unwrap)));
    let report = test.messages([debit(42)]).run().await;
    report.assert_same_everywhere();
    assert!(report.points().any(|point| point == Point::StatementsFail), "{report}");
}

#[tokio::test]
async fn subject_without_a_state_is_told() {
    let test = bound(crash_everywhere(async |_| Subject::new(Shop::open().await.store, Debit)));
    let said = refused(test.messages([debit(42)]).run()).await;
    assert_eq!(said, "there is nothing to compare: give the `Subject` a `state`");
}

/// Announces what it has done where nobody listens, under an ID of its own each time.
struct Shout(BedPublisher);

impl IdempotentHandler<SqliteStore> for Shout {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        book(&mut **tx, "ledger", message).await?;
        let event = OutgoingMessage::to("events", "debited").mandatory(false);
        self.0.publish(event).await.map_err(HandlerError::retry).map(drop)
    }
}

#[tokio::test]
async fn what_is_published_to_nowhere_is_compared() {
    let test = bound(crash_everywhere(async |publisher| Shop::open().await.subject(Shout(publisher))));
    let said = refused(test.messages([debit(42)]).run()).await;
    assert!(said.contains("published 1 became 1: -events/debited ") && said.contains("to nowhere"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn outbox_whose_messages_go_nowhere_is_told() {
    let test = bound(crash_everywhere(async |_| {
        let outbox = MemoryOutbox::new();
        let filling = outbox.clone();
        let handler = handler_fn(|_, _: &mut Lease| Box::pin(async { Ok(()) }));
        let subject = Subject::new(MemoryStore::new(10), handler).state(async || ()).outbox(outbox);
        subject.service(async move |_| {
            let mut tx = filling.begin();
            let event = OutgoingMessage::to("events", "debited").idempotency_key("event/1");
            filling.enqueue(&mut tx, event).await?;
            tx.commit();
            Ok::<_, BoxError>(())
        })
    }));
    let said = refused(test.messages([debit(42)]).run()).await;
    let expected = "undisturbed, it never comes to rest: the relay leaves 1 in the outbox; nothing is bound to \
                    exchange \"events\" with routing key \"debited\"";
    assert!(said.starts_with(expected), "{said}");
}

/// Takes its time.
struct Slow(Duration);

impl IdempotentHandler<SqliteStore> for Slow {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        sleep(self.0).await;
        book(&mut **tx, "ledger", message).await
    }
}

#[tokio::test]
async fn message_of_a_drain_that_was_cancelled_comes_again() {
    let shop = Shop::open().await;
    let slow = Slow(Duration::from_millis(300));
    let bed = TestBed::builder(shop.store.clone()).bind("payments", "debit").handler(slow);
    bed.publisher().publish(debit(42)).await.unwrap();
    timeout(Duration::from_millis(20), bed.drain()).await.unwrap_err();
    bed.drain().await;
    bed.assert_outcomes(["processed"]);
    assert!(bed.outcomes()[0].message.redelivered());
    assert_eq!(shop.rows("ledger").await, [("debit/42".to_owned(), 500)]);
}

#[tokio::test]
async fn messages_whose_acks_are_lost_come_again_in_their_order() {
    let shop = Shop::open().await;
    let bed = TestBed::builder(shop.store.clone()).bind("payments", "debit").batch(2).handler(Debit);
    for number in 0..4 {
        bed.publisher().publish(debit(number)).await.unwrap();
    }
    bed.lose_acks(2).drain().await;
    let handled = bed.outcomes();
    let ids: Vec<_> = handled.iter().filter_map(|decided| decided.message.raw_message_id()).collect();
    assert_eq!(ids, ["debit/0", "debit/1", "debit/0", "debit/1", "debit/2", "debit/3"]);
}

/// Says that what it needs is away, so often.
struct Away(AtomicU32);

impl IdempotentHandler<SqliteStore> for Away {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let is_away = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if is_away {
            return Err(HandlerError::unavailable("away"));
        }
        book(&mut **tx, "ledger", message).await
    }
}

async fn away(times: u32, messages: u32) -> (Shop, TestBed<SqliteStore, Away>) {
    let shop = Shop::open().await;
    let bed = TestBed::builder(shop.store.clone()).bind("payments", "debit").batch(1);
    let bed = bed.handler(Away(times.into()));
    for number in 0..messages {
        bed.publisher().publish(debit(number)).await.unwrap();
    }
    (shop, bed)
}

#[tokio::test]
async fn many_messages_that_are_held_once_come_to_rest() {
    let (shop, bed) = away(250, 150).await;
    bed.drain().await;
    assert_eq!(shop.rows("ledger").await.len(), 150);
}

#[tokio::test]
async fn message_that_is_held_holds_up_no_other() {
    let (shop, bed) = away(1, 3).await;
    bed.handle_ready().await;
    assert_eq!(shop.rows("ledger").await.len(), 2);
    bed.assert_outcomes(["dependency_unavailable", "processed", "processed"]);
}

/// What is published when the bed's clock is ahead is as young as ever.
#[tokio::test]
async fn message_is_stamped_by_the_clock_of_the_bed() {
    let shop = Shop::open().await;
    let bed = TestBed::builder(shop.store.clone()).bind("payments", "debit");
    let bed = bed.guard(|guard| guard.retention(Duration::from_hours(1), StalePolicy::Park)).handler(Debit);
    bed.advance(Duration::from_hours(2));
    bed.publisher().publish(debit(42)).await.unwrap();
    bed.drain().await;
    bed.assert_outcomes(["processed"]);
    bed.publisher().publish(debit(43)).await.unwrap();
    bed.advance(Duration::from_hours(2));
    bed.drain().await;
    bed.assert_outcomes(["processed", "indeterminate"]);
}

/// A relay that is at work beside a handler does not make it wait more often.
#[tokio::test(start_paused = true)]
async fn only_what_the_handler_waits_for_are_its_awaits() {
    let test = bound(crash_everywhere(async |_| {
        let handler = handler_fn(|_, _: &mut Lease| {
            Box::pin(async {
                sleep(Duration::from_secs(1)).await;
                Ok(())
            })
        });
        Subject::new(MemoryStore::new(10), handler).state(async || ()).outbox(MemoryOutbox::new())
    }));
    let report = test.messages([debit(42)]).run().await;
    report.assert_same_everywhere();
    let awaits: Vec<_> = report.points().filter(|point| matches!(point, Point::Await(_))).collect();
    assert_eq!(awaits, [Point::Await(1)]);
}
