//! Identity is exact, spread over a cluster, and remembered as long as was promised.

use std::time::Duration;

use lapin_idempotent::{
    IdempotencyStore, MessageId,
    idempotency::{Claim, Inspect, Lease, Record, Scope, StoreErrorKind},
    message::Fingerprint,
};
use tokio::time::Instant;

use super::{
    acquire, acquire_later, ask, both, claim, cluster, complete, node, request, told, try_claim, unique,
    variable,
};

trials! {
    identity_is_exact_whatever_it_contains,
    cluster_spreads_identities_over_its_nodes,
    redis_forgets_after_the_retention_and_not_before,
    identity_in_progress_is_not_forgotten_before_its_lease_ends,
    operators_can_look_into_the_store,
    what_is_not_ours_is_an_error_and_is_left_alone,
}

pub(crate) async fn identity_is_exact_whatever_it_contains() {
    let longest = "é".repeat(127) + "x";
    let ids = [
        "a",
        "A",
        "a ",
        " a",
        "ä",
        "a\u{308}",
        "{",
        "}",
        "{}",
        "{a}",
        "}{",
        "{}:1:s:a",
        "{a}b}",
        "%",
        "*",
        "?",
        "[a]",
        "\\",
        "'",
        "\"",
        "\u{feff}",
        "\u{10ffff}",
        ":",
        "::",
        "1:s:a",
        &longest,
    ];
    let scopes = ["s", "S", "{s}", "s}", "{", "1:s", "s:a", &longest];
    for store in both().await {
        for scope in scopes {
            let requests: Vec<_> = ids.iter().map(|id| request(scope, id)).collect();
            let claims = store.claim_each(&requests).await;
            let acquired = claims.into_iter().zip(ids).map(|(answer, id)| {
                let answer = answer.expect("claim");
                assert_eq!(answer.claims, [Claim::Acquired], "{scope:?} {id:?}");
                answer.session.expect("session")
            });
            for completed in store.complete_each(acquired.collect()).await {
                completed.expect("complete");
            }
        }
        for (scope, id) in scopes.iter().flat_map(|scope| ids.iter().map(move |id| (scope, id))) {
            let Claim::Completed { fingerprint, processed_at, .. } = claim(&store, scope, id).await else {
                panic!("{scope:?} {id:?} was forgotten");
            };
            assert_eq!(fingerprint, Fingerprint::of(id.as_bytes()), "{scope:?} {id:?}");
            assert!(processed_at.elapsed().unwrap_or_default() < Duration::from_secs(60));
        }
        for (scope, id) in [("ab", "c"), ("a", "bc"), ("a:b", "c"), ("a", "b:c")] {
            complete(&store, scope, id).await;
        }
    }
}

pub(crate) async fn cluster_spreads_identities_over_its_nodes() {
    let prefix = unique("spread");
    let store = cluster().await;
    let store = store.prefix(&prefix);
    // Were what stands between braces taken for a hash tag, all of them would be on one node.
    let requests: Vec<_> = (0..1000).map(|n| request("{orders}", &format!("{{tag}}-{n}"))).collect();
    for answer in store.claim_each(&requests).await {
        assert_eq!(answer.expect("claim").claims, [Claim::Acquired]);
    }
    let mut all = 0;
    for url in variable("REDIS_CLUSTER_URL").split(',') {
        let keys: Vec<String> = ask(url, &["KEYS", &format!("{prefix}*")]).await;
        assert!(keys.len() > 200, "{} on {url}", keys.len());
        all += keys.len();
    }
    assert_eq!(all, 1000);
}

pub(crate) async fn redis_forgets_after_the_retention_and_not_before() {
    let retention = Duration::from_millis(1500);
    for store in both().await {
        let store = store.lease(Duration::from_millis(400)).retention(retention);
        let held = acquire(&store, "s", "x").await;
        // It counts from the completion, not from the claim.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let start = Instant::now();
        store.complete(held).await.expect("complete");
        let mut seen = 0;
        let again = super::eventually("forgotten", async || {
            match try_claim(&store, "s", "x").await.expect("claim") {
                (Claim::Completed { .. }, _) => {
                    seen += 1;
                    None
                }
                (claim, _) => Some(claim),
            }
        })
        .await;
        assert_eq!(again, Claim::Acquired);
        assert!(start.elapsed() >= retention, "forgotten after {:?}", start.elapsed());
        assert!(seen > 10, "{seen}");
    }
}

pub(crate) async fn identity_in_progress_is_not_forgotten_before_its_lease_ends() {
    let prefix = unique("bounded");
    let store = node().await;
    let url = variable("REDIS_URL");
    let store = store.prefix(&prefix).lease(Duration::from_secs(2));
    let store = store.retention(Duration::from_secs(2));
    let lease = acquire(&store, "s", "x").await;
    let kept = async || -> i64 { ask(&url, &["PTTL", &format!("{prefix}{{}}:1:s:x")]).await };
    let first = kept().await;
    assert!((1000..=2000).contains(&first), "bounded, too: {first}");
    let renewed = tokio::time::timeout(Duration::from_millis(1500), store.keep_alive(&lease).unwrap());
    assert!(renewed.await.is_err(), "still ours");
    assert!(kept().await > 500, "renewed together with the lease");
    store.release(lease.clone()).await.expect("release");
    assert!(kept().await > 0, "a released one is forgotten, too, some time");
    assert!(acquire_later(&store, "s", "x").await.token() > lease.token());
}

