//! A transactional outbox: a message is published if, and only after, the transaction commits that
//! enqueued it. The guide's page is [`outbox`](crate::guide::outbox).
//!
//! `PostgresOutbox`, `MySqlOutbox` and `SqliteOutbox` put messages into a table, in the caller's
//! transaction. A [`Relay`] has some of the table's *lanes*, reads what is committed there,
//! publishes it through a [`Publish`](crate::Publish), and removes what was confirmed. A table of
//! your own implements [`Outbox`].
//!
//! # Invariants
//!
//! * **O1** A row is removed only after the confirm of its own message, or by an operator.
//! * **O2** Nothing uncommitted is read.
//! * **O3** ID, body and properties of a row never change.
//! * **O4** At most one message of an order key is under way in one relay, the oldest one. It stays
//!   that until its verdict.
//! * **O5** A lane is given back only with nothing of it under way.
//! * **O6** No read begins behind a row that may yet become visible.
//!
//! Order survives a take-over because each owner sends a message only after its own confirm of the
//! one before, so some copy of that was in the broker first, whoever wakes up late. It needs three
//! more things: nothing is sent that was read under a lease that has run out since, parked keys are
//! read after the lane was taken, and a failure is written only under the term of the lane.

mod contract;
mod encode;
mod error;
mod floor;
mod keys;
mod lanes;
#[cfg(feature = "metrics")]
mod metrics;
mod parked;
mod placement;
mod relay;
mod routes;
mod rows;
mod status;
mod telemetry;
mod verdict;
mod wake;

pub use contract::{
    Batch, Confirmed, Failed, Lane, NewRow, Next, Outbox, Ownership, ParkedKey, ParkedRow, ReadRequest,
    RelayId, Removed, Route, Row, RowId, Select, TableStatus, Term,
};
pub use error::EnqueueError;
pub use placement::Placement;
pub use relay::{Listen, OnPoison, Relay, RelayHandle};
pub use status::{RelayMonitor, RelayState, RelayStatus};
pub use telemetry::Relayed;
pub use wake::Wake;
