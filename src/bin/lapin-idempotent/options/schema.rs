//! What can be asked of the tables.

#![allow(clippy::doc_markdown)]

use std::num::NonZeroU16;

use clap::{Args, Subcommand, ValueEnum};

use super::Consent;

/// Which tables.
#[derive(Debug, Args)]
pub(crate) struct Tables {
    /// The table of the identities; the default, if no other is named
    #[arg(long)]
    pub(crate) identities: bool,
    /// The tables of the outbox
    #[arg(long)]
    pub(crate) outbox: bool,
    /// The tables of the replays
    #[arg(long)]
    pub(crate) replays: bool,
    /// Partition the table of the identities, each so many hours (PostgreSQL)
    #[arg(long, value_name = "HOURS")]
    pub(crate) partitioned: Option<NonZeroU16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Database {
    Postgres,
    Mysql,
    Sqlite,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Schema {
    /// Print the SQL that makes the tables; connects to nothing
    Print {
        #[command(flatten)]
        tables: Tables,
        /// For this database; by default for that of --store
        #[arg(long = "for", value_name = "DATABASE")]
        database: Option<Database>,
    },
    /// Make the tables that are missing
    Apply {
        #[command(flatten)]
        tables: Tables,
        #[command(flatten)]
        consent: Consent,
    },
    /// Say what the tables lack; exit 3 if something
    Check {
        #[command(flatten)]
        tables: Tables,
    },
}
