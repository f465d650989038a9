//! Publishes any JSON-lines file, or standard input, a message a line.
//!
//! ```text
//! cargo run --example publish_jsonl -- orders.jsonl --routing-key payments.debit --id-pointer /order/id \
//!     --report report.jsonl
//! ```
//!
//! A line that is no JSON is reported with its number, and the rest goes on. Lines that were not
//! confirmed are written to a file, to be run again: with an ID out of the line itself
//! (`--id-pointer`, `--id content`) that is the same message. The files get their names at the end,
//! so that the file that is read may be one of them.

mod input;
mod output;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::Parser;
use futures_util::StreamExt;
use lapin_idempotent::{BoxError, IdStrategy, IdempotentPublisher};
use tokio::io::{AsyncBufRead, BufReader};

use self::{
    input::{Entry, Journal, messages, pop},
    output::Summary,
};

#[derive(Parser)]
#[command(about = "Publishes a JSON-lines file, a message a line, with confirms")]
struct Args {
    /// The file; standard input if none is given
    file: Option<PathBuf>,
    /// The broker
    #[arg(long, env = "AMQP_URL", default_value = "amqp://localhost", hide_env_values = true)]
    amqp: String,
    /// The exchange; by default the one that leads to the queue named by the routing key
    #[arg(long, default_value = "")]
    exchange: String,
    #[arg(long, default_value = "")]
    routing_key: String,
    /// Take the message ID from this JSON pointer into the line; may be given several times
    #[arg(long, value_name = "POINTER", conflicts_with = "id")]
    id_pointer: Vec<String>,
    /// How the message ID is made
    #[arg(long, value_parser = ["uuid-v7", "ulid", "content"], default_value = "uuid-v7")]
    id: String,
    /// How many messages may be unconfirmed at once
    #[arg(long, default_value_t = 1024)]
    in_flight: usize,
    /// Write one JSON object per line here: line number, message ID, outcome, attempts
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Write the lines that were not confirmed here; it may be the file that is read
    #[arg(long, value_name = "FILE", default_value = "failed.jsonl")]
    failed: PathBuf,
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let args = Args::parse();
    let strategy = match (args.id_pointer.as_slice(), args.id.as_str()) {
        ([], "ulid") => IdStrategy::ulid(),
        ([], "content") => IdStrategy::content(),
        ([], _) => IdStrategy::uuid_v7(),
        (pointers, _) => IdStrategy::json_pointers(pointers),
    };
    let input: Box<dyn AsyncBufRead + Unpin> = match &args.file {
        Some(file) => Box::new(BufReader::new(tokio::fs::File::open(file).await?)),
        None => Box::new(BufReader::new(tokio::io::stdin())),
    };
    let input = input::checked(input).await?;
    let mut summary = Summary::new(args.report.as_deref(), &args.failed)?;
    let publisher = IdempotentPublisher::builder(&args.amqp)
        .app_id("publish_jsonl")
        .id_strategy(strategy)
        .max_in_flight(args.in_flight)
        .connect()
        .await?;

    let journal = Journal::default();
    let messages = messages(input, &args.exchange, &args.routing_key, Arc::clone(&journal));
    let mut results = publisher.publish_stream(messages);
    while let Some(result) = results.next().await {
        let line = loop {
            match pop(&journal) {
                Some(Entry::Sent(line)) => break Some(line),
                Some(other) => summary.not_sent(&other)?,
                None => break None,
            }
        };
        summary.result(line.as_ref(), &result)?;
    }
    while let Some(entry) = pop(&journal) {
        summary.not_sent(&entry)?;
    }
    summary.finish()
}
