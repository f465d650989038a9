//! Claims of rivals, and what a claim costs them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, Outcome, PostgresStore,
    idempotency::{Claim, ClaimRequest, Scope, StoreErrorKind},
    message::{Fingerprint, MessageId},
    store::{PostgresTransaction, SqlStore},
};
use sqlx::{Pool, Postgres, Transaction};
use tokio::{
    sync::Barrier,
    time::{Instant, timeout},
};

use super::{
    database::{Insert, Kind, Table, message, short},
    support::{DEADLINE, eventually},
};

trials! {
    one_effect_however_often_it_is_delivered<Postgres, MySql, Sqlite>,
    two_scopes_one_id_two_effects<Postgres, MySql, Sqlite>,
    rival_waits_and_then_sees_a_duplicate<Postgres, MySql, Sqlite>,
    rival_waits_and_then_handles_what_was_released<Postgres, MySql, Sqlite>,
    rival_gives_up_after_the_lock_timeout<Postgres, MySql, Sqlite>,
    exhausted_pool_is_an_error_in_time<Postgres, MySql, Sqlite>,
    opposite_orders_never_deadlock<Postgres, MySql>,
    large_batches_find_what_is_known<Postgres, MySql, Sqlite>,
    large_batches_wait_for_rivals<Postgres, MySql>,
    deadlock_of_two_handlers_ends_with_both_effects<Postgres, MySql>,
    serialization_failure_is_done_again,
    nul_and_other_invalid_ids_reach_no_table<Postgres, MySql, Sqlite>,
    copy_leaves_its_connection_as_it_was<Postgres, MySql, Sqlite>,
    quotes_in_scope_and_id_are_data<Postgres, MySql, Sqlite>,
}

pub fn request(scope: &str, id: &str) -> ClaimRequest {
    ClaimRequest::new(Scope::new(scope).unwrap(), MessageId::new(id).unwrap(), Fingerprint::of(id.as_bytes()))
}

pub async fn one_effect_however_often_it_is_delivered<K: Kind>() {
    let table = Table::<K>::create().await;
    assert!(matches!(table.process("order-42").await, Outcome::Processed));
    for _ in 0..3 {
        assert!(matches!(table.process("order-42").await, Outcome::Duplicate(_)));
    }
    let other_body = IncomingMessage::new("other").with_message_id("order-42");
    let outcome = table.guard().process(&other_body, &table.insert()).await;
    assert!(matches!(outcome, Outcome::FingerprintMismatch { .. }), "{outcome:?}");
    let failing = Insert { fail_first: 1, ..table.insert() };
    for expected in ["retry", "processed"] {
        let outcome = table.guard().process(&message("order-43"), &failing).await;
        assert_eq!(outcome.name(), expected, "{outcome:?}");
    }
    assert_eq!(table.effects().await, (2, 2), "what failed left nothing behind");
    assert_eq!(table.identities().await, 2);
}

pub async fn two_scopes_one_id_two_effects<K: Kind>() {
    let table = Table::<K>::create().await;
    for scope in ["ledger", "statistics", "ledger", "statistics"] {
        let _ = table.guard_of(scope).process(&message("order-42"), &table.insert()).await;
    }
    assert_eq!(table.effects().await, (2, 1));
}

/// Two deliveries of one message at once, by two pools; the first is in its handler when the second
/// claims.
async fn rivals<K: Kind>(fail_first: bool) -> (Vec<&'static str>, (i64, i64)) {
    let table = Table::<K>::create().await;
    let rival = table.again().await;
    let first =
        Insert { dawdle: Duration::from_millis(600), fail_first: u32::from(fail_first), ..table.insert() };
    let started = Instant::now();
    let (runs, guard) = (Arc::clone(&first.runs), table.guard());
    let handling = tokio::spawn(async move { guard.process(&message("order-42"), &first).await.name() });
    eventually("the first is in its handler", async || (runs.load(Ordering::SeqCst) > 0).then_some(())).await;
    let second = timeout(DEADLINE, rival.process("order-42")).await.expect("in time").name();
    assert!(started.elapsed() >= Duration::from_millis(500), "it waited for the first");
    (vec![handling.await.expect("first"), second], table.effects().await)
}

pub async fn rival_waits_and_then_sees_a_duplicate<K: Kind>() {
    assert_eq!(rivals::<K>(false).await, (vec!["processed", "duplicate"], (1, 1)));
}

