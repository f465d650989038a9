//! The bed: what is published comes to the handler, however often, and what fails is delayed and
//! parked as a consumer does it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotentHandler, IncomingMessage, MemoryStore, OutgoingMessage, Publish,
    PublishError, Receipt, SqliteStore, SqliteTransaction, handler_fn,
    idempotency::{DuplicateCause, Lease, MissingIdPolicy},
    publisher::PublishErrorKind,
    testing::{BedPublisher, ManualClock, TestBed},
};

use super::shop::{Debit, Shop, book, debit};

async fn place(publisher: &impl Publish, number: u32) -> Result<Receipt, PublishError> {
    publisher.publish(debit(number)).await
}

async fn bed<H: IdempotentHandler<SqliteStore>>(
    handler: impl FnOnce(&Shop) -> H,
) -> (Shop, TestBed<SqliteStore, H>) {
    let shop = Shop::open().await;
    let handler = handler(&shop);
    let bed = TestBed::builder(shop.store.clone()).bind("payments", "debit").sink("events", "debited");
    (shop, bed.handler(handler))
}

#[tokio::test]
async fn each_copy_is_explained_by_its_cause() {
    let (shop, bed) = bed(|_| Debit).await;
    place(&bed.publisher(), 42).await.unwrap();
    let causes = [
        DuplicateCause::PublisherRetry,
        DuplicateCause::BrokerRedelivery,
        DuplicateCause::DelayedRedelivery,
        DuplicateCause::Replayed,
        DuplicateCause::Republished,
    ];
    let original = [DuplicateCause::Republished];
    for cause in causes {
        let other = TestBed::builder(shop.store.clone()).scope(cause.name()).bind("payments", "debit");
        let other = other.handler(Debit);
        place(&other.publisher(), 42).await.unwrap();
        other.duplicate(2, cause).drain().await;
        other.assert_outcomes(["processed", "duplicate", "duplicate"]);
        let told: Vec<_> = other.outcomes().into_iter().filter_map(|decided| decided.cause).collect();
        assert_eq!(told, [cause, cause], "{original:?}");
    }
    bed.drain().await;
    bed.assert_outcomes(["processed"]);
    assert_eq!(shop.rows("ledger").await.len(), causes.len() + 1, "once in each scope");
}

#[tokio::test]
async fn another_body_under_the_same_id_is_parked() {
    let (shop, bed) = bed(|_| Debit).await;
    place(&bed.publisher(), 42).await.unwrap();
    bed.duplicate(1, DuplicateCause::IdReuse).drain().await;
    bed.assert_outcomes(["processed", "fingerprint_mismatch"]);
    assert_eq!(bed.parked()[0].parked_reason(), Some("fingerprint-mismatch"));
    assert_eq!(shop.rows("ledger").await, [("debit/42".to_owned(), 500)]);
}

#[tokio::test]
async fn lost_confirms_and_acks_and_nacks_make_copies_and_no_second_effect() {
    let (shop, bed) = bed(|_| Debit).await;
    bed.lose_confirms(2).nack(1).lose_acks(1);
    let receipt = place(&bed.publisher(), 42).await.unwrap();
    assert_eq!((receipt.attempts(), bed.published().len()), (4, 3), "a nacked one is nowhere");
    bed.drain().await;
    bed.assert_outcomes(["processed", "duplicate", "duplicate", "duplicate"]);
    let causes: Vec<_> = bed.outcomes().into_iter().filter_map(|decided| decided.cause).collect();
    let (retry, again) = (DuplicateCause::PublisherRetry, DuplicateCause::BrokerRedelivery);
    assert_eq!(causes.iter().filter(|cause| **cause == retry).count(), 2, "{causes:?}");
    assert_eq!(causes.iter().filter(|cause| **cause == again).count(), 1, "{causes:?}");
    assert_eq!(shop.rows("ledger").await, [("debit/42".to_owned(), 500)]);
}

#[tokio::test]
async fn publisher_tells_what_became_of_a_message() {
    let (_, bed) = bed(|_| Debit).await;
    let publisher = bed.publisher();
    let nowhere = OutgoingMessage::to("payments", "credit").text("500");
    assert_eq!(publisher.publish(nowhere).await.unwrap_err().kind(), PublishErrorKind::Unroutable);
    let bad = OutgoingMessage::to("payments", "debit").header("x-idempotency-attempt", 3);
    assert_eq!(publisher.publish(bad).await.unwrap_err().kind(), PublishErrorKind::Invalid);
    bed.nack(10);
    let error = place(&publisher, 42).await.unwrap_err();
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Nacked, 10));
    bed.lose_confirms(10);
    let error = place(&publisher, 42).await.unwrap_err();
    assert_eq!(error.kind(), PublishErrorKind::TimedOut);
    assert!(error.may_have_been_published());
    bed.drain().await;
    assert_eq!(bed.outcomes().len(), 10, "it was published all the same");
    let event = OutgoingMessage::to("events", "debited").idempotency_key("event/1").text("500");
    publisher.publish(event).await.unwrap();
    assert_eq!(bed.published().last().unwrap().exchange(), "events");
}

/// Fails so often, and works then.
struct Failing {
    left: Arc<AtomicU32>,
    with: fn() -> HandlerError,
}

impl IdempotentHandler<SqliteStore> for Failing {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        book(&mut **tx, "ledger", message).await?;
        match self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err((self.with)()),
            Err(_) => Ok(()),
        }
    }
}

async fn failing(times: u32, with: fn() -> HandlerError) -> (Shop, TestBed<SqliteStore, Failing>) {
    bed(|_| Failing { left: Arc::new(times.into()), with }).await
}

