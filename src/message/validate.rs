//! What a message must keep to, so that neither AMQP nor the broker refuses it.
//!
//! Checked before anything is sent: a broker answers most of this by closing the channel or the
//! connection, and so ends every publish that is under way there.

use std::{fmt, time::Duration};

use super::{
    headers::{HeaderValue, reserved},
    id::SHORT_STRING_BYTES,
    outgoing::OutgoingMessage,
    strategy::IdError,
};

/// How deep header tables may nest. Receivers parse them recursively, and a deep one can take a
/// process down.
const HEADER_DEPTH: usize = 16;

/// How many bytes the headers may take. All properties travel in one frame, and a broker closes the
/// connection on a frame above `frame_max` (RabbitMQ: 131,072): the rest is for the other
/// properties and the headers of this crate.
const HEADER_BYTES: usize = 120_000;

/// Ten years: RabbitMQ 3.10 closes the channel on a longer `expiration`.
const EXPIRATION: Duration = Duration::from_hours(10 * 365 * 24);

/// The pseudo-queue of RabbitMQ's "Direct Reply-to".
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Why a message cannot be published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// A field that AMQP sends as a short string has more than 255 bytes.
    #[error("the {field} has {bytes} bytes; AMQP allows 255")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its length in bytes.
        bytes: usize,
    },
    /// A field that AMQP sends as a short string has a zero byte (AMQP 0-9-1, section 4.2.5.3).
    #[error("the {field} has a zero byte")]
    ZeroByte {
        /// Which field.
        field: &'static str,
    },
    /// The expiration is longer than ten years, on which RabbitMQ closes the channel.
    #[error("the expiration is longer than ten years")]
    Expiration,
    /// A header name begins with `x-idempotency-`, which is this crate's.
    #[error("the header {} is reserved", .name.escape_debug())]
    ReservedHeader {
        /// The header's name.
        name: String,
    },
    /// A header name is empty or has more than 255 bytes.
    #[error("a header name has {bytes} bytes; AMQP allows 1 to 255")]
    HeaderName {
        /// The length of the name.
        bytes: usize,
    },
    /// The headers are too long: with the other properties they have to fit into one frame.
    #[error("the headers take {bytes} bytes; at most {limit} fit into a frame")]
    HeadersTooLong {
        /// Their length on the wire.
        bytes: usize,
        /// The limit: 120,000, or less if the publisher's `frame_max` is smaller.
        limit: usize,
    },
    /// A header value nests lists or tables too deep.
    #[error("the header {} is nested {depth} deep; at most 16 are allowed", .name.escape_debug())]
    HeaderTooDeep {
        /// The header's name.
        name: String,
        /// How deep.
        depth: usize,
    },
    /// A header's floating-point number is infinite or not a number: RabbitMQ closes the connection
    /// over it.
    #[error("the number at {} in the headers is not finite", .path.escape_debug())]
    NotFinite {
        /// The header's name; then a slash and the name or index for each table or list that it is
        /// nested in.
        path: String,
    },
    /// A header's integer does not fit into 64 bits with a sign, which is all that RabbitMQ has.
    #[error("the number {value} at {} in the headers is above 9223372036854775807", .path.escape_debug())]
    IntegerTooLarge {
        /// Like that of [`NotFinite`](Self::NotFinite).
        path: String,
        /// The number.
        value: u64,
    },
    /// A header that RabbitMQ acts on has a type that it cannot use: it closes the channel, or its
    /// dead-lettering fails.
    #[error("the header {name} must be a list of {members}")]
    HeaderType {
        /// `CC`, `BCC` or `x-death`.
        name: &'static str,
        /// What the list may have.
        members: &'static str,
    },
    /// `reply_to` is `amq.rabbitmq.reply-to`: RabbitMQ closes a channel that has no consumer on
    /// that name, as a publisher's never has.
    #[error("direct reply-to needs a consumer on the publisher's channel; name a queue instead")]
    DirectReplyTo,
    /// The body is larger than the publisher's limit; a broker closes the channel on one above its
    /// own.
    #[error("the body has {bytes} bytes; the publisher's limit is {limit}")]
    BodyTooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The order key of an outbox is empty, longer than 255 bytes, or has a zero byte.
    #[error("the order key has {bytes} bytes; 1 to 255 are allowed, and none of them zero")]
    OrderKey {
        /// Its length in bytes.
        bytes: usize,
    },
    /// Its properties cannot be stored as JSON.
    #[error("the properties cannot be stored")]
    Unwritable(#[source] serde_json::Error),
    /// No message ID could be made.
    #[error("no message ID could be made")]
    Id(#[from] IdError),
}

/// Everything about a message but its ID.
pub(super) fn check(message: &OutgoingMessage) -> Result<(), InvalidMessage> {
    short("exchange", Some(message.exchange()))?;
    short("routing key", Some(message.routing_key()))?;
    short("content type", message.mime())?;
    let Some(extra) = message.extra() else { return Ok(()) };
    short("type", extra.kind.as_deref())?;
    short("content encoding", extra.content_encoding.as_deref())?;
    short("correlation ID", extra.correlation_id.as_deref())?;
    short("reply-to", extra.reply_to.as_deref())?;
    short("user ID", extra.user_id.as_deref())?;
    if extra.reply_to.as_deref() == Some(DIRECT_REPLY_TO) {
        return Err(InvalidMessage::DirectReplyTo);
    }
    if extra.expiration.is_some_and(|after| after > EXPIRATION) {
        return Err(InvalidMessage::Expiration);
    }
    extra.headers.iter().try_for_each(|(name, value)| check_header(name, value))?;
    match extra.headers.encoded_len() {
        bytes if bytes > HEADER_BYTES => Err(InvalidMessage::HeadersTooLong { bytes, limit: HEADER_BYTES }),
        _ => Ok(()),
    }
}

fn short(field: &'static str, text: Option<&str>) -> Result<(), InvalidMessage> {
    match text.map(str::as_bytes) {
        Some(text) if text.len() > SHORT_STRING_BYTES => {
            Err(InvalidMessage::TooLong { field, bytes: text.len() })
        }
        Some(text) if text.contains(&0) => Err(InvalidMessage::ZeroByte { field }),
        _ => Ok(()),
    }
}

fn check_header(name: &str, value: &HeaderValue) -> Result<(), InvalidMessage> {
    if reserved::is_reserved(name) {
        return Err(InvalidMessage::ReservedHeader { name: name.to_owned() });
    }
    let depth = value.depth();
    if depth > HEADER_DEPTH {
        return Err(InvalidMessage::HeaderTooDeep { name: name.to_owned(), depth });
    }
    check_list(name, value)?;
    check_value(name, value, &Path { parent: None, step: Step::Name(name) })
}

/// The headers that RabbitMQ itself reads.
fn check_list(name: &str, value: &HeaderValue) -> Result<(), InvalidMessage> {
    let (name, members, is_member): (_, _, fn(&HeaderValue) -> bool) = match name {
        "CC" => ("CC", "strings", |value| matches!(value, HeaderValue::String(_))),
        "BCC" => ("BCC", "strings", |value| matches!(value, HeaderValue::String(_))),
        "x-death" => ("x-death", "tables", |value| matches!(value, HeaderValue::Table(_))),
        _ => return Ok(()),
    };
    match value {
        HeaderValue::List(values) if values.iter().all(is_member) => Ok(()),
        _ => Err(InvalidMessage::HeaderType { name, members }),
    }
}

/// Where a value stands, for an error.
struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Name(&'a str),
    Index(usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}/")?;
        }
        match self.step {
            Step::Name(name) => f.write_str(name),
            Step::Index(index) => write!(f, "{index}"),
        }
    }
}

