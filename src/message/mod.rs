//! What travels: IDs and how they are made, fingerprints, headers, messages going out and coming in.
//!
//! Nothing here knows how a message is sent or stored.

mod canonical;
mod fingerprint;
mod headers;
mod id;
mod incoming;
mod outgoing;
mod stamped;
mod strategy;

pub use fingerprint::{Fingerprint, InvalidFingerprint};
pub use headers::{HeaderValue, Headers};
pub use id::{InvalidMessageId, MessageId};
pub use incoming::{DecodeError, IncomingMessage};
pub(crate) use incoming::Properties;
pub use outgoing::{InvalidMessage, OutgoingMessage};
pub use strategy::{IdError, IdStrategy};

pub(crate) use headers::reserved;
pub(crate) use stamped::Stamped;
