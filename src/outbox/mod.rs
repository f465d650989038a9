//! A transactional outbox: a message is published if, and only after, the transaction commits that
//! enqueued it.

mod contract;
mod encode;
mod error;
mod floor;
mod keys;
mod lanes;
mod placement;
mod routes;
mod verdict;
mod wake;

pub use contract::{
    Batch, Failed, Lane, NewRow, Next, Outbox, Ownership, ParkedRow, ReadRequest, RelayId, Removed, Route,
    Row, RowId, Select, TableStatus, Term,
};
pub use error::EnqueueError;
pub use placement::Placement;
pub use wake::Wake;
