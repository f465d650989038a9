//! Receiving: take deliveries, let the guard decide, settle.
//!
//! [`IdempotentConsumer`] consumes one queue: what took effect is acked after the commit, what
//! failed is delivered again after a delay, and what cannot be handled is parked. [`settle`] is the
//! one table from an outcome to what is done about it; [`DeliverySettler`] does that in a consume
//! loop of your own.
//! [`WorkQueue`] declares a queue as it is best for the broker's version, [`Unpark`] brings back
//! what was parked, and [`Parked`] looks at it.
//!
//! # Several queues
//!
//! A consumer has one queue. For several, run one for each, over clones of one store and with one
//! signal to stop:
//!
//! ```no_run
//! # use lapin_idempotent::{BoxError, HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, MemoryStore, idempotency::Lease};
//! # struct Debit;
//! # impl IdempotentHandler<MemoryStore> for Debit {
//! #     async fn handle(&self, _: &IncomingMessage, _: &mut Lease) -> HandlerResult { Ok(()) }
//! # }
//! # async fn example(store: MemoryStore, stop: tokio::sync::watch::Receiver<bool>) -> Result<(), BoxError> {
//! let consume = |queue: &'static str| {
//!     let mut stop = stop.clone();
//!     let stopped = async move {
//!         let _ = stop.wait_for(|stop| *stop).await;
//!     };
//!     IdempotentConsumer::builder("amqp://localhost", queue, store.clone())
//!         .scope("ledger")
//!         .run_until(Debit, stopped)
//! };
//! tokio::try_join!(consume("debits.eu"), consume("debits.uk"))?;
//! # Ok(())
//! # }
//! ```
//!
//! One scope for all of them lets a message take effect once whichever queue it comes from; a scope
//! for each queue lets it take effect once in each. If one of them fails, `try_join!` drops the
//! others, whose messages in hand are rolled back and delivered again.

mod ack_tracker;
mod backoff;
mod batch_size;
mod buffer;
mod builder;
mod consume;
mod consumption;
mod context;
mod control;
mod delay_queues;
mod delivery_limit;
mod delivery_settler;
mod dependency;
mod error;
mod failure_counts;
mod forwarder;
#[cfg(feature = "testing")]
mod in_memory;
mod options;
mod parked;
mod parking;
mod parking_channel;
mod pending;
mod prefetch;
mod replies;
mod retention;
mod rpc;
mod run;
mod settings;
mod settlement;
mod settler;
mod status;
mod subscription;
mod telemetry;
mod unpark;
mod work_queue;

#[cfg(feature = "testing")]
pub(crate) use in_memory::{MemoryConsumer, MemorySettings, Turn};

pub use builder::ConsumerBuilder;
pub use consume::IdempotentConsumer;
pub use control::ConsumerControl;
pub use delay_queues::Redelivery;
pub use delivery_settler::{DeliverySettler, DeliverySettlerBuilder, UnsettledDelivery};
pub use error::{ConsumeError, ConsumeErrorKind};
pub use parked::{LookedAt, Parked, ParkedChoice};
pub use replies::{LostReply, UnclaimedReply};
pub use settlement::{ParkReason, Settlement, settle};
pub use status::{ConsumerMonitor, ConsumerState, ConsumerStatus};
pub use unpark::{Unpark, Unparked};
pub use work_queue::{CheckedQueue, DeclareError, DeclaredQueue, Difference, WorkQueue};
