//! Receiving: take deliveries, let the guard decide, settle.
//!
//! `settle.rs` is the table from outcome to AMQP, `settler.rs` does what it says. `runner.rs` subscribes again and again, `consumption.rs` is the loop over one subscription,
//! `inbox.rs` what waits, `settling.rs` what is done on the channel. `delivery_limit.rs` judges what comes by the broker's count. `delay.rs` and `park.rs` say where messages
//! go that failed, `onward.rs` brings them there, and `unpark.rs` back. `work_queue.rs` declares the queue in the first place.

mod attempts;
mod builder;
mod consumption;
mod delay;
mod delivery_limit;
mod error;
mod inbox;
mod observe;
mod onward;
mod options;
mod park;
mod prefetch;
mod runner;
mod session;
mod settle;
mod settler;
mod settling;
mod size;
mod status;
mod trouble;
mod unpark;
mod window;
mod work_queue;

pub use builder::{ConsumerBuilder, IdempotentConsumer};
pub use delay::Redelivery;
pub use error::{ConsumeError, ConsumeErrorKind};
pub use settle::{ParkReason, Settlement, settle};
pub use status::{ConsumerMonitor, ConsumerState, ConsumerStatus};
pub use unpark::{Unpark, Unparked};
pub use work_queue::{DeclareError, DeclaredQueue, Difference, WorkQueue};
