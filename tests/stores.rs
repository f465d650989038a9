//! What every store must do, by the numbers of the invariants in `idempotency`, and what is particular to one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use lapin_idempotent::{
    IdempotencyStore, MemoryStore, MessageId,
    idempotency::{Claim, ClaimRequest, Claims, Scope, StoreErrorKind},
    message::Fingerprint,
};

fn request(scope: &str, id: &str) -> ClaimRequest {
    ClaimRequest {
        scope: Scope::new(scope).unwrap(),
        message_id: MessageId::new(id).unwrap(),
        fingerprint: Fingerprint::of(id.as_bytes()),
    }
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

/// The contract, for any store.
async fn contract<S: IdempotencyStore>(store: S) {
    // I2: what was completed is completed for good, with the fingerprint that it was claimed with.
    complete(&store, "s", "i2").await;
    let Claim::Completed { fingerprint, processed_at } = claim(&store, "s", "i2").await.claims[0] else {
        panic!("a completed identity was given out again");
    };
    assert_eq!(fingerprint, Fingerprint::of(b"i2"));
    let age = processed_at.elapsed().expect("in the past, give or take the clock's grain");
    assert!(age < Duration::from_secs(60), "{age:?}");

    // I3: what was released, or whose session was dropped, can be claimed again.
    let session = claim(&store, "s", "i3").await.session.expect("acquired");
    store.release(session).await.expect("release");
    assert!(is_new(&store, "s", "i3").await);

    // Identity is exact, and of scope and ID together.
    let longest = "é".repeat(127) + "x";
    for id in ["a", "A", "a ", " a", "ä", "a\u{308}", "%", "'", "\"", "\\", &longest] {
        assert!(is_new(&store, "exact", id).await, "{id:?}");
        complete(&store, "exact", id).await;
        assert!(!is_new(&store, "exact", id).await, "{id:?}");
        assert!(is_new(&store, "Exact", id).await, "{id:?} in another scope");
    }
    for (scope, id) in [("ab", "c"), ("a", "bc")] {
        assert!(is_new(&store, scope, id).await);
        complete(&store, scope, id).await;
    }

    // I7: a purge forgets what is older than the retention, and only that.
    assert_eq!(store.purge(Duration::from_secs(3600), 1000).await.expect("purge"), 0);
    assert!(!is_new(&store, "s", "i2").await);
    tokio::time::sleep(Duration::from_millis(30)).await;
    complete(&store, "s", "young").await;
    let mut purged = 0;
    loop {
        let now = store.purge(Duration::from_millis(20), 3).await.expect("purge");
        assert!(now <= 3, "bounded");
        purged += now;
        if now == 0 {
            break;
        }
    }
    assert!(purged >= 14, "{purged}");
    assert!(is_new(&store, "s", "i2").await);
    assert_eq!(store.purge(Duration::ZERO, 0).await.expect("purge"), 0);
}

#[tokio::test]
async fn memory_store_keeps_the_contract() {
    contract(MemoryStore::new(1000)).await;
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
async fn stale_lease_changes_nothing() {
    let store = MemoryStore::new(10).lease(Duration::from_millis(30));
    let stale = claim(&store, "s", "i4").await.session.expect("acquired");
    let Claim::InProgress { remaining } = claim(&store, "s", "i4").await.claims[0] else {
        panic!("a lease that runs was given to somebody else");
    };
    assert!(remaining <= Duration::from_millis(30));
    tokio::time::sleep(Duration::from_millis(40)).await;
    let fresh = claim(&store, "s", "i4").await.session.expect("the lease has run out");
    assert!(fresh.token() > stale.token(), "a later lease has a greater token");

    let lost = store.keep_alive(&stale).expect("leases are renewed");
    assert_eq!(lost.await.kind(), StoreErrorKind::LeaseLost);
    assert_eq!(store.release(stale.clone()).await.expect_err("stale").kind(), StoreErrorKind::LeaseLost);
    assert_eq!(store.complete(stale).await.expect_err("stale").kind(), StoreErrorKind::LeaseLost);
    store.complete(fresh).await.expect("the successor's claim is untouched");
}

#[tokio::test]
async fn lease_is_kept_alive() {
    let store = MemoryStore::new(10).lease(Duration::from_millis(60));
    let lease = claim(&store, "s", "long").await.session.expect("acquired");
    let keep_alive = store.keep_alive(&lease).expect("leases are renewed");
    let rival = async {
        tokio::time::sleep(Duration::from_millis(240)).await;
        claim(&store, "s", "long").await.claims.remove(0)
    };
    tokio::select! {
        lost = keep_alive => panic!("the lease was lost: {lost}"),
        claim = rival => assert!(matches!(claim, Claim::InProgress { .. })),
    }
    store.complete(lease).await.expect("still ours");
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

    #[tokio::test]
    async fn keeps_the_contract_in_a_file() {
        contract(open(&file("contract")).await).await;
    }

    #[tokio::test]
    async fn keeps_the_contract_in_memory_and_in_another_table() {
        let store =
            SqliteStore::connect("sqlite::memory:").await.expect("open").with_table("inbox").expect("name");
        store.create_schema().await.expect("schema");
        contract(store).await;
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
        assert!(store.with_table("Robert'); DROP TABLE x").is_err());
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
        assert!(matches!(outcome, Outcome::StoreUnavailable { .. }), "{outcome:?}");
        assert!(is_new(&store, "s", "m").await, "it will be handled again");
    }
}
