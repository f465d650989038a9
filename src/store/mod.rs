//! Backends: where identities are remembered.

mod lease;
mod memory;
#[cfg(feature = "sqlite")]
mod sql;
#[cfg(feature = "sqlite")]
mod sqlite;

pub use memory::MemoryStore;
#[cfg(feature = "sqlite")]
pub use sql::InvalidTableName;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteStore, SqliteTransaction};
