//! Message headers, and the names that this crate reserves.

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    outgoing::seconds_since_1970,
    stored::{base64, exact},
};

/// The header names that this crate writes. All have one prefix, and applications cannot set any of
/// them.
pub(crate) mod reserved {
    /// What all reserved names start with.
    pub(crate) const PREFIX: &str = "x-idempotency-";
    /// The number of the attempt that this copy was sent in, from 2; a first attempt goes without.
    pub(crate) const ATTEMPT: &str = "x-idempotency-attempt";
    /// How often its handler failed before, over all deliveries.
    pub(crate) const FAILURES: &str = "x-idempotency-failures";
    /// How often the broker had taken earlier copies of it back, before a consumer published it
    /// anew.
    pub(crate) const DELIVERIES: &str = "x-idempotency-deliveries";
    /// The value that [`DELIVERIES`] had when it came under suspicion of ending its consumers.
    pub(crate) const SUSPECTED: &str = "x-idempotency-suspected";
    /// When a consumer first had it in trouble.
    pub(crate) const FIRST_SEEN: &str = "x-idempotency-first-seen";
    /// Before when it is not to be handled, in milliseconds since 1970-01-01 UTC.
    pub(crate) const NOT_BEFORE: &str = "x-idempotency-not-before";
    /// It was put back from parking; and when it was known last not to have taken effect.
    pub(crate) const UNPARKED: &str = "x-idempotency-unparked";
    /// It is to take effect once more, in the replay of this name.
    pub(crate) const REPLAY: &str = "x-idempotency-replay";
    /// Why a message was parked.
    pub(crate) const PARKED_REASON: &str = "x-idempotency-parked-reason";
    /// What the handler said.
    pub(crate) const PARKED_ERROR: &str = "x-idempotency-parked-error";
    /// When it was parked.
    pub(crate) const PARKED_AT: &str = "x-idempotency-parked-at";
    /// How often it had been tried.
    pub(crate) const PARKED_ATTEMPTS: &str = "x-idempotency-parked-attempts";
    /// Which consumer parked it.
    pub(crate) const PARKED_SCOPE: &str = "x-idempotency-parked-scope";
    /// Which queue it was consumed from.
    pub(crate) const ORIGINAL_QUEUE: &str = "x-idempotency-original-queue";
    /// Which exchange it had been published to.
    pub(crate) const ORIGINAL_EXCHANGE: &str = "x-idempotency-original-exchange";
    /// Its routing key.
    pub(crate) const ORIGINAL_ROUTING_KEY: &str = "x-idempotency-original-routing-key";
    /// Its property `expiration`, which a parked message must not have.
    pub(crate) const ORIGINAL_EXPIRATION: &str = "x-idempotency-original-expiration";
    /// Its property `user_id`, which the broker would check against the consumer's.
    pub(crate) const ORIGINAL_USER_ID: &str = "x-idempotency-original-user-id";
    /// Its header `CC`, which would route copies of the parked message.
    pub(crate) const ORIGINAL_CC: &str = "x-idempotency-original-cc";

    /// What a quorum queue counts and says with each delivery.
    pub(crate) const DELIVERY_COUNT: &str = "x-delivery-count";
    /// The same from RabbitMQ 4.3 on, for all deliveries.
    pub(crate) const ACQUIRED_COUNT: &str = "x-acquired-count";

    /// Whether a name is reserved; case does not matter, so that no look-alike gets through.
    pub(crate) fn is_reserved(name: &str) -> bool {
        name.as_bytes().get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX.as_bytes()))
    }
}

