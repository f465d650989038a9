//! The list of the tests, and what they share.

#[path = "../support/server.rs"]
mod database_server;
#[path = "../support/trials.rs"]
mod trials;

#[path = "conformance.rs"]
mod conformance;
#[path = "faults.rs"]
mod faults;
#[path = "leases.rs"]
mod leases;
#[path = "safety.rs"]
mod safety;
#[path = "sentinel.rs"]
mod sentinel;
#[path = "server.rs"]
mod server;
#[path = "settings.rs"]
mod settings;

use std::{process::ExitCode, time::Duration};

use lapin_idempotent::{
    IdempotencyStore, MessageId, RedisStore,
    idempotency::{Claim, ClaimRequest, Lease, Scope, StoreError},
    message::Fingerprint,
};
use libtest_mimic::Arguments;
use tokio::time::{Instant, sleep};

use trials::{there, trial};

pub(crate) fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let Ok(there) = there(&["REDIS_URL", "REDIS_CLUSTER_URL"]) else { return ExitCode::FAILURE };
    let mut trials = Vec::new();
    macro_rules! trials {
        ($($module:ident::$test:ident,)*) => {$(
            trials.push(trial(concat!(stringify!($module), "::", stringify!($test)), $module::$test, there));
        )*};
    }
    trials! {
        conformance::of_one_server,
        conformance::of_a_cluster,
        faults::store_outlives_its_server,
        faults::store_outlives_a_restart_that_it_did_not_notice,
        faults::store_outlives_a_whole_cluster,
        faults::completing_outlasts_a_restart,
        faults::lost_answer_is_asked_for_again,
        faults::frozen_server_keeps_nobody_waiting_for_long,
        faults::frozen_node_of_a_cluster_keeps_only_its_own_waiting,
        faults::full_server_refuses_claims_and_still_completes,
        faults::password_is_never_told,
        faults::lost_memory_is_a_lost_lease,
        leases::later_leases_have_greater_tokens,
        leases::stale_lease_changes_nothing,
        leases::released_lease_cannot_complete,
        leases::lease_is_kept_alive_and_its_end_is_told,
        leases::lease_that_ran_out_is_still_ours_until_somebody_takes_it,
        leases::of_two_rivals_one_acquires,
        leases::batch_is_answered_in_order_also_by_servers_that_forgot_the_scripts,
        safety::identity_is_exact_whatever_it_contains,
        safety::cluster_spreads_identities_over_its_nodes,
        safety::redis_forgets_after_the_retention_and_not_before,
        safety::identity_in_progress_is_not_forgotten_before_its_lease_ends,
        safety::operators_can_look_into_the_store,
        safety::what_is_not_ours_is_an_error_and_is_left_alone,
        settings::settings_that_cannot_work_are_refused,
        settings::purge_has_nothing_to_do_and_says_if_it_should,
        settings::other_connections_work,
        settings::evicting_server_is_refused_unless_that_is_accepted,
        settings::server_that_does_not_tell_is_refused_unless_that_is_accepted,
        settings::every_node_of_a_cluster_is_checked,
        sentinel::store_follows_the_primary_through_failovers,
    }
    libtest_mimic::run(&arguments, trials).exit_code()
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
    store.prefix(&unique("node")).expect("prefix")
}

async fn cluster() -> RedisStore {
    let urls = variable("REDIS_CLUSTER_URL");
    let store = RedisStore::connect_cluster(urls.split(',')).await.expect("connect");
    store.prefix(&unique("cluster")).expect("prefix")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// Both.
async fn both() -> Vec<RedisStore> {
    vec![node().await, cluster().await]
}

fn request(scope: &str, id: &str) -> ClaimRequest {
    ClaimRequest::new(Scope::new(scope).unwrap(), MessageId::new(id).unwrap(), Fingerprint::of(id.as_bytes()))
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

/// Asks a server over a connection of its own; again, if that breaks: a server ends its connections
/// when it becomes a replica.
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
