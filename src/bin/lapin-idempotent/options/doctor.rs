//! What the doctor is asked.

#![allow(clippy::doc_markdown)]

use std::time::Duration;

use clap::Args;

use super::duration;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The queue that a service consumes
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// Look at the outbox, too
    #[arg(long)]
    pub(crate) outbox: bool,
    /// For how long the store remembers, as the service sets it, such as 14d
    #[arg(long, value_name = "AGE", value_parser = duration)]
    pub(crate) retention: Option<Duration>,
    /// How old a copy of a message can be that still arrives: retries, outages, parking
    #[arg(long, value_name = "AGE", value_parser = duration)]
    pub(crate) horizon: Option<Duration>,
}
