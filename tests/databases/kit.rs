//! The crash test on servers: what is right passes, and what is not is found.

#![allow(clippy::future_not_send, reason = "a run is awaited where the test is")]

use std::sync::{Arc, Mutex};

use lapin_idempotent::{
    HandlerResult, IdempotentHandler, IncomingMessage, MessageId, OutgoingMessage,
    store::SqlStore,
    testing::{CrashReport, Point, Subject, crash_everywhere},
};
use sqlx::Transaction;

use super::database::{Insert, Kind, Table};

trials! {
    correct_handler_passes_everywhere<Postgres, MySql, Sqlite>,
    correct_batch_passes_everywhere<Postgres, MySql>,
    effect_outside_of_the_session_is_found<Postgres, MySql>,
}

fn debits(count: u32) -> impl Iterator<Item = OutgoingMessage> {
    (0..count).map(|number| {
        let id = MessageId::new(format!("debit/{number}")).expect("ID");
        OutgoingMessage::to("", "test").message_id(id).text("500")
    })
}

/// New tables for each run.
async fn correct<K: Kind>(messages: u32, batch: usize) -> CrashReport {
    let setup = async |_| {
        let table = Table::<K>::create().await;
        let (store, handler) = (table.store.clone(), table.insert());
        Subject::new(store, handler).state(async move || (table.effects().await, table.identities().await))
    };
    crash_everywhere(setup).batch(batch).messages(debits(messages)).run().await
}

pub async fn correct_handler_passes_everywhere<K: Kind>() {
    let report = correct::<K>(1, 1).await;
    report.assert_same_everywhere();
    let points: Vec<Point> = report.points().collect();
    for point in [Point::Await(1), Point::Commit, Point::CommitAnswerLost, Point::Committed, Point::AckLost] {
        // What SQLite does is often done at the first poll.
        assert!(points.contains(&point), "{point:?} of {points:?}");
    }
}

pub async fn correct_batch_passes_everywhere<K: Kind>() {
    correct::<K>(3, 8).await.assert_same_everywhere();
}

/// Tells somebody else as well.
struct Mail {
    insert: Insert,
    mails: Arc<Mutex<u32>>,
}

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Mail {
    async fn handle(&self, message: &IncomingMessage, tx: &mut Transaction<'static, K>) -> HandlerResult {
        IdempotentHandler::<SqlStore<K>>::handle(&self.insert, message, tx).await?;
        *self.mails.lock().expect("mails") += 1;
        Ok(())
    }
}

pub async fn effect_outside_of_the_session_is_found<K: Kind>() {
    let setup = async |_| {
        let (table, mails) = (Table::<K>::create().await, Arc::<Mutex<u32>>::default());
        let handler = Mail { insert: table.insert(), mails: Arc::clone(&mails) };
        let store = table.store.clone();
        Subject::new(store, handler)
            .state(async move || (table.effects().await.0, *mails.lock().expect("mails")))
    };
    let report = crash_everywhere(setup).messages(debits(1)).run().await;
    let found = report.finding_at(Point::Commit);
    assert_eq!(found.expect("a finding").difference, "the state (1, 1) became (1, 2)");
}
