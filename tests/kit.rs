//! The test kit: what it finds, and what it lets pass. With SQLite in memory, and without a broker.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(clippy::future_not_send, reason = "a run is awaited where the test is")]

#[path = "kit/bed.rs"]
mod bed;
#[path = "kit/correct.rs"]
mod correct;
#[path = "kit/points.rs"]
mod points;
#[path = "kit/shop.rs"]
mod shop;
#[path = "kit/told.rs"]
mod told;
#[path = "kit/tough.rs"]
mod tough;
#[path = "kit/wrong.rs"]
mod wrong;
