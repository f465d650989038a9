//! A primary that Redis Sentinel looks after.

use redis::{
    ConnectionInfo, TlsMode,
    sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType},
};

use super::{
    RedisStore,
    address::{Addresses, refused},
    connection::SharedConnection,
    error::Secrets,
};
use crate::idempotency::{IdempotencyStore, StoreError};

/// Asks the sentinels where the primary is, each time that a connection is opened.
pub(super) struct Sentinels {
    nodes: Vec<ConnectionInfo>,
    service: String,
    primary: SentinelNodeConnectionInfo,
}

impl RedisStore {
    /// Connects to the primary that Redis Sentinel names, and checks it. `primary` is its URL with
    /// the name of the service for a host and without a port, `redis://:password@mymaster/0`; the
    /// sentinels have URLs of their own, `redis://sentinel-1:26379`.
    ///
    /// The sentinels are asked again whenever a connection broke, or led to a server that is a
    /// primary no more. Until they have agreed on another one, calls fail as
    /// [`Unavailable`](crate::idempotency::StoreErrorKind::Unavailable). **A failover loses what
    /// was not replicated yet**, and such effects can be repeated.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    pub async fn connect_sentinel(
        sentinels: impl IntoIterator<Item = impl AsRef<str>>,
        primary: &str,
    ) -> Result<Self, StoreError> {
        let store = Self::connect_sentinel_lazy(sentinels, primary)?;
        store.check().await?;
        Ok(store)
    }

    /// Like [`connect_sentinel`](Self::connect_sentinel), but connects with the first call, and
    /// checks nothing.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`](crate::idempotency::StoreErrorKind::Configuration) for
    /// URLs that are refused.
    pub fn connect_sentinel_lazy(
        sentinels: impl IntoIterator<Item = impl AsRef<str>>,
        primary: &str,
    ) -> Result<Self, StoreError> {
        let (sentinels, secrets, shown) = parse(sentinels, primary)?;
        Ok(Self::over(SharedConnection::to_sentinels(sentinels, secrets, shown)))
    }
}

fn parse(
    sentinels: impl IntoIterator<Item = impl AsRef<str>>,
    primary: &str,
) -> Result<(Sentinels, Secrets, String), StoreError> {
    let Addresses { nodes, secrets, shown } = Addresses::parse(sentinels)?;
    let url = url::Url::parse(primary).map_err(|_| refused("not a URL, such as redis://mymaster"))?;
    if url.port().is_some() {
        return Err(refused("the sentinels know the primary's port: its URL has none"));
    }
    let named = Addresses::parse([primary])?;
    let node = &named.nodes[0];
    let mut info =
        SentinelNodeConnectionInfo::default().set_redis_connection_info(node.redis_settings().clone());
    if matches!(url.scheme(), "rediss" | "valkeys") {
        info = info.set_tls_mode(TlsMode::Secure);
    }
    let service = url.host_str().unwrap_or_default().to_owned();
    let shown = format!("{service} of {shown}");
    Ok((Sentinels { nodes, service, primary: info }, secrets.and(&named.secrets), shown))
}

impl Sentinels {
    /// They are asked in random order: one that is silent takes all the time of a call, but not of
    /// the next.
    pub(super) fn client(&self) -> redis::RedisResult<SentinelClient> {
        let mut nodes = self.nodes.clone();
        fastrand::shuffle(&mut nodes);
        let (service, primary) = (self.service.clone(), Some(self.primary.clone()));
        SentinelClient::build(nodes, service, primary, SentinelServerType::Master)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primary_is_named_and_no_secret_told() {
        let sentinels = ["redis://:canary@s1:26379", "redis://s2:26379"];
        let store = RedisStore::connect_sentinel_lazy(sentinels, "redis://:canary2@mymaster/3").unwrap();
        let shown = format!("{store:?}");
        assert!(shown.contains("mymaster of s1:26379,s2:26379") && !shown.contains("canary"), "{shown}");
        for (sentinels, primary) in [
            (sentinels.as_slice(), "redis://mymaster:6379"),
            (&sentinels, "mymaster"),
            (&sentinels, "redis://user@mymaster"),
            (&[], "redis://mymaster"),
            (&["http://s1"], "redis://mymaster"),
        ] {
            assert!(
                RedisStore::connect_sentinel_lazy(sentinels.iter().copied(), primary).is_err(),
                "{primary}"
            );
        }
    }
}
