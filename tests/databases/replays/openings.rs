//! Who may let what took effect do so once more, and until when.

use std::{sync::Arc, time::Duration};

use lapin_idempotent::{
    MessageId, Outcome,
    idempotency::{IdempotencyStore, StoreErrorKind},
    store::{ReplayOpening, ReplayOutlook, Replays, SchemaMismatch, SqlStore},
};

use super::{
    super::database::{Kind, Table},
    Books, EPOCH, Gated, Through, epoch, replayed, scope,
};

trials! {
    close_waits_for_replays_under_way<Postgres, MySql, Sqlite>,
    close_gives_up_after_the_lock_timeout<Postgres, MySql, Sqlite>,
    openings_are_kept_with_who_and_why<Postgres, MySql, Sqlite>,
    two_that_open_together_open_once<Postgres, MySql, Sqlite>,
    what_a_replay_would_meet_is_told_before<Postgres, MySql, Sqlite>,
    tables_of_replays_are_made_on_request_and_checked<Postgres, MySql, Sqlite>,
    another_epoch_is_opened_while_a_replay_is_under_way<Postgres, MySql>,
}

/// What the handler's transaction has locked shows nowhere but in the time that closing takes.
const MOMENT: Duration = Duration::from_millis(300);

async fn under_way<K: Kind>(books: &Books<K>) -> (Arc<Gated>, tokio::task::JoinHandle<Outcome>) {
    let gated = Gated::new(&books.table, true);
    let (guard, handler) = (books.guard(), Through(Arc::clone(&gated)));
    let replaying = tokio::spawn(async move { guard.process(&replayed("order-42"), &handler).await });
    gated.has_come().await;
    (gated, replaying)
}

pub async fn close_waits_for_replays_under_way<K: Kind>() {
    let books = Books::<K>::open().await;
    let (gated, replaying) = under_way(&books).await;
    let other = books.again().await;
    let closing = tokio::spawn(async move {
        let closed = other.replays.close(&scope("test"), &epoch(EPOCH)).await.expect("close");
        (closed, other.recorded().await.len())
    });
    tokio::time::sleep(MOMENT).await;
    assert!(!closing.is_finished(), "a replay is under way");
    gated.let_go();
    assert_eq!(closing.await.expect("close"), (true, 1), "what took effect did so before");
    assert_eq!(replaying.await.expect("replay").name(), "processed");
    let refused = books.replay("order-43").await;
    assert!(matches!(&refused, Outcome::ReplayRefused { epoch } if epoch == EPOCH), "{refused:?}");
    assert_eq!(books.replay("order-42").await.name(), "duplicate", "it did take effect");
    assert_eq!(books.table.effects().await, (1, 1));
    assert!(!books.replays.close(&scope("test"), &epoch(EPOCH)).await.expect("close"), "it is closed");
}

pub async fn close_gives_up_after_the_lock_timeout<K: Kind>() {
    let books = Books::<K>::open().await;
    let (gated, replaying) = under_way(&books).await;
    let hasty = books.again().await.table.store.lock_timeout(Duration::from_secs(1));
    let error = Replays::new(hasty).close(&scope("test"), &epoch(EPOCH)).await.expect_err("it is in use");
    assert_eq!(error.kind(), StoreErrorKind::Busy, "{error:?}");
    gated.let_go();
    assert_eq!(replaying.await.expect("replay").name(), "processed");
    assert_eq!(books.replay("order-43").await.name(), "processed", "it stayed open");
}

pub async fn openings_are_kept_with_who_and_why<K: Kind>() {
    let books = Books::<K>::open().await;
    let (replays, ours, here) = (&books.replays, epoch(EPOCH), scope("test"));
    assert!(!replays.open(&here, &ours, "somebody else", "whatever").await.expect("open"), "it is open");
    assert_eq!(books.replay("order-42").await.name(), "processed");
    assert!(replays.close(&here, &ours).await.expect("close"));
    assert!(replays.open(&here, &ours, "ops'2", "the \"rest\" é").await.expect("open"), "it was closed");
    assert!(replays.open(&scope("mail"), &ours, "mail", "too").await.expect("open"), "another scope");
    assert_eq!(books.replay("order-42").await.name(), "duplicate", "as before it was closed");

    let all = replays.list(None).await.expect("list");
    let told = |opening: &ReplayOpening| {
        let who = format!("{}: {}", opening.opened_by, opening.reason);
        (opening.scope.to_string(), who, opening.closed_at.is_some(), opening.replayed)
    };
    let told: Vec<_> = all.iter().map(told).collect();
    assert_eq!(
        told,
        [
            ("mail".to_owned(), "mail: too".to_owned(), false, 0),
            ("test".to_owned(), "ops: VAT was 16 %".to_owned(), true, 1),
            ("test".to_owned(), "ops'2: the \"rest\" é".to_owned(), false, 1),
        ]
    );
    assert!(all[1].closed_at >= Some(all[1].opened_at) && all[2].opened_at >= all[1].opened_at);
    assert_eq!(replays.list(Some(&scope("mail"))).await.expect("list").len(), 1);

    for (by, because) in
        [("", "x"), ("x", ""), (&*"b".repeat(256), "x"), ("x", &*"c".repeat(1001)), ("a\nb", "x")]
    {
        let error = replays.open(&scope("new"), &ours, by, because).await.expect_err("it cannot be kept");
        assert_eq!(error.kind(), StoreErrorKind::Configuration);
    }
    assert!(replays.open(&scope("new"), &ours, &"b".repeat(255), &"c".repeat(1000)).await.expect("open"));
}

