//! The stored form of an outgoing message: for an outbox, or until what failed is published again.
//!
//! It has a version, and is read only if every field of it is known: half a message is not
//! published. An outbox has columns for route, ID and body, and stores the rest in the same form.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::{
    epoch::Epoch,
    headers::Headers,
    id::MessageId,
    outgoing::{OutgoingMessage, seconds_since_1970},
};

/// By version. The tag is a string, which every format can have for one.
#[derive(Serialize, Deserialize)]
#[serde(tag = "version")]
enum Stored {
    #[serde(rename = "1")]
    V1(Box<V1>),
}

/// The first three and `persistent` are always there in a whole message, and not in its properties
/// alone; these say only that a message is not persistent.
#[derive(Serialize, Deserialize, Default, PartialEq)]
#[serde(deny_unknown_fields)]
struct V1 {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exchange: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    routing_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<Body>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message_id: Option<MessageId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    persistent: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_encoding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    correlation_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reply_to: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiration_millis: Option<u64>,
    /// In seconds since 1970-01-01 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mandatory: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replay: Option<Epoch>,
    #[serde(default, skip_serializing_if = "Headers::is_empty")]
    headers: Headers,
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(transparent)]
struct Body(#[serde(with = "base64")] Bytes);

impl V1 {
    fn of(message: &OutgoingMessage) -> Self {
        let properties = message.properties();
        Self {
            exchange: Some(message.exchange().to_owned()),
            routing_key: Some(message.routing_key().to_owned()),
            body: Some(Body(message.payload().clone())),
            message_id: message.id().cloned(),
            idempotency_key: properties.idempotency_key.map(<[String]>::to_vec),
            persistent: Some(properties.is_persistent),
            deadline: properties.deadline,
            ..Self::properties_of(message)
        }
    }

    /// What travels beside route, ID and body.
    fn properties_of(message: &OutgoingMessage) -> Self {
        let properties = message.properties();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Self {
            persistent: (!properties.is_persistent).then_some(false),
            content_type: owned(properties.content_type),
            content_encoding: owned(properties.content_encoding),
            kind: owned(properties.kind),
            correlation_id: owned(properties.correlation_id),
            reply_to: owned(properties.reply_to),
            user_id: owned(properties.user_id),
            priority: properties.priority,
            // A checked one is at most ten years.
            expiration_millis: properties
                .expiration
                .map(|after| after.as_millis().try_into().unwrap_or(u64::MAX)),
            timestamp: properties.timestamp.map(seconds_since_1970),
            mandatory: properties.mandatory,
            replay: message.extra().and_then(|extra| extra.replay.clone()),
            headers: message.headers().cloned().unwrap_or_default(),
            ..Self::default()
        }
    }

    /// The message, if all of it is there.
    fn into_message<E: de::Error>(mut self) -> Result<OutgoingMessage, E> {
        let exchange = self.exchange.take().ok_or_else(|| E::missing_field("exchange"))?;
        let routing_key = self.routing_key.take().ok_or_else(|| E::missing_field("routing_key"))?;
        let Body(body) = self.body.take().ok_or_else(|| E::missing_field("body"))?;
        if self.persistent.is_none() {
            return Err(E::missing_field("persistent"));
        }
        self.set_on(OutgoingMessage::to(exchange, routing_key).body(body))
    }

    /// The message with these properties; fails if they are more than that.
    fn into_properties<E: de::Error>(self, message: OutgoingMessage) -> Result<OutgoingMessage, E> {
        let stray = [
            ("exchange", self.exchange.is_some()),
            ("routing_key", self.routing_key.is_some()),
            ("body", self.body.is_some()),
            ("message_id", self.message_id.is_some()),
            ("idempotency_key", self.idempotency_key.is_some()),
            ("deadline", self.deadline.is_some()),
        ];
        match stray.into_iter().find(|(_, is_there)| *is_there) {
            Some((field, _)) => Err(E::custom(format_args!("the field `{field}` is no property"))),
            None => self.set_on(message),
        }
    }

    fn set_on<E: de::Error>(self, mut message: OutgoingMessage) -> Result<OutgoingMessage, E> {
        /// Sets what there is.
        fn set<T>(
            message: OutgoingMessage,
            value: Option<T>,
            setter: fn(OutgoingMessage, T) -> OutgoingMessage,
        ) -> OutgoingMessage {
            match value {
                Some(value) => setter(message, value),
                None => message,
            }
        }
        let at = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let timestamp = match self.timestamp {
            // Not every system's clock can show it.
            Some(seconds) => Some(at(seconds).ok_or_else(|| E::custom("the timestamp is out of range"))?),
            None => None,
        };
        message = set(message, self.message_id, OutgoingMessage::message_id);
        message = set(message, self.idempotency_key, OutgoingMessage::idempotency_key_parts);
        message = set(message, self.content_type, OutgoingMessage::content_type);
        message = set(message, self.content_encoding, OutgoingMessage::content_encoding);
        message = set(message, self.kind, OutgoingMessage::kind);
        message = set(message, self.correlation_id, OutgoingMessage::correlation_id);
        message = set(message, self.reply_to, OutgoingMessage::reply_to);
        message = set(message, self.user_id, OutgoingMessage::user_id);
        message = set(message, self.priority, OutgoingMessage::priority);
        let expiration = self.expiration_millis.map(Duration::from_millis);
        message = set(message, expiration, OutgoingMessage::expiration);
        message = set(message, timestamp, OutgoingMessage::timestamp);
        message = set(message, self.mandatory, OutgoingMessage::mandatory);
        message = set(message, self.deadline, OutgoingMessage::deadline);
        message = set(message, self.replay, OutgoingMessage::in_epoch);
        message =
            self.headers.into_iter().fold(message, |message, (name, value)| message.header(name, value));
        Ok(if self.persistent == Some(false) { message.transient() } else { message })
    }
}

/// For an outbox: what a message has beside its route, ID and body.
impl OutgoingMessage {
    /// Its properties and headers, as JSON; `None` if it is persistent and nothing else was set.
    /// If that is its content type alone, as of most messages, a JSON string says it: an outbox
    /// writes it with every row. Its deadline and idempotency key are left out: they are of the
    /// publish, not of the message.
    pub(crate) fn stored_properties(&self) -> Result<Option<String>, serde_json::Error> {
        let mut properties = V1::properties_of(self);
        let content_type = properties.content_type.take();
        if properties == V1::default() {
            return content_type.map(|content_type| serde_json::to_string(&content_type)).transpose();
        }
        properties.content_type = content_type;
        serde_json::to_string(&Stored::V1(Box::new(properties))).map(Some)
    }

    /// The message with properties and headers as [`stored_properties`](Self::stored_properties)
    /// gave them.
    pub(crate) fn with_stored_properties(self, json: &str) -> Result<Self, serde_json::Error> {
        if json.starts_with('"') {
            return serde_json::from_str::<String>(json).map(|content_type| self.content_type(content_type));
        }
        let Stored::V1(stored) = serde_json::from_str(json)?;
        stored.into_properties(self)
    }
}

impl Serialize for OutgoingMessage {
    /// Fails if the message is not [valid](OutgoingMessage::validate): it could never be published,
    /// nor read again.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.validate().map_err(ser::Error::custom)?;
        Stored::V1(Box::new(V1::of(self))).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for OutgoingMessage {
    /// Fails on a version or a field that is not known, and on what
    /// [`validate`](OutgoingMessage::validate) refuses.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Stored::V1(stored) = Stored::deserialize(deserializer).map_err(|error| {
            de::Error::custom(format_args!("this release reads stored messages of version 1: {error}"))
        })?;
        let message: Self = stored.into_message()?;
        message.validate().map_err(de::Error::custom)?;
        Ok(message)
    }
}

