//! What the store accepts, and what it refuses before any message is taken.

use std::time::Duration;

use lapin_idempotent::{IdempotencyStore, RedisStore, idempotency::StoreErrorKind};

use super::{claim, complete, node, server::Server, told, unique, variable};

trials! {
    settings_that_cannot_work_are_refused,
    purge_has_nothing_to_do_and_says_if_it_should,
    other_connections_work,
    evicting_server_is_refused_unless_that_is_accepted,
    server_that_does_not_tell_is_refused_unless_that_is_accepted,
    every_node_of_a_cluster_is_checked,
}

const POLICY: &str = "maxmemory-policy";

pub(crate) async fn settings_that_cannot_work_are_refused() {
    let store = || RedisStore::open("redis://localhost").expect("URL");
    let day = Duration::from_secs(86_400);
    let refused = [
        store().lease(Duration::ZERO),
        store().lease(8 * day),
        store().retention(Duration::from_secs(29)),
        store().retention(Duration::MAX),
        store().timeout(Duration::ZERO),
        store().prefix(""),
        store().prefix("a{b}"),
        store().prefix("a b"),
        store().prefix("ä"),
        store().prefix(&"a".repeat(65)),
        RedisStore::open("http://localhost"),
        RedisStore::open_cluster([]),
        RedisStore::open_cluster(["redis://:canary@a", "redis://:canary2@b"]),
    ];
    for (index, result) in refused.into_iter().enumerate() {
        let error = result.expect_err("refused");
        assert_eq!(error.kind(), StoreErrorKind::Configuration, "{index}");
        assert!(!told(&error).contains("canary"), "{index}");
    }
    assert_eq!(RedisStore::open("rediss://localhost").is_ok(), cfg!(feature = "tls"));
    let all = store().retention(30 * day).and_then(|store| store.lease(8 * day)).expect("in this order");
    let shown = format!("{:?}", all.timeout(Duration::from_secs(1)).unwrap().prefix("inbox:1").unwrap());
    assert!(shown.contains("localhost:6379") && shown.contains("inbox:1"), "{shown}");
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
        let store = store.prefix(&unique("own")).unwrap();
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
        let store = RedisStore::open(server.url()).expect("open").allow_eviction();
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
    RedisStore::open(&user("blind")).unwrap().allow_eviction().check().await.expect("accepted");
    let error = RedisStore::connect(&user("idle")).await.expect_err("no right to run scripts");
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
    assert!(told(&error).contains("evalsha"), "{}", told(&error));

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
    RedisStore::open_cluster(server.urls()).unwrap().allow_eviction().check().await.expect("accepted");
}
