//! A failover by Redis Sentinel: the store goes on at the new primary.

use std::{path::PathBuf, process::Stdio};

use lapin_idempotent::RedisStore;
use tokio::process::{Child, Command};

use super::{ask, claim, complete, eventually, server::Server, try_claim};
use lapin_idempotent::idempotency::Claim;

trials! {
    store_follows_the_primary_through_failovers,
}

struct Sentinel {
    url: String,
    _process: Child,
}

fn port(url: &str) -> &str {
    url.trim_end_matches("/0").rsplit_once(':').expect("port").1
}

impl Sentinel {
    async fn of(primary: &Server) -> Self {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("sentinel.{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&dir).expect("folder");
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address").port();
        let settings = dir.join("sentinel.conf");
        let text = format!(
            "port {free}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 5000\n",
            dir.display(),
            port(primary.url()),
        );
        std::fs::write(&settings, text).expect("settings");
        let start = |program: &str| {
            let mut command = Command::new(program);
            command.arg(&settings).arg("--sentinel").stdout(Stdio::null()).kill_on_drop(true).spawn()
        };
        let process = start("redis-server").or_else(|_| start("valkey-server")).expect("a server");
        Self { url: format!("redis://127.0.0.1:{free}"), _process: process }
    }

    /// Waits until it knows the replica.
    async fn knows_a_replica(&self) {
        let known = async || {
            let client = redis::Client::open(self.url.as_str()).ok()?;
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            let told: redis::Value = redis::cmd("SENTINEL")
                .arg(&["REPLICAS", "mymaster"])
                .query_async(&mut connection)
                .await
                .ok()?;
            format!("{told:?}").contains("slave-priority").then_some(())
        };
        eventually("the sentinel knows the replica", known).await;
    }
}

pub async fn store_follows_the_primary_through_failovers() {
    let primary = Server::start("redis", &[]).await;
    let replica = Server::start("redis", &["--replicaof", "127.0.0.1", port(primary.url())]).await;
    let sentinel = Sentinel::of(&primary).await;
    sentinel.knows_a_replica().await;
    // The first one asked may be dead.
    let sentinels = ["redis://127.0.0.1:1", sentinel.url.as_str()];
    let store = RedisStore::connect_sentinel(sentinels, "redis://mymaster/0").await.expect("connect");
    complete(&store, "s", "before").await;
    let replicated = async || (ask::<u64>(replica.url(), &["DBSIZE"]).await == 1).then_some(());
    eventually("the replica has it", replicated).await;

    // An operator's: the old primary stays, and the store's connection to it.
    ask::<redis::Value>(&sentinel.url, &["SENTINEL", "FAILOVER", "mymaster"]).await;
    let demoted = async || {
        let role: redis::Value = ask(primary.url(), &["ROLE"]).await;
        format!("{role:?}").contains("slave").then_some(())
    };
    eventually("the old one is a replica", demoted).await;
    acquired(&store, "after the first").await;
    assert!(
        matches!(claim(&store, "s", "before").await, Claim::Completed { .. }),
        "replicated, and so known"
    );
    let back = async || (ask::<u64>(primary.url(), &["DBSIZE"]).await == 2).then_some(());
    eventually("the old one has caught up", back).await;

    // And back, as the new one dies.
    sentinel.knows_a_replica().await;
    replica.kill().await;
    acquired(&store, "after the second").await;
    assert!(matches!(claim(&store, "s", "before").await, Claim::Completed { .. }));
}

/// Claims are refused until there is a primary again.
async fn acquired(store: &RedisStore, id: &str) {
    eventually(id, async || {
        let (claim, _) = try_claim(store, "s", id).await.ok()?;
        (claim == Claim::Acquired).then_some(())
    })
    .await;
}
