//! Publishes any JSON-lines file, or standard input, a message a line.
//!
//! ```text
//! cargo run --example publish_jsonl -- orders.jsonl --routing-key payments.debit --id-pointer /order/id \
//!     --report report.jsonl
//! ```
//!
//! A line that is no JSON is reported with its number, and the rest goes on. Lines that were not confirmed are written to
//! a file, to be run again: with an ID out of the line itself (`--id-pointer`, `--id content`) that is the same message.

use std::{
    collections::VecDeque,
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use clap::Parser;
use futures_util::{Stream, StreamExt, stream};
use indicatif::ProgressBar;
use lapin_idempotent::{
    BoxError, IdStrategy, IdempotentPublisher, OutgoingMessage, PublishError, Receipt,
    publisher::PublishErrorKind,
};
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};

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
    /// Write the lines that were not confirmed here
    #[arg(long, value_name = "FILE", default_value = "failed.jsonl")]
    failed: PathBuf,
}

/// A line of the input, and its number from 1.
struct Line {
    number: u64,
    text: Vec<u8>,
}

/// What was read and not yet answered, in order. `Err` is a line that was not handed to the publisher.
type Journal = Arc<Mutex<VecDeque<Result<Line, (Line, String)>>>>;

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
    let publisher = IdempotentPublisher::builder(&args.amqp)
        .app_id("publish_jsonl")
        .id_strategy(strategy)
        .max_in_flight(args.in_flight)
        .connect()
        .await?;

    let journal = Journal::default();
    let mut summary = Summary::new(&args)?;
    let messages = messages(input, &args, Arc::clone(&journal));
    let mut results = publisher.publish_stream(messages);
    while let Some(result) = results.next().await {
        let line = loop {
            match pop(&journal) {
                Some(Err((line, reason))) => summary.bad_line(&line, &reason)?,
                other => break other.and_then(Result::ok),
            }
        };
        summary.result(line.as_ref(), &result)?;
    }
    while let Some(Err((line, reason))) = pop(&journal) {
        summary.bad_line(&line, &reason)?;
    }
    summary.finish()
}

fn pop(journal: &Journal) -> Option<Result<Line, (Line, String)>> {
    journal.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Reads lines as fast as the publisher takes them, and notes each in the journal.
fn messages(
    input: impl AsyncBufRead + Unpin,
    args: &Args,
    journal: Journal,
) -> impl Stream<Item = OutgoingMessage> {
    let target = OutgoingMessage::to(&args.exchange, &args.routing_key).content_type("application/json");
    stream::unfold((input, target, journal, 0), |(mut input, target, journal, mut number)| async move {
        loop {
            let mut text = Vec::new();
            number += 1;
            let note = |entry| journal.lock().unwrap_or_else(PoisonError::into_inner).push_back(entry);
            match input.read_until(b'\n', &mut text).await {
                Ok(0) => return None,
                Ok(_) => text.truncate(text.trim_ascii_end().len()),
                Err(error) => {
                    note(Err((Line { number, text }, format!("cannot be read: {error}"))));
                    return None;
                }
            }
            if text.is_empty() {
                continue;
            }
            match serde_json::from_slice::<IgnoredAny>(&text) {
                Ok(_) => {
                    let message = target.clone().body(text.clone());
                    note(Ok(Line { number, text }));
                    return Some((message, (input, target, journal, number)));
                }
                Err(error) => note(Err((Line { number, text }, format!("not JSON: {error}")))),
            }
        }
    })
}

/// An error with its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Counts, and writes the files.
struct Summary {
    bar: ProgressBar,
    report: Option<BufWriter<File>>,
    failed_path: PathBuf,
    failed: Option<BufWriter<File>>,
    confirmed: u64,
    retried: u64,
    unroutable: u64,
    invalid: u64,
    other: u64,
}

impl Summary {
    fn new(args: &Args) -> Result<Self, BoxError> {
        let report = args.report.as_ref().map(File::create).transpose()?.map(BufWriter::new);
        let bar = ProgressBar::new_spinner();
        let (failed_path, failed) = (args.failed.clone(), None);
        Ok(Self {
            bar,
            report,
            failed_path,
            failed,
            confirmed: 0,
            retried: 0,
            unroutable: 0,
            invalid: 0,
            other: 0,
        })
    }

    fn result(
        &mut self,
        line: Option<&Line>,
        result: &Result<Receipt, PublishError>,
    ) -> Result<(), BoxError> {
        let (id, outcome, attempts) = match result {
            Ok(receipt) => {
                self.confirmed += 1;
                self.retried += u64::from(receipt.attempts() > 1);
                (Some(receipt.message_id()), "confirmed".to_owned(), receipt.attempts())
            }
            Err(error) => {
                let counter = match error.kind() {
                    PublishErrorKind::Unroutable => &mut self.unroutable,
                    PublishErrorKind::Invalid => &mut self.invalid,
                    _ => &mut self.other,
                };
                *counter += 1;
                (error.message_id(), with_causes(error), error.attempts())
            }
        };
        self.bar.inc(1);
        let number = line.map(|line| line.number);
        self.report(&json!({ "line": number, "message_id": id, "outcome": outcome, "attempts": attempts }))?;
        match (result, line) {
            (Err(_), Some(line)) => self.keep(line, &outcome),
            _ => Ok(()),
        }
    }

    fn bad_line(&mut self, line: &Line, reason: &str) -> Result<(), BoxError> {
        self.invalid += 1;
        self.report(&json!({ "line": line.number, "message_id": null, "outcome": reason, "attempts": 0 }))?;
        self.keep(line, reason)
    }

    fn report(&mut self, entry: &serde_json::Value) -> Result<(), BoxError> {
        if let Some(report) = &mut self.report {
            writeln!(report, "{entry}")?;
        }
        Ok(())
    }

    /// Says what is wrong with a line, and keeps it to be run again.
    fn keep(&mut self, line: &Line, reason: &str) -> Result<(), BoxError> {
        self.bar.suspend(|| eprintln!("line {}: {reason}", line.number));
        let failed = match &mut self.failed {
            Some(failed) => failed,
            None => self.failed.insert(BufWriter::new(File::create(&self.failed_path)?)),
        };
        failed.write_all(&line.text)?;
        failed.write_all(b"\n")?;
        Ok(())
    }

    fn finish(mut self) -> Result<ExitCode, BoxError> {
        self.bar.finish_and_clear();
        if let Some(report) = &mut self.report {
            report.flush()?;
        }
        let Self { confirmed, retried, unroutable, invalid, other, .. } = self;
        println!(
            "{confirmed} confirmed ({retried} retried), {unroutable} unroutable, {invalid} invalid, {other} otherwise failed"
        );
        let Some(mut failed) = self.failed else { return Ok(ExitCode::SUCCESS) };
        failed.flush()?;
        println!("what failed is in {}", self.failed_path.display());
        Ok(ExitCode::FAILURE)
    }
}
