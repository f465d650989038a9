//! What the tests stand on: real brokers, a proxy that reads AMQP frames, a ledger in a real
//! database.

#[macro_use]
pub mod trials;

pub mod amqp;
pub mod consumer;
#[cfg(feature = "sqlite")]
pub mod ledger;
pub mod load;
pub mod node;
pub mod output;
pub mod proxy;
pub mod raw;
pub mod scripted;
pub mod server;

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep};

/// The longest that anything in a test may take before it counts as hung.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until `condition` gives a value; panics with `what` when the deadline has passed.
pub async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A name that no other test and no other run has.
pub fn unique(name: &str) -> String {
    format!("test.{name}.{}", uuid::Uuid::new_v4().simple())
}

/// The shared broker. The tests that need one are not run without it.
pub fn broker() -> String {
    std::env::var("AMQP_URL").expect("AMQP_URL")
}
