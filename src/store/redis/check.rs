//! Whether the servers' settings let them remember.

use std::time::Duration;

use redis::{Value, cmd, from_redis_value};

use super::{address::refused, connection::SharedConnection, error::Failure};
use crate::idempotency::{StoreError, StoreErrorKind};

/// Scripts may ask for the time before they write, since what they did is replicated and not they
/// themselves.
const OLDEST: u32 = 5;

/// Asks every node.
pub(super) async fn check(
    link: &SharedConnection,
    limit: Duration,
    eviction_allowed: bool,
) -> Result<(), StoreError> {
    let told = match link.everywhere(&cmd("INFO"), limit).await {
        Err(failure) if is_forbidden(&failure) => Vec::new(),
        told => told?,
    };
    let mut policies = Vec::new();
    for (node, info) in told {
        let info: String = from_redis_value(info).map_err(|_| Failure::unexpected())?;
        judge(&node, &info, link.is_cluster())?;
        policies.extend(field(&info, "maxmemory_policy").map(|policy| (node, policy.to_owned())));
    }
    if eviction_allowed {
        return Ok(());
    }
    if policies.is_empty() {
        policies = configured(link, limit).await?;
    }
    if policies.is_empty() {
        return Err(refused(
            "the server does not tell its maxmemory-policy (neither INFO nor CONFIG GET): see that it is noeviction, \
             and say so with allow_eviction",
        ));
    }
    match policies.into_iter().find(|(_, policy)| policy != "noeviction") {
        None => Ok(()),
        Some((node, policy)) => Err(refused(format!(
            "{node} may evict what it should remember, and effects would be repeated: maxmemory-policy is {policy}; \
             set it to noeviction, or accept that with allow_eviction"
        ))),
    }
}

fn judge(node: &str, info: &str, is_cluster: bool) -> Result<(), StoreError> {
    let version =
        field(info, "redis_version").and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if let Some(version) = version.filter(|version| *version < OLDEST) {
        return Err(refused(format!("{node} is Redis {version}: {OLDEST} or later is needed")));
    }
    if !is_cluster && field(info, "cluster_enabled") == Some("1") {
        return Err(refused(format!("{node} is one node of a cluster: connect to the cluster")));
    }
    if !is_cluster && field(info, "role") == Some("slave") {
        let reason = format!("{node} is a replica, which takes no writes: connect to its primary");
        return Err(StoreError::new(StoreErrorKind::Unavailable, reason));
    }
    Ok(())
}

/// The policies by `CONFIG GET`; none if that is forbidden, too.
async fn configured(link: &SharedConnection, limit: Duration) -> Result<Vec<(String, String)>, StoreError> {
    let mut ask = cmd("CONFIG");
    ask.arg("GET").arg("maxmemory-policy");
    let told = match link.everywhere(&ask, limit).await {
        Err(failure) if is_forbidden(&failure) => Vec::new(),
        told => told?,
    };
    let policy = |(node, value): (String, Value)| {
        let pairs: Vec<(String, String)> = from_redis_value(value).ok()?;
        pairs.into_iter().next().map(|(_, policy)| (node, policy))
    };
    Ok(told.into_iter().filter_map(policy).collect())
}

/// The server is there and knows the user, and refuses this command.
fn is_forbidden(failure: &Failure) -> bool {
    failure.kind == StoreErrorKind::Configuration && !failure.broken
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_cannot_work_are_refused() {
        let ok = "# Server\r\nredis_version:5.0.14\r\nrole:master\r\ncluster_enabled:0\r\n";
        judge("n", ok, false).unwrap();
        for (info, said) in [
            ("redis_version:4.0.9\r\n", "5 or later"),
            ("redis_version:7.2.4\r\ncluster_enabled:1\r\n", "cluster"),
            ("redis_version:7.2.4\r\nrole:slave\r\n", "replica"),
        ] {
            let error = judge("n", info, false).unwrap_err();
            assert!(format!("{error:?}").contains(said), "{error:?}");
        }
        judge("n", "redis_version:7.2.4\r\ncluster_enabled:1\r\nrole:slave\r\n", true).unwrap();
    }
}
