//! The identity of a message.

use std::{
    borrow::Borrow,
    fmt,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use ulid::Ulid;
use uuid::{Uuid, Variant};

use super::strategy::length_prefixed;

/// The namespace of derived IDs: a UUIDv4 made once for this crate.
const DERIVED: Uuid = Uuid::from_u128(0x9b1c_32f5_0f0e_4c57_a7c4_6a0f_5e83_11d2);

/// AMQP short strings, of which `message_id` is one, hold at most 255 bytes (AMQP 0-9-1, section
/// 4.2.5.3).
pub(super) const SHORT_STRING_BYTES: usize = 255;

/// The AMQP property `message_id`: 1 to 255 bytes of UTF-8 without control characters.
///
/// Identity is exact. Two IDs are the same only if all their bytes are: case, trailing spaces and
/// Unicode normalization count. Cloning is cheap.
///
/// ```
/// use lapin_idempotent::MessageId;
///
/// # fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let debit = MessageId::new("debit/order-42")?;
/// // Of a message that follows from it: the same at every run.
/// assert_eq!(debit.derive("receipt"), debit.derive("receipt"));
/// assert!(MessageId::new("").is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MessageId(Arc<str>);

/// Why a text cannot be a [`MessageId`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidMessageId {
    /// It has no bytes.
    Empty,
    /// It has more than 255 bytes.
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// It holds a control character.
    ControlCharacter {
        /// The first one.
        character: char,
        /// Where it starts, in bytes.
        at: usize,
    },
}

impl InvalidMessageId {
    /// The same of something else that obeys the same rules.
    pub(crate) fn told_of(&self, what: &str) -> String {
        match self {
            Self::Empty => format!("{what} must not be empty"),
            Self::TooLong { bytes } => format!("{what} has at most 255 bytes, this one has {bytes}"),
            Self::ControlCharacter { character, at } => {
                let character = character.escape_default();
                format!("{what} holds no control characters, this one has {character} at byte {at}")
            }
        }
    }
}

impl fmt::Display for InvalidMessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told_of("a message ID"))
    }
}

impl std::error::Error for InvalidMessageId {}

impl MessageId {
    /// Checks an ID.
    ///
    /// # Errors
    ///
    /// [`InvalidMessageId`] if it is empty, longer than 255 bytes, or holds a control character
    /// (Unicode category Cc).
    pub fn new(id: impl Into<Arc<str>>) -> Result<Self, InvalidMessageId> {
        let id = id.into();
        if id.is_empty() {
            return Err(InvalidMessageId::Empty);
        }
        if id.len() > SHORT_STRING_BYTES {
            return Err(InvalidMessageId::TooLong { bytes: id.len() });
        }
        match id.char_indices().find(|(_, character)| character.is_control()) {
            Some((at, character)) => Err(InvalidMessageId::ControlCharacter { character, at }),
            None => Ok(Self(id)),
        }
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID of something that follows from this message, such as a message that its handler
    /// publishes.
    ///
    /// The same parent and name always give the same ID (a UUIDv5 over both), so what is published
    /// again by a second run of the handler is recognised as the same.
    #[must_use]
    pub fn derive(&self, name: &str) -> Self {
        Uuid::new_v5(&DERIVED, &length_prefixed([self.as_str(), name])).into()
    }

    /// When the ID was made, if it is a UUIDv7 or has the form of a ULID.
    ///
    /// By the clock of the process that made it, to the millisecond. Any 26 characters of
    /// Crockford's alphabet have the form of a ULID if the first is at most `7`, so treat the
    /// answer as a claim, not as a proof.
    pub fn time(&self) -> Option<SystemTime> {
        let text = self.as_str();
        let millis = match text.len() {
            36 => Uuid::try_parse(text).ok().filter(is_v7).map(|uuid| (uuid.as_u128() >> 80) as u64),
            // Above 7 the first character overflows 128 bits, which the decoder does not notice.
            26 if text.as_bytes()[0] <= b'7' => Ulid::from_string(text).ok().map(|ulid| ulid.timestamp_ms()),
            _ => None,
        }?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))
    }

    /// A random ID (UUIDv7).
    pub(crate) fn random() -> Self {
        Uuid::now_v7().into()
    }

    pub(super) fn from_uuid(uuid: Uuid) -> Self {
        let mut buffer = Uuid::encode_buffer();
        Self(Arc::from(&*uuid.hyphenated().encode_lower(&mut buffer)))
    }
}

