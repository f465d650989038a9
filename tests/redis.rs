//! What is particular to the Redis store, against real servers: a single one (`REDIS_URL`), a
//! cluster (`REDIS_CLUSTER_URL`, comma separated), and private ones. `make test` starts them;
//! without them these tests are listed as ignored.

#![allow(unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::unused_async)]

#[cfg(all(feature = "redis", feature = "testing"))]
#[macro_use]
#[allow(dead_code)]
mod support;

#[cfg(all(feature = "redis", feature = "testing"))]
mod redis {
    mod conformance;
    mod faults;
    mod kit;
    mod leases;
    mod old_layout;
    mod safety;
    mod sentinel;
    mod server;
    mod settings;

    use std::time::Duration;

    use lapin_idempotent::{
        IdempotencyStore, MessageId, RedisStore,
        idempotency::{Claim, ClaimRequest, Lease, Scope, StoreError},
        message::Fingerprint,
    };
    use tokio::time::{Instant, sleep};

    use super::support;

    pub(crate) fn main() -> std::process::ExitCode {
        support::trials::run(
            &["REDIS_URL", "REDIS_CLUSTER_URL"],
            &[
                conformance::trials,
                faults::trials,
                kit::trials,
                leases::trials,
                old_layout::trials,
                safety::trials,
                sentinel::trials,
                settings::trials,
            ],
        )
    }

    /// A name that no other test and no other run has.
    fn unique(name: &str) -> String {
        format!("test-{name}-{}", uuid::Uuid::new_v4().simple())
    }

    /// The longest that anything may take before it counts as hung.
    const DEADLINE: Duration = Duration::from_secs(30);

    /// A store on the shared server, under a prefix of its own.
    async fn node() -> RedisStore {
        let store = RedisStore::connect(&variable("REDIS_URL")).await.expect("connect");
        store.prefix(&unique("node"))
    }

    async fn cluster() -> RedisStore {
        let urls = variable("REDIS_CLUSTER_URL");
        let store = RedisStore::connect_cluster(urls.split(',')).await.expect("connect");
        store.prefix(&unique("cluster"))
    }

    fn variable(name: &str) -> String {
        std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
    }

    /// Both.
    async fn both() -> Vec<RedisStore> {
        vec![node().await, cluster().await]
    }

    fn request(scope: &str, id: &str) -> ClaimRequest {
        ClaimRequest::new(
            Scope::new(scope).unwrap(),
            MessageId::new(id).unwrap(),
            Fingerprint::of(id.as_bytes()),
        )
    }

    async fn try_claim(
        store: &RedisStore,
        scope: &str,
        id: &str,
    ) -> Result<(Claim, Option<Lease>), StoreError> {
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

    /// Asks a server over a connection of its own; again, if that breaks: a server ends its
    /// connections when it becomes a replica.
    async fn ask<T: redis::FromRedisValue>(url: &str, words: &[&str]) -> T {
        let client = redis::Client::open(url).expect("url");
        let command = redis::cmd(words[0]).arg(&words[1..]).clone();
        let answer = async || {
            let mut connection = client.get_multiplexed_async_connection().await?;
            command.query_async(&mut connection).await
        };
        eventually("the server answers", async || match answer().await {
            Ok(answer) => Some(answer),
            Err(error) if error.is_io_error() => None,
            Err(error) => panic!("{words:?}: {error}"),
        })
        .await
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
}

#[cfg(all(feature = "redis", feature = "testing"))]
fn main() -> std::process::ExitCode {
    redis::main()
}

#[cfg(not(all(feature = "redis", feature = "testing")))]
fn main() {
    eprintln!("left out for want of the features `redis`, `testing`: all tests. `make test` runs them.");
}