pub async fn two_that_open_together_open_once<K: Kind>() {
    let books = Books::<K>::create().await;
    let others = futures_util::future::join_all((0..4).map(|_| books.again())).await;
    let (here, ours) = (scope("test"), epoch(EPOCH));
    let opening = others.iter().map(|other| other.replays.open(&here, &ours, "ops", "together"));
    let opened = futures_util::future::join_all(opening).await;
    let opened: Vec<bool> = opened.into_iter().map(|opened| opened.expect("open")).collect();
    assert_eq!(opened.iter().filter(|opened| **opened).count(), 1, "{opened:?}");
    assert_eq!(books.replays.list(None).await.expect("list").len(), 1);
}

pub async fn what_a_replay_would_meet_is_told_before<K: Kind>() {
    let books = Books::<K>::open().await;
    for id in ["ran", "known"] {
        assert_eq!(books.table.process(id).await.name(), "processed");
    }
    assert_eq!(books.replay("known").await.name(), "processed");
    for (id, expected) in
        [("ran", ReplayOutlook::WouldRun), ("known", ReplayOutlook::Known), ("new", ReplayOutlook::NeverRan)]
    {
        let id = MessageId::new(id).expect("ID");
        let outlook = books.replays.look(&scope("test"), &epoch(EPOCH), &id).await.expect("look");
        assert_eq!(outlook, expected, "{id}");
    }
    assert_eq!(books.table.effects().await, (3, 2), "nothing came of it");
}

pub async fn tables_of_replays_are_made_on_request_and_checked<K: Kind>() {
    let table = Table::<K>::create().await;
    let check = async |store: &SqlStore<K>| {
        store.check().await.expect("who has no replays needs no tables for them");
        store.check_replays().await
    };
    let error = check(&table.store).await.expect_err("there are none");
    assert_eq!(error.kind(), StoreErrorKind::Schema);
    let source = std::error::Error::source(&error).expect("source");
    let mismatch = source.downcast_ref::<SchemaMismatch>().expect("what is missing");
    assert_eq!(mismatch.missing(), format!("the table {}_replays is missing", table.name));
    table.sql(&Replays::new(table.store.clone()).schema_sql()).await;
    check(&table.store).await.expect("the SQL makes them");
    let others = futures_util::future::join_all((0..3).map(|_| table.again())).await;
    let creating = others.into_iter().map(|other| async move {
        Replays::new(other.store).create_schema().await.expect("they are there");
    });
    futures_util::future::join_all(creating).await;
    table.sql(&format!("ALTER TABLE {}_replays DROP COLUMN reason", table.name)).await;
    let error = check(&table.store).await.expect_err("a column is gone");
    let source = std::error::Error::source(&error).expect("source").to_string();
    assert!(source.contains("lacks the columns reason"), "{source}");
}

/// A replay locks its own opening, and no gap into which others are written.
pub async fn another_epoch_is_opened_while_a_replay_is_under_way<K: Kind>() {
    let books = Books::<K>::open().await;
    let (gated, replaying) = under_way(&books).await;
    let hasty = Replays::new(books.again().await.table.store.lock_timeout(Duration::from_secs(1)));
    for (scope_, epoch_) in [("a", "a"), ("test", "2026-10"), ("test", "2026-12"), ("zeta", "a")] {
        let opened = hasty.open(&scope(scope_), &epoch(epoch_), "ops", "x").await;
        assert!(opened.expect("open"), "{scope_} {epoch_}");
    }
    assert!(!hasty.open(&scope("test"), &epoch(EPOCH), "ops", "x").await.expect("it is open"));
    gated.let_go();
    assert_eq!(replaying.await.expect("replay").name(), "processed");
}
