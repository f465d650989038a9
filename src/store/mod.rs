//! Stores: where identities are remembered. The table of the [crate](crate#stores) compares them;
//! what each can lose is in the guide, [`stores`](crate::guide::stores).

mod clock;
mod lease;
mod memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "testing")]
mod sabotage;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(any(feature = "mysql", feature = "postgres", feature = "redis", feature = "sqlite"))]
use std::time::SystemTime;

use crate::{idempotency::Scope, message::MessageId};

#[cfg(feature = "testing")]
pub(crate) use sabotage::Sabotage;

pub use clock::Clock;
pub use memory::MemoryStore;
#[cfg(feature = "mysql")]
pub use mysql::{MySqlOutbox, MySqlStore, MySqlTransaction};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresOutbox, PostgresStore, PostgresTransaction};
#[cfg(feature = "redis")]
pub use redis::{InvalidRedisSetting, RedisConnection, RedisStore};
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub use sql::{
    InvalidTableName, LeasedStore, ReplayOpening, ReplayOutlook, ReplayedMessage, Replays, Replies,
    SchemaMismatch, SqlDatabase, SqlOutbox, SqlStore,
};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteOutbox, SqliteStore, SqliteTransaction};

/// What a store's server says of itself.
#[cfg(any(feature = "mysql", feature = "postgres", feature = "redis", feature = "sqlite"))]
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerFacts {
    /// Its version, in its own words.
    pub version: String,
    /// What its clock says, by which identities age.
    pub clock: SystemTime,
}

/// An operator's deliberate replay leaves a trace, in every store the same.
fn log_forgotten(scope: &Scope, message_id: &MessageId) {
    tracing::warn!(%scope, %message_id, "identity forgotten on request: its message takes effect once more");
}
