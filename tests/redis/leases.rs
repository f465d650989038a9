//! Leases, tokens, and who may do what.

use std::time::Duration;

use lapin_idempotent::{
    IdempotencyStore, RedisStore,
    idempotency::{Claim, Inspect, Lease, StoreErrorKind},
    message::Fingerprint,
};
use tokio::time::Instant;

use super::{acquire, acquire_later, ask, both, claim, complete, eventually, node, request, variable};

trials! {
    later_leases_have_greater_tokens,
    stale_lease_changes_nothing,
    released_lease_cannot_complete,
    lease_is_kept_alive_and_its_end_is_told,
    lease_that_ran_out_is_still_ours_until_somebody_takes_it,
    of_two_rivals_one_acquires,
    of_copies_in_one_call_one_is_acquired,
    batch_is_answered_in_order_also_by_servers_that_forgot_the_scripts,
}

fn short(store: RedisStore) -> RedisStore {
    store.lease(Duration::from_millis(60))
}

async fn not_renewed(store: &RedisStore, lease: &Lease) {
    let lost = store.keep_alive(lease).expect("leases are renewed");
    let lost = tokio::time::timeout(super::DEADLINE, lost).await.expect("it was renewed");
    assert_eq!(lost.kind(), StoreErrorKind::LeaseLost);
}

pub(crate) async fn later_leases_have_greater_tokens() {
    let prefix = super::unique("tokens");
    let store = node().await;
    let (store, url) = (short(store.prefix(&prefix)), variable("REDIS_URL"));
    let key = format!("{prefix}{{}}:1:s:x");

    let first = acquire(&store, "s", "x").await;
    let mut last = first.token();
    store.release(first).await.expect("release");
    let released = acquire(&store, "s", "x").await;
    assert!(released.token() > last, "after a release");
    last = released.token();
    let run_out = acquire_later(&store, "s", "x").await;
    assert!(run_out.token() > last, "after a lease ran out");
    last = run_out.token();
    assert_eq!(ask::<u32>(&url, &["DEL", &key]).await, 1);
    let forgotten = acquire(&store, "s", "x").await;
    assert!(forgotten.token() > last, "after Redis forgot it");

    // As if the clock had been set back by a day.
    let ahead = forgotten.token() + 86_400_000_000;
    store.release(forgotten).await.expect("release");
    ask::<redis::Value>(&url, &["SET", &key, &format!("{ahead}f"), "PX", "60000"]).await;
    let set_back = acquire(&store, "s", "x").await;
    assert_eq!(set_back.token(), ahead + 1, "exact to the last digit");
    store.complete(set_back.clone()).await.expect("complete");
    assert!(store.forget(set_back.scope(), set_back.message_id()).await.expect("forget"));
    assert_eq!(acquire(&store, "s", "x").await.token(), ahead + 2, "after a deliberate replay");
}

pub(crate) async fn stale_lease_changes_nothing() {
    for store in both().await.into_iter().map(short) {
        let stale = acquire(&store, "s", "x").await;
        let fresh = acquire_later(&store, "s", "x").await;
        let unchanged = async |when: &str| {
            let lost = store.complete(stale.clone()).await.expect_err(when);
            assert_eq!(lost.kind(), StoreErrorKind::LeaseLost, "{when}");
            let lost = store.release(stale.clone()).await.expect_err(when);
            assert_eq!(lost.kind(), StoreErrorKind::LeaseLost, "{when}");
            not_renewed(&store, &stale).await;
        };
        unchanged("while its successor's lease runs, or has run out").await;
        store.complete(fresh.clone()).await.expect("the successor's claim is untouched");
        unchanged("after its successor completed").await;
        assert!(matches!(claim(&store, "s", "x").await, Claim::Completed { .. }));

        // The owner itself: completed twice is completed, and there is nothing left to give back.
        store.complete(fresh.clone()).await.expect("as if the first reply had been lost");
        let lost = store.release(fresh.clone()).await.expect_err("completed");
        assert_eq!(lost.kind(), StoreErrorKind::LeaseLost);
        not_renewed(&store, &fresh).await;
        assert!(matches!(claim(&store, "s", "x").await, Claim::Completed { .. }));
    }
}

pub(crate) async fn released_lease_cannot_complete() {
    let store = node().await;
    let lease = acquire(&store, "s", "x").await;
    store.release(lease.clone()).await.expect("release");
    store.release(lease.clone()).await.expect("as if the first reply had been lost");
    assert_eq!(store.complete(lease).await.expect_err("released").kind(), StoreErrorKind::LeaseLost);
    complete(&store, "s", "x").await;
}

