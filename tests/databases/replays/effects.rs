//! What takes effect, and how often, by a guard alone.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use lapin_idempotent::{
    Guard, HandlerResult, IdempotentHandler, IncomingMessage, Outcome, OutgoingMessage,
    idempotency::{MismatchPolicy, ReplayPolicy, StalePolicy},
    store::SqlStore,
};
use sqlx::Transaction;

use super::{
    super::database::{Kind, Table, message},
    Books, EPOCH, Gated, Through, epoch, names, replayed, scope,
};

trials! {
    replay_takes_effect_once_however_often_it_is_delivered<Postgres, MySql, Sqlite>,
    forged_header_is_a_duplicate_by_default<Postgres, MySql, Sqlite>,
    stray_duplicate_during_a_replay_stays_one<Postgres, MySql, Sqlite>,
    replay_of_what_never_ran_is_its_first_effect<Postgres, MySql, Sqlite>,
    children_of_a_replay_are_dropped_downstream_unless_cascaded<Postgres, MySql, Sqlite>,
    replay_is_recorded_in_the_same_commit<Postgres, MySql, Sqlite>,
    other_body_under_an_open_epoch_is_parked_unless_bodies_do_not_count<Postgres, MySql, Sqlite>,
    replay_may_be_of_any_age<Postgres, MySql, Sqlite>,
    replays_of_a_batch_are_handled_alone_and_in_their_place<Postgres, MySql, Sqlite>,
}

pub async fn replay_takes_effect_once_however_often_it_is_delivered<K: Kind>() {
    let books = Books::<K>::open().await;
    let table = &books.table;
    assert_eq!(table.process("order-42").await.name(), "processed");
    let others = join_all((0..4).map(|_| books.again())).await;
    let outcomes = join_all(others.iter().map(|other| other.replay("order-42"))).await;
    let count = |name: &str| outcomes.iter().filter(|outcome| outcome.name() == name).count();
    assert_eq!((count("processed"), count("duplicate")), (1, 3), "{outcomes:?}");
    assert_eq!(books.replay("order-42").await.name(), "duplicate", "and later");
    assert_eq!(table.process("order-42").await.name(), "duplicate", "the original is remembered");
    assert_eq!(table.effects().await, (2, 1));

    // The records outlive the identities.
    table.sql(&format!("DELETE FROM {}", table.name)).await;
    let Outcome::Duplicate(duplicate) = books.replay("order-42").await else { panic!("it is recorded") };
    let recorded = books.recorded().await;
    assert_eq!(
        (duplicate.processed_at, duplicate.fingerprint),
        (recorded[0].handled_at, recorded[0].fingerprint)
    );
    assert_eq!(table.effects().await, (2, 1));

    let fees = epoch("fees");
    books.replays.open(&scope("test"), &fees, "ops", "fees").await.expect("open");
    let again = message("order-42").with_replay_epoch(fees);
    for expected in ["processed", "duplicate"] {
        assert_eq!(books.guard().process(&again, &table.insert()).await.name(), expected);
    }
    assert_eq!(table.effects().await, (3, 1), "another epoch is another replay");
}

/// Without the tables, too: nothing is looked for.
pub async fn forged_header_is_a_duplicate_by_default<K: Kind>() {
    let table = Table::<K>::create().await;
    let gated = Gated::new(&table, false);
    for expected in ["processed", "duplicate"] {
        let outcome = table.guard().process(&replayed("order-42"), &Through(Arc::clone(&gated))).await;
        assert_eq!(outcome.name(), expected);
    }
    assert_eq!(gated.told(), [("order-42".to_owned(), None)], "no handler hears of it");
    assert_eq!(table.process("order-42").await.name(), "duplicate", "it was the original");
    assert_eq!((table.effects().await, table.identities().await), ((1, 1), 1));
}

