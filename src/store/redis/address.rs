//! URLs of Redis servers, with more checks: what would be ignored is refused, and no text
//! holds the URL, which may carry a password.

use redis::{ConnectionInfo, IntoConnectionInfo};
use url::Url;

use super::error::Secrets;
use crate::idempotency::{StoreError, StoreErrorKind};

/// One or more servers, and how to log in.
pub(super) struct Addresses {
    pub(super) nodes: Vec<ConnectionInfo>,
    pub(super) secrets: Secrets,
    /// Hosts and ports, to be shown.
    pub(super) shown: String,
}

impl Addresses {
    pub(super) fn parse(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, StoreError> {
        let nodes = urls.into_iter().map(|url| node(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Err(refused("no URL was given"));
        }
        let passwords = nodes.iter().filter_map(|node| node.redis_settings().password().map(str::to_owned));
        let secrets = Secrets::new(passwords);
        let shown: Vec<String> = nodes.iter().map(|node| node.addr().to_string()).collect();
        Ok(Self { secrets, shown: shown.join(","), nodes })
    }
}

fn node(text: &str) -> Result<ConnectionInfo, StoreError> {
    let url = Url::parse(text).map_err(|_| refused("not a URL, such as redis://host:6379"))?;
    match url.scheme() {
        "redis" | "valkey" => {}
        "rediss" | "valkeys" if cfg!(feature = "tls") => {}
        "rediss" | "valkeys" => return Err(refused("rediss needs the crate feature `tls`")),
        _ => return Err(refused("the scheme must be redis or rediss")),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(refused("the host is missing"));
    }
    if url.fragment().is_some() {
        return Err(refused("a fragment has no meaning here: write `#` as %23"));
    }
    if url.query_pairs().any(|(key, value)| key != "protocol" || !matches!(&*value, "resp2" | "resp3")) {
        return Err(refused("a query other than `protocol=resp2` or `protocol=resp3` has no meaning here"));
    }
    if !url.username().is_empty() && url.password().is_none() {
        return Err(refused(
            "a user without a password would be ignored: write a lone password as redis://:password@host",
        ));
    }
    // What redis says of the rest is a fixed text.
    url.into_connection_info().map_err(|error| refused(error.to_string()))
}

pub(super) fn refused(reason: impl Into<crate::error::BoxError>) -> StoreError {
    StoreError::new(StoreErrorKind::Configuration, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_percent_decoded() {
        let addresses = Addresses::parse(["redis://us%40er:p%2fw%23@[::1]:7000/3"]).unwrap();
        let node = &addresses.nodes[0];
        assert_eq!(node.redis_settings().username(), Some("us@er"));
        assert_eq!(node.redis_settings().password(), Some("p/w#"));
        assert_eq!((node.redis_settings().db(), addresses.shown.as_str()), (3, "::1:7000"));
    }

    #[test]
    fn what_would_be_ignored_is_refused_without_a_word_of_the_url() {
        for text in [
            "canary",
            "http://:canary@h",
            "redis://:canary@",
            "redis://:canary@:6379",
            "redis://:canary@h:99999",
            "redis://:canary@h/x",
            "redis://:canary@h?timeout=5",
            "redis://:canary@h?protocol=canary",
            "redis://:canary@h/#insecure",
            "redis://canary@h",
            "redis://:canary%ff@h",
            "redis://:canary@0.0.0.0",
        ] {
            let error = Addresses::parse([text]).err().unwrap();
            assert_eq!(error.kind(), StoreErrorKind::Configuration, "{text}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{text}: {error:?}");
        }
        assert!(Addresses::parse([""; 0]).is_err());
    }
}
