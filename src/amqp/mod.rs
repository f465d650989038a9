//! Connecting: [`Credentials`], TLS, and what a [`ConnectError`] says.
//!
//! Publisher and consumer take the same URIs and the same settings. Each has its own connection.

mod connect;
mod convert;
mod credentials;
mod deaths;
mod declare;
mod error;
mod fit;
mod forwarded;
#[cfg(feature = "testing")]
mod in_memory;
mod origin;
mod screen;
mod server_clock;
mod server_version;
mod settings;
mod socket;
#[cfg(feature = "tls")]
mod tls;
mod topology;
mod uri;
mod values;

pub(crate) use connect::{ClosedOnDrop, ConnectOptions, Connection, close};
pub(crate) use convert::{attempt, incoming, properties};
pub(crate) use credentials::CredentialSource;
pub use credentials::Credentials;
pub(crate) use deaths::{COUNTS, DELAY_SUFFIX, growth, last_death};
pub(crate) use declare::{UNLIMITED, declare_durable, ensure_queue, within};
pub use error::{ConnectError, ConnectErrorKind};
pub(crate) use error::{is_refusal, refusal};
pub(crate) use fit::fitted;
pub(crate) use forwarded::{
    Delay, Move, Note, Route, delayed_properties, moved_properties, parked_properties, renewed_properties,
    unparked_properties,
};
#[cfg(feature = "testing")]
pub(crate) use in_memory::{Answer, Fate, Fates, Kept, MemoryBroker, Step};
pub(crate) use origin::text_header;
pub use server_clock::server_clock;
pub use server_version::ServerVersion;
pub(crate) use server_version::server_version;
pub(crate) use settings::connection_settings;
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use tls::TlsOptions;
pub(crate) use topology::Topology;
pub use uri::InvalidUri;
pub(crate) use values::field_table;
