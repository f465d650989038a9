//! Lines, and what is wrong with them.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, stream};
use lapin_idempotent::{BoxError, OutgoingMessage};
use serde::de::IgnoredAny;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// A line of the input, and its number from 1.
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) text: Vec<u8>,
}

/// What became of a piece of the input.
pub(crate) enum Entry {
    /// It was handed to the publisher.
    Sent(Line),
    /// It was not, and why.
    Bad(Line, String),
    /// Nothing can be read from this line on.
    Unreadable(Line, String),
}

/// What was read and not yet answered, in order.
pub(crate) type Journal = Arc<Mutex<VecDeque<Entry>>>;

pub(crate) fn pop(journal: &Journal) -> Option<Entry> {
    journal.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// The input without a byte order mark. UTF-16 and UTF-32 are refused: their lines are no lines
/// here.
pub(crate) async fn checked(
    mut input: impl AsyncRead + Unpin,
) -> Result<impl AsyncBufRead + Unpin, BoxError> {
    let mut start = Vec::new();
    (&mut input).take(4).read_to_end(&mut start).await?;
    let text = match start.as_slice() {
        [0xff, 0xfe, 0, 0] | [0, 0, 0xfe, 0xff] => return Err(encoding("UTF-32")),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return Err(encoding("UTF-16")),
        // Without a mark: JSON begins with an ASCII character.
        [0, 0, 0, _] | [_, 0, 0, 0] => return Err(encoding("UTF-32")),
        [0, _, 0, _] | [_, 0, _, 0] => return Err(encoding("UTF-16")),
        [0xef, 0xbb, 0xbf, rest @ ..] => {
            eprintln!("note: the input begins with a byte order mark, which is left out");
            rest.to_vec()
        }
        _ => start,
    };
    Ok(BufReader::new(io::Cursor::new(text).chain(input)))
}

fn encoding(name: &str) -> BoxError {
    format!("the input is {name}, and JSON lines are UTF-8: `iconv -f {name} -t UTF-8`").into()
}

/// Reads lines as fast as the publisher takes them, and notes each in the journal.
pub(crate) fn messages(
    input: impl AsyncBufRead + Unpin,
    exchange: &str,
    routing_key: &str,
    journal: Journal,
) -> impl Stream<Item = OutgoingMessage> {
    let target = OutgoingMessage::to(exchange, routing_key).content_type("application/json");
    stream::unfold((input, target, journal, 0), |(mut input, target, journal, mut number)| async move {
        loop {
            let mut text = Vec::new();
            number += 1;
            let note = |entry| journal.lock().unwrap_or_else(PoisonError::into_inner).push_back(entry);
            match input.read_until(b'\n', &mut text).await {
                Ok(0) => return None,
                Ok(_) => text.truncate(text.trim_ascii_end().len()),
                Err(error) => {
                    note(Entry::Unreadable(Line { number, text }, format!("cannot be read: {error}")));
                    return None;
                }
            }
            if text.is_empty() {
                continue;
            }
            match check(&text) {
                Ok(()) => {
                    let message = target.clone().body(text.clone());
                    note(Entry::Sent(Line { number, text }));
                    return Some((message, (input, target, journal, number)));
                }
                Err(reason) => note(Entry::Bad(Line { number, text }, reason)),
            }
        }
    })
}

/// JSON is UTF-8, also where the ID is made of the bytes.
fn check(text: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(text)
        .map_err(|error| format!("not JSON: not UTF-8 at byte {} of the line", error.valid_up_to() + 1))?;
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("not JSON: {error}")),
    }
}
