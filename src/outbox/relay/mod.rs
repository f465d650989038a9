//! The relay: reads what was committed, publishes it, and removes what the broker confirmed.

mod asking;
mod handle;
mod holding;
mod keeper;
mod memory;
mod pace;
mod reading;
mod requests;
mod run;
mod settings;
mod settling;
#[cfg(test)]
mod tests;
mod verdicts;
mod waiting;
mod work;
mod worker;

pub use handle::RelayHandle;
pub use memory::OnPoison;
pub use settings::{Listen, Relay};
