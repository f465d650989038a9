//! What can be asked about replays.

#![allow(clippy::doc_markdown)]

use std::path::PathBuf;

use clap::{Args, Subcommand};
use lapin_idempotent::{Scope, message::Epoch};

use super::{Consent, Filter};

#[derive(Debug, Subcommand)]
pub(crate) enum Replay {
    /// Let messages that took effect do so ONCE MORE in a scope, each once, if they are sent with
    /// this epoch
    Open {
        #[arg(value_parser = scope)]
        scope: Scope,
        /// Its name, such as 2026-11-vat-fix
        #[arg(value_parser = epoch)]
        epoch: Epoch,
        /// Who opens it; it is kept
        #[arg(long, value_name = "WHO")]
        by: String,
        /// Why; it is kept
        #[arg(long, value_name = "WHY")]
        because: String,
        #[command(flatten)]
        consent: Consent,
    },
    /// Let no more messages do so; waits for those under way
    Close {
        #[arg(value_parser = scope)]
        scope: Scope,
        #[arg(value_parser = epoch)]
        epoch: Epoch,
        #[command(flatten)]
        consent: Consent,
    },
    /// Who opened what, why and when, and how many messages took effect
    List {
        /// In this scope; in all by default
        #[arg(value_parser = scope)]
        scope: Option<Scope>,
    },
    /// Send messages again under their own IDs, in an epoch that is open: they take effect ONCE
    /// MORE
    Send {
        /// The scope of the consumer that is to handle them
        #[arg(long, value_parser = scope)]
        scope: Scope,
        #[arg(long, value_parser = epoch)]
        epoch: Epoch,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        filter: Filter,
        /// Into this queue; by default each into the one that it was consumed from
        #[arg(long, value_name = "QUEUE")]
        to: Option<String>,
        /// As many as this
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// The delivery limit of the parking queue, 0 for none
        #[arg(long, value_name = "N", default_value_t = 20)]
        delivery_limit: u32,
        #[command(flatten)]
        consent: Consent,
    },
}

/// Where messages come from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct From {
    /// Those of this parking queue, which go from there
    #[arg(long, value_name = "QUEUE")]
    pub(crate) from_queue: Option<String>,
    /// Those that `parked export` wrote into this file; each is published with a confirm, and to
    /// send a file twice does no harm
    #[arg(long, value_name = "FILE")]
    pub(crate) from_file: Option<PathBuf>,
}

fn scope(text: &str) -> Result<Scope, String> {
    Scope::new(text).map_err(|error| error.to_string())
}

fn epoch(text: &str) -> Result<Epoch, String> {
    Epoch::new(text).map_err(|error| error.to_string())
}
