//! Servers that die, freeze, run full, or refuse the user.

use std::time::Duration;

use lapin_idempotent::{
    IdempotencyStore, RedisStore,
    idempotency::{Claim, StoreErrorKind},
};
use tokio::time::Instant;

use super::{
    acquire, ask, claim, complete, eventually, request,
    server::{Lossy, Server},
    told, try_claim,
};

trials! {
    store_outlives_its_server,
    store_outlives_a_restart_that_it_did_not_notice,
    store_outlives_a_whole_cluster,
    completing_outlasts_a_restart,
    lost_answer_is_asked_for_again,
    frozen_server_keeps_nobody_waiting_for_long,
    frozen_node_of_a_cluster_keeps_only_its_own_waiting,
    full_server_refuses_claims_and_still_completes,
    demoted_server_is_connected_to_anew,
    password_is_never_told,
    lost_memory_is_a_lost_lease,
}

/// Whatever was answered is on disk.
const DURABLE: &[&str] = &["--appendfsync", "always"];

const LIMIT: Duration = Duration::from_secs(2);

fn limited(store: RedisStore) -> RedisStore {
    store.timeout(LIMIT)
}

/// Fails within the limit, give or take a slow machine.
async fn fails(store: &RedisStore) -> StoreErrorKind {
    let start = Instant::now();
    let error = try_claim(store, "s", "failing").await.expect_err("there is no server");
    assert!(start.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", start.elapsed());
    error.kind()
}

pub(crate) async fn store_outlives_its_server() {
    let server = Server::start("redis", DURABLE).await;
    let store = limited(RedisStore::connect(server.url()).await.expect("connect"));
    complete(&store, "s", "before").await;
    for round in 0..2 {
        server.kill().await;
        for _ in 0..3 {
            assert_eq!(fails(&store).await, StoreErrorKind::Unavailable);
        }
        server.start_again().await;
        assert!(matches!(claim(&store, "s", "before").await, Claim::Completed { .. }), "at once");
        complete(&store, "s", &format!("after {round}")).await;
    }
}

pub(crate) async fn store_outlives_a_restart_that_it_did_not_notice() {
    let server = Server::start("redis", DURABLE).await;
    let store = RedisStore::connect(server.url()).await.expect("connect");
    server.kill().await;
    server.start_again().await;
    complete(&store, "s", "its connection is broken by now").await;
    server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
    complete(&store, "s", "it was cut off while idle").await;
}

pub(crate) async fn store_outlives_a_whole_cluster() {
    let server = Server::start("redis-cluster", DURABLE).await;
    let store = limited(RedisStore::connect_cluster(server.urls()).await.expect("connect"));
    let ids: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    for id in &ids {
        complete(&store, "s", id).await;
    }
    server.kill().await;
    for _ in 0..2 {
        assert_eq!(fails(&store).await, StoreErrorKind::Unavailable);
    }
    server.start_again().await;
    for id in &ids {
        let answer = eventually("the cluster is back", async || try_claim(&store, "s", id).await.ok()).await;
        assert!(matches!(answer.0, Claim::Completed { .. }), "{id}: {answer:?}");
    }
}

pub(crate) async fn completing_outlasts_a_restart() {
    let server = Server::start("redis", DURABLE).await;
    let store = RedisStore::connect(server.url()).await.expect("connect");
    let store = store.timeout(Duration::from_secs(30));
    let leases = vec![acquire(&store, "s", "a").await, acquire(&store, "s", "b").await];
    server.kill().await;
    let (completed, ()) = tokio::join!(store.complete_each(leases), server.start_again());
    for answer in completed {
        answer.expect("completed after the restart");
    }
    assert!(matches!(claim(&store, "s", "a").await, Claim::Completed { .. }));
}

pub(crate) async fn lost_answer_is_asked_for_again() {
    let server = Server::start("redis", &[]).await;
    let lossy = Lossy::to(&server).await;
    let store = RedisStore::connect(&lossy.url).await.expect("connect");
    // From now on the server knows the scripts.
    store.release(acquire(&store, "s", "other").await).await.expect("release");
    complete(&store, "s", "other").await;

    lossy.lose_next();
    let lease = acquire(&store, "s", "x").await;
    let key = "lapin-idempotent{}:1:s:x";
    let token: String = ask(server.url(), &["GETRANGE", key, "0", "15"]).await;
    assert_eq!(
        lease.token().to_string(),
        token,
        "it is told of the lease that it has, and not that somebody has it"
    );
    lossy.lose_next();
    store.release(lease).await.expect("release");
    let leases = vec![acquire(&store, "s", "x").await, acquire(&store, "s", "y").await];
    lossy.lose_next();
    for completed in store.complete_each(leases).await {
        completed.expect("complete");
    }
    assert!(matches!(claim(&store, "s", "x").await, Claim::Completed { .. }));
}

pub(crate) async fn frozen_server_keeps_nobody_waiting_for_long() {
    for kind in ["redis", "redis-cluster"] {
        let server = Server::start(kind, &[]).await;
        let store = limited(match kind {
            "redis" => RedisStore::connect(server.url()).await.expect("connect"),
            _ => RedisStore::connect_cluster(server.urls()).await.expect("connect"),
        });
        let held = acquire(&store, "s", "held").await;
        server.pause().await;
        let start = Instant::now();
        let error = store.complete(held.clone()).await.expect_err("frozen");
        assert_eq!(error.kind(), StoreErrorKind::OutcomeUnknown, "{kind}: {}", told(&error));
        assert!(start.elapsed() < LIMIT + Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(fails(&store).await, StoreErrorKind::Unavailable, "{kind}");
        let start = Instant::now();
        let batch = store.claim_each(&[request("s", "x"), request("s", "y")]).await;
        assert!(batch.into_iter().all(|answer| answer.is_err()));
        let fresh = limited(RedisStore::connect_lazy(server.urls()[0]).expect("open"));
        assert_eq!(fresh.check().await.expect_err("frozen").kind(), StoreErrorKind::Unavailable);
        assert!(start.elapsed() < 2 * LIMIT + Duration::from_secs(1), "{:?}", start.elapsed());

        server.resume().await;
        eventually("it answers again", async || try_claim(&store, "s", "new").await.ok().map(drop)).await;
        eventually("completed", async || store.complete(held.clone()).await.ok()).await;
        assert!(matches!(claim(&store, "s", "held").await, Claim::Completed { .. }));
    }
}

#[cfg(unix)]
pub(crate) async fn frozen_node_of_a_cluster_keeps_only_its_own_waiting() {
    let limit = Duration::from_secs(1);
    let server = Server::start("redis-cluster", &[]).await;
    let store = RedisStore::connect_cluster(server.urls()).await.expect("connect").timeout(limit);
    let info: String = ask(server.urls()[0], &["INFO", "server"]).await;
    let process = info.lines().find_map(|line| line.strip_prefix("process_id:")).expect("process").trim();
    let signal = |name: &str| {
        let status = std::process::Command::new("kill").args(["-s", name, process]).status();
        assert!(status.expect("kill").success());
    };
    let requests: Vec<_> = (0..60).map(|n| request("s", &n.to_string())).collect();
    signal("STOP");
    let start = Instant::now();
    let answers = store.claim_each(&requests).await;
    let took = start.elapsed();
    signal("CONT");
    assert!(took < 2 * limit, "{took:?}");
    let (answered, failed): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(answered.len() > 20 && failed.len() > 5, "{} and {}", answered.len(), failed.len());
    for failed in failed {
        assert_eq!(failed.expect_err("failed").kind(), StoreErrorKind::Unavailable);
    }
    let leases = answered.into_iter().map(|answer| answer.unwrap().session.expect("acquired")).collect();
    eventually("all is well again", async || try_claim(&store, "s", "new").await.ok().map(drop)).await;
    for completed in store.complete_each(leases).await {
        completed.expect("complete");
    }
}

pub(crate) async fn full_server_refuses_claims_and_still_completes() {
    let server = Server::start("redis", &[]).await;
    let store = RedisStore::connect(server.url()).await.expect("connect").lease(Duration::from_secs(3));
    let (completing, renewing) = (acquire(&store, "s", "a").await, acquire(&store, "s", "b").await);
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = try_claim(&store, "s", "new").await.expect_err("full");
    assert_eq!(error.kind(), StoreErrorKind::Full, "{}", told(&error));
    store.complete(completing).await.expect("its effect is done");
    let renewed = tokio::time::timeout(Duration::from_millis(1500), store.keep_alive(&renewing).unwrap());
    assert!(renewed.await.is_err(), "still ours");
    let Claim::InProgress { remaining, .. } = claim(&store, "s", "b").await else { panic!("not held") };
    assert!(remaining > Duration::from_millis(1600), "it was renewed: {remaining:?}");
    store.release(renewing).await.expect("release");
    assert!(matches!(claim(&store, "s", "a").await, Claim::Completed { .. }), "nothing was forgotten");
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    complete(&store, "s", "new").await;
}

/// Behind the same name there may be its successor by now.
pub(crate) async fn demoted_server_is_connected_to_anew() {
    let server = Server::start("redis", &[]).await;
    let store = RedisStore::connect(server.url()).await.expect("connect");
    complete(&store, "s", "before").await;
    server.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let connections = async || -> u64 {
        let info: String = ask(server.url(), &["INFO", "stats"]).await;
        let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
        line.expect("counted").trim().parse().expect("number")
    };
    assert_eq!(fails(&store).await, StoreErrorKind::Unavailable);
    let before = connections().await;
    assert_eq!(fails(&store).await, StoreErrorKind::Unavailable);
    assert_eq!(connections().await, before + 2, "the store's own, and the one that counts");
    server.command(&["REPLICAOF", "NO", "ONE"]).await;
    complete(&store, "s", "after").await;
}

pub(crate) async fn password_is_never_told() {
    const RIGHT: &str = "canary-right";
    const WRONG: &str = "canary-wrong";
    let server = Server::start("redis", &[]).await;
    let anonymous = RedisStore::connect(server.url()).await.expect("connect");
    server.command(&["CONFIG", "SET", "requirepass", RIGHT]).await;

    let store = limited(RedisStore::connect(&server.with_password(RIGHT)).await.expect("connect"));
    complete(&store, "s", "x").await;
    assert!(!format!("{store:?} {store:#?}").contains("canary"));

    for url in [
        server.with_password(WRONG),
        server.with_password(WRONG) + "?protocol=resp3",
        server.url().to_owned(),
    ] {
        let refused = RedisStore::connect_lazy(&url).expect("open");
        assert!(!format!("{refused:?} {refused:#?}").contains("canary"));
        let error = refused.check().await.expect_err("not let in");
        assert_eq!(error.kind(), StoreErrorKind::Configuration, "{}", told(&error));
        assert!(!told(&error).contains("canary"), "{}", told(&error));
        let error = try_claim(&refused, "s", "x").await.expect_err("not let in");
        assert!(!told(&error).contains("canary"), "{}", told(&error));
    }
    drop(anonymous);

    let cluster = Server::start("redis-cluster", &[]).await;
    cluster.command(&["CONFIG", "SET", "requirepass", RIGHT]).await;
    let (right, wrong) = (cluster.with_password(RIGHT), cluster.with_password(WRONG));
    let in_cluster = RedisStore::connect_cluster(right.split(',')).await.expect("connect");
    complete(&in_cluster, "s", "x").await;
    assert!(!format!("{in_cluster:?}").contains("canary"));
    for urls in [wrong, cluster.urls().join(",")] {
        let error = RedisStore::connect_cluster(urls.split(',')).await.expect_err("not let in");
        assert_eq!(error.kind(), StoreErrorKind::Configuration, "{}", told(&error));
        assert!(!told(&error).contains("canary"), "{}", told(&error));
    }

    // A server that does not know AUTH quotes what it was sent.
    let renamed =
        Server::start("redis", &["--rename-command", "AUTH", "", "--rename-command", "HELLO", ""]).await;
    for query in ["", "?protocol=resp2", "?protocol=resp3"] {
        let url = renamed.with_password(RIGHT) + query;
        let error = RedisStore::connect(&url).await.expect_err("it knows no AUTH");
        assert!(!told(&error).contains("canary"), "{}", told(&error));
    }

    server.kill().await;
    let error = try_claim(&store, "s", "x").await.expect_err("killed");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(!told(&error).contains("canary"), "{}", told(&error));
}

pub(crate) async fn lost_memory_is_a_lost_lease() {
    let server = Server::start("redis", &[]).await;
    let store = RedisStore::connect(server.url()).await.expect("connect");
    let held = acquire(&store, "s", "x").await;
    ask::<redis::Value>(server.url(), &["FLUSHALL"]).await;
    assert_eq!(store.complete(held.clone()).await.expect_err("forgotten").kind(), StoreErrorKind::LeaseLost);
    assert_eq!(store.release(held.clone()).await.expect_err("forgotten").kind(), StoreErrorKind::LeaseLost);
    assert!(acquire(&store, "s", "x").await.token() > held.token());
}
