//! What can be asked on the command line. The comments are the help, which is no Markdown.

#![allow(clippy::doc_markdown)]

mod doctor;
mod outbox;
mod parked;
mod replay;
mod schema;
mod serve;
mod store;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

pub(crate) use self::{
    doctor::Doctor,
    outbox::{Outbox, Rows},
    parked::{Choice, Filter, Parked, Queue},
    replay::Replay,
    schema::{Database, Schema, Tables},
    serve::Serve,
    store::Store,
};

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
    /// Have messages that took effect do so once more, on purpose and once
    #[command(subcommand)]
    Replay(Replay),
    /// Say what will bite: versions, schema, settings, queues, rights, clocks
    Doctor(Doctor),
    /// Show parking queues in a browser, put messages back, discard them; until SIGINT or SIGTERM
    Serve(Serve),
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

/// Without one, a server would be asked as often as it answers.
fn pause(text: &str) -> Result<Duration, &'static str> {
    match duration(text)? {
        Duration::ZERO => Err("a pause is 1s or longer"),
        pause => Ok(pause),
    }
}
