//! W3C trace context: which trace a message belongs to.

use std::{fmt, str::FromStr};

/// The header that carries the trace and its parent (W3C Trace Context, section 3.2).
pub(crate) const TRACEPARENT: &str = "traceparent";
/// The header that carries the vendors' state (section 3.3).
pub(crate) const TRACESTATE: &str = "tracestate";

/// How much of a `tracestate` is carried on. The specification asks for at least 512 characters.
const STATE_BYTES: usize = 512;

/// A W3C `traceparent`, with its `tracestate` if there is one.
///
/// A publisher sends it as headers of these names;
/// [`IncomingMessage::trace_context`](super::IncomingMessage::trace_context) reads them. It is
/// never part of a message's identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TraceContext {
    parent: Box<str>,
    state: Option<Box<str>>,
}

/// The text is not a `traceparent` of W3C Trace Context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct InvalidTraceParent;

impl TraceContext {
    /// Takes a `traceparent`, such as `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`.
    ///
    /// # Errors
    ///
    /// [`InvalidTraceParent`] if it does not have that form, or an ID of zeros.
    pub fn new(traceparent: &str) -> Result<Self, InvalidTraceParent> {
        if is_parent(traceparent) {
            Ok(Self { parent: traceparent.into(), state: None })
        } else {
            Err(InvalidTraceParent)
        }
    }

    /// Adds a `tracestate`. One that is longer than 512 bytes or not printable ASCII is left out,
    /// which the specification allows.
    #[must_use]
    pub fn with_state(mut self, tracestate: &str) -> Self {
        let fits = (1..=STATE_BYTES).contains(&tracestate.len());
        let printable = tracestate.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        self.state = (fits && printable).then(|| tracestate.into());
        self
    }

    /// The `traceparent`.
    pub fn traceparent(&self) -> &str {
        &self.parent
    }

    /// The `tracestate`, if there is one.
    pub fn tracestate(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

/// `version "-" trace-id "-" parent-id "-" flags`, in lower-case hexadecimal; later versions may go
/// on behind.
fn is_parent(text: &str) -> bool {
    let bytes = text.as_bytes();
    let hex = |range: std::ops::Range<usize>| {
        bytes[range].iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let not_zero = |range: std::ops::Range<usize>| bytes[range].iter().any(|byte| *byte != b'0');
    let length_fits = match bytes.len() {
        55 => true,
        56..=255 => bytes[..2] != *b"00" && bytes[55] == b'-' && bytes.iter().all(u8::is_ascii_graphic),
        _ => false,
    };
    length_fits
        && [2, 35, 52].iter().all(|at| bytes[*at] == b'-')
        && [0..2, 3..35, 36..52, 53..55].into_iter().all(hex)
        && bytes[..2] != *b"ff"
        && not_zero(3..35)
        && not_zero(36..52)
}

impl FromStr for TraceContext {
    type Err = InvalidTraceParent;

    fn from_str(traceparent: &str) -> Result<Self, Self::Err> {
        Self::new(traceparent)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_form_of_the_specification_is_taken() {
        assert_eq!(TraceContext::new(GOOD).unwrap().traceparent(), GOOD);
        assert!(TraceContext::new(&GOOD.replacen("00", "cc", 1)).is_ok(), "a later version");
        assert!(TraceContext::new(&format!("cc{}-what-comes-later", &GOOD[2..])).is_ok());
    }

    #[test]
    fn anything_else_is_refused() {
        let bad = [
            String::new(),
            GOOD.to_uppercase(),
            format!("{GOOD}-more"),
            format!("{GOOD} "),
            GOOD.replacen("00", "ff", 1),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            "é".repeat(28),
        ];
        for text in bad {
            assert_eq!(TraceContext::new(&text), Err(InvalidTraceParent), "{text}");
        }
    }

    #[test]
    fn an_unusable_state_is_left_out() {
        let context = TraceContext::new(GOOD).unwrap();
        assert_eq!(context.clone().with_state("a=1,b=2").tracestate(), Some("a=1,b=2"));
        for state in [String::new(), "x".repeat(513), "a=\n".to_owned()] {
            assert_eq!(context.clone().with_state(&state).tracestate(), None);
        }
    }
}