pub(crate) async fn operators_can_look_into_the_store() {
    for store in both().await {
        let (scope, other) = (Scope::new("a*b?[c]\\{d}").unwrap(), Scope::new("aXb").unwrap());
        let names: Vec<String> = (0..300).map(|n| format!("id-{n}")).collect();
        for scope in [&scope, &other] {
            let requests: Vec<_> = names.iter().map(|id| request(scope.as_str(), id)).collect();
            let claims = store.claim_each(&requests).await;
            let leases = claims.into_iter().map(|claim| claim.unwrap().session.unwrap()).collect();
            assert!(store.complete_each(leases).await.into_iter().all(|completed| completed.is_ok()));
        }
        let held = acquire(&store, scope.as_str(), "held").await;
        assert_eq!(
            store.count(&scope).await.expect("count"),
            300,
            "and not what is in progress, or another scope's"
        );
        assert_eq!(store.count(&Scope::new("a").unwrap()).await.expect("count"), 0);

        let id = MessageId::new("id-7").unwrap();
        let found = store.find(&scope, &id).await.expect("find");
        assert!(
            matches!(found, Some(Record::Completed { fingerprint, .. }) if fingerprint == Fingerprint::of(b"id-7"))
        );
        let found = store.find(&scope, held.message_id()).await.expect("find");
        assert!(
            matches!(found, Some(Record::InProgress { remaining, .. }) if remaining > Duration::from_secs(20))
        );
        assert_eq!(store.find(&scope, &MessageId::new("new").unwrap()).await.expect("find"), None);

        assert!(!store.forget(&scope, held.message_id()).await.expect("forget"), "in progress is left alone");
        assert!(!store.forget(&scope, &MessageId::new("new").unwrap()).await.expect("forget"));
        assert!(store.forget(&scope, &id).await.expect("forget"));
        assert!(!store.forget(&scope, &id).await.expect("forget"));
        assert_eq!(store.find(&scope, &id).await.expect("find"), None);
        assert_eq!(store.count(&scope).await.expect("count"), 299);
        complete(&store, scope.as_str(), "id-7").await;
        store.complete(held).await.expect("untouched");
    }
}

pub(crate) async fn what_is_not_ours_is_an_error_and_is_left_alone() {
    let prefix = unique("foreign");
    let store = node().await;
    let store = store.prefix(&prefix);
    let url = variable("REDIS_URL");
    for (id, words) in [
        ("string", ["SET", "KEY", "x", "PX", "60000"].as_slice()),
        ("words", &["SET", "KEY", "words of somebody else, as long as a record is", "PX", "60000"]),
        ("digits", &["SET", "KEY", "0000000000000001", "PX", "60000"]),
        ("short", &["SET", "KEY", "0000000000000001c0000000000001short", "PX", "60000"]),
        (
            "soon",
            &["SET", "KEY", "0000000000000001c0123456789abcdef0123456789abcdef         soon", "PX", "60000"],
        ),
        ("end", &["SET", "KEY", "000000000000000al0000000000000x", "PX", "60000"]),
        ("no-end", &["SET", "KEY", "0000000000000001l", "PX", "60000"]),
        ("free", &["SET", "KEY", "0000000000000001foo", "PX", "60000"]),
        ("infinite", &["SET", "KEY", "             inff", "PX", "60000"]),
        ("list", &["LPUSH", "KEY", "x"]),
        ("negative", &["HSET", "KEY", "t", "-5"]),
        ("hash", &["HSET", "KEY", "x", "1"]),
        ("fingerprint", &["HSET", "KEY", "t", "1", "a", "1", "f", "short"]),
        ("time", &["HSET", "KEY", "t", "1", "a", "soon", "f", "x"]),
    ] {
        let key = format!("{prefix}{{}}:1:s:{id}");
        let words: Vec<&str> =
            words.iter().map(|word| if *word == "KEY" { key.as_str() } else { word }).collect();
        ask::<redis::Value>(&url, &words).await;
        let before = ask::<redis::Value>(&url, &["DUMP", &key]).await;
        // Beside a neighbour in the same batch, which must not suffer.
        let mut answers =
            store.claim_each(&[request("s", id), request("s", &format!("{id}'s neighbour"))]).await;
        assert_eq!(answers.remove(1).expect("claim").claims, [Claim::Acquired]);
        let error = answers.remove(0).expect_err(id);
        assert_eq!(error.kind(), StoreErrorKind::Schema, "{id}: {}", told(&error));
        let stale = Lease::new(&request("s", id), 1_700_000_000_000_000);
        for failed in [store.complete(stale.clone()).await, store.release(stale).await] {
            let kind = failed.expect_err(id).kind();
            assert!(matches!(kind, StoreErrorKind::Schema | StoreErrorKind::LeaseLost), "{id}: {kind}");
        }
        let now = ask::<redis::Value>(&url, &["DUMP", &key]).await;
        assert_eq!(now, before, "{id} is as it was");
    }
}
