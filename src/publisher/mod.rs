//! Sending: stamp, publish, confirm, retry under the same ID.
//!
//! [`IdempotentPublisher`] gives a message its ID once, before the first attempt, and sends it,
//! again after a nack or a lost connection, until the broker has confirmed it or the
//! [`RetryPolicy`] ends. The verdict is a [`Receipt`] or a [`PublishError`], which hands the
//! message back and says whether it may have been published all the same.
//!
//! One message: [`publish_idempotent`](IdempotentPublisher::publish_idempotent). Many:
//! [`publish_all`](IdempotentPublisher::publish_all) and
//! [`publish_stream`](IdempotentPublisher::publish_stream). Confirms that are awaited later:
//! [`enqueue`](IdempotentPublisher::enqueue). Settings: [`PublisherBuilder`]. Whoever is to work
//! with something else in its place is generic over [`Publish`].

mod builder;
mod channel;
mod closing;
mod connection;
mod enqueue;
mod error;
#[cfg(feature = "testing")]
mod in_memory;
#[cfg(feature = "metrics")]
mod metrics;
mod outlet;
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
pub use outlet::Publish;
pub use pending::PendingConfirm;
pub use publish::IdempotentPublisher;
pub use publish_all::PublishAll;
pub use receipt::Receipt;
pub use retry::RetryPolicy;
pub use status::{PublisherState, PublisherStatus};
pub use telemetry::Attempt;

pub(crate) use builder::{FRAME_MAX, MAX_BODY};
pub(crate) use error::Failure;
#[cfg(feature = "testing")]
pub(crate) use in_memory::{MemoryPublish, verdict};
pub(crate) use payload::Forwarded;
pub(crate) use stamp::{Limits, Stamper};
pub(crate) use telemetry::ContextSource;
