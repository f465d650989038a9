//! What can be asked of a parking queue.

#![allow(clippy::doc_markdown)]

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Body, Consent};

/// A parking queue.
#[derive(Debug, Args)]
pub(crate) struct Queue {
    /// The parking queue: unless a consumer was told otherwise, the name of its own queue with
    /// .parked behind, such as payments.debit.parked
    #[arg(value_name = "QUEUE")]
    pub(crate) queue: String,
    /// The delivery limit of the parking queue, 0 for none: a look counts as a delivery there, so
    /// messages near the limit go to the end of the queue, counted from 0 again
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) delivery_limit: u32,
}

/// Which messages of a parking queue.
#[derive(Debug, Clone, Args)]
pub(crate) struct Filter {
    /// Those that were parked for this reason, such as attempts-exhausted
    #[arg(long, value_name = "REASON")]
    pub(crate) reason: Option<String>,
    /// Those with this message ID
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
}

/// The same, and it must be said.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Choice {
    /// Those that were parked for this reason, such as attempts-exhausted
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// Those with this message ID
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// All that are there
    #[arg(long, conflicts_with_all = ["reason", "id"])]
    all: bool,
}

impl Choice {
    /// Without a reason and an ID it is all.
    pub(crate) fn filter(&self) -> Filter {
        Filter { reason: self.reason.clone(), id: self.id.clone() }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Parked {
    /// Read, filter, mark, put back and discard messages in a terminal
    ///
    /// The queue is read when this begins, when r is pressed, and after a change. Meanwhile the
    /// messages are not held: others can read them and put them back. Keys: ? shows them.
    Browse {
        #[command(flatten)]
        queue: Queue,
    },
    /// The messages of a parking queue, with the reason that each was parked for
    List {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        filter: Filter,
        /// As many as this
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: u64,
    },
    /// One message, with its properties and headers
    Show {
        #[command(flatten)]
        queue: Queue,
        /// Its message ID, as `list` shows it
        id: String,
        #[command(flatten)]
        body: Body,
    },
    /// Put messages back into the queues that they were consumed from
    Unpark {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        choice: Choice,
        /// Into this queue instead
        #[arg(long, value_name = "QUEUE")]
        to: Option<String>,
        /// As many as this
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// State that none of them has taken effect; if that is wrong, it does so TWICE
        #[arg(long)]
        assume_unprocessed: bool,
        #[command(flatten)]
        consent: Consent,
    },
    /// Delete messages, FOR GOOD; export them first
    Discard {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        choice: Choice,
        /// Why; it is logged
        #[arg(long, value_name = "TEXT")]
        because: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Write messages as JSON lines, whole, with bodies in Base64; they stay parked
    Export {
        #[command(flatten)]
        queue: Queue,
        #[command(flatten)]
        filter: Filter,
        /// Into this new file; to standard output by default
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}
