//! Tables for people, JSON lines for machines; nothing that a message holds reaches the terminal
//! as it is.

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};

/// The narrowest that a column gets.
const NARROWEST: usize = 8;
/// As much of a text as is shown in one place.
const MOST: usize = 1024;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    pub(crate) json: bool,
}

/// One thing that is shown: its fields in their order.
pub(crate) type Record = Vec<(&'static str, Value)>;

impl Printer {
    /// Several of a kind: a table, or a line each.
    pub(crate) fn list(self, records: &[Record]) -> io::Result<()> {
        if self.json {
            return records.iter().try_for_each(json_line);
        }
        let Some(first) = records.first() else { return Ok(()) };
        let names: Vec<String> =
            first.iter().map(|(name, _)| name.replace('_', " ").to_uppercase()).collect();
        let rows = records.iter().map(|record| record.iter().map(|(_, value)| shown(value)).collect());
        let rows: Vec<Vec<String>> = std::iter::once(names).chain(rows).collect();
        let widths = fitted(&rows, width());
        let mut text = String::new();
        for row in &rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{:<width$}  ", cut(cell, *width));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        out(&text)
    }

    /// One thing: a field a line, or a line.
    pub(crate) fn one(self, record: &Record) -> io::Result<()> {
        if self.json {
            return json_line(record);
        }
        let widest = record.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
        let mut text = String::new();
        for (name, value) in record {
            let name = name.replace('_', " ") + ":";
            match value {
                Value::Object(fields) if !fields.is_empty() => {
                    let _ = writeln!(text, "{name}");
                    for (name, value) in fields {
                        let _ = writeln!(text, "  {}: {}", escaped(name, MOST), shown(value));
                    }
                }
                // As long as `--bytes` says.
                Value::String(body) if name.starts_with("body") => {
                    let _ = writeln!(text, "{name:<widest$} {}", escaped(body, usize::MAX));
                }
                value => {
                    let _ = writeln!(text, "{name:<widest$} {}", shown(value));
                }
            }
        }
        out(&text)
    }

    /// Something that people want to know besides; machines read it off the fields.
    pub(crate) fn note(self, text: &str) -> io::Result<()> {
        if self.json { Ok(()) } else { out(&format!("{text}\n")) }
    }
}

/// Text that was made by the library and is to be read as it is, such as SQL.
pub(crate) fn verbatim(text: &str) -> io::Result<()> {
    out(&format!("{}\n", text.trim_end()))
}

fn json_line(record: &Record) -> io::Result<()> {
    let object: Map<String, Value> =
        record.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    out(&(json(&Value::Object(object)) + "\n"))
}

fn out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// As a line of JSON in which nothing is left that a terminal would act on: control characters
/// above ASCII are legal in JSON.
pub(crate) fn json(value: &Value) -> String {
    let mut line = String::new();
    for c in value.to_string().chars() {
        if c.is_ascii() && c != '\u{7f}' || is_plain(c) {
            line.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
    }
    line
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => escaped(text, MOST),
        other => escaped(&other.to_string(), MOST),
    }
}

/// Whether a character only draws itself: no control, no direction, no mark without a width.
pub(crate) fn is_plain(c: char) -> bool {
    c == '\'' || c == '"' || c.escape_debug().len() == 1
}

/// A text that may come from anyone, on one line, `most` bytes of it at most.
pub(crate) fn escaped(text: &str, most: usize) -> String {
    let mut plain = String::new();
    for c in text.chars() {
        if plain.len() >= most {
            plain.push('…');
            break;
        }
        if is_plain(c) { plain.push(c) } else { plain.extend(c.escape_debug()) }
    }
    plain
}

/// A body as text, with `\xff` for what is not UTF-8. It is escaped where it is printed, but for
/// the backslashes that stand for bytes.
pub(crate) fn body(bytes: &[u8], most: usize) -> Record {
    let part = &bytes[..bytes.len().min(most)];
    let cut = part.len() < bytes.len();
    let whole = match std::str::from_utf8(part) {
        Ok(text) => Some(text),
        // Cut within a character.
        Err(error) if cut && error.error_len().is_none() => {
            std::str::from_utf8(&part[..error.valid_up_to()]).ok()
        }
        Err(_) => None,
    };
    let (name, text) = match whole {
        Some(text) => ("body", text.to_owned()),
        None => ("body_base64", base64(part)),
    };
    vec![(name, text.into()), ("body_is_cut", cut.into())]
}

/// RFC 4648, section 4.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().chain(&[0, 0]).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        for digit in 0..4 {
            let shift = 18 - 6 * digit;
            text.push(if digit > three.len() { '=' } else { char::from(DIGITS[bits >> shift & 63]) });
        }
    }
    text
}

/// How wide lines may be: as the terminal is. A file takes any.
fn width() -> usize {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let seen = || terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0.into());
    said.or_else(seen).unwrap_or(240)
}

/// The widths of columns, the widest cut until they fit.
fn fitted(rows: &[Vec<String>], width: usize) -> Vec<usize> {
    let columns = rows.first().map_or(0, Vec::len);
    let widest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let mut widths: Vec<usize> = (0..columns).map(widest).collect();
    while widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1) > width {
        match widths.iter_mut().max() {
            Some(widest) if *widest > NARROWEST => *widest -= 1,
            _ => break,
        }
    }
    widths
}

fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    cell.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// How long ago, or for how long, in two units.
pub(crate) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A time in UTC (RFC 3339).
pub(crate) fn utc(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days to civil date by years that begin in March, 400 of which have 146,097 days.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!(
        "{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{:02}.{:03}Z",
        second % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        for hostile in ["\u{1b}]0;owned\u{7}", "\u{9b}31m", "\u{202e}txt.exe", "a\r\nb", "\u{7f}", "\u{feff}"]
        {
            for text in [escaped(hostile, 100), json(&Value::from(hostile))] {
                assert!(text.chars().all(|c| c.is_ascii_graphic() || c == ' '), "{text:?}");
            }
            let back: String = serde_json::from_str(&json(&Value::from(hostile))).unwrap();
            assert_eq!(back, hostile);
        }
        assert_eq!(escaped("é \"x\" <b>漢</b> \\", 100), "é \"x\" <b>漢</b> \\\\");
        assert!(escaped(&"x".repeat(9999), 100).len() < 110);
    }

    #[test]
    fn columns_fit_into_a_narrow_terminal() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["SEQ", "ID", "ERROR"]), row(["1", &"i".repeat(50), &"e".repeat(100)])];
        let widths = fitted(&rows, 60);
        assert_eq!((widths[0], widths.iter().sum::<usize>() + 4), (3, 60));
        assert_eq!(cut("abcdef", 4), "abc…");
        assert!(fitted(&rows, 1).iter().all(|width| *width <= NARROWEST));
    }

    #[test]
    fn times_and_spans() {
        let at = |seconds, millis| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(millis)
        };
        assert_eq!(utc(at(0, 0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(utc(at(951_782_399, 999)), "2000-02-28T23:59:59.999Z");
        assert_eq!(utc(at(951_782_400, 0)), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc(at(1_798_761_599, 0)), "2026-12-31T23:59:59.000Z");
        assert_eq!(span(Duration::from_millis(5)), "5 ms");
        assert_eq!(span(Duration::from_secs(90_061)), "1 d 1 h");
    }

    #[test]
    fn bodies_are_text_or_base64() {
        assert_eq!(body("é".as_bytes(), 1), [("body", "".into()), ("body_is_cut", true.into())]);
        assert_eq!(body(b"\xff\0", 9), [("body_base64", "/wA=".into()), ("body_is_cut", false.into())]);
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
