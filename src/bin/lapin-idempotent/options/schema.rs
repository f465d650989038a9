//! What can be asked of the tables.

#![allow(clippy::doc_markdown)]

use std::num::NonZeroU16;

use clap::{Args, Subcommand, ValueEnum};

use super::Consent;

/// Which tables.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Tables {
    /// The table of the identities; the default, if no other is named
    #[arg(long)]
    pub(crate) identities: bool,
    /// The tables of the outbox
    #[arg(long)]
    pub(crate) outbox: bool,
    /// The table of the replies of an RPC consumer, and that of the identities, beside which it is
    #[arg(long)]
    pub(crate) replies: bool,
    /// The table of the replies, if it has a name of its own
    #[arg(long, value_name = "NAME")]
    pub(crate) replies_table: Option<String>,
    /// The tables of the replays
    #[arg(long)]
    pub(crate) replays: bool,
    /// Partition the table of the identities, each so many hours (PostgreSQL)
    #[arg(long, value_name = "HOURS")]
    pub(crate) partitioned: Option<NonZeroU16>,
}

impl Tables {
    /// Identities and what is beside them, unless only others were named.
    pub(crate) fn of_store(&self) -> bool {
        let others = self.outbox || self.replays;
        self.identities || self.partitioned.is_some() || self.with_replies() || !others
    }

    pub(crate) fn with_replies(&self) -> bool {
        self.replies || self.replies_table.is_some()
    }
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