/// A value in an AMQP header table (AMQP 0-9-1, section 4.2.5.5, with RabbitMQ's additions).
///
/// Serialized as its kind and value, such as `{"int":5}`: numbers in floating point as decimal
/// text, which gives back every bit, and bytes as Base64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HeaderValue {
    /// No value.
    Void,
    /// A truth value.
    Bool(bool),
    /// A signed integer, of whatever width on the wire; sent as 64 bits.
    Int(i64),
    /// An integer above [`i64::MAX`], as `From<u64>` and `From<usize>` make it. RabbitMQ has no
    /// such numbers: refused at publish.
    Unsigned(u64),
    /// A number in floating point, which must be finite; sent as 64 bits.
    Float(#[serde(with = "exact")] f64),
    /// Text.
    String(String),
    /// Bytes; also a string that is not UTF-8.
    Bytes(#[serde(with = "base64")] Bytes),
    /// A time, in seconds since 1970-01-01 UTC.
    Timestamp(u64),
    /// A list.
    List(Vec<HeaderValue>),
    /// A nested table.
    Table(Headers),
}

impl HeaderValue {
    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// How deep lists and tables are nested in it: 0 for a plain value.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::List(values) => 1 + values.iter().map(Self::depth).max().unwrap_or_default(),
            Self::Table(table) => 1 + table.iter().map(|(_, value)| value.depth()).max().unwrap_or_default(),
            _ => 0,
        }
    }

    /// The time, if it is one.
    pub(super) fn as_time(&self) -> Option<SystemTime> {
        match self {
            Self::Timestamp(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds)),
            _ => None,
        }
    }

    /// How many bytes it takes on the wire, with its type.
    fn encoded_len(&self) -> usize {
        1 + match self {
            Self::Void => 0,
            Self::Bool(_) => 1,
            Self::Int(_) | Self::Unsigned(_) | Self::Float(_) | Self::Timestamp(_) => 8,
            Self::String(text) => 4 + text.len(),
            Self::Bytes(bytes) => 4 + bytes.len(),
            Self::List(values) => 4 + values.iter().map(Self::encoded_len).sum::<usize>(),
            Self::Table(table) => table.encoded_len(),
        }
    }
}

macro_rules! header_value_from {
    ($($from:ty => |$value:ident| $to:expr;)*) => {$(
        impl From<$from> for HeaderValue {
            fn from($value: $from) -> Self {
                $to
            }
        }
    )*};
}

header_value_from! {
    &str => |value| Self::String(value.to_owned());
    String => |value| Self::String(value);
    bool => |value| Self::Bool(value);
    i8 => |value| Self::Int(value.into());
    u8 => |value| Self::Int(value.into());
    i16 => |value| Self::Int(value.into());
    u16 => |value| Self::Int(value.into());
    i32 => |value| Self::Int(value.into());
    u32 => |value| Self::Int(value.into());
    i64 => |value| Self::Int(value);
    u64 => |value| i64::try_from(value).map_or(Self::Unsigned(value), Self::Int);
    usize => |value| Self::from(value as u64);
    f32 => |value| Self::Float(value.into());
    f64 => |value| Self::Float(value);
    Bytes => |value| Self::Bytes(value);
    Vec<u8> => |value| Self::Bytes(value.into());
    &[u8] => |value| Self::Bytes(Bytes::copy_from_slice(value));
    SystemTime => |value| Self::Timestamp(seconds_since_1970(value));
    Headers => |value| Self::Table(value);
    Vec<HeaderValue> => |value| Self::List(value);
}

/// Header names and their values, in the order of the names.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Headers(BTreeMap<String, HeaderValue>);

impl Headers {
    /// No headers.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a header; names are compared byte by byte.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.0.get(name)
    }

    /// Sets a header and returns its former value.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Option<HeaderValue> {
        self.0.insert(name.into(), value.into())
    }

    /// Removes a header and returns its value.
    pub fn remove(&mut self, name: &str) -> Option<HeaderValue> {
        self.0.remove(name)
    }

    /// All headers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes they take on the wire, as a table of AMQP 0-9-1.
    pub(crate) fn encoded_len(&self) -> usize {
        4 + self.iter().map(|(name, value)| 1 + name.len() + value.encoded_len()).sum::<usize>()
    }
}

