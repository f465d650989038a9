//! What can be asked on the command line. The comments are the help, which is no Markdown.

#![allow(clippy::doc_markdown)]

use std::{num::NonZeroU16, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

const AFTER: &str = "Servers are named by STORE_URL and AMQP_URL, or by files. An argument is shown by `ps` to everyone: \
                     a URL with a password does not belong there. No password is ever printed.\n\n\
                     Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a check or the doctor found something.";

/// Looks after the message IDs, the outboxes and the parked messages of lapin-idempotent
#[derive(Debug, Parser)]
#[command(
    name = "lapin-idempotent",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = AFTER
)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the servers are, and how to print.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The store: postgres://, mysql://, sqlite:, redis:// or rediss://; several with commas are a
    /// cluster
    #[arg(
        long,
        global = true,
        env = "STORE_URL",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Servers"
    )]
    pub(crate) store: Option<String>,
    /// A file whose first line is the store's URL; goes before --store
    #[arg(long, global = true, value_name = "FILE", help_heading = "Servers")]
    pub(crate) store_file: Option<PathBuf>,
    /// The broker: amqp:// or amqps://
    #[arg(
        long,
        global = true,
        env = "AMQP_URL",
        hide_env_values = true,
        value_name = "URL",
        help_heading = "Servers"
    )]
    pub(crate) amqp: Option<String>,
    /// A file whose first line is the broker's URL; goes before --amqp
    #[arg(long, global = true, value_name = "FILE", help_heading = "Servers")]
    pub(crate) amqp_file: Option<PathBuf>,
    /// The table of the identities, `table` or `schema.table` [default: processed_messages]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Servers")]
    pub(crate) table: Option<String>,
    /// The table of the outbox [default: outbox]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Servers")]
    pub(crate) outbox_table: Option<String>,
    /// What the keys in Redis begin with [default: lapin-idempotent]
    #[arg(long, global = true, value_name = "TEXT", help_heading = "Servers")]
    pub(crate) prefix: Option<String>,
    /// Print one JSON object a line, for machines
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print, apply and check the tables
    #[command(subcommand)]
    Schema(Schema),
    /// Look into the identities that a store remembers
    #[command(subcommand)]
    Store(Store),
    /// Look into an outbox, put parked messages back, relay
    #[command(subcommand)]
    Outbox(Outbox),
    /// Look into a parking queue, put messages back, discard them
    #[command(subcommand)]
    Parked(Parked),
    /// Say what will bite: versions, schema, settings, queues, rights, clocks
    Doctor(Doctor),
}

/// May what changes data be changed?
#[derive(Debug, Args)]
pub(crate) struct Consent {
    /// Change data without asking; needed where no terminal is there to ask
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
    /// Say what would be changed, and change nothing
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
}

/// Which tables.
#[derive(Debug, Args)]
pub(crate) struct Tables {
    /// The table of the identities; the default, if no other is named
    #[arg(long)]
    pub(crate) identities: bool,
    /// The tables of the outbox
    #[arg(long)]
    pub(crate) outbox: bool,
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
    Status,
    /// Messages that wait, or that were parked
    List {
        /// Those that were parked, with the reason
        #[arg(long)]
        parked: bool,
        /// Only what is in order with this key
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// As many as this
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

/// Whether bodies are shown, and how much of them.
#[derive(Debug, Args)]
pub(crate) struct Body {
    /// Show the body, too
    #[arg(long)]
    pub(crate) body: bool,
    /// So many bytes of it at most
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) bytes: usize,
}

/// A parking queue.
#[derive(Debug, Args)]
pub(crate) struct Queue {
    /// The parking queue, such as payments.debit.parked
    #[arg(value_name = "QUEUE")]
    pub(crate) queue: String,
    /// Its delivery limit, 0 for none: what comes near it by being looked at is published anew to
    /// its end
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

/// Reads 14d, 36h, 90m, 30s.
fn duration(text: &str) -> Result<Duration, &'static str> {
    const WRONG: &str = "a number with d, h, m or s behind it, such as 14d";
    let (at, unit) = text.char_indices().next_back().ok_or(WRONG)?;
    let seconds: u64 = match unit {
        'd' => 86_400,
        'h' => 3600,
        'm' => 60,
        's' => 1,
        _ => return Err(WRONG),
    };
    let number: u64 = text[..at].parse().map_err(|_| WRONG)?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or(WRONG)
}
