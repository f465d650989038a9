//! For tests: a [conformance suite](conformance) for stores of your own, and a [clock](ManualClock)
//! that is set by hand.
//!
//! The feature `testing` also turns on tokio's `test-util`: after `tokio::time::pause()` the leases
//! of a [`MemoryStore`](crate::MemoryStore) run out without waiting. Enable it under
//! `[dev-dependencies]`.

mod clock;
pub mod conformance;

pub use clock::ManualClock;
