//! What every store must do, by the numbers of the invariants in `idempotency`, and what is
//! particular to one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use lapin_idempotent::{
    IdempotencyStore, MemoryStore, MessageId,
    idempotency::{Claim, ClaimRequest, Claims, Scope, StoreErrorKind},
    message::Fingerprint,
};

fn request(scope: &str, id: &str) -> ClaimRequest {
    ClaimRequest::new(Scope::new(scope).unwrap(), MessageId::new(id).unwrap(), Fingerprint::of(id.as_bytes()))
}

async fn claim<S: IdempotencyStore>(store: &S, scope: &str, id: &str) -> Claims<S::Session> {
    let claims = store.claim(&[request(scope, id)]).await.expect("claim");
    assert_eq!(claims.claims.len(), 1);
    assert_eq!(
        claims.session.is_some(),
        claims.claims[0] == Claim::Acquired,
        "a session exactly if acquired"
    );
    claims
}

async fn complete<S: IdempotencyStore>(store: &S, scope: &str, id: &str) {
    let session = claim(store, scope, id).await.session.expect("acquired");
    store.complete(session).await.expect("complete");
}

async fn is_new<S: IdempotencyStore>(store: &S, scope: &str, id: &str) -> bool {
    match claim(store, scope, id).await.session {
        Some(session) => {
            store.release(session).await.expect("release");
            true
        }
        None => false,
    }
}

#[cfg(feature = "testing")]
mod conform {
    use std::{sync::Arc, time::Duration};

    use lapin_idempotent::{
        MemoryStore,
        testing::conformance::{self, Capabilities},
    };

    const LEASE: Duration = Duration::from_millis(500);

    /// With room for the suite, and little more.
    fn memory() -> (MemoryStore, Capabilities) {
        (MemoryStore::new(1000).lease(LEASE), Capabilities::leased(LEASE).bounded())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn memory_store_conforms() {
        let (store, capabilities) = memory();
        conformance::run(async || store.clone(), capabilities).await.assert();
    }

    #[tokio::test(start_paused = true)]
    async fn memory_store_conforms_in_paused_time_and_behind_an_arc() {
        let (store, capabilities) = memory();
        let store = Arc::new(store);
        conformance::run(async || Arc::clone(&store), capabilities.clone()).await.assert();
        conformance::run_inspection(async || Arc::clone(&store), capabilities).await.assert();
    }
}

#[tokio::test]
async fn memory_store_refuses_when_full_rather_than_forget() {
    let store = MemoryStore::new(2);
    complete(&store, "s", "a").await;
    let held = claim(&store, "s", "b").await.session.expect("acquired");
    let error = store.claim(&[request("s", "c")]).await.expect_err("full");
    assert_eq!(error.kind(), StoreErrorKind::Full);
    assert!(!is_new(&store, "s", "a").await, "nothing was forgotten");
    store.release(held).await.expect("release");
    assert!(is_new(&store, "s", "c").await, "there is room again");
}

#[tokio::test]
async fn a_lease_that_ran_out_gives_its_room_up() {
    let lease = Duration::from_millis(20);
    let store = MemoryStore::new(1).lease(lease);
    let abandoned = claim(&store, "s", "a").await.session.expect("acquired");
    assert_eq!(store.claim(&[request("s", "b")]).await.expect_err("full").kind(), StoreErrorKind::Full);
    tokio::time::sleep(lease * 2).await;
    complete(&store, "s", "b").await;
    assert_eq!(store.len(), 1);
    assert_eq!(store.complete(abandoned).await.expect_err("lost").kind(), StoreErrorKind::LeaseLost);
    assert_eq!(store.claim(&[request("s", "c")]).await.expect_err("full").kind(), StoreErrorKind::Full);
}

#[tokio::test]
async fn a_lease_that_ran_out_is_kept_as_long_as_nobody_takes_it() {
    let lease = Duration::from_millis(20);
    let store = MemoryStore::new(10).lease(lease);
    let late = claim(&store, "s", "a").await.session.expect("acquired");
    tokio::time::sleep(lease * 2).await;
    store.complete(late).await.expect("nobody else wanted it");
    assert!(!is_new(&store, "s", "a").await);
}

#[cfg(feature = "testing")]
mod memory_with_a_clock {
    use std::time::SystemTime;

    use lapin_idempotent::{
        idempotency::{Inspect, Record},
        testing::ManualClock,
    };

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn clocked() -> (MemoryStore, ManualClock) {
        let clock = ManualClock::new(SystemTime::UNIX_EPOCH + 1000 * MINUTE);
        (MemoryStore::new(1000).lease(MINUTE).clock(clock.clone()), clock)
    }

