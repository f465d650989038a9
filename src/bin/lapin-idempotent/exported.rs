//! Messages out of a file that `parked export` wrote.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    time::{Duration, SystemTime},
};

use lapin_idempotent::{
    MessageId, OutgoingMessage,
    message::{HeaderValue, InvalidMessageId},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    ask::{Failure, chain},
    options::Filter,
};

/// A line of the file, and its message.
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) message: OutgoingMessage,
}

/// A line that is no message.
#[derive(Debug, thiserror::Error)]
enum BadLine {
    #[error("it cannot be read")]
    Unreadable(#[source] std::io::Error),
    #[error("it is no exported message")]
    Json(#[source] serde_json::Error),
    #[error("it has no usable ID")]
    Id(#[source] InvalidMessageId),
    #[error("the timestamp {0:?} is none")]
    Timestamp(String),
    #[error("it does not say which queue it is from: say --to")]
    From,
}

/// What is sent again of what was exported. The rest was the broker's, or is this copy's own: who
/// had it parked, and why.
#[derive(Deserialize)]
struct Exported {
    id: Option<String>,
    timestamp: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    priority: Option<u8>,
    #[serde(default)]
    headers: Map<String, Value>,
    body_base64: String,
}

/// The lines of a file, of the messages that are wanted, for this queue or the one that each is
/// from. Blank lines are none.
pub(crate) fn lines<'a>(
    file: &Path,
    to: Option<&'a str>,
    wanted: &'a Filter,
) -> Result<impl Iterator<Item = Result<Line, Failure>> + Send + use<'a>, Failure> {
    let file = BufReader::new(File::open(file)?);
    let numbered = file.lines().enumerate().map(|(index, line)| (index + 1, line));
    let is_blank = |line: &std::io::Result<String>| line.as_ref().is_ok_and(|line| line.trim().is_empty());
    let numbered = numbered.filter(move |(_, line)| !is_blank(line));
    let read = move |(number, line): (usize, std::io::Result<String>)| {
        let line = line.map_err(BadLine::Unreadable);
        let message = line.and_then(|line| message(&line, to, wanted)).transpose()?;
        Some(match message {
            Ok(message) => Ok(Line { number, message }),
            Err(error) => Err(Failure::Failed(format!("line {number}: {}", chain(&error)))),
        })
    };
    Ok(numbered.filter_map(read))
}

/// The message of a line, if it is wanted.
fn message(line: &str, to: Option<&str>, wanted: &Filter) -> Result<Option<OutgoingMessage>, BadLine> {
    let exported: Exported = serde_json::from_str(line).map_err(BadLine::Json)?;
    if wanted.id.is_some() && wanted.id != exported.id {
        return Ok(None);
    }
    let mut headers = Vec::new();
    for (name, value) in exported.headers {
        let value: HeaderValue = serde_json::from_value(value).map_err(BadLine::Json)?;
        headers.push((name, value));
    }
    let text =
        |wanted: &str| headers.iter().find(|(name, _)| name == wanted).and_then(|(_, value)| value.as_str());
    let parked = text("x-idempotency-parked-reason").or_else(|| text("x-first-death-reason"));
    let reason = wanted.reason.as_deref();
    if reason.is_some() && parked != reason {
        return Ok(None);
    }
    let from = text("x-idempotency-original-queue").or_else(|| text("x-first-death-queue"));
    let queue = to.or(from).ok_or(BadLine::From)?;
    let body = serde_json::from_value(json!({ "bytes": exported.body_base64 })).map_err(BadLine::Json)?;
    let HeaderValue::Bytes(body) = body else { return Err(BadLine::From) };
    let id = MessageId::new(exported.id.unwrap_or_default()).map_err(BadLine::Id)?;
    let mut message = OutgoingMessage::to("", queue).message_id(id).body(body);
    let setters: [(_, Set); 5] = [
        (exported.kind, OutgoingMessage::kind),
        (exported.content_type, OutgoingMessage::content_type),
        (exported.content_encoding, OutgoingMessage::content_encoding),
        (exported.correlation_id, OutgoingMessage::correlation_id),
        (exported.reply_to, OutgoingMessage::reply_to),
    ];
    for (value, set) in setters {
        message = value.into_iter().fold(message, set);
    }
    message = exported.priority.into_iter().fold(message, OutgoingMessage::priority);
    if let Some(text) = exported.timestamp {
        let at = time(&text).ok_or(BadLine::Timestamp(text))?;
        message = message.timestamp(at);
    }
    let own = headers.into_iter().filter(|(name, _)| is_own(name));
    Ok(Some(own.fold(message, |message, (name, value)| message.header(name, value))))
}

/// A setter of a property that is text.
type Set = fn(OutgoingMessage, String) -> OutgoingMessage;

/// Whether a header is the application's, and would not route copies.
fn is_own(name: &str) -> bool {
    let foreign = ["x-idempotency-", "x-death", "x-first-death-", "x-last-death-", "x-opt-"];
    let counted = ["x-delivery-count", "x-acquired-count", "CC", "BCC"];
    !foreign.iter().any(|start| name.to_ascii_lowercase().starts_with(start)) && !counted.contains(&name)
}

/// Reads what `print::utc` writes.
fn time(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.strip_suffix('Z')?.split_once('T')?;
    let (seconds, _) = rest.split_once('.').unwrap_or((rest, ""));
    let numbers =
        |text: &str, between| text.split(between).map(str::parse::<u64>).collect::<Result<Vec<_>, _>>();
    let (date, clock) = (numbers(date, '-').ok()?, numbers(seconds, ':').ok()?);
    let ([year, month, day], [hour, minute, second]) = (&*date, &*clock) else { return None };
    // Of a producer that took milliseconds for seconds, too.
    if !(1970..=1_000_000).contains(year) || !(1..=12).contains(month) || !(1..=31).contains(day) {
        return None;
    }
    if *hour > 23 || *minute > 59 || *second > 60 {
        return None;
    }
    // Years that begin in March, 400 of which have 146,097 days.
    let (year, month) = if *month > 2 { (*year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let seconds = (days - 719_468) * 86_400 + hour * 3600 + minute * 60 + second;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::print::utc;

    #[test]
    fn a_time_is_read_as_it_was_written() {
        for seconds in
            [0, 951_782_400, 951_868_799, 1_700_000_000, 4_107_542_400, 13_569_465_600, 1_700_000_000_000]
        {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(time(&utc(at)), Some(at), "{}", utc(at));
        }
        for wrong in ["", "Z", "2026-13-01T00:00:00Z", "2026-01-01 00:00:00Z", "1969-12-31T23:59:59Z"] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn only_what_the_application_set_is_sent_again() {
        let line = json!({
            "id": "order-42", "timestamp": "2023-11-14T22:13:20.000Z", "type": "debit", "priority": 3, "redelivered": true,
            "headers": {
                "tenant": {"string": "t-1"}, "x-death": {"list": []}, "CC": {"list": []}, "X-Idempotency-Failures": {"int": 3},
                "x-idempotency-original-queue": {"string": "debits"}, "x-idempotency-parked-reason": {"string": "rejected"}
            },
            "body_base64": "AP8="
        });
        let read = |reason: &str, id: Option<&str>| {
            let (reason, id) = (Some(reason.to_owned()), id.map(str::to_owned));
            message(&line.to_string(), None, &Filter { reason, id }).unwrap()
        };
        assert!(read("missing-id", None).is_none() && read("rejected", Some("order-43")).is_none());
        let message = read("rejected", Some("order-42")).unwrap();
        assert_eq!((message.routing_key(), message.payload().as_ref()), ("debits", &b"\x00\xff"[..]));
        let names: Vec<_> = message.headers().unwrap().iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["tenant"]);
        let properties = message.properties();
        assert_eq!((properties.kind, properties.priority), (Some("debit"), Some(3)));
        assert_eq!(properties.timestamp, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        message.validate().unwrap();
    }
}
