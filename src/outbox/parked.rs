//! What people see of a table, and what they choose.

use std::time::Duration;

use super::rows::Row;

/// What the table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TableStatus {
    /// Rows to be published, counted to 10,000 in each lane.
    pub backlog: u64,
    /// How long the oldest of them waits.
    pub oldest: Option<Duration>,
    /// Rows that were parked, counted to 10,000.
    pub parked: u64,
    /// Relays with a beat younger than a minute.
    pub relays: u64,
}

/// An order key with parked rows. What has a lower number than the first of them goes on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParkedKey {
    /// The key.
    pub key: String,
    /// The number of the first parked row.
    pub first: i64,
}

/// A parked row, for people.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ParkedRow {
    /// The row, with its number and the lane that it comes from.
    pub row: Row,
    /// What publishing it failed with last.
    pub error: Option<String>,
    /// How long ago it was parked.
    pub parked: Duration,
}

/// Which parked rows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Select {
    /// All.
    All,
    /// Those in order with a key.
    Key(String),
    /// One, by its number.
    Seq(i64),
}
