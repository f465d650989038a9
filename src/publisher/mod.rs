//! Sending: stamp, publish, confirm, retry under the same ID.
//!
//! The way of one message, from top to bottom:
//!
//! 1. `publish.rs` gives the message its ID once, before the first attempt, and waits for a place in the window;
//! 2. `lanes.rs` chooses a channel; `lane.rs` sends it on the one that its task owns, and again after a nack or a loss;
//! 3. `round.rs` and `confirms.rs` find out what the broker's answers prove;
//! 4. `isolation.rs` finds the message over which a channel or a connection ended;
//! 5. `job.rs` holds the message and its caller until the verdict, which is a [`Receipt`] or a [`PublishError`].

mod all;
mod attempt;
mod builder;
mod closing;
mod confirms;
mod connection;
mod delayed;
mod error;
mod generation;
mod handed;
mod isolation;
mod job;
mod lane;
mod lanes;
#[cfg(feature = "metrics")]
mod metrics;
mod observe;
mod payload;
mod pending;
mod places;
mod publish;
mod receipt;
mod retry;
mod round;
mod stamper;
mod status;

pub use all::PublishAll;
pub use builder::PublisherBuilder;
pub use closing::CloseError;
pub use error::{PublishError, PublishErrorKind};
pub use observe::Attempt;
pub use pending::PendingConfirm;
pub use publish::IdempotentPublisher;
pub use receipt::Receipt;
pub use retry::RetryPolicy;
pub use status::{PublisherState, PublisherStatus};

pub(crate) use error::Failure;
pub(crate) use payload::Forwarded;
