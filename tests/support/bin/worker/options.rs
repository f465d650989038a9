//! The command line.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use lapin_idempotent::idempotency::MissingIdPolicy;

use crate::aborting::AbortAt;

/// Consumes a queue through the guard, and writes one row for each effect
///
/// A row is (message ID, process ID), in a table without a unique key, so that a second effect
/// shows. Every outcome is a JSON line on the standard output: `{"message_id": "..", "outcome":
/// "..", "pid": ..}`. SIGTERM and Ctrl-C stop the process once the messages in hand are settled.
/// `RUST_LOG` says what is logged to the standard error; by default, the crate's warnings. `worker
/// relay --help` is about another process, the relay of an outbox.
#[derive(Debug, Parser)]
#[command(name = "worker")]
pub(crate) struct Options {
    /// The broker
    #[arg(
        long,
        value_name = "URI",
        env = "AMQP_URL",
        default_value = "amqp://localhost",
        hide_env_values = true
    )]
    pub(crate) amqp: String,
    /// The queue, which must exist
    #[arg(long)]
    pub(crate) queue: String,
    /// Where identities are remembered: memory, sqlite:FILE, postgres://.., mysql://.. or
    /// redis://..
    ///
    /// The tables of a SQL store are created if they are missing.
    #[arg(long, value_name = "STORE")]
    pub(crate) store: String,
    /// The consumer's identity [default: the name of the queue]
    #[arg(long)]
    pub(crate) scope: Option<String>,
    /// The database of the effects: sqlite:FILE, postgres://.. or mysql://.. [default: the store,
    /// if it is SQL]
    ///
    /// A SQL store writes them in its own transaction, so they are in its own database; with leases
    /// they may be in any.
    #[arg(long, value_name = "DB-URL")]
    pub(crate) effects: Option<String>,
    /// The table of the identities; for Redis, what the keys begin with
    #[arg(long, value_name = "NAME", default_value = "processed_messages")]
    pub(crate) table: String,
    /// The table of the effects, created if it is missing
    #[arg(long, value_name = "NAME", default_value = "eff", value_parser = table_name)]
    pub(crate) effects_table: String,
    /// Leases of this length: on a SQL store instead of transactions, on others instead of theirs
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) leased: Option<Duration>,
    /// How many messages are handled in one transaction at most [default: the crate's]
    #[arg(long, value_name = "MESSAGES")]
    pub(crate) batch: Option<usize>,
    /// How many batches are handled at once [default: the crate's]
    #[arg(long)]
    pub(crate) workers: Option<usize>,
    /// How many messages the broker may send ahead [default: the crate's]
    #[arg(long, value_name = "MESSAGES")]
    pub(crate) prefetch: Option<u16>,
    /// How long the handler sleeps after it has written its effect
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    pub(crate) sleep_ms: u64,
    /// The first N runs of the handler in this process fail: in a transaction after the effect,
    /// which is undone, else before it
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) fail_first: u32,
    /// Where the process aborts, with its first message in hand
    #[arg(long, value_name = "POINT")]
    pub(crate) abort_at: Option<AbortAt>,
    /// The process aborts when its handler gets the message with this ID
    #[arg(long, value_name = "ID")]
    pub(crate) abort_on: Option<String>,
    /// The delivery limit of the queue [default: the crate's]
    #[arg(long, value_name = "RETURNS")]
    pub(crate) delivery_limit: Option<u32>,
    /// What happens to a message without an ID
    #[arg(long, value_name = "POLICY", default_value = "park")]
    pub(crate) missing_id: MissingId,
    /// Handle every delivery, whatever its ID: to see what the guard is for
    #[arg(long, conflicts_with = "missing_id")]
    pub(crate) without_guard: bool,
    /// After how many failed attempts a message is parked [default: the crate's]
    #[arg(long, value_name = "ATTEMPTS")]
    pub(crate) max_attempts: Option<u32>,
    /// Forget what was completed longer ago: by a sweeper beside the consumer, which runs as often;
    /// by Redis itself
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) retention: Option<Duration>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum MissingId {
    /// It is parked.
    Park,
    /// Its ID is the hash of its body.
    Derive,
    /// It is handled at every delivery.
    Unguarded,
}

impl MissingId {
    pub(crate) fn policy(self) -> MissingIdPolicy {
        match self {
            Self::Park => MissingIdPolicy::Park,
            Self::Derive => MissingIdPolicy::DeriveFromContent,
            Self::Unguarded => MissingIdPolicy::HandleUnguarded,
        }
    }
}

/// What a URL begins with.
pub(crate) fn scheme(url: &str) -> &str {
    url.split(':').next().unwrap_or_default()
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let time = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if time.is_zero() { Err("more than zero".to_owned()) } else { Ok(time) }
}

/// It goes into statements as it is.
fn table_name(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = text.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    if begins && text.len() <= 40 && text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("a table's name here is [a-z_][a-z0-9_]{0,39}".to_owned())
    }
}
