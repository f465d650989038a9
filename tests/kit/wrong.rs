//! What is wrong is found, and the point is named.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::TryFutureExt;
use lapin_idempotent::{
    BoxError, HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, MessageId,
    OutgoingMessage, Publish, SqliteStore, SqliteTransaction,
    idempotency::{Claim, ClaimRequest, Claims, StoreError, StoreErrorKind},
    sqlx,
    testing::{BedPublisher, CrashReport, Point, Subject, crash_everywhere},
};

use super::shop::{Debit, Shop, book, debit};

/// Says that a run found something at this point, and says it so.
#[track_caller]
fn assert_found(report: &CrashReport, point: Point, difference: &str) {
    let found = report.finding_at(point);
    let found = found.unwrap_or_else(|| panic!("nothing is found at {point:?}: {report}"));
    assert!(found.difference.contains(difference), "{found}");
    assert_eq!(found.to_string(), format!("{point}: {}", found.difference));
}

/// Nothing is found where nothing is wrong.
#[track_caller]
fn assert_not_found(report: &CrashReport, points: &[Point]) {
    for point in points {
        let found = report.finding_at(*point);
        assert!(found.is_none(), "{found:?}");
    }
}

const ONE_BECAME_TWO: &str = r#"[("debit/42", 500)] became [("debit/42", 500), ("debit/42", 500)]"#;

/// Writes an e-mail, so to say: that is there whatever becomes of the session.
struct Mail(Shop);

impl IdempotentHandler<SqliteStore> for Mail {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        book(&mut **tx, "ledger", message).await?;
        self.0.mails.lock().unwrap().push(message.raw_message_id().unwrap().to_owned());
        Ok(())
    }
}

#[tokio::test]
async fn effect_outside_of_the_session_is_found() {
    let report = crash_everywhere(async |_| {
        let shop = Shop::open().await;
        let mails = Arc::clone(&shop.mails);
        Subject::new(shop.store.clone(), Mail(shop)).state(async move || mails.lock().unwrap().len())
    })
    .bind("payments", "debit")
    .messages([debit(42)])
    .run()
    .await;
    for point in [Point::Commit, Point::CommitRefused, Point::HandlerFails] {
        assert_found(&report, point, "the state 1 became 2");
    }
    assert_not_found(&report, &[Point::Claimed, Point::Committed, Point::CommitAnswerLost, Point::Ack]);
    let panicked = std::panic::catch_unwind(|| report.assert_same_everywhere()).unwrap_err();
    let said = panicked.downcast_ref::<String>().unwrap();
    assert!(said.contains("crash after the handler, before the commit: the state 1 became 2"), "{said}");
}

/// Takes a failed statement for a row that is there already.
struct Swallow;

impl IdempotentHandler<SqliteStore> for Swallow {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let _ = book(&mut **tx, "ledger", message).await;
        Ok(())
    }
}

#[tokio::test]
async fn handler_that_swallows_an_error_is_found() {
    let report = crash_everywhere(async |_| Shop::open().await.subject(Swallow))
        .bind("payments", "debit")
        .messages([debit(42)])
        .run()
        .await;
    assert_found(&report, Point::StatementsFail, r#"the state [("debit/42", 500)] became []"#);
    assert_eq!(report.findings().len(), 1, "{report}");
}

/// Announces by itself what it has done, and does not look whether that went well.
struct Tell(BedPublisher);

impl IdempotentHandler<SqliteStore> for Tell {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        book(&mut **tx, "ledger", message).await?;
        let event = OutgoingMessage::to("events", "debited").caused_by(message, "debited")?.text("500");
        let _ = self.0.publish(event).await;
        Ok(())
    }
}

#[tokio::test]
async fn handler_that_swallows_the_error_of_a_publish_is_found() {
    let report = crash_everywhere(async |publisher| Shop::open().await.subject(Tell(publisher)))
        .bind("payments", "debit")
        .sink("events", "debited")
        .messages([debit(42)])
        .run()
        .await;
    let lost = report.finding_at(Point::PublishRefused);
    assert!(lost.unwrap().difference.starts_with("published 1 became 0: -events/debited"), "{report}");
    assert_eq!(report.findings().len(), 1, "{report}");
}

/// A store that marks messages in a transaction of its own, which the effect is not part of: before
/// the effect, or after it.
struct Marks {
    shop: Shop,
    before: bool,
}

impl Marks {
    async fn mark(&self, id: &str) -> Result<(), StoreError> {
        let mark = sqlx::query("INSERT INTO seen VALUES (?, 0)").bind(id).execute(&self.shop.pool);
        mark.map_ok(|_| ()).map_err(|error| StoreError::new(StoreErrorKind::Unavailable, error)).await
    }
}

impl IdempotencyStore for Marks {
    type Session = String;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<String>, StoreError> {
        let id = requests[0].message_id.as_str().to_owned();
        if self.shop.rows("seen").await.iter().any(|(seen, _)| *seen == id) {
            let claim = Claim::completed(requests[0].fingerprint, std::time::SystemTime::UNIX_EPOCH);
            return Ok(Claims::new(None, vec![claim]));
        }
        if self.before {
            self.mark(&id).await?;
        }
        Ok(Claims::new(Some(id), vec![Claim::Acquired]))
    }

    async fn complete(&self, id: String) -> Result<(), StoreError> {
        if self.before { Ok(()) } else { self.mark(&id).await }
    }

    async fn release(&self, _: String) -> Result<(), StoreError> {
        Ok(())
    }

    async fn purge(&self, _: Duration, _: u32) -> Result<u64, StoreError> {
        Ok(0)
    }
}

