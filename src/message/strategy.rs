//! How a message gets its ID.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    id::{InvalidMessageId, MessageId},
    json::{CanonicalError, canonical, canonical_at},
    outgoing::OutgoingMessage,
};
use crate::error::BoxError;

/// Sub-namespaces keep one kind of name from ever looking like another.
const PARTS: &str = "lapin-idempotent: parts";
const CANONICAL_JSON: &str = "lapin-idempotent: canonical JSON";
const POINTERS: &str = "lapin-idempotent: JSON pointers";

/// How an ID is made for a message, once, before its first attempt.
///
/// An ID that the message has goes first, then the message's idempotency key, then the strategy.
///
/// | Strategy | Same ID for | Protects from |
/// |---|---|---|
/// | [`uuid_v7`](Self::uuid_v7), [`uuid_v4`](Self::uuid_v4), [`ulid`](Self::ulid) | the attempts of one publish call | lost confirms, redelivery, rebalancing |
/// | [`uuid_v5`](Self::uuid_v5) and every idempotency key | the same key, in any process | all that, and a service that publishes again after a crash |
/// | [`json_pointers`](Self::json_pointers) | the same values in the body | the same |
/// | [`content`](Self::content), [`canonical_json`](Self::canonical_json) | the same body | the same; but two equal orders are one message |
///
/// Time-ordered IDs (UUIDv7, ULID) cost a database's unique index the least. They show when they
/// were made; an ID that is derived from personal data can be guessed by anyone who can guess the
/// data.
///
/// ```
/// use lapin_idempotent::{IdStrategy, OutgoingMessage};
///
/// # fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let strategy = IdStrategy::json_pointers(["/order"]);
/// let first = OutgoingMessage::to("", "debits").body(r#"{"order":42,"sent":1}"#);
/// let again = OutgoingMessage::to("", "debits").body(r#"{"order":42,"sent":2}"#);
/// assert_eq!(strategy.message_id(&first)?, strategy.message_id(&again)?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct IdStrategy {
    kind: Kind,
    namespace: Uuid,
}

type IdFn = dyn Fn(&OutgoingMessage) -> Result<MessageId, BoxError> + Send + Sync;

#[derive(Clone)]
enum Kind {
    UuidV7,
    UuidV4,
    Ulid(Arc<Mutex<ulid::Generator>>),
    Key,
    Content,
    CanonicalJson,
    JsonPointers(Pointers),
    Closure(Arc<IdFn>),
}

#[derive(Clone)]
struct Pointers {
    pointers: Arc<[String]>,
    /// Whether objects and arrays may be part of an ID.
    structured: bool,
}

