//! Messages that consumers parked, in a queue of the broker.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, IsTerminal, Write},
    time::SystemTime,
};

use lapin_idempotent::{
    IncomingMessage,
    consumer::{LookedAt, Parked as Looking, ParkedChoice, Unpark},
    message::HeaderValue,
};
use serde_json::{Map, Value, to_value};

use crate::{
    ask::{Done, Failure, may},
    browse,
    options::{Body, Choice, Filter, Parked, Queue},
    print::{Printer, Record, base64, body, escaped, json, span, utc},
    progress::Progress,
    servers::Servers,
};

/// As much of a header as `show` has.
pub(crate) const HEADER: usize = 512;
/// What a consumer says went wrong.
pub(crate) const ERROR: &str = "x-idempotency-parked-error";

pub(crate) async fn run(command: &Parked, servers: &Servers, printer: Printer) -> Result<Done, Failure> {
    let amqp = servers.amqp()?;
    match command {
        Parked::Browse { queue } => return browse::run(queue, servers).await,
        Parked::List { queue, filter, limit } => list(amqp, queue, filter, *limit, printer).await?,
        Parked::Show { queue, id, body } => show(amqp, queue, id, body, printer).await?,
        Parked::Unpark { queue, choice, to, limit, assume_unprocessed, consent } => {
            let mut what = format!("put back {} of {:?}", named(choice), queue.queue);
            if *assume_unprocessed {
                what.push_str(", taking it that none of them has taken effect");
            }
            if consent.dry_run {
                return count(amqp, queue, &choice.filter(), *limit, "would_move", printer).await;
            }
            if !may(consent, &what)? {
                return Ok(Done::Well);
            }
            return unpark(amqp, queue, choice, to.as_ref(), *limit, *assume_unprocessed, printer).await;
        }
        Parked::Discard { queue, choice, because, consent } => {
            if consent.dry_run {
                return count(amqp, queue, &choice.filter(), None, "would_discard", printer).await;
            }
            if !may(consent, &format!("delete for good {} of {:?}", named(choice), queue.queue))? {
                return Ok(Done::Well);
            }
            let filter = choice.filter();
            let progress = progress(amqp, queue, "deleting", printer).await?;
            let looked = looking(amqp, queue)
                .each(|message| {
                    progress.add(1);
                    if is_wanted(&filter, message) { ParkedChoice::Discard } else { ParkedChoice::Leave }
                })
                .await?;
            drop(progress);
            tracing::warn!(because, discarded = looked.discarded, "asked for on the command line");
            printer.one(&vec![
                ("discarded", looked.discarded.into()),
                ("left", (looked.seen - looked.discarded).into()),
                ("because", because.as_str().into()),
            ])?;
        }
        Parked::Export { queue, filter, out } => {
            let mut written = 0_u64;
            let mut failed = None;
            let mut to: Box<dyn Write + Send> = match out {
                Some(path) => Box::new(io::BufWriter::new(File::create_new(path)?)),
                None => Box::new(io::stdout()),
            };
            // Not among what is written to the same terminal.
            let is_seen = out.is_none() && io::stdout().is_terminal();
            let quiet = Printer { json: printer.json || is_seen };
            let progress = progress(amqp, queue, "writing", quiet).await?;
            let looked = looking(amqp, queue).each(|message| {
                progress.add(1);
                if !is_wanted(filter, message) {
                    return ParkedChoice::Leave;
                }
                match writeln!(to, "{}", json(&Value::Object(exported(message)))) {
                    Ok(()) => {
                        written += 1;
                        ParkedChoice::Leave
                    }
                    Err(error) => {
                        failed = Some(error);
                        ParkedChoice::LeaveAndStop
                    }
                }
            });
            looked.await?;
            drop(progress);
            if let Some(error) = failed {
                return Err(error.into());
            }
            to.flush()?;
            if let Some(path) = out {
                // The messages may be discarded next.
                File::open(path)?.sync_all()?;
                printer.one(&vec![("exported", written.into())])?;
            }
        }
    }
    Ok(Done::Well)
}

