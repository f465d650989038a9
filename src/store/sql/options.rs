//! Time limits of a SQL store.

use std::time::Duration;

/// How long a store lets a transaction wait for something. Set in every transaction that it opens,
/// so that they hold for the handler's statements too.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(any(feature = "postgres", feature = "mysql")),
    expect(dead_code, reason = "SQLite has fewer limits, and one connection")
)]
pub struct Limits {
    /// For a lock that a rival holds.
    pub(in crate::store) lock: Duration,
    /// For one statement.
    pub(in crate::store) statement: Duration,
    /// For the client's next statement inside a transaction.
    pub(in crate::store) idle: Duration,
    /// For a connection of the pool.
    pub(in crate::store) acquire: Duration,
    /// Connections of a pool that the store opens.
    pub(in crate::store) connections: u32,
}

impl Limits {
    /// For an answer to the store's own statements, a frozen server included.
    pub(super) fn answer(&self) -> Duration {
        self.statement.max(self.lock).saturating_add(Duration::from_secs(5))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lock: Duration::from_secs(5),
            statement: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            acquire: Duration::from_secs(5),
            connections: 10,
        }
    }
}

/// Milliseconds, at least one: the databases read zero as "no limit".
pub(in crate::store) fn millis(limit: Duration) -> i64 {
    i64::try_from(limit.as_millis()).unwrap_or(i64::MAX).clamp(1, i64::from(i32::MAX))
}

pub(in crate::store) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX / 2).min(i64::MAX / 2)
}
