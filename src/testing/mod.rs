//! For tests: a [conformance suite](conformance) for stores and outboxes of your own, a
//! [clock](ManualClock) that is set by hand, a [publisher](MemoryPublisher) without a broker and an
//! [outbox](MemoryOutbox) without a database.
//!
//! The feature `testing` also turns on tokio's `test-util`: after `tokio::time::pause()` the leases
//! of a [`MemoryStore`](crate::MemoryStore) run out without waiting. Enable it under
//! `[dev-dependencies]`.

mod clock;
pub mod conformance;
mod outbox;
mod publisher;

pub use clock::ManualClock;
pub use outbox::{MemoryOutbox, MemoryTransaction};
pub use publisher::MemoryPublisher;
