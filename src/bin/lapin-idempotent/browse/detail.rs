//! Everything about a message, in lines that do no harm.

use std::fmt::Write as _;

use lapin_idempotent::IncomingMessage;
use ratatui::text::Span;
use serde_json::Value;

use crate::{
    parked::{HEADER, headers, record, sent},
    print::escaped,
};

/// As much of a body as is shown.
const BODY: usize = 64 << 10;
/// As much of a value.
const VALUE: usize = 2048;
/// Bytes of a line in hexadecimal, which fit into 40 columns.
const BYTES: usize = 8;

/// The lines of a message, none wider than this.
pub(super) fn lines(message: &IncomingMessage, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, value) in record(message).into_iter().chain(sent(message)) {
        if !value.is_null() {
            wrap(&format!("{}: {}", name.replace('_', " "), plain(&value)), width, &mut lines);
        }
    }
    if let Value::Object(headers) = headers(message, Some(HEADER))
        && !headers.is_empty()
    {
        lines.push("headers:".to_owned());
        for (name, value) in headers {
            wrap(&format!("  {}: {}", escaped(&name, VALUE), plain(&value)), width, &mut lines);
        }
    }
    body(message.body(), width, &mut lines);
    lines
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => escaped(text, VALUE),
        other => escaped(&other.to_string(), VALUE),
    }
}

/// As text if it is text, or else in hexadecimal.
fn body(body: &[u8], width: usize, lines: &mut Vec<String>) {
    let part = &body[..body.len().min(BODY)];
    let text = match std::str::from_utf8(part) {
        Ok(text) => Some(text),
        // Cut within a character.
        Err(error) if part.len() < body.len() && error.error_len().is_none() => {
            std::str::from_utf8(&part[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    match text {
        Some("") => lines.push("body: empty".to_owned()),
        Some(text) => {
            lines.push("body:".to_owned());
            for line in text.split('\n') {
                wrap(&escaped(line.strip_suffix('\r').unwrap_or(line), usize::MAX), width, lines);
            }
        }
        None => {
            lines.push("body, which is no UTF-8:".to_owned());
            for (index, bytes) in part.chunks(BYTES).enumerate() {
                wrap(&hexadecimal(index * BYTES, bytes), width, lines);
            }
        }
    }
    if part.len() < body.len() {
        wrap(&format!("… and {} bytes more: `parked export`", body.len() - part.len()), width, lines);
    }
}

fn hexadecimal(at: usize, bytes: &[u8]) -> String {
    let (mut line, mut text) = (format!("{at:04x}  "), String::new());
    for byte in bytes {
        let _ = write!(line, "{byte:02x} ");
        text.push(if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' });
    }
    format!("{line:<30} {text}")
}

/// How many columns a character takes.
pub(super) fn columns(c: char) -> usize {
    if c.is_ascii() { 1 } else { Span::raw(&*c.encode_utf8(&mut [0; 4])).width() }
}

/// In as many lines as it takes.
pub(super) fn wrap(text: &str, width: usize, lines: &mut Vec<String>) {
    let (mut line, mut taken) = (String::new(), 0);
    for c in text.chars() {
        let columns = columns(c);
        if taken + columns > width.max(2) {
            lines.push(std::mem::take(&mut line));
            taken = 0;
        }
        line.push(c);
        taken += columns;
    }
    lines.push(line);
}

/// Cut or filled up to a width.
pub(super) fn fit(text: &str, width: usize) -> String {
    let (mut line, mut taken) = (String::new(), 0);
    let whole: usize = text.chars().map(columns).sum();
    let most = if whole > width { width.saturating_sub(1) } else { width };
    for c in text.chars() {
        if taken + columns(c) > most {
            break;
        }
        line.push(c);
        taken += columns(c);
    }
    if whole > width && width > 0 {
        line.push('…');
        taken += 1;
    }
    line.extend(std::iter::repeat_n(' ', width.saturating_sub(taken)));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_wide_as_they_may_be() {
        let mut lines = Vec::new();
        wrap("漢漢漢ab", 5, &mut lines);
        assert_eq!(lines, ["漢漢", "漢ab"]);
        assert_eq!(fit("漢漢漢", 5), "漢漢…");
        assert_eq!(fit("漢漢漢", 4), "漢… ");
        assert_eq!(
            (fit("ab", 3), fit("abc", 3), fit("abcd", 3), fit("a", 0)),
            ("ab ".into(), "abc".into(), "ab…".into(), String::new())
        );
    }

    #[test]
    fn every_line_of_a_hostile_message_is_plain_and_fits() {
        let hostile = "\u{1b}[2J\u{9b}31m\u{202e}e\u{301}漢\r\n\tFAKE\0";
        let bodies = [hostile.as_bytes().to_vec(), b"\xff\x1b[2J".repeat(9), vec![0xff; 1 << 20], vec![]];
        for body in bodies {
            let message = IncomingMessage::new(body)
                .with_message_id(hostile)
                .with_content_type(hostile)
                .with_header(hostile, hostile)
                .with_header("x-idempotency-parked-error", hostile);
            for width in [40, 80] {
                let lines = lines(&message, width);
                assert!(lines.len() < 10_000, "{}", lines.len());
                for line in lines {
                    assert!(line.chars().map(columns).sum::<usize>() <= width, "{line:?}");
                    let is_plain = |c: char| c == '漢' || c == '…' || c == ' ' || c.is_ascii_graphic();
                    assert!(line.chars().all(is_plain), "{line:?}");
                }
            }
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_in_hexadecimal() {
        assert_eq!(hexadecimal(8, b"\xff a\x1b"), "0008  ff 20 61 1b              . a.");
        assert!(hexadecimal(0xfff8, &[0; 8]).len() <= 40);
    }
}