pub async fn rival_waits_and_then_handles_what_was_released<K: Kind>() {
    assert_eq!(rivals::<K>(true).await, (vec!["retry", "processed"], (1, 1)));
}

pub async fn rival_gives_up_after_the_lock_timeout<K: Kind>() {
    let table = Table::<K>::create().await;
    let store = table.again().await.store.lock_timeout(Duration::from_secs(1));
    let held = table.store.claim(&[request("test", "a")]).await.expect("claim").session.expect("acquired");
    let error = timeout(DEADLINE, store.claim(&[request("test", "a")])).await.expect("in time");
    assert_eq!(error.map(|_| ()).expect_err("held").kind(), StoreErrorKind::Busy);
    let rival = lapin_idempotent::Guard::new(store.clone(), Scope::new("test").unwrap());
    let outcome = rival.process(&message("a"), &table.insert()).await;
    assert!(matches!(outcome, Outcome::InProgress { .. }), "{outcome:?}");
    table.store.release(held).await.expect("release");
    assert!(store.claim(&[request("test", "a")]).await.expect("claim").session.is_some(), "it is free again");
}

pub async fn exhausted_pool_is_an_error_in_time<K: Kind>() {
    let table = Table::<K>::create().await;
    let options = sqlx::pool::PoolOptions::<K>::new().max_connections(1);
    let pool: Pool<K> =
        options.acquire_timeout(Duration::from_millis(300)).connect(&table.url).await.expect("pool");
    let store = SqlStore::new(pool).table(&table.name).expect("name");
    let held = store.claim(&[request("test", "a")]).await.expect("claim").session.expect("acquired");
    let error = timeout(DEADLINE, store.claim(&[request("test", "b")])).await.expect("in time");
    let error = error.map(|_| ()).expect_err("no connection");
    // SQLite's one connection is its one writer.
    let kind = if K::NAME == "SQLite" { StoreErrorKind::Busy } else { StoreErrorKind::Unavailable };
    assert_eq!(error.kind(), kind, "{error:?}");
    store.release(held).await.expect("release");
    assert!(store.claim(&[request("test", "b")]).await.expect("claim").session.is_some());
}

/// Two batches of the same messages in opposite orders: claimed in sorted order, one waits for the
/// other and never both for each other.
pub async fn opposite_orders_never_deadlock<K: Kind>() {
    let table = Table::<K>::create().await;
    let rival = table.again().await.store;
    for round in 0..30 {
        // Every other round with stores that have met no copy yet: they claim large batches another
        // way.
        let fresh = |store: &SqlStore<K>| match round % 2 {
            0 => SqlStore::new(store.pool().clone()).table(&table.name).expect("name"),
            _ => store.clone(),
        };
        let batch: Vec<_> = (0..300).map(|n| request("test", &format!("{round}-{n}"))).collect();
        let reversed: Vec<_> = batch.iter().rev().cloned().collect();
        let claim = async |store: &SqlStore<K>, batch: &[ClaimRequest]| {
            let claims = timeout(DEADLINE, store.claim(batch)).await.expect("in time").expect("no deadlock");
            let all = claims.claims.len();
            assert_eq!(all, batch.len());
            if let Some(session) = claims.session {
                store.complete(session).await.expect("complete");
                return all;
            }
            0
        };
        let stores = (fresh(&table.store), fresh(&rival));
        let (first, second) = tokio::join!(claim(&stores.0, &batch), claim(&stores.1, &reversed));
        assert_eq!((first.min(second), first.max(second)), (0, 300), "one has them all");
    }
}

fn many(name: &str) -> Vec<ClaimRequest> {
    (0..100).map(|n| request("test", &format!("{name}-{n}"))).collect()
}

/// Large batches, with what is known in the middle of them: all that is new is claimed, and nothing
/// else.
pub async fn large_batches_find_what_is_known<K: Kind>() {
    let table = Table::<K>::create().await;
    for round in 0..3 {
        let batch = many(&round.to_string());
        let claims = table.store.claim(&batch[40..60]).await.expect("claim");
        table.store.complete(claims.session.expect("new")).await.expect("complete");
        let claims = table.store.claim(&batch).await.expect("claim");
        for (n, claim) in claims.claims.iter().enumerate() {
            assert_eq!(*claim != Claim::Acquired, (40..60).contains(&n), "{n}: {claim:?}");
        }
        table.store.complete(claims.session.expect("some are new")).await.expect("complete");
        let claims = table.store.claim(&batch).await.expect("claim");
        assert!(claims.session.is_none() && claims.claims.iter().all(|claim| *claim != Claim::Acquired));
        assert_eq!(table.identities().await, 100 * (round + 1));
    }
}

