//! Receiving: take deliveries, let the guard decide, settle.
//!
//! `settle.rs` is the table from outcome to AMQP; `runner.rs` the loop around it; `park.rs` what happens to messages that must not be
//! tried again.

mod attempts;
mod builder;
mod error;
mod observe;
mod park;
mod runner;
mod session;
mod settle;
mod settling;
mod size;
mod status;
mod trouble;
mod window;

pub use builder::{ConsumerBuilder, IdempotentConsumer};
pub use error::{ConsumeError, ConsumeErrorKind};
pub use settle::{ParkReason, Settlement, settle};
pub use status::{ConsumerMonitor, ConsumerState, ConsumerStatus};
