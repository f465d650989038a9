//! What was written before 0.1.0, when an identity was a hash, is understood.

use std::time::{Duration, SystemTime};

use lapin_idempotent::{
    IdempotencyStore, RedisStore,
    idempotency::{Claim, Inspect, Lease, Record, StoreErrorKind},
    message::Fingerprint,
};

use super::{acquire, claim, cluster, complete, node, request, try_claim, unique, variable};

trials! {
    what_was_completed_is_known,
    running_lease_is_respected_and_its_owner_completes,
    ended_leases_are_taken_over_under_greater_tokens,
    what_was_completed_is_forgotten_on_purpose,
}

/// Stores with what writes their keys: on one server, and in a cluster.
async fn stores() -> Vec<(RedisStore, Old)> {
    let prefix = unique("old");
    [node().await, cluster().await]
        .into_iter()
        .zip(["REDIS_URL", "REDIS_CLUSTER_URL"])
        .map(|(store, servers)| (store.prefix(&prefix), Old { servers, prefix: prefix.clone() }))
        .collect()
}

/// Writes as the scripts did.
struct Old {
    servers: &'static str,
    prefix: String,
}

impl Old {
    /// An identity of the scope `s`.
    async fn write(&self, id: &str, fields: &[(&str, &[u8])]) {
        let mut set = redis::cmd("HSET");
        set.arg(format!("{}{{}}:1:s:{id}", self.prefix));
        for (name, value) in fields {
            set.arg(name).arg(value);
        }
        let urls = variable(self.servers);
        if self.servers == "REDIS_URL" {
            let client = redis::Client::open(urls).expect("URL");
            let mut server = client.get_multiplexed_async_connection().await.expect("connect");
            set.query_async::<u32>(&mut server).await.expect("written");
        } else {
            let client = redis::cluster::ClusterClient::new(urls.split(',')).expect("URLs");
            let mut cluster = client.get_async_connection().await.expect("connect");
            set.query_async::<u32>(&mut cluster).await.expect("written");
        }
    }

    async fn completed(&self, id: &str, token: u64) {
        let (token, print) = (token.to_string(), Fingerprint::of(id.as_bytes()));
        let fields = [("t", token.as_bytes()), ("a", b"1700000000123"), ("f", print.as_bytes().as_slice())];
        self.write(id, &fields).await;
    }

    /// Whose lease ends in so long.
    async fn leased(&self, id: &str, token: u64, left: Duration) {
        let ends = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + left;
        let (token, ends) = (token.to_string(), ends.as_millis().to_string());
        self.write(id, &[("t", token.as_bytes()), ("e", ends.as_bytes()), ("n", b"0123456789abcdef")]).await;
    }
}

fn lease(id: &str, token: u64) -> Lease {
    Lease::new(&request("s", id), token)
}

pub(crate) async fn what_was_completed_is_known() {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
    for (store, old) in stores().await {
        old.completed("x", 7).await;
        let completed = request("s", "x");
        let fingerprint = Fingerprint::of(b"x");
        let known = claim(&store, "s", "x").await;
        assert!(
            matches!(known, Claim::Completed { fingerprint: f, processed_at, .. } if (f, processed_at) == (fingerprint, at))
        );
        let found = store.find(&completed.scope, &completed.message_id).await.expect("find");
        assert!(
            matches!(found, Some(Record::Completed { fingerprint: f, processed_at, .. }) if (f, processed_at) == (fingerprint, at))
        );
        // Beside one of today, and one that is in progress.
        complete(&store, "s", "today").await;
        old.leased("y", 8, Duration::from_secs(60)).await;
        assert_eq!(store.count(&completed.scope).await.expect("count"), 2);
        store.complete(lease("x", 7)).await.expect("as if the reply had been lost");
        let stale = store.complete(lease("x", 6)).await.expect_err("stale");
        assert_eq!(stale.kind(), StoreErrorKind::LeaseLost);
    }
}

pub(crate) async fn running_lease_is_respected_and_its_owner_completes() {
    for (store, old) in stores().await {
        for id in ["completes", "releases", "renews"] {
            old.leased(id, 7, Duration::from_secs(60)).await;
            let (found, _) = try_claim(&store, "s", id).await.expect("claim");
            assert!(
                matches!(found, Claim::InProgress { remaining, .. } if remaining > Duration::from_secs(30))
            );
        }
        store.complete(lease("completes", 7)).await.expect("complete");
        assert!(matches!(claim(&store, "s", "completes").await, Claim::Completed { .. }));
        store.release(lease("releases", 7)).await.expect("release");
        assert!(acquire(&store, "s", "releases").await.token() > 7);

        let store = store.lease(Duration::from_millis(300));
        let renewing = store.keep_alive(&lease("renews", 7)).expect("a lease");
        // Renewed it ends sooner than it would have, and not before it is renewed no more.
        let renewed = super::eventually("renewed", async || {
            let request = request("s", "renews");
            match store.find(&request.scope, &request.message_id).await.expect("find") {
                Some(Record::InProgress { remaining, .. }) if remaining < Duration::from_secs(1) => Some(()),
                _ => None,
            }
        });
        tokio::select! {
            lost = renewing => panic!("{lost}"),
            () = renewed => {}
        }
        assert!(super::acquire_later(&store, "s", "renews").await.token() > 7);
    }
}

pub(crate) async fn ended_leases_are_taken_over_under_greater_tokens() {
    for (store, old) in stores().await {
        // A clock that was ahead of today's.
        let ahead = acquire(&store, "s", "now").await.token() + 86_400_000_000;
        old.write("ended", &[("t", ahead.to_string().as_bytes()), ("e", b"1700000000123"), ("n", b"x")])
            .await;
        old.write("released", &[("t", ahead.to_string().as_bytes())]).await;
        for id in ["ended", "released"] {
            let lease = acquire(&store, "s", id).await;
            assert_eq!(lease.token(), ahead + 1, "{id}");
            store.complete(lease).await.expect("complete");
        }
    }
}

pub(crate) async fn what_was_completed_is_forgotten_on_purpose() {
    for (store, old) in stores().await {
        old.completed("x", 7).await;
        let completed = request("s", "x");
        assert!(store.forget(&completed.scope, &completed.message_id).await.expect("forget"));
        assert_eq!(store.find(&completed.scope, &completed.message_id).await.expect("find"), None);
        assert!(acquire(&store, "s", "x").await.token() > 7);
    }
}