fn is_v7(uuid: &Uuid) -> bool {
    uuid.get_version_num() == 7 && uuid.get_variant() == Variant::RFC4122
}

impl From<Uuid> for MessageId {
    /// The hyphenated lower-case form.
    fn from(uuid: Uuid) -> Self {
        Self::from_uuid(uuid)
    }
}

impl From<Ulid> for MessageId {
    /// The canonical form: 26 upper-case characters.
    fn from(ulid: Ulid) -> Self {
        let mut buffer = [0; ulid::ULID_LEN];
        Self(Arc::from(&*ulid.array_to_str(&mut buffer)))
    }
}

impl FromStr for MessageId {
    type Err = InvalidMessageId;

    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::new(id)
    }
}

impl TryFrom<&str> for MessageId {
    type Error = InvalidMessageId;

    fn try_from(id: &str) -> Result<Self, Self::Error> {
        Self::new(id)
    }
}

impl TryFrom<String> for MessageId {
    type Error = InvalidMessageId;

    fn try_from(id: String) -> Result<Self, Self::Error> {
        Self::new(id)
    }
}

impl From<MessageId> for String {
    fn from(id: MessageId) -> Self {
        id.as_str().to_owned()
    }
}

impl AsRef<str> for MessageId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for MessageId {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({:?})", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_is_counted_in_bytes() {
        assert_eq!(MessageId::new(""), Err(InvalidMessageId::Empty));
        assert!(MessageId::new("x".repeat(255)).is_ok());
        assert_eq!(MessageId::new("x".repeat(256)), Err(InvalidMessageId::TooLong { bytes: 256 }));
        assert!(MessageId::new("é".repeat(127)).is_ok());
        assert_eq!(MessageId::new("é".repeat(128)), Err(InvalidMessageId::TooLong { bytes: 256 }));
    }

    #[test]
    fn control_characters_are_refused_and_never_printed_raw() {
        for character in ['\0', '\n', '\u{1b}', '\u{7f}', '\u{85}'] {
            let error = MessageId::new(format!("ab{character}")).unwrap_err();
            assert_eq!(error, InvalidMessageId::ControlCharacter { character, at: 2 });
            assert!(!error.to_string().contains(character));
        }
    }

    #[test]
    fn every_byte_counts() {
        let id = |text: &str| MessageId::new(text).unwrap();
        assert_ne!(id("A"), id("a"));
        assert_ne!(id("x"), id("x "));
        assert_ne!(id("\u{e9}"), id("e\u{301}"));
    }

    #[test]
    fn children_are_stable_and_distinct() {
        let parent = MessageId::new("order-42").unwrap();
        assert_eq!(parent.derive("charge"), parent.derive("charge"));
        assert_ne!(parent.derive("charge"), parent.derive("ship"));
        let (ab, a) = (MessageId::new("ab").unwrap(), MessageId::new("a").unwrap());
        assert_ne!(ab.derive("c"), a.derive("bc"));
    }

    #[test]
    fn time_comes_from_time_ordered_ids_only() {
        let at = |millis| Some(SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        // RFC 9562, appendix A.6, and the example of the ULID specification.
        let v7 = MessageId::new("017F22E2-79B0-7CC3-98C4-DC0C0C07398F").unwrap();
        assert_eq!(v7.time(), at(1_645_557_742_000));
        let ulid = MessageId::new("01ARZ3NDEKTSV4RRFFQ69G5FAV").unwrap();
        assert_eq!(ulid.time(), at(1_469_922_850_259));
        let last = MessageId::new("7ZZZZZZZZZZZZZZZZZZZZZZZZZ").unwrap();
        assert_eq!(last.time(), at((1 << 48) - 1));
        for other in [
            "order-42",
            "2ed6657d-e927-568b-95e1-2665a8aea6a2",
            "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "0123456789-0123456789-0123",
        ] {
            assert_eq!(MessageId::new(other).unwrap().time(), None, "{other}");
        }
    }

    #[test]
    fn serde_keeps_the_rules() {
        let id: MessageId = serde_json::from_str("\"order-42\"").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"order-42\"");
        assert!(serde_json::from_str::<MessageId>("\"a\\nb\"").is_err());
    }
}