impl IdempotentHandler<Marks> for Shop {
    async fn handle(&self, message: &IncomingMessage, _: &mut String) -> HandlerResult {
        book(&self.pool, "ledger", message).await
    }
}

async fn marking(before: bool) -> CrashReport {
    let setup = async move |_| {
        let shop = Shop::open().await;
        let ledger = shop.clone();
        Subject::new(Marks { shop: shop.clone(), before }, shop)
            .state(async move || ledger.rows("ledger").await)
    };
    crash_everywhere(setup).bind("payments", "debit").messages([debit(42)]).run().await
}

#[tokio::test]
async fn mark_before_process_is_found() {
    let report = marking(true).await;
    for point in [Point::Claimed, Point::Await(1)] {
        assert_found(&report, point, r#"[("debit/42", 500)] became []"#);
    }
    assert_not_found(&report, &[Point::Claim, Point::Commit, Point::Committed, Point::Ack]);
}

#[tokio::test]
async fn mark_after_process_is_found() {
    let report = marking(false).await;
    for point in [Point::Commit, Point::CommitRefused, Point::HandlerFails] {
        assert_found(&report, point, ONE_BECAME_TWO);
    }
    assert_not_found(&report, &[Point::Claimed, Point::Committed, Point::Ack, Point::AckLost]);
}

/// Takes what is in the outbox out of it, and publishes it then.
async fn relay_too_early(shop: &Shop, publisher: &BedPublisher) -> Result<(), BoxError> {
    while let Some((exchange, key, id, body)) = taken(shop).await? {
        let message = OutgoingMessage::to(exchange, key).message_id(MessageId::new(id)?).body(body);
        publisher.publish(message).await?;
    }
    Ok(())
}

async fn taken(shop: &Shop) -> Result<Option<(String, String, String, Vec<u8>)>, BoxError> {
    let sql = "DELETE FROM outbox WHERE seq = (SELECT MIN(seq) FROM outbox) \
               RETURNING exchange, routing_key, message_id, body";
    Ok(sqlx::query_as(sql).fetch_optional(&shop.pool).await?)
}

#[tokio::test]
async fn relay_that_deletes_before_the_confirm_is_found() {
    let report = crash_everywhere(async |_| {
        let shop = Shop::open().await;
        let mut tx = shop.pool.begin().await.unwrap();
        shop.outbox.enqueue(&mut tx, debit(42)).await.unwrap();
        tx.commit().await.unwrap();
        shop.clone().subject(Debit).service(async move |publisher| relay_too_early(&shop, &publisher).await)
    })
    .bind("payments", "debit")
    .run()
    .await;
    for point in [Point::Send, Point::PublishRefused] {
        assert_found(&report, point, r#"[("debit/42", 500)] became []"#);
    }
    assert_not_found(&report, &[Point::Sent, Point::ConfirmLost, Point::Commit, Point::Ack]);
}

#[tokio::test]
async fn id_that_is_made_anew_at_each_retry_is_found() {
    let anew = OutgoingMessage::to("payments", "debit").json(&500).unwrap();
    let report = crash_everywhere(async |_| {
        let shop = Shop::open().await;
        Subject::new(shop.store.clone(), Debit).state(async move || shop.rows("ledger").await.len())
    })
    .bind("payments", "debit")
    .messages([anew])
    .run()
    .await;
    for point in [Point::Sent, Point::Confirmed] {
        assert_found(&report, point, "the state 1 became 2");
    }
    assert_not_found(&report, &[Point::Send, Point::ConfirmLost, Point::Commit, Point::Ack]);
}

/// Remembers in memory what it has sent, and sends nothing twice as long as it lives.
struct Forgetful {
    mails: Arc<Mutex<Vec<String>>>,
    sent: Mutex<Vec<String>>,
}

impl IdempotentHandler<SqliteStore> for Forgetful {
    async fn handle(&self, message: &IncomingMessage, _: &mut SqliteTransaction) -> HandlerResult {
        let (id, mut sent) = (message.raw_message_id().unwrap().to_owned(), self.sent.lock().unwrap());
        if !sent.contains(&id) {
            sent.push(id.clone());
            self.mails.lock().unwrap().push(id);
        }
        Ok(())
    }
}

#[tokio::test]
async fn handler_that_remembers_in_memory_is_found_if_it_restarts() {
    for restarts in [true, false] {
        let report = crash_everywhere(async |_| {
            let Shop { store, mails, .. } = Shop::open().await;
            let told = Arc::clone(&mails);
            let handler = move || Forgetful { mails: Arc::clone(&mails), sent: Mutex::default() };
            let subject =
                if restarts { Subject::restarting(store, handler) } else { Subject::new(store, handler()) };
            subject.state(async move || told.lock().unwrap().len())
        })
        .bind("payments", "debit")
        .messages([debit(42)])
        .run()
        .await;
        if restarts {
            assert_found(&report, Point::Commit, "the state 1 became 2");
            assert_not_found(&report, &[Point::CommitRefused, Point::HandlerFails]);
        } else {
            report.assert_same_everywhere();
        }
    }
}

/// Fails for ever once it has failed.
#[tokio::test]
async fn what_never_comes_to_rest_is_found() {
    struct Stubborn(std::sync::atomic::AtomicBool);

    impl IdempotentHandler<SqliteStore> for Stubborn {
        async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
            if self.0.swap(true, std::sync::atomic::Ordering::SeqCst) {
                return Err(lapin_idempotent::HandlerError::unavailable("it was called before"));
            }
            book(&mut **tx, "ledger", message).await
        }
    }

    let report = crash_everywhere(async |_| Shop::open().await.subject(Stubborn(false.into())))
        .bind("payments", "debit")
        .messages([debit(42)])
        .run()
        .await;
    assert_found(&report, Point::Commit, "it never comes to rest");
}
