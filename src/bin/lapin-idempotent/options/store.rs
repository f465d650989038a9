//! What can be asked of a store.

#![allow(clippy::doc_markdown)]

use std::time::Duration;

use clap::Subcommand;

use super::{Consent, duration};

#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// What is remembered of a message ID in a scope
    Find { scope: String, id: String },
    /// How many completed identities a scope has
    Count { scope: String },
    /// Forget a completed identity: its message takes effect ONCE MORE when it comes again
    Forget {
        scope: String,
        id: String,
        /// Why; it is logged
        #[arg(long, value_name = "TEXT")]
        because: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Forget what is older than the retention, in all scopes
    Purge {
        /// The retention, such as 14d, 36h or 90m
        #[arg(long, value_name = "AGE", value_parser = duration)]
        older_than: Duration,
        /// How many are forgotten in one transaction
        #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        batch: u32,
        #[command(flatten)]
        consent: Consent,
    },
}
