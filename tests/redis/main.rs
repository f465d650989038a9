//! What is particular to the Redis store, against real servers: a single one (`REDIS_URL`), a cluster (`REDIS_CLUSTER_URL`, comma
//! separated), and private ones.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod faults;
mod leases;
mod safety;
mod server;
mod settings;

use std::time::Duration;

use lapin_idempotent::{
    IdempotencyStore, MessageId, RedisStore,
    idempotency::{Claim, ClaimRequest, Lease, Scope, StoreError},
    message::Fingerprint,
};
use tokio::time::{Instant, sleep};

use server::variable;

/// The longest that anything may take before it counts as hung.
const DEADLINE: Duration = Duration::from_secs(30);

/// A store on the shared server, under a prefix of its own.
async fn node() -> Option<RedisStore> {
    let store = RedisStore::connect(&variable("REDIS_URL")?).await.expect("connect");
    Some(store.prefix(&unique("node")).expect("prefix"))
}

async fn cluster() -> Option<RedisStore> {
    let urls = variable("REDIS_CLUSTER_URL")?;
    let store = RedisStore::connect_cluster(urls.split(',')).await.expect("connect");
    Some(store.prefix(&unique("cluster")).expect("prefix"))
}

/// Both.
async fn both() -> Vec<RedisStore> {
    [node().await, cluster().await].into_iter().flatten().collect()
}

fn unique(name: &str) -> String {
    format!("test-{name}-{}", uuid::Uuid::new_v4().simple())
}

fn request(scope: &str, id: &str) -> ClaimRequest {
    ClaimRequest {
        scope: Scope::new(scope).unwrap(),
        message_id: MessageId::new(id).unwrap(),
        fingerprint: Fingerprint::of(id.as_bytes()),
    }
}

async fn try_claim(store: &RedisStore, scope: &str, id: &str) -> Result<(Claim, Option<Lease>), StoreError> {
    let mut claims = store.claim(&[request(scope, id)]).await?;
    assert_eq!(claims.claims.len(), 1);
    assert_eq!(claims.session.is_some(), claims.claims[0] == Claim::Acquired);
    Ok((claims.claims.remove(0), claims.session))
}

async fn claim(store: &RedisStore, scope: &str, id: &str) -> Claim {
    try_claim(store, scope, id).await.expect("claim").0
}

async fn acquire(store: &RedisStore, scope: &str, id: &str) -> Lease {
    try_claim(store, scope, id).await.expect("claim").1.expect("acquired")
}

async fn complete(store: &RedisStore, scope: &str, id: &str) {
    let lease = acquire(store, scope, id).await;
    store.complete(lease).await.expect("complete");
}

/// Polls until the identity can be claimed.
async fn acquire_later(store: &RedisStore, scope: &str, id: &str) -> Lease {
    eventually("acquired", async || try_claim(store, scope, id).await.expect("claim").1).await
}

async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Asks a server over a connection of its own.
async fn ask<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> T {
    let client = redis::Client::open(url).expect("url");
    let mut connection = client.get_multiplexed_async_connection().await.expect("connect");
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await.expect("answer")
}

/// What an error and all its sources say, in both forms.
fn told(error: &StoreError) -> String {
    let mut told = vec![format!("{error} {error:?} {error:#?}")];
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        told.push(format!("{error} {error:?}"));
        source = error.source();
    }
    told.join(" ")
}
