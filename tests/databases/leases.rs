//! Leases in the SQL tables.

use std::time::Duration;

use futures_util::poll;
use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, Outcome, PostgresStore,
    idempotency::{Claim, Guard, Inspect, Lease, Scope, StoreErrorKind, Sweeper},
    message::MessageId,
    store::LeasedStore,
};
use sqlx::Postgres;

use super::{
    claims::request,
    database::{Kind, Table, message},
};

trials! {
    completed_by_a_lease_is_a_duplicate_for_a_transaction<Postgres, MySql, Sqlite>,
    tokens_grow_over_release_expiry_and_forgetting<Postgres, MySql, Sqlite>,
    no_lease_pause_or_retention_is_too_long<Postgres, MySql, Sqlite>,
    no_transaction_is_open_during_the_handler,
    batches_of_leases_are_claimed_and_completed_in_order<Postgres, MySql, Sqlite>,
    lease_gives_up_after_the_lock_timeout<Postgres, MySql, Sqlite>,
}

const LONG: Duration = Duration::from_secs(60);

async fn lease<K: Kind>(store: &LeasedStore<K>, id: &str) -> Lease {
    store.claim(&[request("test", id)]).await.expect("claim").session.expect("acquired")
}

pub async fn completed_by_a_lease_is_a_duplicate_for_a_transaction<K: Kind>() {
    let table = Table::<K>::create().await;
    let leases = table.store.clone().leased(LONG).expect("lease");
    let held = lease(&leases, "a").await;
    let outcome = table.process("a").await;
    assert!(matches!(outcome, Outcome::InProgress { .. }), "{outcome:?}");
    leases.complete(held).await.expect("complete");
    assert!(matches!(table.process("a").await, Outcome::Duplicate(_)));

    assert!(matches!(table.process("b").await, Outcome::Processed));
    let claims = leases.claim(&[request("test", "b")]).await.expect("claim");
    assert!(matches!(claims.claims[0], Claim::Completed { .. }), "the other way round");

    // A lease that was given back, or ran out, is no obstacle to a transaction.
    leases.release(lease(&leases, "c").await).await.expect("release");
    assert!(matches!(table.process("c").await, Outcome::Processed));
    assert!(matches!(table.process("c").await, Outcome::Duplicate(_)));
    assert_eq!(table.effects().await, (2, 2));
}

pub async fn tokens_grow_over_release_expiry_and_forgetting<K: Kind>() {
    let table = Table::<K>::create().await;
    let leases = table.store.clone().leased(LONG).expect("lease");
    let short = table.store.clone().leased(Duration::from_millis(50)).expect("lease");
    let (scope, id) = (Scope::new("test").unwrap(), MessageId::new("a").unwrap());
    let mut last = 0;
    let mut grows = |lease: &Lease| {
        assert!(lease.token() > last, "{} after {last}", lease.token());
        last = lease.token();
    };
    let held = lease(&leases, "a").await;
    grows(&held);
    leases.release(held).await.expect("release");
    assert_eq!(leases.find(&scope, &id).await.expect("find"), None, "a released claim is none");
    let ran_out = lease(&short, "a").await;
    grows(&ran_out);
    tokio::time::sleep(Duration::from_millis(80)).await;
    let held = lease(&leases, "a").await;
    grows(&held);
    // I4: what was taken over can do nothing any more.
    assert!(short.complete(ran_out.clone()).await.is_err());
    assert!(short.release(ran_out).await.is_err());
    leases.complete(held).await.expect("complete");
    assert!(leases.forget(&scope, &id).await.expect("forget"));
    grows(&lease(&leases, "a").await);
}

/// Looks whether any transaction is open on its table while it works.
struct Looking(PostgresStore, String);

impl IdempotentHandler<LeasedStore<Postgres>> for Looking {
    async fn handle(&self, _: &IncomingMessage, lease: &mut Lease) -> HandlerResult {
        assert!(lease.token() > 0);
        let locks = format!("SELECT count(*) FROM pg_locks WHERE relation = '{}'::regclass", self.1);
        assert_eq!(Postgres::number(self.0.pool(), &locks).await?, 0);
        Ok(())
    }
}