/// A rival holds one of a large batch: it is waited for, within the limit, and what became of it is
/// seen.
pub async fn large_batches_wait_for_rivals<K: Kind>() {
    let table = Table::<K>::create().await;
    let fresh = || SqlStore::new(table.store.pool().clone()).table(&table.name).expect("name");
    for (round, completed) in [true, false].into_iter().enumerate() {
        let batch = many(&round.to_string());
        let held = table.store.claim(&batch[50..51]).await.expect("claim").session.expect("acquired");
        let impatient = fresh().lock_timeout(Duration::from_secs(1));
        let error = timeout(DEADLINE, impatient.claim(&batch)).await.expect("in time");
        assert_eq!(error.map(|_| ()).expect_err("held").kind(), StoreErrorKind::Busy);
        let patient = fresh();
        let (claims, ()) = tokio::join!(patient.claim(&batch), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let ended =
                if completed { table.store.complete(held).await } else { table.store.release(held).await };
            ended.expect("end");
        });
        let claims = claims.expect("claim");
        let known = claims.claims.iter().filter(|claim| **claim != Claim::Acquired).count();
        assert_eq!(known, usize::from(completed));
        table.store.complete(claims.session.expect("some are new")).await.expect("complete");
        assert_eq!(table.identities().await, 100 * (i64::try_from(round).unwrap() + 1));
    }
}

/// Locks two rows in an order of its own, after the other has locked its first one.
struct Crossing {
    table: String,
    order: [i32; 2],
    both_hold_one: Arc<Barrier>,
    runs: Arc<AtomicU32>,
}

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Crossing {
    async fn handle(&self, _: &IncomingMessage, tx: &mut Transaction<'static, K>) -> HandlerResult {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        for (step, id) in self.order.into_iter().enumerate() {
            if step == 1 && run == 0 {
                self.both_hold_one.wait().await;
            }
            K::run(tx, &format!("UPDATE {} SET n = n + 1 WHERE id = {id}", self.table)).await?;
        }
        Ok(())
    }
}

pub async fn deadlock_of_two_handlers_ends_with_both_effects<K: Kind>() {
    let table = Table::<K>::create().await;
    let rows = short("crossing");
    table.sql(&format!("CREATE TABLE {rows} (id INT PRIMARY KEY, n INT NOT NULL)")).await;
    table.sql(&format!("INSERT INTO {rows} VALUES (1, 0), (2, 0)")).await;
    let both_hold_one = Arc::new(Barrier::new(2));
    let runs: [Arc<AtomicU32>; 2] = Default::default();
    let handling = [[1, 2], [2, 1]].into_iter().zip(&runs).map(|(order, runs)| {
        let (both_hold_one, runs) = (Arc::clone(&both_hold_one), Arc::clone(runs));
        let (guard, handler) = (table.guard(), Crossing { table: rows.clone(), order, both_hold_one, runs });
        tokio::spawn(async move { guard.process(&message(&format!("m{}", order[0])), &handler).await.name() })
    });
    for outcome in futures_util::future::join_all(handling.collect::<Vec<_>>()).await {
        assert_eq!(outcome.expect("task"), "processed");
    }
    let both = format!("SELECT count(*) FROM {rows} WHERE n = 2");
    assert_eq!(K::number(table.store.pool(), &both).await.expect("count"), 2);
    let runs: u32 = runs.iter().map(|runs| runs.load(Ordering::SeqCst)).sum();
    assert!(runs >= 3, "one of them was the victim and ran again: {runs} runs");
}

/// Reads a sum and writes it down; the rival does the same between the two, on the first run.
struct Summing {
    table: String,
    rival: Pool<Postgres>,
    runs: AtomicU32,
}

