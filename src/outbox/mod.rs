//! A transactional outbox: a message is published if, and only after, the transaction commits that
//! enqueued it.

mod contract;
mod encode;
mod error;
mod floor;
mod keys;
mod lanes;
#[cfg(feature = "metrics")]
mod metrics;
mod placement;
mod relay;
mod routes;
mod row;
mod status;
mod telemetry;
mod verdict;
mod wake;

pub use contract::{
    Batch, Failed, Next, Outbox, Ownership, ParkedKey, ParkedRow, ReadRequest, RelayId, Removed, Select,
    TableStatus, Term,
};
pub use error::EnqueueError;
pub use placement::Placement;
pub use relay::{Listen, OnPoison, Relay, RelayHandle};
pub use row::{Lane, NewRow, Route, Row, RowId};
pub use status::{RelayMonitor, RelayState, RelayStatus};
pub use telemetry::Relayed;
pub use wake::Wake;
