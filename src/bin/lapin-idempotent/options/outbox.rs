//! What can be asked of an outbox.

#![allow(clippy::doc_markdown)]

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Body, Consent, pause};

/// Which parked rows of an outbox.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Rows {
    /// Their numbers, as `list` shows them
    #[arg(value_name = "SEQ")]
    pub(crate) seqs: Vec<i64>,
    /// All that are in order with this key
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// All
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Outbox {
    /// Backlog, age of the oldest message, parked messages by error, lanes and relays
    Status {
        /// Look again and again; in a terminal until q is pressed, or else until SIGINT or SIGTERM
        #[arg(long)]
        watch: bool,
        /// How often
        #[arg(long, value_name = "PAUSE", value_parser = pause, default_value = "2s", requires = "watch")]
        every: Duration,
    },
    /// Messages that wait, or that were parked
    List {
        /// Those that were parked, with the reason
        #[arg(long)]
        parked: bool,
        /// Only what is in order with this key
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// As many as this, those that came first
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// One message, with its properties
    Show {
        seq: i64,
        #[command(flatten)]
        body: Body,
    },
    /// Put parked messages back, with no attempts: relays send them again
    Retry {
        #[command(flatten)]
        rows: Rows,
        #[command(flatten)]
        consent: Consent,
    },
    /// Delete parked messages, unpublished, FOR GOOD
    Discard {
        #[command(flatten)]
        rows: Rows,
        /// Why; it is logged
        #[arg(long, value_name = "TEXT")]
        because: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Run a relay to the broker, until SIGINT or SIGTERM
    Relay {
        /// Its name in the table
        #[arg(long)]
        name: Option<String>,
        /// End when nothing waits any more
        #[arg(long)]
        until_empty: bool,
    },
}