#[tokio::test]
async fn what_fails_is_delayed_without_waiting_and_parked_in_the_end() {
    let (shop, bed) = failing(7, || HandlerError::retry("not now")).await;
    place(&bed.publisher(), 42).await.unwrap();
    bed.handle_ready().await;
    bed.assert_outcomes(["retry"]);
    assert_eq!(shop.rows("ledger").await, []);
    bed.advance(Duration::from_millis(999));
    bed.handle_ready().await;
    bed.assert_outcomes(["retry"]);
    bed.advance(Duration::from_millis(1));
    bed.handle_ready().await;
    bed.assert_outcomes(["retry", "retry"]);
    bed.drain().await;
    bed.assert_outcomes(["retry", "retry", "processed"]);
    let counted: Vec<_> = bed.outcomes().iter().map(|decided| decided.message.failures()).collect();
    assert_eq!(counted, [0, 3, 6]);
    assert_eq!(shop.rows("ledger").await, [("debit/42".to_owned(), 500)]);
    let (shop, bed) = failing(u32::MAX, || HandlerError::retry("never")).await;
    place(&bed.publisher(), 42).await.unwrap();
    bed.drain().await;
    let parked = bed.parked();
    assert_eq!((parked.len(), parked[0].parked_reason()), (1, Some("attempts-exhausted")));
    assert_eq!((bed.outcomes().len(), shop.rows("ledger").await.len()), (12, 0));
}

#[tokio::test]
async fn delay_of_a_handler_is_kept_by_the_clock_of_the_bed() {
    let (shop, bed) = failing(1, || HandlerError::retry_after(Duration::from_hours(5), "closed")).await;
    place(&bed.publisher(), 42).await.unwrap();
    bed.handle_ready().await;
    bed.advance(Duration::from_hours(5).saturating_sub(Duration::from_secs(1)));
    bed.handle_ready().await;
    assert_eq!(shop.rows("ledger").await, [], "too early");
    bed.advance(Duration::from_secs(60));
    bed.handle_ready().await;
    assert_eq!(shop.rows("ledger").await, [("debit/42".to_owned(), 500)]);
}

#[tokio::test]
async fn parked_message_is_put_back_with_all_attempts() {
    let (shop, bed) = failing(36, || HandlerError::retry("not today")).await;
    place(&bed.publisher(), 42).await.unwrap();
    bed.drain().await;
    assert_eq!(bed.parked().len(), 1);
    assert_eq!(bed.unpark().await, 1);
    bed.drain().await;
    assert_eq!(bed.outcomes().last().unwrap().outcome, "processed");
    assert_eq!((bed.parked().len(), shop.rows("ledger").await.len()), (0, 1));
}

#[tokio::test]
async fn batch_with_a_bad_one_is_handled_one_by_one() {
    let (shop, bed) = bed(|_| Debit).await;
    for number in 0..5 {
        place(&bed.publisher(), number).await.unwrap();
    }
    let bad = OutgoingMessage::to("payments", "debit").idempotency_key("bad").text("no JSON");
    bed.publisher().publish(bad).await.unwrap();
    bed.drain().await;
    bed.assert_outcomes(["processed", "processed", "processed", "processed", "processed", "reject"]);
    assert_eq!((bed.parked().len(), shop.rows("ledger").await.len()), (1, 5));
}

#[tokio::test]
async fn policies_of_the_guard_are_those_that_were_set() {
    let shop = Shop::open().await;
    let builder = TestBed::builder(shop.store.clone()).queue("debits").batch(1).max_attempts(2);
    let builder = builder.guard(|guard| guard.missing_id(MissingIdPolicy::DeriveFromContent));
    let bed = builder.immediate_retries(0).handler(Debit);
    let debit = OutgoingMessage::to("", "debits").idempotency_key("debit/1").json(&500).unwrap();
    bed.publisher().publish(debit).await.unwrap();
    bed.drain().await;
    bed.assert_outcomes(["processed"]);
}

#[tokio::test]
async fn lease_runs_out_by_the_clock_that_is_shared() {
    let clock = ManualClock::default();
    let store = MemoryStore::new(100).clock(clock.clone());
    let handler = handler_fn(|_, _: &mut Lease| Box::pin(async { Ok(()) }));
    let bed = TestBed::builder(store).clock(clock).bind("payments", "debit").handler(handler);
    place(&bed.publisher(), 42).await.unwrap();
    bed.duplicate(1, DuplicateCause::Republished).drain().await;
    bed.assert_outcomes(["processed", "duplicate"]);
}

#[tokio::test]
#[should_panic(expected = "never comes to rest")]
async fn store_that_is_away_for_good_is_told() {
    let (shop, bed) = bed(|_| Debit).await;
    shop.pool.close().await;
    place(&bed.publisher(), 42).await.unwrap();
    bed.drain().await;
}

/// Publishes one more message for each that it handles.
struct Announce(BedPublisher);

impl IdempotentHandler<SqliteStore> for Announce {
    async fn handle(&self, message: &IncomingMessage, _: &mut SqliteTransaction) -> HandlerResult {
        let event = OutgoingMessage::to("events", "debited").caused_by(message, "debited")?.text("500");
        self.0.publish(event).await?;
        Ok(())
    }
}

#[tokio::test]
async fn handler_publishes_to_its_own_bed() {
    let shop = Shop::open().await;
    let bed = TestBed::builder(shop.store).bind("payments", "debit").sink("events", "debited");
    let bed = bed.handler_with(Announce);
    place(&bed.publisher(), 42).await.unwrap();
    bed.duplicate(1, DuplicateCause::Republished).drain().await;
    bed.assert_outcomes(["processed", "duplicate"]);
    let routes: Vec<_> = bed.published().iter().map(|sent| sent.exchange().to_owned()).collect();
    assert_eq!(routes, ["payments", "events"]);
}