impl IdempotentHandler<PostgresStore> for Summing {
    async fn handle(&self, _: &IncomingMessage, tx: &mut PostgresTransaction) -> HandlerResult {
        let add = format!("INSERT INTO {0} SELECT count(*) FROM {0}", self.table);
        if self.runs.fetch_add(1, Ordering::SeqCst) == 0 {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {}", self.table)))
                .execute(&mut **tx)
                .await?;
            let mut rival = self.rival.begin().await?;
            sqlx::raw_sql(sqlx::AssertSqlSafe(add.as_str())).execute(&mut *rival).await?;
            rival.commit().await?;
        }
        sqlx::raw_sql(sqlx::AssertSqlSafe(add)).execute(&mut **tx).await?;
        Ok(())
    }
}

pub async fn serialization_failure_is_done_again() {
    let table = Table::<Postgres>::create().await;
    let sums = short("sums");
    table.sql(&format!("CREATE TABLE {sums} (n bigint NOT NULL)")).await;
    let options = table.url.parse::<sqlx::postgres::PgConnectOptions>().expect("url");
    let options = options.options([("default_transaction_isolation", "serializable")]);
    let pool = sqlx::postgres::PgPoolOptions::new().connect_with(options).await.expect("pool");
    let store = PostgresStore::new(pool.clone()).table(&table.name).expect("name");
    let handler = Summing { table: sums.clone(), rival: pool, runs: AtomicU32::new(0) };
    let guard = lapin_idempotent::Guard::new(store, Scope::new("test").unwrap());
    let outcome = guard.process(&message("a"), &handler).await;
    assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
    assert!(handler.runs.load(Ordering::SeqCst) >= 2, "the first run failed");
    let different = format!("SELECT count(DISTINCT n) FROM {sums}");
    assert_eq!(
        Postgres::number(table.store.pool(), &different).await.expect("count"),
        2,
        "as if one after the other"
    );
}

pub async fn nul_and_other_invalid_ids_reach_no_table<K: Kind>() {
    let table = Table::<K>::create().await;
    for id in ["", "a\0b", "\u{7f}", "tab\t", &"x".repeat(256)] {
        assert!(MessageId::new(id).is_err(), "{id:?}");
        let outcome = table.guard().process(&message(id), &table.insert()).await;
        assert!(matches!(outcome, Outcome::InvalidId { .. } | Outcome::MissingId), "{id:?}: {outcome:?}");
    }
    assert_eq!((table.identities().await, table.effects().await.0), (0, 0));
    assert!(Scope::new("a\0").is_err());
}

/// What was claimed in vain, and then with care, leaves no transaction open: what others write over
/// the same connection is there for all.
pub async fn copy_leaves_its_connection_as_it_was<K: Kind>() {
    let table = Table::<K>::create().await;
    let one = SqlStore::<K>::connect_with(&table.url, |pool| pool.max_connections(1)).await.expect("connect");
    let one = one.table(&table.name).expect("name");
    for n in 0..3 {
        let asked = [request("test", "order-42")];
        let claims = one.claim(&asked).await.expect("claim");
        assert_eq!(claims.session.is_some(), n == 0, "{:?}", claims.claims);
        if let Some(session) = claims.session {
            one.complete(session).await.expect("complete");
        }
        let mut connection = one.pool().acquire().await.expect("connection");
        let write = format!("INSERT INTO {} VALUES ('{n}')", table.effects);
        K::run(&mut connection, &write).await.expect("write");
        assert_eq!(table.effects().await, (n + 1, n + 1), "another session sees it");
    }
}

/// Whether it was new; it is completed then.
async fn is_new<K: Kind>(table: &Table<K>, scope: &str, id: &str) -> bool {
    let claims = table.store.claim(&[request(scope, id)]).await.expect("claim");
    let new = claims.claims == [Claim::Acquired];
    if let Some(session) = claims.session {
        table.store.complete(session).await.expect("complete");
    }
    new
}

pub async fn quotes_in_scope_and_id_are_data<K: Kind>() {
    let table = Table::<K>::create().await;
    let odd = ["it's", "a\\", "a\\'", "'); DROP TABLE x; --", "$1", "\"", "ä", "a b", "?", "{}", "%s"];
    for scope in odd {
        for id in odd {
            assert!(is_new(&table, scope, id).await, "{scope} {id}");
        }
    }
    for scope in odd {
        for id in odd {
            assert!(!is_new(&table, scope, id).await, "{scope} {id}");
        }
    }
    assert_eq!(table.identities().await, i64::try_from(odd.len() * odd.len()).unwrap());
}