    #[tokio::test]
    async fn leases_and_retention_are_measured_by_it() {
        let (store, clock) = clocked();
        let held = claim(&store, "s", "a").await.session.expect("acquired");
        clock.advance(MINUTE / 4);
        let remaining = MINUTE * 3 / 4;
        assert_eq!(claim(&store, "s", "a").await.claims, [Claim::in_progress(remaining)]);
        let find = async || store.find(held.scope(), held.message_id()).await.expect("find");
        assert_eq!(find().await, Some(Record::in_progress(remaining)));
        clock.advance(remaining);
        assert_eq!(find().await, None, "a claim would be acquired");
        complete(&store, "s", "a").await;
        let processed_at = SystemTime::UNIX_EPOCH + 1001 * MINUTE;
        let fingerprint = Fingerprint::of(b"a");
        assert_eq!(find().await, Some(Record::completed(fingerprint, processed_at)));

        clock.advance(10 * MINUTE);
        assert_eq!(store.purge(10 * MINUTE, 10).await.expect("purge"), 0, "not older, but as old");
        clock.advance(Duration::from_nanos(1));
        assert_eq!(store.purge(10 * MINUTE, 10).await.expect("purge"), 1);
    }

    #[tokio::test]
    async fn a_purge_forgets_the_oldest_first() {
        let (store, clock) = clocked();
        // In another order than they were claimed in, and one of them forgotten in between.
        let mut leases = Vec::new();
        for id in ["a", "b", "c", "d", "e"] {
            leases.push(claim(&store, "s", id).await.session.expect("acquired"));
        }
        leases.swap(0, 3);
        for lease in leases {
            clock.advance(Duration::from_secs(1));
            store.complete(lease).await.expect("complete");
        }
        let (scope, b) = (Scope::new("s").unwrap(), MessageId::new("b").unwrap());
        assert!(store.forget(&scope, &b).await.expect("forget"));
        clock.advance(MINUTE);
        for (id, left) in [("d", 3), ("c", 2), ("a", 1), ("e", 0)] {
            assert_eq!(store.count(&scope).await.expect("count"), left + 1);
            assert!(!is_new(&store, "s", id).await, "{id} is there until its turn");
            assert_eq!(store.purge(MINUTE / 2, 1).await.expect("purge"), 1);
            assert!(is_new(&store, "s", id).await, "{id} was the oldest");
        }
        assert_eq!(store.purge(MINUTE / 2, 1).await.expect("purge"), 0);
        assert!(store.is_empty());
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_forgets_nothing_early() {
        let (store, clock) = clocked();
        complete(&store, "s", "done").await;
        let held = claim(&store, "s", "held").await.session.expect("acquired");
        clock.set(SystemTime::UNIX_EPOCH);
        assert_eq!(store.purge(Duration::ZERO, 10).await.expect("purge"), 0);
        assert!(!is_new(&store, "s", "done").await);
        assert!(!is_new(&store, "s", "held").await, "the lease lasts longer");
        complete(&store, "s", "later").await;
        store.complete(held).await.expect("still ours");
        clock.advance(1000 * MINUTE);
        // By the clock those that came last are the oldest.
        assert_eq!(store.purge(MINUTE, 10).await.expect("purge"), 2);
        assert!(is_new(&store, "s", "later").await && is_new(&store, "s", "held").await);
        assert!(!is_new(&store, "s", "done").await);
    }

    #[tokio::test(start_paused = true)]
    async fn without_one_paused_time_ends_leases_and_purges() {
        let store = MemoryStore::new(10).lease(MINUTE);
        complete(&store, "s", "done").await;
        let lease = claim(&store, "s", "held").await.session.expect("acquired");
        tokio::time::advance(MINUTE).await;
        let successor = claim(&store, "s", "held").await.session.expect("the lease has run out");
        assert!(successor.token() > lease.token());
        assert_eq!(store.purge(MINUTE, 10).await.expect("purge"), 0);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(store.purge(MINUTE, 10).await.expect("purge"), 1);
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use lapin_idempotent::{
        Guard, HandlerResult, IdempotentHandler, IncomingMessage, Outcome, SqliteStore,
        store::SqliteTransaction,
    };

    use super::*;

    fn file(name: &str) -> String {
        let unique = format!("{name}-{}.db", uuid::Uuid::new_v4().simple());
        format!("sqlite:{}", std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique).display())
    }

    async fn open(url: &str) -> SqliteStore {
        let store = SqliteStore::connect(url).await.expect("open");
        store.create_schema().await.expect("schema");
        store
    }

    #[cfg(feature = "testing")]
    mod conform {
        use std::sync::Arc;

        use lapin_idempotent::{
            BoxError,
            testing::conformance::{self, Capabilities, Effects},
        };

        use super::*;

        /// Effects are rows of a table.
        struct Rows(SqliteStore);

        impl Rows {
            async fn create(store: SqliteStore) -> Self {
                let table = sqlx::raw_sql("CREATE TABLE effect (name TEXT NOT NULL)").execute(store.pool());
                table.await.expect("table");
                Self(store)
            }
        }

        impl Effects<SqliteStore> for Rows {
            async fn write(&self, tx: &mut SqliteTransaction, name: &str) -> Result<(), BoxError> {
                sqlx::query("INSERT INTO effect VALUES (?)").bind(name).execute(&mut **tx).await?;
                Ok(())
            }

            async fn count(&self, name: &str) -> u64 {
                let count = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM effect WHERE name = ?");
                let count = count.bind(name).fetch_one(self.0.pool()).await.expect("count");
                u64::try_from(count).expect("a count")
            }
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn in_a_file_with_effects() {
            let url = file("contract");
            let rows = Rows::create(open(&url).await).await;
            let capabilities = Capabilities::transactional().exclusive();
            conformance::run_with_effects(|| open(&url), capabilities, rows).await.assert();
        }

        #[tokio::test(flavor = "multi_thread")]
        async fn in_memory_in_another_table_and_behind_an_arc() {
            let store =
                SqliteStore::connect("sqlite::memory:").await.expect("open").table("inbox").expect("name");
            store.create_schema().await.expect("schema");
            let store = Arc::new(store);
            let capabilities = Capabilities::transactional().exclusive();
            conformance::run(async || Arc::clone(&store), capabilities).await.assert();
        }
    }

    #[tokio::test]
    async fn commits_survive_a_power_loss_as_far_as_sqlite_can() {
        let store = open(&file("durable")).await;
        let pragma = async |name: &str| {
            let row: (String,) = sqlx::query_as(sqlx::AssertSqlSafe(format!(
                "SELECT CAST({name} AS TEXT) FROM pragma_{name}"
            )))
            .fetch_one(store.pool())
            .await
            .expect("pragma");
            row.0
        };
        assert_eq!((pragma("journal_mode").await, pragma("synchronous").await), ("wal".into(), "2".into()));
    }

    #[tokio::test]
    async fn schema_is_applied_twice_and_by_many_at_once() {
        let url = file("schema");
        let (a, b) = (SqliteStore::connect(&url).await.unwrap(), SqliteStore::connect(&url).await.unwrap());
        let (one, two, three) = tokio::join!(a.create_schema(), b.create_schema(), a.create_schema());
        one.and(two).and(three).expect("schema");
        assert!(a.schema_sql().contains("PRIMARY KEY (scope, message_id)"));
        complete(&a, "s", "x").await;
        assert!(!is_new(&b, "s", "x").await);
    }

    #[tokio::test]
    async fn missing_table_is_named() {
        let store = SqliteStore::connect(&file("empty")).await.expect("open");
        let error = store.claim(&[request("s", "x")]).await.expect_err("no table");
        assert_eq!(error.kind(), StoreErrorKind::Schema);
        assert!(store.table("Robert'); DROP TABLE x").is_err());
    }

    #[tokio::test]
    async fn a_rival_waits_and_then_sees_a_duplicate() {
        let url = file("rival");
        let (a, b) = (open(&url).await, open(&url).await);
        let held = claim(&a, "s", "x").await.session.expect("acquired");
        let rival = tokio::spawn(async move { claim(&b, "s", "x").await.claims.remove(0) });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!rival.is_finished(), "it waits for the one writer");
        a.complete(held).await.expect("complete");
        assert!(matches!(rival.await.expect("join"), Claim::Completed { .. }));
    }

    #[tokio::test]
    async fn a_dropped_session_is_rolled_back() {
        let store = open(&file("dropped")).await;
        drop(claim(&store, "s", "x").await);
        assert!(is_new(&store, "s", "x").await);
    }

    #[tokio::test]
    async fn a_batch_is_claimed_at_once_and_in_order() {
        let store = open(&file("batch")).await;
        complete(&store, "s", "b").await;
        let requests: Vec<_> = ["d", "b", "a", "c"].iter().map(|id| request("s", id)).collect();
        let claims = store.claim(&requests).await.expect("claim");
        let acquired: Vec<_> = claims.claims.iter().map(|claim| *claim == Claim::Acquired).collect();
        assert_eq!(acquired, [true, false, true, true]);
        store.complete(claims.session.expect("session")).await.expect("complete");
        for id in ["a", "b", "c", "d"] {
            assert!(!is_new(&store, "s", id).await, "{id}");
        }
    }

    /// Makes SQLite roll back by itself, and swallows the error.
    struct Swallows;

    impl IdempotentHandler<SqliteStore> for Swallows {
        async fn handle(&self, _: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
            for _ in 0..2 {
                let _ = sqlx::query("INSERT OR ROLLBACK INTO effect VALUES (1)").execute(&mut **tx).await;
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_transaction_that_the_database_ended_is_not_reported_as_processed() {
        let store = open(&file("swallows")).await;
        sqlx::raw_sql("CREATE TABLE effect (id INTEGER PRIMARY KEY)")
            .execute(store.pool())
            .await
            .expect("table");
        let guard = Guard::new(store.clone(), Scope::new("s").unwrap());
        let message = IncomingMessage::new("x").with_message_id("m");
        let outcome = guard.process(&message, &Swallows).await;
        assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
        assert!(is_new(&store, "s", "m").await, "it will be handled again");
    }
}