/// Floating-point numbers as the shortest decimal text that gives back every bit: not all readers
/// of JSON numbers do.
pub(super) mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(in crate::message) fn serialize<S: Serializer>(
        number: &f64,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if number.is_finite() {
            serializer.collect_str(&format_args!("{number:?}"))
        } else {
            Err(ser::Error::custom("a number is not finite"))
        }
    }

    pub(in crate::message) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<f64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number: f64 = text.parse().map_err(de::Error::custom)?;
        if number.is_finite() { Ok(number) } else { Err(de::Error::custom("a number is not finite")) }
    }
}

/// Bytes as Base64 (RFC 4648, section 4), with its padding. One text for the same bytes: anything
/// else is refused.
pub(super) mod base64 {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de};

    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub(in crate::message) fn serialize<S: Serializer>(
        bytes: &Bytes,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(bytes))
    }

    pub(in crate::message) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        decode(text.as_bytes()).map(Bytes::from).ok_or_else(|| de::Error::custom("bytes are not in Base64"))
    }

    pub(super) fn encode(bytes: &[u8]) -> String {
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for chunk in bytes.chunks(3) {
            let mut three = [0; 4];
            three[1..=chunk.len()].copy_from_slice(chunk);
            let bits = u32::from_be_bytes(three);
            for index in 0..4 {
                let letter = ALPHABET[(bits >> (18 - 6 * index) & 63) as usize];
                text.push(char::from(if index <= chunk.len() { letter } else { b'=' }));
            }
        }
        text
    }

    pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
        let (groups, rest) = text.as_chunks::<4>();
        let mut bytes = Vec::with_capacity(groups.len() * 3);
        for (at, group) in groups.iter().enumerate() {
            let length = match group {
                [_, _, b'=', b'='] => 1,
                [_, _, _, b'='] => 2,
                _ => 3,
            };
            if length < 3 && at + 1 < groups.len() {
                return None;
            }
            let mut bits = 0;
            for letter in &group[..=length] {
                bits = bits << 6 | value(*letter)?;
            }
            let three = (bits << (6 * (3 - length))).to_be_bytes();
            // Bits that no byte takes must be zero.
            if three[1 + length..].iter().any(|byte| *byte != 0) {
                return None;
            }
            bytes.extend_from_slice(&three[1..=length]);
        }
        rest.is_empty().then_some(bytes)
    }

    fn value(letter: u8) -> Option<u32> {
        Some(u32::from(match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::base64::{decode, encode};

    /// RFC 4648, section 10.
    #[test]
    fn rfc_4648_vectors() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text.as_bytes()).as_deref(), Some(bytes.as_bytes()));
        }
        for text in ["Zg", "Zg=", "Zh==", "Zm9=", "Zg==Zg==", "Z===", "====", "Zm 9", "Zm9v\n", "Zm9-"] {
            assert_eq!(decode(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode(encode(&bytes).as_bytes()), Some(bytes));
        }

        /// Nothing but what `encode` makes is taken.
        #[test]
        fn one_text_for_the_same_bytes(text in "[A-Da-d0-9+/=]{0,12}") {
            if let Some(bytes) = decode(text.as_bytes()) {
                prop_assert_eq!(encode(&bytes), text);
            }
        }
    }
}