fn looking(amqp: &str, queue: &Queue) -> Looking {
    Looking::new(amqp, &queue.queue).delivery_limit(limit(queue))
}

pub(crate) fn limit(queue: &Queue) -> Option<u32> {
    Some(queue.delivery_limit).filter(|limit| *limit > 0)
}

/// Of all that is there: what is left alone is looked at, too. The queue is not asked where nobody
/// sees it.
async fn progress(
    amqp: &str,
    queue: &Queue,
    what: &'static str,
    printer: Printer,
) -> Result<Progress, Failure> {
    let there = if Progress::is_seen(printer) {
        Some(looking(amqp, queue).limit(0).each(|_| ParkedChoice::Leave).await?.there)
    } else {
        None
    };
    Ok(Progress::new(printer, what, there))
}

async fn list(
    amqp: &str,
    queue: &Queue,
    filter: &Filter,
    most: u64,
    printer: Printer,
) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let looked = looking(amqp, queue)
        .each(|message| {
            if is_wanted(filter, message) {
                rows.push(record(message));
            }
            if rows.len() as u64 >= most { ParkedChoice::LeaveAndStop } else { ParkedChoice::Leave }
        })
        .await?;
    printer.list(&rows)?;
    noted(&looked, printer)
}

fn noted(looked: &LookedAt, printer: Printer) -> Result<(), Failure> {
    let LookedAt { there, seen, renewed, .. } = looked;
    let mut text = format!("{seen} of {there} looked at");
    if *renewed > 0 {
        let _ = write!(text, "; {renewed} went to the end of the queue, lest the broker count them out");
    }
    Ok(printer.note(&text)?)
}

async fn show(amqp: &str, queue: &Queue, id: &str, shown: &Body, printer: Printer) -> Result<(), Failure> {
    let mut found: Option<Record> = None;
    looking(amqp, queue)
        .each(|message| {
            if message.raw_message_id().unwrap_or_default() != id {
                return ParkedChoice::Leave;
            }
            let mut record = record(message);
            record.extend(sent(message));
            record.push(("headers", headers(message, Some(HEADER))));
            if shown.body {
                record.extend(body(message.body(), shown.bytes));
            }
            found = Some(record);
            ParkedChoice::LeaveAndStop
        })
        .await?;
    match found {
        Some(record) => Ok(printer.one(&record)?),
        None => Err(Failure::Failed(format!("no message {id:?} is in {:?}", queue.queue))),
    }
}

async fn count(
    amqp: &str,
    queue: &Queue,
    filter: &Filter,
    most: Option<u64>,
    name: &'static str,
    printer: Printer,
) -> Result<Done, Failure> {
    let mut count = 0_u64;
    looking(amqp, queue)
        .each(|message| {
            count += u64::from(is_wanted(filter, message));
            ParkedChoice::Leave
        })
        .await?;
    printer.one(&vec![(name, count.min(most.unwrap_or(u64::MAX)).into())])?;
    Ok(Done::Well)
}

async fn unpark(
    amqp: &str,
    queue: &Queue,
    choice: &Choice,
    to: Option<&String>,
    most: Option<u64>,
    assume_unprocessed: bool,
    printer: Printer,
) -> Result<Done, Failure> {
    let filter = choice.filter();
    let progress = progress(amqp, queue, "putting back", printer).await?;
    let bar = progress.bar();
    let unpark = Unpark::new(amqp, &queue.queue)
        .delivery_limit(limit(queue))
        .limit(most.unwrap_or(u64::MAX))
        .only(move |message| {
            bar.inc(1);
            is_wanted(&filter, message)
        });
    let unpark = match to {
        Some(to) => unpark.to(to),
        None => unpark,
    };
    let unpark = if assume_unprocessed { unpark.assume_unprocessed() } else { unpark };
    let unparked = unpark.run().await?;
    drop(progress);
    printer.one(&vec![
        ("moved", unparked.moved.into()),
        ("left", unparked.left.into()),
        ("failed", unparked.failed.into()),
        ("last_error", unparked.last_error.into()),
    ])?;
    if unparked.failed > 0 {
        return Err(Failure::Failed("some messages could not be put back; they stay parked".to_owned()));
    }
    match &choice.filter().id {
        // A mistyped ID is no success.
        Some(id) if unparked.moved == 0 => {
            Err(Failure::Failed(format!("no message {id:?} is in {:?} that was asked for", queue.queue)))
        }
        _ => Ok(Done::Well),
    }
}

