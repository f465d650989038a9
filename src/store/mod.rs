//! Backends: where identities are remembered.

mod clock;
mod lease;
mod memory;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use clock::Clock;
pub use memory::MemoryStore;
#[cfg(feature = "mysql")]
pub use mysql::{MySqlStore, MySqlTransaction};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresStore, PostgresTransaction};
#[cfg(feature = "redis")]
pub use redis::{RedisConnection, RedisStore};
#[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
pub use sql::{InvalidTableName, LeasedStore, SchemaMismatch, SqlDatabase, SqlStore};
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStore, SqliteTransaction};