pub async fn stray_duplicate_during_a_replay_stays_one<K: Kind>() {
    let books = Books::<K>::open().await;
    assert_eq!(books.table.process("order-42").await.name(), "processed");
    let gated = Gated::new(&books.table, true);
    let (guard, handler) = (books.guard(), Through(Arc::clone(&gated)));
    let replaying = tokio::spawn(async move { guard.process(&replayed("order-42"), &handler).await });
    gated.has_come().await;
    let other = books.again().await.table;
    let stray = tokio::spawn(async move { other.process("order-42").await });
    if K::NAME == "SQLite" {
        // It waits for the one who writes.
        gated.let_go();
        assert_eq!(replaying.await.expect("replay").name(), "processed");
        assert_eq!(stray.await.expect("stray").name(), "duplicate");
    } else {
        assert_eq!(stray.await.expect("stray").name(), "duplicate");
        gated.let_go();
        assert_eq!(replaying.await.expect("replay").name(), "processed");
    }
    assert_eq!(gated.told(), [("order-42".to_owned(), Some(EPOCH.to_owned()))]);
    assert_eq!(books.table.effects().await, (2, 1));
}

pub async fn replay_of_what_never_ran_is_its_first_effect<K: Kind>() {
    let books = Books::<K>::open().await;
    let gated = Gated::new(&books.table, true);
    let (guard, handler) = (books.guard(), Through(Arc::clone(&gated)));
    let replaying = tokio::spawn(async move { guard.process(&replayed("order-42"), &handler).await });
    gated.has_come().await;
    // The original, which was late.
    let other = books.again().await.table;
    let stray = tokio::spawn(async move { other.process("order-42").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    gated.let_go();
    assert_eq!(replaying.await.expect("replay").name(), "processed");
    assert_eq!(stray.await.expect("stray").name(), "duplicate", "it waited for the replay");
    assert_eq!(books.table.effects().await, (1, 1));
    assert_eq!(books.recorded().await[0].first_effect_at, None);
}

pub async fn children_of_a_replay_are_dropped_downstream_unless_cascaded<K: Kind>() {
    let books = Books::<K>::open().await;
    let mail = Guard::new(books.table.store.clone(), scope("mail")).replays(ReplayPolicy::Opened);
    let child = |cause: &IncomingMessage, cascades: bool| {
        let child = OutgoingMessage::to("", "mail").body("sent").caused_by(cause, "mail").expect("identity");
        let child = if cascades { child.cascade(cause) } else { child };
        let id = child.id().expect("an ID").as_str().to_owned();
        let incoming = IncomingMessage::new(child.payload().clone()).with_message_id(id);
        match child.properties().replay {
            Some(name) => incoming.with_replay_epoch(epoch(name)),
            None => incoming,
        }
    };
    let insert = books.table.insert();
    for (cause, cascades, expected) in [
        (message("order-42"), false, "processed"),
        (replayed("order-42"), false, "duplicate"),
        (replayed("order-43"), true, "replay_refused"),
    ] {
        let sent = Sent::default();
        assert_eq!(books.guard().process(&cause, &sent).await.name(), "processed");
        let cause = sent.0.lock().unwrap().pop().expect("handled");
        let outcome = mail.process(&child(&cause, cascades), &insert).await;
        assert_eq!(outcome.name(), expected, "{cascades}");
        if cascades {
            books.replays.open(&scope("mail"), &epoch(EPOCH), "ops", "as above").await.expect("open");
            for expected in ["processed", "duplicate"] {
                assert_eq!(mail.process(&child(&cause, cascades), &insert).await.name(), expected);
            }
        }
    }
    assert_eq!(books.table.effects().await.0, 2, "one mail of the original, one of the cascade");
}

/// Keeps what it was given.
#[derive(Default)]
struct Sent(Mutex<Vec<IncomingMessage>>);

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Sent {
    async fn handle(&self, message: &IncomingMessage, _: &mut Transaction<'static, K>) -> HandlerResult {
        self.0.lock().unwrap().push(message.clone());
        Ok(())
    }
}

pub async fn replay_is_recorded_in_the_same_commit<K: Kind>() {
    let books = Books::<K>::open().await;
    let table = &books.table;
    assert_eq!(table.process("order-42").await.name(), "processed");
    let fails = IncomingMessage::new("fails").with_message_id("bad").with_replay_epoch(epoch(EPOCH));
    let gated = Gated::new(table, false);
    let outcome = books.guard().process(&fails, &Through(Arc::clone(&gated))).await;
    assert_eq!(outcome.name(), "retry", "{outcome:?}");
    assert_eq!((books.recorded().await, table.effects().await), (Vec::new(), (1, 1)), "with the effect gone");

    let waits = Gated::new(table, true);
    let (guard, handler) = (books.guard(), Through(Arc::clone(&waits)));
    let replaying = tokio::spawn(async move { guard.process(&replayed("order-42"), &handler).await });
    waits.has_come().await;
    let other = books.again().await;
    assert_eq!(other.recorded().await, [], "the effect is not committed either");
    assert_eq!(other.table.effects().await, (1, 1));
    waits.let_go();
    assert_eq!(replaying.await.expect("replay").name(), "processed");
    let recorded = books.recorded().await;
    let [one] = &*recorded else { panic!("{recorded:?}") };
    let first = one.first_effect_at.expect("it took effect before");
    assert!(first <= one.handled_at, "{recorded:?}");
    assert_eq!((one.message_id.as_str(), one.fingerprint), ("order-42", message("order-42").fingerprint()));
    assert_eq!(table.effects().await, (2, 1));
}

pub async fn other_body_under_an_open_epoch_is_parked_unless_bodies_do_not_count<K: Kind>() {
    let books = Books::<K>::open().await;
    assert_eq!(books.table.process("order-42").await.name(), "processed");
    let other = IncomingMessage::new("other").with_message_id("order-42").with_replay_epoch(epoch(EPOCH));
    let insert = books.table.insert();
    let outcome = books.guard().process(&other, &insert).await;
    let Outcome::FingerprintMismatch { stored, found } = outcome else { panic!("{outcome:?}") };
    assert_eq!((stored, found), (message("order-42").fingerprint(), other.fingerprint()));
    assert_eq!((insert.runs(), books.recorded().await), (0, Vec::new()), "nothing is left of it");
    let careless = books.guard().fingerprint_mismatch(MismatchPolicy::Duplicate);
    assert_eq!(careless.process(&other, &insert).await.name(), "processed");
    assert_eq!(books.recorded().await[0].fingerprint, other.fingerprint());
    assert_eq!(books.replay("order-42").await.name(), "fingerprint_mismatch", "it is the other one's now");
    assert_eq!(books.table.effects().await, (2, 1));
}

pub async fn replay_may_be_of_any_age<K: Kind>() {
    let books = Books::<K>::open().await;
    let guard = books.guard().retention(Duration::from_secs(3600), StalePolicy::Park);
    let insert = books.table.insert();
    let old = |message: IncomingMessage| message.with_timestamp(1_700_000_000);
    assert_eq!(guard.process(&old(message("order-42")), &insert).await.name(), "indeterminate");
    assert_eq!(guard.process(&old(replayed("order-42")), &insert).await.name(), "processed");
    assert_eq!(
        guard.process(&old(message("order-42")), &insert).await.name(),
        "duplicate",
        "it is known now"
    );
    assert_eq!(books.table.effects().await, (1, 1));
}

pub async fn replays_of_a_batch_are_handled_alone_and_in_their_place<K: Kind>() {
    let books = Books::<K>::open().await;
    for id in ["b", "known"] {
        assert_eq!(books.table.process(id).await.name(), "processed");
    }
    let unknown = message("e").with_replay_epoch(epoch("nobody opened it"));
    let bad = IncomingMessage::new("fails").with_message_id("bad").with_replay_epoch(epoch(EPOCH));
    let batch = [
        message("a"),
        message("known"),
        replayed("b"),
        message("c"),
        replayed("b"),
        unknown,
        bad,
        message("b"),
        message("d"),
    ];
    let gated = Gated::new(&books.table, false);
    let outcomes = books.guard().process_batch(&batch, &Through(Arc::clone(&gated))).await;
    assert_eq!(
        names(&outcomes),
        [
            "processed",
            "duplicate",
            "processed",
            "processed",
            "duplicate",
            "replay_refused",
            "retry",
            "duplicate",
            "processed"
        ]
    );
    let told = gated.told();
    let ids: Vec<&str> = told.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["a", "b", "c", "bad", "d"], "each once, in the order of the queue");
    let replays: Vec<&str> =
        told.iter().filter(|(_, epoch)| epoch.is_some()).map(|(id, _)| id.as_str()).collect();
    assert_eq!(replays, ["b", "bad"]);
    assert_eq!(books.table.effects().await, (6, 5));
}
