//! What the store accepts, and what it refuses before any message is taken.

use std::time::Duration;

use lapin_idempotent::{
    IdempotencyStore, RedisStore, Scope,
    idempotency::{Inspect, StoreError, StoreErrorKind},
    store::InvalidRedisSetting,
};

use super::{acquire, claim, complete, node, request, server::Server, told, unique, variable};

trials! {
    settings_that_cannot_work_are_named_and_nothing_is_sent,
    settings_come_in_any_order,
    urls_that_cannot_work_are_refused,
    purge_has_nothing_to_do_and_says_if_it_should,
    other_connections_work,
    evicting_server_is_refused_unless_that_is_accepted,
    server_that_does_not_tell_is_refused_unless_that_is_accepted,
    every_node_of_a_cluster_is_checked,
}

const POLICY: &str = "maxmemory-policy";

const DAY: Duration = Duration::from_secs(86_400);

/// Which setting an error names.
fn named(error: &StoreError) -> &'static str {
    assert_eq!(error.kind(), StoreErrorKind::Configuration, "{error:?}");
    let source = std::error::Error::source(error).expect("a source");
    source.downcast_ref::<InvalidRedisSetting>().expect("a setting").setting()
}

/// Whatever a store is asked; nothing of it reaches the server.
pub(crate) async fn settings_that_cannot_work_are_named_and_nothing_is_sent() {
    let server = Server::start("redis", &[]).await;
    let good = RedisStore::connect(server.url()).await.expect("connect");
    let scope = Scope::new("s").unwrap();
    let lease = acquire(&good, "s", "held").await;
    let long = "a".repeat(65);
    let set = |set: &dyn Fn(RedisStore) -> RedisStore| set(good.clone());
    for (store, setting) in [
        (set(&|store| store.lease(Duration::ZERO)), "lease"),
        (set(&|store| store.lease(8 * DAY)), "retention"),
        (set(&|store| store.retention(Duration::from_secs(29))), "retention"),
        (set(&|store| store.retention(Duration::MAX)), "retention"),
        (set(&|store| store.timeout(Duration::ZERO)), "timeout"),
        (set(&|store| store.prefix("")), "prefix"),
        (set(&|store| store.prefix("a{b}")), "prefix"),
        (set(&|store| store.prefix("a b")), "prefix"),
        (set(&|store| store.prefix("ä")), "prefix"),
        (set(&|store| store.prefix(&long)), "prefix"),
    ] {
        let requests = [request("s", "new"), request("s", "other")];
        let each = store.claim_each(&requests).await;
        assert_eq!(each.len(), 2);
        let mut errors: Vec<StoreError> =
            each.into_iter().map(|claimed| claimed.expect_err("claims")).collect();
        errors.push(store.check().await.expect_err("check"));
        errors.push(store.claim(&requests[..1]).await.expect_err("claim"));
        errors.push(store.complete(lease.clone()).await.expect_err("complete"));
        errors.extend(store.complete_each(vec![lease.clone()]).await.into_iter().filter_map(Result::err));
        errors.push(store.release(lease.clone()).await.expect_err("release"));
        errors.push(store.find(&scope, lease.message_id()).await.expect_err("find"));
        errors.push(store.count(&scope).await.expect_err("count"));
        errors.push(store.forget(&scope, lease.message_id()).await.expect_err("forget"));
        assert_eq!(errors.iter().map(named).collect::<Vec<_>>(), [setting; 10], "{store:?}");
    }
    let keys: usize = super::ask(server.url(), &["DBSIZE"]).await;
    assert_eq!(keys, 1, "the one that is held");
    good.complete(lease).await.expect("nobody has released it");
}

pub(crate) async fn settings_come_in_any_order() {
    let server = Server::start("redis", &[]).await;
    let store = || RedisStore::connect_lazy(server.url()).expect("URL");
    let ordered = [
        store().retention(30 * DAY).lease(8 * DAY),
        store().lease(8 * DAY).retention(30 * DAY),
        store().lease(Duration::ZERO).prefix("").lease(DAY).prefix("inbox:1"),
    ];
    for (index, store) in ordered.iter().enumerate() {
        store.check().await.expect("check");
        complete(store, "s", &index.to_string()).await;
    }
    let shown = format!("{:?}", store().timeout(Duration::from_secs(1)).prefix("inbox:1"));
    assert!(shown.contains("127.0.0.1:") && shown.contains("inbox:1"), "{shown}");
}

pub(crate) async fn urls_that_cannot_work_are_refused() {
    let refused = [
        RedisStore::connect_lazy("http://localhost"),
        RedisStore::connect_cluster_lazy([""; 0]),
        RedisStore::connect_cluster_lazy(["redis://:canary@a", "redis://:canary2@b"]),
    ];
    for (index, result) in refused.into_iter().enumerate() {
        let error = result.expect_err("refused");
        assert_eq!(error.kind(), StoreErrorKind::Configuration, "{index}");
        assert!(!told(&error).contains("canary"), "{index}");
    }
    assert_eq!(RedisStore::connect_lazy("rediss://localhost").is_ok(), cfg!(feature = "tls"));
}