/// The names of nested tables are short strings, too.
fn check_value(name: &str, value: &HeaderValue, path: &Path<'_>) -> Result<(), InvalidMessage> {
    if name.is_empty() || name.len() > SHORT_STRING_BYTES {
        return Err(InvalidMessage::HeaderName { bytes: name.len() });
    }
    if name.as_bytes().contains(&0) {
        return Err(InvalidMessage::ZeroByte { field: "header name" });
    }
    match value {
        HeaderValue::Float(number) if !number.is_finite() => {
            Err(InvalidMessage::NotFinite { path: path.to_string() })
        }
        HeaderValue::Unsigned(value) => {
            Err(InvalidMessage::IntegerTooLarge { path: path.to_string(), value: *value })
        }
        HeaderValue::List(values) => values.iter().enumerate().try_for_each(|(index, value)| {
            check_value(name, value, &Path { parent: Some(path), step: Step::Index(index) })
        }),
        HeaderValue::Table(table) => table.iter().try_for_each(|(name, value)| {
            check_value(name, value, &Path { parent: Some(path), step: Step::Name(name) })
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Headers, *};

    #[test]
    fn what_amqp_cannot_carry_is_found_before_sending() {
        let long = "x".repeat(256);
        let bad = [
            OutgoingMessage::to(long.clone(), "k"),
            OutgoingMessage::to("e", long.clone()),
            OutgoingMessage::to("e", "k").content_type(long.clone()),
            OutgoingMessage::to("e", "k").kind(long.clone()),
            OutgoingMessage::to("e", "k").content_encoding(long.clone()),
            OutgoingMessage::to("e", "k").correlation_id(long.clone()),
            OutgoingMessage::to("e", "k").reply_to(long.clone()),
            OutgoingMessage::to("e", "k").user_id(long.clone()),
        ];
        for message in bad {
            assert!(
                matches!(message.validate(), Err(InvalidMessage::TooLong { bytes: 256, .. })),
                "{message:?}"
            );
        }
        let header = OutgoingMessage::to("e", "k").header(long, 1);
        assert!(matches!(header.validate(), Err(InvalidMessage::HeaderName { bytes: 256 })));
        assert!(OutgoingMessage::to("e", "k".repeat(255)).validate().is_ok());
        for zero in [OutgoingMessage::to("e", "k\0"), OutgoingMessage::to("e", "k").header("a\0", 1)] {
            assert!(matches!(zero.validate(), Err(InvalidMessage::ZeroByte { .. })), "{zero:?}");
        }
    }

    #[test]
    fn what_would_close_the_channel_or_the_connection_is_refused() {
        let message = || OutgoingMessage::to("e", "k");
        assert!(message().expiration(EXPIRATION).validate().is_ok());
        let longer = message().expiration(EXPIRATION + Duration::from_millis(1));
        assert!(matches!(longer.validate(), Err(InvalidMessage::Expiration)));
        // Length, name with its length, type, length of the value.
        let overhead = 4 + 2 + 1 + 4;
        assert!(message().header("h", "x".repeat(HEADER_BYTES - overhead)).validate().is_ok());
        let longer = message().header("h", "x".repeat(HEADER_BYTES - overhead + 1));
        assert!(matches!(
            longer.validate(),
            Err(InvalidMessage::HeadersTooLong { bytes: 120_001, limit: 120_000 })
        ));
    }

    #[test]
    fn reserved_and_deep_headers_are_refused() {
        let reserved = OutgoingMessage::to("e", "k").header("X-Idempotency-Attempt", 7);
        assert!(matches!(reserved.validate(), Err(InvalidMessage::ReservedHeader { .. })));
        let deep = (0..17).fold(HeaderValue::Void, |inner, _| HeaderValue::List(vec![inner]));
        let message = OutgoingMessage::to("e", "k").header("deep", deep);
        assert!(matches!(message.validate(), Err(InvalidMessage::HeaderTooDeep { depth: 17, .. })));
    }

    #[test]
    fn a_number_that_the_broker_cannot_read_is_refused_wherever_it_is() {
        let message = || OutgoingMessage::to("e", "k");
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f32::NAN.into()] {
            let table: Headers =
                [("b".to_owned(), HeaderValue::List(vec![0.into(), number.into()]))].into_iter().collect();
            for (value, at) in [(number.into(), "a"), (HeaderValue::Table(table), "a/b/1")] {
                let refused = message().header("a", value).validate();
                assert!(
                    matches!(&refused, Err(InvalidMessage::NotFinite { path }) if path == at),
                    "{refused:?}"
                );
            }
        }
        let refused = message().header("a", u64::MAX).validate();
        assert!(matches!(refused, Err(InvalidMessage::IntegerTooLarge { value: u64::MAX, .. })));
        let fits = message()
            .header("size", message().payload().len())
            .header("f", f64::MAX)
            .header("d", f64::MIN_POSITIVE);
        assert!(fits.validate().is_ok());
    }

    #[test]
    fn headers_that_the_broker_reads_have_its_types() {
        let message = || OutgoingMessage::to("e", "k");
        let strings = HeaderValue::List(vec!["q".into()]);
        let tables = HeaderValue::List(vec![Headers::new().into()]);
        for (name, right, wrong) in
            [("CC", &strings, &tables), ("BCC", &strings, &tables), ("x-death", &tables, &strings)]
        {
            assert!(message().header(name, right.clone()).validate().is_ok(), "{name}");
            for wrong in [wrong.clone(), "q".into(), HeaderValue::Void] {
                let refused = message().header(name, wrong).validate();
                assert!(matches!(refused, Err(InvalidMessage::HeaderType { .. })), "{name}");
            }
        }
        let direct = message().reply_to("amq.rabbitmq.reply-to").validate();
        assert!(matches!(direct, Err(InvalidMessage::DirectReplyTo)));
    }
}