pub(crate) fn is_wanted(filter: &Filter, message: &IncomingMessage) -> bool {
    filter.id.as_deref().is_none_or(|id| message.raw_message_id().unwrap_or_default() == id)
        && filter.reason.as_deref().is_none_or(|reason| self::reason(message) == Some(reason))
}

fn named(choice: &Choice) -> String {
    let filter = choice.filter();
    match (&filter.id, &filter.reason) {
        (Some(id), None) => format!("the messages with the ID {id:?}"),
        (None, Some(reason)) => format!("the messages parked as {reason:?}"),
        (Some(id), Some(reason)) => format!("the messages with the ID {id:?} that were parked as {reason:?}"),
        (None, None) => "all messages".to_owned(),
    }
}

pub(crate) fn text<'a>(message: &'a IncomingMessage, header: &str) -> Option<&'a str> {
    message.header(header)?.as_str()
}

/// Why it is there: parked by a consumer, or dead-lettered by the broker.
pub(crate) fn reason(message: &IncomingMessage) -> Option<&str> {
    message.parked_reason().or_else(|| text(message, "x-first-death-reason"))
}

pub(crate) fn record(message: &IncomingMessage) -> Record {
    let from = text(message, "x-idempotency-original-queue").or_else(|| text(message, "x-first-death-queue"));
    let ago = message.parked_at().map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
    vec![
        ("id", message.raw_message_id().into()),
        ("reason", reason(message).into()),
        ("parked", ago.map(span).into()),
        ("attempts", message.header("x-idempotency-parked-attempts").and_then(HeaderValue::as_i64).into()),
        ("from", from.into()),
        ("body_bytes", message.body().len().into()),
        ("error", text(message, ERROR).into()),
    ]
}

/// Plain values for people, bounded; with their types, and whole, for an export.
pub(crate) fn headers(message: &IncomingMessage, most: Option<usize>) -> Value {
    let value = |value: &HeaderValue| match (most, value) {
        (Some(most), HeaderValue::String(text)) => escaped(text, most).into(),
        (Some(_), HeaderValue::Int(number)) => (*number).into(),
        (Some(_), HeaderValue::Bool(flag)) => (*flag).into(),
        (Some(most), other) => escaped(&to_value(other).unwrap_or_default().to_string(), most).into(),
        (None, other) => to_value(other).unwrap_or_default(),
    };
    let fields = message.headers().iter().map(|(name, header)| (name.to_owned(), value(header)));
    Value::Object(fields.collect())
}

/// How it was sent: its route and properties.
pub(crate) fn sent(message: &IncomingMessage) -> Record {
    vec![
        ("exchange", message.exchange().into()),
        ("routing_key", message.routing_key().into()),
        ("timestamp", message.timestamp().map(utc).into()),
        ("app_id", message.app_id().into()),
        ("type", message.kind().into()),
        ("content_type", message.content_type().into()),
        ("content_encoding", message.content_encoding().into()),
        ("correlation_id", message.correlation_id().into()),
        ("reply_to", message.reply_to().into()),
    ]
}

/// Everything that there is.
fn exported(message: &IncomingMessage) -> Map<String, Value> {
    let own: Record = vec![
        ("id", message.raw_message_id().into()),
        ("redelivered", message.redelivered().into()),
        ("user_id", message.user_id().into()),
        ("priority", message.priority().into()),
        ("headers", headers(message, None)),
        ("body_base64", base64(message.body()).into()),
    ];
    sent(message).into_iter().chain(own).map(|(name, value)| (name.to_owned(), value)).collect()
}
