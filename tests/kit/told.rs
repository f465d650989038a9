//! What cannot be compared is told, with the reason: no test of it looks green.

use std::{
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicU32, Ordering::SeqCst},
};

use futures_util::FutureExt;
use lapin_idempotent::{
    OutgoingMessage, SqliteStore,
    testing::{CrashReport, CrashTest, Subject, crash_everywhere},
};

use super::shop::{Debit, Shop, debit};

/// What the run panics with.
pub async fn refused(run: impl Future<Output = CrashReport>) -> String {
    let panicked = AssertUnwindSafe(run).catch_unwind().await.unwrap_err();
    match panicked.downcast::<String>() {
        Ok(said) => *said,
        Err(said) => said.downcast_ref::<&str>().unwrap().to_string(),
    }
}

pub fn bound<F>(test: CrashTest<F>) -> CrashTest<F> {
    test.bind("payments", "debit")
}

#[tokio::test]
async fn message_that_is_not_handled_is_told_with_its_reason() {
    let text = OutgoingMessage::to("payments", "debit").idempotency_key("debit/42").text("no JSON");
    let test = bound(crash_everywhere(async |_| Shop::open().await.subject(Debit)));
    let said = refused(test.messages([text]).run()).await;
    assert!(said.starts_with("undisturbed, no message is handled; the last outcome is reject ("), "{said}");
    let test = bound(crash_everywhere(async |_| Shop::open().await.subject(Debit)));
    assert_eq!(refused(test.run()).await, "undisturbed, no message is handled");
}

#[tokio::test]
async fn store_without_its_table_is_told() {
    let test = bound(crash_everywhere(async |_| {
        let store = SqliteStore::connect("sqlite::memory:").await.unwrap();
        Subject::new(store, Debit)
    }));
    let said = refused(test.messages([debit(42)]).run()).await;
    assert!(said.contains("never comes to rest") && said.contains("no such table"), "{said}");
}

#[tokio::test]
async fn message_that_goes_nowhere_is_told_with_its_route() {
    let test = crash_everywhere(async |_| Shop::open().await.subject(Debit));
    let said = refused(test.messages([debit(42)]).run()).await;
    let expected =
        r#"nothing is bound to exchange "payments" with routing key "debit": see `bind` and `sink`"#;
    assert!(said.starts_with("undisturbed, a service fails") && said.ends_with(expected), "{said}");
}

#[tokio::test]
async fn setup_that_shares_something_between_runs_is_told() {
    let runs = AtomicU32::new(0);
    let test = bound(crash_everywhere(async |_| {
        let run = runs.fetch_add(1, SeqCst);
        let shop = Shop::open().await;
        Subject::new(shop.store.clone(), Debit).state(async move || run)
    }));
    let said = refused(test.messages([debit(42)]).run()).await;
    let (start, end) = ("two undisturbed runs end differently; does `setup` make", "the state 0 became 1");
    assert!(said.starts_with(start) && said.ends_with(end), "{said}");
}