pub(crate) async fn purge_has_nothing_to_do_and_says_if_it_should() {
    let store = node().await;
    complete(&store, "s", "x").await;
    for retention in [Duration::ZERO, Duration::from_secs(7 * 86_400)] {
        assert_eq!(store.purge(retention, 10).await.expect("purge"), 0);
    }
    let error = store.purge(Duration::from_secs(8 * 86_400), 10).await.expect_err("Redis forgets earlier");
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
}

pub(crate) async fn other_connections_work() {
    let (url, urls) = (variable("REDIS_URL"), variable("REDIS_CLUSTER_URL"));
    let resp3 = RedisStore::connect(&format!("{url}?protocol=resp3")).await.expect("connect");
    let client = redis::Client::open(url).unwrap();
    let cluster = redis::cluster::ClusterClient::new(urls.split(',')).unwrap();
    for store in [
        resp3,
        RedisStore::new(client.get_multiplexed_async_connection().await.unwrap()),
        RedisStore::new(client.get_connection_manager().await.unwrap()),
        RedisStore::new(cluster.get_async_connection().await.unwrap()),
    ] {
        let store = store.prefix(&unique("own"));
        store.check().await.expect("check");
        complete(&store, "s", "x").await;
        assert!(!format!("{:?}", claim(&store, "s", "x").await).contains("Acquired"));
    }
}

pub(crate) async fn evicting_server_is_refused_unless_that_is_accepted() {
    let server = Server::start("redis", &[]).await;
    RedisStore::connect(server.url()).await.expect("noeviction is Redis' default");
    for policy in ["allkeys-lru", "volatile-ttl"] {
        server.command(&["CONFIG", "SET", POLICY, policy]).await;
        let error = RedisStore::connect(server.url()).await.expect_err(policy);
        assert_eq!(error.kind(), StoreErrorKind::Configuration);
        assert!(told(&error).contains(policy) && told(&error).contains("noeviction"), "{}", told(&error));
        let store = RedisStore::connect_lazy(server.url()).expect("open").allow_eviction();
        store.check().await.expect("accepted");
        complete(&store, "s", policy).await;
    }
}

pub(crate) async fn server_that_does_not_tell_is_refused_unless_that_is_accepted() {
    let server = Server::start("redis", &[]).await;
    let user = |name: &str| server.url().replace("redis://", &format!("redis://{name}:pass@"));
    server.command(&["ACL", "SETUSER", "asks", "on", ">pass", "~*", "+@all", "-info"]).await;
    server.command(&["ACL", "SETUSER", "blind", "on", ">pass", "~*", "+@all", "-info", "-config"]).await;
    server.command(&["ACL", "SETUSER", "idle", "on", ">pass", "~*", "+@all", "-evalsha"]).await;
    RedisStore::connect(&user("asks")).await.expect("CONFIG GET tells");
    let error = RedisStore::connect(&user("blind")).await.expect_err("nothing tells");
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
    assert!(told(&error).contains("maxmemory-policy"), "{}", told(&error));
    RedisStore::connect_lazy(&user("blind")).unwrap().allow_eviction().check().await.expect("accepted");
    let error = RedisStore::connect(&user("idle")).await.expect_err("no right to run scripts");
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
    assert!(told(&error).contains("evalsha"), "{}", told(&error));

    // It could claim, and complete nothing of that.
    server.command(&["ACL", "SETUSER", "half", "on", ">pass", "~*", "+@all", "-pexpire"]).await;
    let error = RedisStore::connect(&user("half")).await.expect_err("no right to complete");
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
    assert!(told(&error).contains("pexpire"), "{}", told(&error));

    server.command(&["CONFIG", "SET", POLICY, "allkeys-lfu"]).await;
    let error = RedisStore::connect(&user("asks")).await.expect_err("CONFIG GET tells");
    assert!(told(&error).contains("allkeys-lfu"), "{}", told(&error));
}

pub(crate) async fn every_node_of_a_cluster_is_checked() {
    let server = Server::start("redis-cluster", &[]).await;
    RedisStore::connect_cluster(server.urls()).await.expect("noeviction is Redis' default");
    let error = RedisStore::connect(server.urls()[0]).await.expect_err("one node of a cluster");
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
    assert!(told(&error).contains("cluster"), "{}", told(&error));

    super::ask::<redis::Value>(server.urls()[1], &["CONFIG", "SET", POLICY, "allkeys-lru"]).await;
    let error = RedisStore::connect_cluster(server.urls()).await.expect_err("one of them evicts");
    let address = server.urls()[1].trim_start_matches("redis://");
    assert!(told(&error).contains(address), "{}", told(&error));
    RedisStore::connect_cluster_lazy(server.urls())
        .unwrap()
        .allow_eviction()
        .check()
        .await
        .expect("accepted");
}