impl FromIterator<(String, HeaderValue)> for Headers {
    fn from_iter<I: IntoIterator<Item = (String, HeaderValue)>>(headers: I) -> Self {
        Self(headers.into_iter().collect())
    }
}

impl Extend<(String, HeaderValue)> for Headers {
    fn extend<I: IntoIterator<Item = (String, HeaderValue)>>(&mut self, headers: I) {
        self.0.extend(headers);
    }
}

impl IntoIterator for Headers {
    type Item = (String, HeaderValue);
    type IntoIter = btree_map::IntoIter<String, HeaderValue>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Headers {
    type Item = (&'a String, &'a HeaderValue);
    type IntoIter = btree_map::Iter<'a, String, HeaderValue>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(&self.0).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_names_are_known_in_any_case() {
        for name in [reserved::ATTEMPT, reserved::PARKED_ERROR, "X-Idempotency-Anything", "x-idempotency-"] {
            assert!(reserved::is_reserved(name), "{name}");
        }
        for name in ["x-idempotency", "x-idempotenc\u{e9}-a", "traceparent", ""] {
            assert!(!reserved::is_reserved(name), "{name}");
        }
    }

    #[test]
    fn what_was_set_can_be_removed() {
        let mut headers = Headers::new();
        assert_eq!(headers.insert("a", 1), None);
        assert_eq!(headers.insert("a", "one"), Some(HeaderValue::Int(1)));
        assert_eq!(headers.get("A"), None);
        assert_eq!(headers.remove("a"), Some(HeaderValue::from("one")));
        assert!(headers.is_empty());
    }

    /// A table with a boolean, as in the AMQP 0-9-1 grammar: length, name length, name, type,
    /// value.
    #[test]
    fn length_on_the_wire() {
        let mut headers = Headers::new();
        assert_eq!(headers.encoded_len(), 4);
        headers.insert("ab", true);
        assert_eq!(headers.encoded_len(), 4 + 1 + 2 + 1 + 1);
        headers.insert("c", vec![HeaderValue::Void, "xyz".into(), 7.into()]);
        assert_eq!(headers.encoded_len(), 9 + (1 + 1 + 1 + 4) + 1 + (1 + 4 + 3) + 9);
    }

    #[test]
    fn every_integer_is_exact_or_told_apart() {
        let length = usize::try_from(i64::MAX).unwrap();
        assert_eq!(HeaderValue::from(length), HeaderValue::Int(i64::MAX));
        assert_eq!(HeaderValue::from(length + 1), HeaderValue::Unsigned(1 << 63));
        let small = [i8::MIN.into(), u8::MAX.into(), i16::MIN.into(), u16::MAX.into(), u32::MAX.into()];
        let values: Vec<_> = small.iter().map(HeaderValue::as_i64).collect();
        assert_eq!(values, [-128, 255, -32_768, 65_535, 4_294_967_295].map(Some));
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_999);
        assert_eq!(HeaderValue::from(time), HeaderValue::Timestamp(1));
        assert_eq!(HeaderValue::from(0.5_f32), HeaderValue::Float(0.5));
        assert_eq!(HeaderValue::from(vec![1_u8]), HeaderValue::from([1_u8].as_slice()));
    }

    #[test]
    fn headers_are_a_collection() {
        let mut headers: Headers = [("a".to_owned(), 1.into())].into_iter().collect();
        headers.extend([("b".to_owned(), 2.into())]);
        assert_eq!((&headers).into_iter().map(|(name, _)| name.as_str()).collect::<String>(), "ab");
        assert_eq!(headers.into_iter().collect::<Headers>().len(), 2);
    }

    #[test]
    fn nesting_is_measured() {
        let nested = (0..5).fold(HeaderValue::Bool(true), |inner, _| HeaderValue::List(vec![inner]));
        assert_eq!(nested.depth(), 5);
        let table: Headers = [("a".to_owned(), nested)].into_iter().collect();
        assert_eq!(HeaderValue::from(table).depth(), 6);
    }
}
