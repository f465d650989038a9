//! Sending: stamp, publish, confirm, retry under the same ID.
//!
//! [`IdempotentPublisher`] gives a message its ID once, before the first attempt. A task that owns
//! a channel sends it, again after a nack or a lost connection, and finds out what the broker's
//! answers prove. The verdict is a [`Receipt`] or a [`PublishError`], which says whether the
//! message may have been published all the same.

mod builder;
mod channel;
mod closing;
mod connection;
mod error;
#[cfg(feature = "metrics")]
mod metrics;
mod payload;
mod pending;
mod permits;
mod publish;
mod publish_all;
mod receipt;
mod retry;
mod stamp;
mod start;
mod status;
mod telemetry;

pub use builder::PublisherBuilder;
pub use closing::CloseError;
pub use error::{PublishError, PublishErrorKind};
pub use pending::PendingConfirm;
pub use publish::IdempotentPublisher;
pub use publish_all::PublishAll;
pub use receipt::Receipt;
pub use retry::RetryPolicy;
pub use status::{PublisherState, PublisherStatus};
pub use telemetry::Attempt;

pub(crate) use error::Failure;
pub(crate) use payload::Forwarded;
