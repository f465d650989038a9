//! The tests of the service: without a broker, and with a database in memory.

use lapin_idempotent::{
    SqliteOutbox, SqliteStore,
    idempotency::DuplicateCause,
    testing::{Point, Subject, TestBed, crash_everywhere},
};

use crate::{
    accept::{DEBITS, accept},
    ledger::{BOOKED, Book, Debit, open},
    wrong::{BookAndMail, Mailbox},
};

fn debit() -> Debit {
    Debit { order: "order-42".to_owned(), account: "A".to_owned(), amount: 500 }
}

/// Each call opens another database.
async fn in_memory() -> (SqliteStore, SqliteOutbox) {
    let store = open("sqlite::memory:").await.unwrap();
    let outbox = SqliteOutbox::new(store.pool().clone());
    (store, outbox)
}

async fn booked(store: &SqliteStore) -> Vec<(String, i64)> {
    let rows = sqlx::query_as("SELECT order_id, amount FROM ledger ORDER BY order_id");
    rows.fetch_all(store.pool()).await.unwrap()
}

#[tokio::test]
async fn debit_is_booked_and_announced_once_wherever_the_service_ends() {
    let report = crash_everywhere(async |_| {
        let (store, outbox) = in_memory().await;
        Subject::new(store.clone(), Book { outbox: outbox.clone() })
            .service(async |publisher| accept(&publisher, &debit()).await)
            .outbox(outbox)
            .state(async move || booked(&store).await)
    })
    .queue(DEBITS)
    .sink("", BOOKED)
    .run()
    .await;
    report.assert_same_everywhere();
}

/// The row is booked once; the e-mail is out before the commit, and comes again without one.
#[tokio::test]
async fn mail_that_the_handler_sends_by_itself_is_found() {
    let report = crash_everywhere(async |_| {
        let ((store, _), mails) = (in_memory().await, Mailbox::default());
        Subject::new(store, BookAndMail { mails: mails.clone() })
            .service(async |publisher| accept(&publisher, &debit()).await)
            .state(async move || mails.sent())
    })
    .queue(DEBITS)
    .run()
    .await;
    let at = |point| report.finding_at(point);
    assert_eq!(
        at(Point::Commit).unwrap().to_string(),
        "crash after the handler, before the commit: \
         the state [\"A: 500 was debited\"] became [\"A: 500 was debited\", \"A: 500 was debited\"]"
    );
    // What goes wrong before the handler runs, or after the commit, sends no second one.
    for harmless in [Point::Claim, Point::Claimed, Point::Committed, Point::Ack, Point::AckLost] {
        assert!(at(harmless).is_none(), "{report}");
    }
}

#[tokio::test]
async fn copies_of_whatever_cause_take_no_effect() {
    for cause in [
        DuplicateCause::PublisherRetry,
        DuplicateCause::BrokerRedelivery,
        DuplicateCause::DelayedRedelivery,
        DuplicateCause::Replayed,
        DuplicateCause::Republished,
    ] {
        let (store, outbox) = in_memory().await;
        let bed = TestBed::builder(store.clone()).queue(DEBITS).handler(Book { outbox });
        accept(&bed.publisher(), &debit()).await.unwrap();
        bed.duplicate(2, cause);
        bed.drain().await;
        bed.assert_outcomes(["processed", "duplicate", "duplicate"]);
        assert_eq!(bed.outcomes()[1].cause, Some(cause));
        assert_eq!(booked(&store).await, [("order-42".to_owned(), 500)]);
    }
}

/// Every confirm of the first call is lost: it fails, although the broker has all that it sent.
#[tokio::test]
async fn debit_that_its_caller_asks_for_again_is_booked_once() {
    let (store, outbox) = in_memory().await;
    let bed = TestBed::builder(store.clone()).queue(DEBITS).handler(Book { outbox });
    bed.lose_confirms(10);
    accept(&bed.publisher(), &debit()).await.unwrap_err();
    accept(&bed.publisher(), &debit()).await.unwrap();
    assert_eq!(bed.published().len(), 11);
    bed.drain().await;
    let outcomes = bed.outcomes();
    assert_eq!(outcomes.iter().filter(|decided| decided.outcome == "processed").count(), 1);
    assert_eq!(outcomes.iter().filter(|decided| decided.outcome == "duplicate").count(), 10);
    assert_eq!(booked(&store).await, [("order-42".to_owned(), 500)]);
}
