//! What can be set, and what of it cannot be.

use std::{sync::Arc, time::Duration};

use crate::store::lease;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MILLISECOND: Duration = Duration::from_millis(1);
/// Milliseconds since 1970 that are added to it are still exact in a script, whose numbers are
/// doubles.
const LONGEST: Duration = DAY.saturating_mul(36_500);

/// A setting of a [`RedisStore`](super::RedisStore) that cannot be: the source of an error of kind
/// [`Configuration`](crate::idempotency::StoreErrorKind::Configuration).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {reason}")]
pub struct InvalidRedisSetting {
    setting: &'static str,
    reason: &'static str,
}

impl InvalidRedisSetting {
    /// The method of the store that sets it, such as `lease`.
    pub fn setting(&self) -> &'static str {
        self.setting
    }
}

#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) prefix: Arc<str>,
    pub(super) lease: Duration,
    pub(super) retention: Duration,
    pub(super) timeout: Duration,
    pub(super) eviction_allowed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            prefix: "lapin-idempotent".into(),
            lease: lease::DEFAULT_LEASE,
            retention: DAY * 7,
            timeout: Duration::from_secs(5),
            eviction_allowed: false,
        }
    }
}

impl Options {
    /// All of them together, so that they can be set in any order.
    pub(super) fn check(&self) -> Result<(), InvalidRedisSetting> {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'{' && byte != b'}';
        let refused = [
            (
                !(1..=64).contains(&self.prefix.len()) || !self.prefix.bytes().all(plain),
                "prefix",
                "1 to 64 characters of visible ASCII, and no braces",
            ),
            (self.lease < MILLISECOND, "lease", "a millisecond at least"),
            (self.retention > LONGEST, "retention", "a hundred years at most"),
            (self.retention < self.lease, "retention", "not shorter than the lease"),
            (self.timeout < MILLISECOND, "timeout", "a millisecond at least"),
        ];
        match refused.into_iter().find(|(refused, ..)| *refused) {
            Some((_, setting, reason)) => Err(InvalidRedisSetting { setting, reason }),
            None => Ok(()),
        }
    }

    /// What is added to the time of now: a day at most.
    pub(super) fn limit(&self) -> Duration {
        self.timeout.min(DAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(set: impl FnOnce(&mut Options)) -> Option<&'static str> {
        let mut options = Options::default();
        set(&mut options);
        options.check().err().map(|error| error.setting())
    }

    #[test]
    fn each_value_that_cannot_be_is_named() {
        assert_eq!(refused(|_| ()), None);
        for prefix in ["", "a{b}", "a b", "ä", &"a".repeat(65)] {
            assert_eq!(refused(|options| options.prefix = prefix.into()), Some("prefix"), "{prefix}");
        }
        for (lease, named) in
            [(Duration::ZERO, "lease"), (DAY * 8, "retention"), (Duration::MAX, "retention")]
        {
            assert_eq!(refused(|options| options.lease = lease), Some(named), "{lease:?}");
        }
        for retention in [Duration::from_secs(29), Duration::MAX, LONGEST + MILLISECOND] {
            assert_eq!(refused(|options| options.retention = retention), Some("retention"), "{retention:?}");
        }
        assert_eq!(refused(|options| options.timeout = Duration::ZERO), Some("timeout"));
        let edges = |options: &mut Options| {
            (options.lease, options.retention, options.timeout) = (LONGEST, LONGEST, Duration::MAX);
        };
        assert_eq!(refused(edges), None);
    }
}