/// Why no ID could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The strategy needs an idempotency key, and the message has none.
    #[error("the message has no idempotency key")]
    MissingKey,
    /// The idempotency key is empty, or all its parts are: it would make all such messages one.
    #[error("the idempotency key is empty")]
    EmptyKey,
    /// The body is not JSON.
    #[error("the body is not JSON")]
    NotJson(#[source] serde_json::Error),
    /// A number would become another one in canonical JSON, so that two messages could get one ID.
    #[error("the number {literal} cannot be part of an ID: as a double it is another number")]
    InexactNumber {
        /// The beginning of the number as it stands in the body.
        literal: String,
    },
    /// A name occurs twice in one object of the body.
    #[error("the name {name:?} occurs twice in one object")]
    DuplicateName {
        /// The beginning of the name.
        name: String,
    },
    /// The body is nested more than 127 deep, which is as far as `serde_json` reads by default.
    #[error("the body is nested more than 127 deep")]
    TooDeep,
    /// There is no value at a pointer, or one that says nothing: `null`, or an empty string, object
    /// or array.
    #[error("the body has no value at {pointer:?}")]
    PointerMissing {
        /// The pointer.
        pointer: String,
    },
    /// There is an object or an array at a pointer, which the strategy was not told to take.
    #[error("the value at {pointer:?} is an object or an array, which `with_structured_values` allows")]
    Structured {
        /// The pointer.
        pointer: String,
    },
    /// A JSON pointer is malformed (RFC 6901), or none was given.
    #[error("{pointer:?} is not a JSON pointer")]
    InvalidPointer {
        /// The pointer.
        pointer: String,
    },
    /// The strategy makes its IDs from something other than the body.
    #[error("this strategy does not derive IDs from a body")]
    NotFromBody,
    /// The ID that was made is not a valid one.
    #[error("the ID is not valid")]
    Invalid(#[from] InvalidMessageId),
    /// The strategy's closure failed.
    #[error("the strategy failed")]
    Custom(#[source] BoxError),
}

impl IdStrategy {
    /// The namespace of idempotency keys and content IDs, unless another is set: a UUIDv4 made once
    /// for this crate, `6f4dc2a3-7be5-4d39-9d2c-3a558e1b0c4f`.
    pub const NAMESPACE: Uuid = Uuid::from_u128(0x6f4d_c2a3_7be5_4d39_9d2c_3a55_8e1b_0c4f);

    fn new(kind: Kind) -> Self {
        Self { kind, namespace: Self::NAMESPACE }
    }

    /// Random and time-ordered (RFC 9562, version 7); ordered within this process. The default.
    pub fn uuid_v7() -> Self {
        Self::new(Kind::UuidV7)
    }

    /// Random (RFC 9562, version 4).
    pub fn uuid_v4() -> Self {
        Self::new(Kind::UuidV4)
    }

    /// Random and time-ordered, 26 characters; strictly growing among the clones of this strategy.
    pub fn ulid() -> Self {
        Self::new(Kind::Ulid(Arc::new(Mutex::new(ulid::Generator::new()))))
    }

    /// Requires an idempotency key on every message, and derives the ID from it in `namespace` (RFC
    /// 9562, version 5).
    ///
    /// Other languages compute the same ID: it is `uuid5(namespace, key)` over the key's UTF-8. A
    /// key of several parts is `uuid5(uuid5(namespace, "lapin-idempotent: parts"), name)`, where
    /// `name` is each part after its length in bytes, as eight bytes, big-endian.
    pub fn uuid_v5(namespace: Uuid) -> Self {
        Self::new(Kind::Key).with_namespace(namespace)
    }

    /// SHA-256 of the body's exact bytes, as a UUIDv8 (RFC 9562, appendix B.2). Where the message
    /// goes does not count.
    pub fn content() -> Self {
        Self::new(Kind::Content)
    }

    /// Like [`content`](Self::content), of the body's canonical JSON (RFC 8785): white space, the
    /// order of members and the spelling of numbers and strings do not count.
    ///
    /// A number that canonical JSON would change, such as most integers above 2^53, is an error,
    /// and so is a name that occurs twice in one object. Several times as expensive as the exact
    /// bytes.
    pub fn canonical_json() -> Self {
        Self::new(Kind::CanonicalJson)
    }

    /// SHA-256 of the values at these JSON pointers (RFC 6901) into the body, such as `/order/id`,
    /// as a UUIDv8.
    ///
    /// The pointers themselves count, too, but not their order. A value that is missing, `null` or
    /// empty is an error at that message, and so is an object or an array, unless
    /// [`with_structured_values`](Self::with_structured_values) allows them; no pointer at all, or
    /// a malformed one, is an error at every message. `42` and `"42"` differ. Only these values
    /// need to be exact, as in [`canonical_json`](Self::canonical_json).
    pub fn json_pointers<I>(pointers: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let mut pointers: Vec<String> = pointers.into_iter().map(Into::into).collect();
        pointers.sort_unstable();
        pointers.dedup();
        Self::new(Kind::JsonPointers(Pointers { pointers: pointers.into(), structured: false }))
    }

    /// Lets [`json_pointers`](Self::json_pointers) take objects and arrays, in their canonical
    /// form; empty ones are still errors. Without effect on other strategies.
    #[must_use]
    pub fn with_structured_values(mut self) -> Self {
        if let Kind::JsonPointers(pointers) = &mut self.kind {
            pointers.structured = true;
        }
        self
    }

    /// A function of the message.
    pub fn from_fn<F>(id: F) -> Self
    where
        F: Fn(&OutgoingMessage) -> Result<MessageId, BoxError> + Send + Sync + 'static,
    {
        Self::new(Kind::Closure(Arc::new(id)))
    }

    /// Derives idempotency keys and content IDs in another namespace than
    /// [`NAMESPACE`](Self::NAMESPACE).
    #[must_use]
    pub fn with_namespace(mut self, namespace: Uuid) -> Self {
        self.namespace = namespace;
        self
    }

    /// The ID of a message: its own, or else the one of its idempotency key, or else one of this
    /// strategy.
    ///
    /// # Errors
    ///
    /// An [`IdError`] if the strategy needs something that the message lacks.
    pub fn message_id(&self, message: &OutgoingMessage) -> Result<MessageId, IdError> {
        if let Some(id) = message.id() {
            return Ok(id.clone());
        }
        if let Some(parts) = message.key() {
            return self.key_id(parts);
        }
        match &self.kind {
            Kind::UuidV7 => Ok(Uuid::now_v7().into()),
            Kind::UuidV4 => Ok(Uuid::new_v4().into()),
            Kind::Ulid(generator) => Ok(next_ulid(generator).into()),
            Kind::Key => Err(IdError::MissingKey),
            Kind::Closure(id) => id(message).map_err(IdError::Custom),
            Kind::Content | Kind::CanonicalJson | Kind::JsonPointers(_) => {
                self.derive_from_body(message.payload())
            }
        }
    }

    /// Whether the IDs that it makes by itself hold the time.
    pub(crate) fn is_time_ordered(&self) -> bool {
        matches!(self.kind, Kind::UuidV7 | Kind::Ulid(_))
    }

    /// The ID that this strategy gives to a body: for a consumer whose publishers set none.
    ///
    /// # Errors
    ///
    /// [`IdError::NotFromBody`] unless the strategy is [`content`](Self::content),
    /// [`canonical_json`](Self::canonical_json) or [`json_pointers`](Self::json_pointers);
    /// otherwise what is wrong with the body.
    pub fn derive_from_body(&self, body: &[u8]) -> Result<MessageId, IdError> {
        match &self.kind {
            Kind::Content => Ok(named_v8(self.namespace, body)),
            Kind::CanonicalJson => Ok(named_v8(self.sub_namespace(CANONICAL_JSON), &canonical(body)?)),
            Kind::JsonPointers(Pointers { pointers, structured }) => {
                pointers.iter().try_for_each(|pointer| check_pointer(pointer))?;
                let mut name = Vec::with_capacity(pointers.len() * 2);
                for pointer in pointers.iter() {
                    let value = canonical_at(body, pointer)?;
                    let value = value.ok_or_else(|| IdError::PointerMissing { pointer: pointer.clone() })?;
                    if !structured && matches!(value.first(), Some(b'{' | b'[')) {
                        return Err(IdError::Structured { pointer: pointer.clone() });
                    }
                    name.extend([pointer.as_bytes().to_vec(), value]);
                }
                if name.is_empty() {
                    return Err(IdError::InvalidPointer { pointer: String::new() });
                }
                Ok(named_v8(self.sub_namespace(POINTERS), &length_prefixed(name)))
            }
            _ => Err(IdError::NotFromBody),
        }
    }

    fn key_id(&self, parts: &[String]) -> Result<MessageId, IdError> {
        match parts {
            parts if parts.iter().all(String::is_empty) => Err(IdError::EmptyKey),
            [key] => Ok(Uuid::new_v5(&self.namespace, key.as_bytes()).into()),
            parts => Ok(Uuid::new_v5(&self.sub_namespace(PARTS), &length_prefixed(parts)).into()),
        }
    }

    fn sub_namespace(&self, name: &str) -> Uuid {
        Uuid::new_v5(&self.namespace, name.as_bytes())
    }
}

/// RFC 9562, appendix B.2: SHA-256 over namespace and name, cut to 128 bits, with version and
/// variant set.
fn named_v8(namespace: Uuid, name: &[u8]) -> MessageId {
    let hash = Sha256::new_with_prefix(namespace.as_bytes()).chain_update(name);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    Uuid::new_v8(bytes).into()
}

/// Puts parts together so that no two lists give the same bytes: each part after its length.
pub(super) fn length_prefixed<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        let part = part.as_ref();
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// Grows also when the random part of a millisecond is used up: it then carries into the time.
fn next_ulid(generator: &Mutex<ulid::Generator>) -> ulid::Ulid {
    let mut generator = generator.lock().unwrap_or_else(PoisonError::into_inner);
    generator.generate().unwrap_or_else(ulid::Overflow::commit_overflow_increment)
}

/// RFC 6901, section 3: empty, or starting with a slash; `~` only as `~0` or `~1`.
fn check_pointer(pointer: &str) -> Result<(), IdError> {
    let escapes = pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
    if escapes && (pointer.is_empty() || pointer.starts_with('/')) {
        Ok(())
    } else {
        Err(IdError::InvalidPointer { pointer: pointer.to_owned() })
    }
}

impl From<CanonicalError> for IdError {
    fn from(error: CanonicalError) -> Self {
        match error {
            CanonicalError::Syntax(error) => Self::NotJson(error),
            CanonicalError::InexactNumber(literal) => Self::InexactNumber { literal },
            CanonicalError::DuplicateName(name) => Self::DuplicateName { name },
            CanonicalError::TooDeep => Self::TooDeep,
        }
    }
}

impl Default for IdStrategy {
    fn default() -> Self {
        Self::uuid_v7()
    }
}

impl fmt::Debug for IdStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::UuidV7 => "IdStrategy::uuid_v7",
            Kind::UuidV4 => "IdStrategy::uuid_v4",
            Kind::Ulid(_) => "IdStrategy::ulid",
            Kind::Key => "IdStrategy::uuid_v5",
            Kind::Content => "IdStrategy::content",
            Kind::CanonicalJson => "IdStrategy::canonical_json",
            Kind::JsonPointers(Pointers { pointers, .. }) => {
                return write!(f, "IdStrategy::json_pointers({pointers:?})");
            }
            Kind::Closure(_) => "IdStrategy::from_fn",
        })
    }
}
