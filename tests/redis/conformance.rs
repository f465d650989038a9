//! The suite that anybody's store can be tried with.

use std::time::Duration;

use lapin_idempotent::{
    RedisStore,
    testing::conformance::{self, Capabilities},
};

use super::{unique, variable};

trials! {
    of_one_server,
    of_a_cluster,
}

const LEASE: Duration = Duration::from_millis(800);

/// Keys expire by themselves: there is nothing to purge.
fn capabilities() -> Capabilities {
    Capabilities::leased(LEASE).purges(false)
}

pub(crate) async fn of_one_server() {
    let prefix = unique("conformance");
    let open = async || {
        let store = RedisStore::connect(&variable("REDIS_URL")).await.expect("connect");
        store.prefix(&prefix).lease(LEASE)
    };
    conformance::run(&open, capabilities()).await.assert();
    conformance::run_inspection(&open, capabilities()).await.assert();
}

pub(crate) async fn of_a_cluster() {
    let prefix = unique("conformance");
    let open = async || {
        let urls = variable("REDIS_CLUSTER_URL");
        let store = RedisStore::connect_cluster(urls.split(',')).await.expect("connect");
        store.prefix(&prefix).lease(LEASE)
    };
    conformance::run(&open, capabilities()).await.assert();
    conformance::run_inspection(&open, capabilities()).await.assert();
}
