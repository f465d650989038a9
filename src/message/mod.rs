//! What travels: [`OutgoingMessage`], [`IncomingMessage`] and [`Reply`], their [`MessageId`] and
//! how it is made ([`IdStrategy`]), their [`Headers`], and the [`Fingerprint`] of a body.

mod epoch;
mod fingerprint;
mod headers;
mod id;
mod incoming;
mod json;
mod outgoing;
mod properties;
mod replay;
mod reply;
mod stamped;
mod stored;
mod strategy;
mod trace;
mod trail;
mod validate;

pub(crate) use epoch::Taken;
pub use epoch::{Epoch, InvalidEpoch};
pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use headers::{HeaderValue, Headers};
pub use id::{InvalidMessageId, MessageId};
pub(crate) use incoming::Properties;
pub use incoming::{DecodeError, IncomingMessage};
pub use outgoing::OutgoingMessage;
pub(crate) use outgoing::seconds_since_1970;
pub use properties::OutgoingProperties;
pub use reply::{InvalidReply, Reply};
pub use strategy::{IdError, IdStrategy};
pub use trace::{InvalidTraceParent, TraceContext};
pub use validate::InvalidMessage;

pub(crate) use headers::reserved;
pub(crate) use reply::AtHand;
pub(crate) use stamped::Stamped;
pub(crate) use trail::LONGEST_DELAY;
