//! For tests: a handler that is [crashed everywhere](crash_everywhere()), and a [bed](TestBed) to
//! try it on, both without a broker: see the [guide](crate::guide::testing). A
//! [conformance suite](conformance) for stores and outboxes of your own, a [clock](ManualClock)
//! that is set by hand, a [publisher](MemoryPublisher) without a broker and an
//! [outbox](MemoryOutbox) without a database.
//!
//! The feature `testing` also turns on tokio's `test-util`: after `tokio::time::pause()` the leases
//! of a [`MemoryStore`](crate::MemoryStore) run out without waiting. Enable it under
//! `[dev-dependencies]`.

mod bed;
mod clock;
pub mod conformance;
mod crash;
mod outbox;
mod points;
mod publisher;

pub use bed::{BedPublisher, Decided, TestBed, TestBedBuilder};
pub use clock::ManualClock;
pub use crash::{CrashReport, CrashTest, Finding, Subject, crash_everywhere};
pub use outbox::{MemoryOutbox, MemoryTransaction};
pub use points::Point;
pub use publisher::MemoryPublisher;