pub async fn no_transaction_is_open_during_the_handler() {
    let table = Table::<Postgres>::create().await;
    let guard = Guard::new(table.store.clone().leased(LONG).expect("lease"), Scope::new("test").unwrap());
    let handler = Looking(table.store.clone(), table.name.clone());
    let outcome = guard.process(&message("a"), &handler).await;
    assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
    let outcome = guard.process(&message("a"), &handler).await;
    assert!(matches!(outcome, Outcome::Duplicate(_)), "{outcome:?}");
}

pub async fn batches_of_leases_are_claimed_and_completed_in_order<K: Kind>() {
    let table = Table::<K>::create().await;
    let leases = table.store.clone().leased(LONG).expect("lease");
    let ids: Vec<String> = (0..100).map(|n| format!("m{}", (n * 37) % 100)).collect();
    leases.complete(lease(&leases, "m7").await).await.expect("complete");
    let _held = lease(&leases, "m8").await;
    let requests: Vec<_> = ids.iter().map(|id| request("test", id)).collect();
    let mut sessions = Vec::new();
    for (id, claims) in ids.iter().zip(leases.claim_each(&requests).await) {
        let claims = claims.expect("claim");
        match id.as_str() {
            "m7" => assert!(matches!(claims.claims[0], Claim::Completed { .. })),
            "m8" => assert!(matches!(claims.claims[0], Claim::InProgress { .. })),
            _ => {
                let session = claims.session.expect("acquired");
                assert_eq!(session.message_id().as_str(), id);
                sessions.push(session);
            }
        }
    }
    // One that is not held any more does not keep the others from being completed.
    leases.release(sessions[50].clone()).await.expect("release");
    let taken_over = lease(&leases, sessions[50].message_id().as_str()).await;
    assert!(taken_over.token() > sessions[50].token());
    for (index, result) in leases.complete_each(sessions).await.into_iter().enumerate() {
        assert_eq!(result.is_err(), index == 50, "{index}: {result:?}");
    }
    assert_eq!(leases.count(&Scope::new("test").unwrap()).await.expect("count"), 98);
}

/// A rival's transaction that holds the row is a rival that is busy, and no store that is away.
pub async fn lease_gives_up_after_the_lock_timeout<K: Kind>() {
    let table = Table::<K>::create().await;
    let ran_out = table.store.clone().leased(Duration::from_millis(1)).expect("lease");
    let taken = lease(&ran_out, "known").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let held = table.store.claim(&[request("test", "new"), request("test", "known")]).await.expect("claim");
    let other = table.again().await.store.lock_timeout(Duration::from_secs(1));
    let leases = other.clone().leased(LONG).expect("lease");
    let limit = Duration::from_secs(20);
    for id in ["new", "known"] {
        let requests = [request("test", id)];
        let refused = tokio::time::timeout(limit, leases.claim(&requests)).await.expect("in time");
        assert_eq!(refused.expect_err("held").kind(), StoreErrorKind::Busy, "{id}");
    }
    // Nor does the completion of one that was taken over wait for ever.
    let refused = tokio::time::timeout(limit, leases.complete(taken.clone())).await.expect("in time");
    assert_eq!(refused.expect_err("held").kind(), StoreErrorKind::Busy);
    table.store.release(held.session.expect("acquired")).await.expect("release");
    let _ = lease(&leases, "new").await;
    ran_out.complete(taken).await.expect("nobody has taken it over");
}

/// The longest there are: no panic and no overflow, neither here nor in the server.
pub async fn no_lease_pause_or_retention_is_too_long<K: Kind>() {
    let table = Table::<K>::create().await;
    let leases = table.store.clone().leased(Duration::MAX).expect("lease");
    let held = lease(&leases, "a").await;
    let mut renewed = leases.keep_alive(&held).expect("it is renewed");
    assert!(poll!(&mut renewed).is_pending());
    let outcome = table.process("a").await;
    assert!(matches!(outcome, Outcome::InProgress { .. }), "{outcome:?}");
    leases.complete(held).await.expect("complete");
    let sweeper = Sweeper::new(table.store.clone(), Duration::MAX).every(Duration::MAX);
    assert_eq!(sweeper.sweep().await.expect("sweep"), 0, "nothing is so old");
    let mut sweeping = std::pin::pin!(sweeper.run_until(std::future::pending()));
    assert!(poll!(&mut sweeping).is_pending());
    assert!(matches!(table.process("a").await, Outcome::Duplicate(_)));
}
