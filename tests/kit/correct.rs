//! What is right passes, wherever it is crashed.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use lapin_idempotent::{
    HandlerResult, IdempotentHandler, IncomingMessage, Lease, MemoryStore, OutgoingMessage, SqliteStore,
    SqliteTransaction, handler_fn,
    idempotency::KeySource,
    sqlx,
    testing::{Point, Subject, crash_everywhere},
};

use super::shop::{Debit, Shop, book, debit};

#[tokio::test]
async fn correct_handler_passes_everywhere() {
    let report = crash_everywhere(async |_| Shop::open().await.subject(Debit))
        .bind("payments", "debit")
        .messages([debit(42)])
        .run()
        .await;
    report.assert_same_everywhere();
}

#[tokio::test]
async fn several_messages_in_one_session_pass_everywhere() {
    let report = crash_everywhere(async |_| Shop::open().await.subject(Debit))
        .bind("payments", "debit")
        .batch(8)
        .messages((0..3).map(debit))
        .run()
        .await;
    report.assert_same_everywhere();
}

/// Debits, and announces it through the outbox.
pub struct Announce(pub Shop);

impl IdempotentHandler<SqliteStore> for Announce {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        book(&mut **tx, "ledger", message).await?;
        let debited = OutgoingMessage::to("events", "debited").caused_by(message, "debited")?.text("500");
        self.0.outbox.enqueue(&mut **tx, debited).await?;
        Ok(())
    }
}

#[tokio::test]
async fn handler_with_an_outbox_passes_everywhere() {
    let report = crash_everywhere(async |_| {
        let shop = Shop::open().await;
        let outbox = shop.outbox.clone();
        shop.clone().subject(Announce(shop)).outbox(outbox)
    })
    .bind("payments", "debit")
    .sink("events", "debited")
    .messages([debit(42)])
    .run()
    .await;
    report.assert_same_everywhere();
}

/// A lease of a process that ended runs out, in tokio's time; an effect is never in its session.
#[tokio::test(start_paused = true)]
async fn effect_that_knows_its_message_passes_everywhere_with_leases() {
    for known in [true, false] {
        let report = crash_everywhere(async |_| {
            let effects = Arc::<Mutex<Vec<_>>>::default();
            let noting = Arc::clone(&effects);
            let handler = handler_fn(move |message, _: &mut Lease| {
                let (effects, key) = (Arc::clone(&noting), message.effect_key("debit"));
                Box::pin(async move {
                    effects.lock().unwrap().push(key);
                    Ok(())
                })
            });
            Subject::new(MemoryStore::new(10), handler).state(async move || {
                let effects = effects.lock().unwrap().clone();
                if known { effects.into_iter().collect::<BTreeSet<_>>().len() } else { effects.len() }
            })
        })
        .bind("payments", "debit")
        .messages([debit(42)])
        .run()
        .await;
        assert_eq!(report.findings().is_empty(), known, "{report}");
        assert_eq!(report.findings().iter().any(|finding| finding.points == [Point::Commit]), !known);
    }
}

/// With another identity than the message ID, in another scope and queue.
#[tokio::test]
async fn settings_of_the_guard_and_names_are_those_that_were_set() {
    let setup = async |_| {
        let shop = Shop::open().await;
        let by_order = KeySource::header("order");
        Subject::new(shop.store.clone(), Debit).guard(move |guard| guard.key(by_order.clone())).state(
            async move || {
                let identities = sqlx::query_as("SELECT scope, message_id FROM processed_messages");
                let identities: Vec<(String, String)> = identities.fetch_all(&shop.pool).await.unwrap();
                (identities, shop.rows("ledger").await)
            },
        )
    };
    let message = OutgoingMessage::to("", "debits").idempotency_key("debit/42").header("order", "order-42");
    let test = crash_everywhere(setup).scope("billing").queue("debits").max_attempts(5);
    test.messages([message.json(&500).unwrap()]).run().await.assert_same_everywhere();
}