pub(crate) async fn lease_is_kept_alive_and_its_end_is_told() {
    for store in both().await {
        let store = store.lease(Duration::from_millis(200));
        let lease = acquire(&store, "s", "long").await;
        let watched = async {
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(700) {
                let Claim::InProgress { remaining, .. } = claim(&store, "s", "long").await else {
                    panic!("a lease that is renewed was given away after {:?}", start.elapsed());
                };
                assert!(remaining <= Duration::from_millis(200), "{remaining:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            lost = store.keep_alive(&lease).expect("leases are renewed") => panic!("the lease was lost: {lost}"),
            () = watched => {}
        }
        store.complete(lease).await.expect("still ours");
    }
}

pub(crate) async fn lease_that_ran_out_is_still_ours_until_somebody_takes_it() {
    let store = short(node().await);
    let lease = acquire(&store, "s", "x").await;
    let (scope, id) = (lease.scope().clone(), lease.message_id().clone());
    eventually("the lease ran out", async || {
        let found = store.find(&scope, &id).await.expect("find");
        found.is_none().then_some(())
    })
    .await;
    let renewed = tokio::time::timeout(Duration::from_millis(50), store.keep_alive(&lease).unwrap());
    assert!(renewed.await.is_err(), "it was renewed");
    assert!(store.find(&scope, &id).await.expect("find").is_some(), "and runs again");
    store.complete(lease).await.expect("still ours");
}

pub(crate) async fn of_two_rivals_one_acquires() {
    for store in both().await {
        let rival = store.clone();
        for round in 0..200 {
            let id = format!("round-{round}");
            let (store, rival, (a, b)) = (store.clone(), rival.clone(), (id.clone(), id));
            let a = tokio::spawn(async move { claim(&store, "race", &a).await });
            let b = tokio::spawn(async move { claim(&rival, "race", &b).await });
            let claims = [a.await.unwrap(), b.await.unwrap()];
            let acquired = claims.iter().filter(|claim| **claim == Claim::Acquired).count();
            let refused = claims.iter().filter(|claim| matches!(claim, Claim::InProgress { .. })).count();
            assert_eq!((acquired, refused), (1, 1), "round {round}: {claims:?}");
        }
    }
}

/// 256 identities: completed, in progress, and new.
async fn mixed_batch(store: &RedisStore, flushed: impl AsyncFn()) {
    let ids: Vec<String> = (0..256).map(|n| format!("{n:03}")).collect();
    let expected = |n: usize| ["completed", "in progress", "new", "new"][n % 4];
    let every_fourth =
        |rest: usize| -> Vec<_> { ids.iter().skip(rest).step_by(4).map(|id| request("batch", id)).collect() };
    flushed().await;
    let claims = store.claim_each(&every_fourth(0)).await;
    let leases: Vec<_> = claims.into_iter().map(|claim| claim.unwrap().session.unwrap()).collect();
    flushed().await;
    for (index, completed) in store.complete_each(leases).await.into_iter().enumerate() {
        completed.unwrap_or_else(|error| panic!("{index}: {error}"));
    }
    let _held = store.claim_each(&every_fourth(1)).await;

    flushed().await;
    let requests: Vec<_> = ids.iter().map(|id| request("batch", id)).collect();
    let claims = store.claim_each(&requests).await;
    assert_eq!(claims.len(), 256);
    for (index, answer) in claims.into_iter().enumerate() {
        let answer = answer.unwrap_or_else(|error| panic!("{index}: {}", super::told(&error)));
        match (&answer.claims[0], expected(index)) {
            (Claim::Completed { fingerprint, .. }, "completed") => {
                assert_eq!(*fingerprint, Fingerprint::of(ids[index].as_bytes()), "{index}");
            }
            (Claim::InProgress { .. }, "in progress") => {}
            (Claim::Acquired, "new") => {
                assert_eq!(answer.session.as_ref().unwrap().message_id().as_str(), ids[index]);
            }
            (other, expected) => panic!("{index}: {other:?} instead of {expected}"),
        }
    }
}

pub(crate) async fn batch_is_answered_in_order_also_by_servers_that_forgot_the_scripts() {
    for (store, variable_name) in [(node().await, "REDIS_URL"), (super::cluster().await, "REDIS_CLUSTER_URL")]
    {
        let urls = variable(variable_name);
        mixed_batch(&store, async || {
            for url in urls.split(',') {
                ask::<redis::Value>(url, &["SCRIPT", "FLUSH"]).await;
            }
        })
        .await;
        assert!(store.claim_each(&[]).await.is_empty());
        assert!(store.complete_each(Vec::new()).await.is_empty());
    }
}

pub(crate) async fn of_copies_in_one_call_one_is_acquired() {
    for store in both().await.into_iter().map(short) {
        // More than one script is asked for: of what is new, was released, or ran out.
        for id in ["new", "released", "ended"] {
            if id != "new" {
                let lease = acquire(&store, "s", id).await;
                if id == "released" {
                    store.release(lease).await.expect("release");
                } else {
                    drop(lease);
                    let ended = async || {
                        let request = request("s", id);
                        let found = store.find(&request.scope, &request.message_id).await.expect("find");
                        found.is_none().then_some(())
                    };
                    eventually("its lease ran out", ended).await;
                }
            }
            let store = store.clone().lease(Duration::from_secs(30));
            let copies: Vec<_> = (0..70).map(|_| request("s", id)).collect();
            let claims = store.claim_each(&copies).await;
            let acquired = claims.iter().filter(|claims| claims.as_ref().expect("claim").session.is_some());
            assert_eq!(acquired.count(), 1, "{id}");
        }
    }
}
