//! Why a connection could not be opened.

use std::{fmt, future::Future, io, time::Duration};

use lapin::ErrorKind;
use tokio::time::timeout;

use super::uri::{Endpoint, InvalidUri};
use crate::error::BoxError;

/// A connection to the broker could not be opened.
///
/// No rendering of it holds credentials.
#[derive(Debug, thiserror::Error)]
#[error("{kind}{}", .endpoint.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
pub struct ConnectError {
    kind: ConnectErrorKind,
    endpoint: Option<String>,
    source: BoxError,
}

impl ConnectError {
    pub(super) fn new(kind: ConnectErrorKind, endpoint: &Endpoint, source: BoxError) -> Self {
        Self { kind, endpoint: Some(endpoint.to_string()), source }
    }

    pub(crate) fn setup(kind: ConnectErrorKind, source: impl Into<BoxError>) -> Self {
        Self { kind, endpoint: None, source: source.into() }
    }

    /// Opening a channel, or a method on it, failed.
    pub(crate) fn from_lapin(error: lapin::Error) -> Self {
        Self::setup(classify(&error), error)
    }

    /// What a step on a new connection comes to, in the time that it has.
    pub(crate) async fn within<T>(
        limit: Duration,
        step: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T, Self> {
        match timeout(limit, step).await {
            Ok(result) => result.map_err(Self::from_lapin),
            Err(elapsed) => Err(Self::setup(ConnectErrorKind::TimedOut, elapsed)),
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> ConnectErrorKind {
        self.kind
    }

    /// The address that was tried, without the password; of several the last. `None` if it did not
    /// come to that.
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }
}

impl From<InvalidUri> for ConnectError {
    fn from(error: InvalidUri) -> Self {
        Self::setup(ConnectErrorKind::InvalidUri, error)
    }
}

/// What kept a connection from opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectErrorKind {
    /// The URI is malformed, or asks for something that would be ignored.
    InvalidUri,
    /// No broker answered at the address, or the connection broke.
    Unreachable,
    /// The broker refused the credentials or the virtual host.
    Refused,
    /// The broker takes no more connections or channels: the user, the virtual host or the node has
    /// as many as it may have.
    Limit,
    /// A setting cannot work, such as a time limit of zero, or more channels than the broker
    /// allows. The source names it.
    Setting,
    /// The credentials were not available: a variable is not set, or their provider failed.
    Credentials,
    /// A certificate or key is not usable, or the TLS handshake failed.
    Tls,
    /// Declaring the topology failed.
    Topology,
    /// The broker did not answer in time.
    TimedOut,
    /// The broker answered with an AMQP error.
    Protocol,
}

impl fmt::Display for ConnectErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InvalidUri => "invalid connection URI",
            Self::Unreachable => "broker unreachable",
            Self::Refused => "broker refused the credentials or the virtual host",
            Self::Limit => "the broker's limit of connections or channels is reached",
            Self::Setting => "invalid setting",
            Self::Credentials => "credentials unavailable",
            Self::Tls => "TLS failed",
            Self::Topology => "the topology could not be declared",
            Self::TimedOut => "broker did not answer in time",
            Self::Protocol => "broker answered with an error",
        })
    }
}

/// The reply code with which the broker closed a channel over what was sent on it; other channels
/// go on.
pub(crate) fn refusal(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        ErrorKind::ProtocolError(protocol) if error.is_amqp_soft_error() => {
            Some((protocol.get_id(), protocol.get_message().to_string()))
        }
        _ => None,
    }
}

/// Whether the broker answered, and said no. What it says of a connection that it closes to shut
/// down is no answer (320, connection-forced).
pub(crate) fn is_refusal(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    error.downcast_ref::<lapin::Error>().is_some_and(|error| match error.kind() {
        ErrorKind::ProtocolError(protocol) => protocol.get_id() != 320,
        _ => false,
    })
}

/// What a broken stream says of the connection.
pub(super) fn classify_io(error: &io::Error) -> ConnectErrorKind {
    match error.kind() {
        // rustls reports a certificate that it does not accept, or that is not accepted, as invalid
        // data.
        io::ErrorKind::InvalidData => ConnectErrorKind::Tls,
        _ => ConnectErrorKind::Unreachable,
    }
}

pub(super) fn classify(error: &lapin::Error) -> ConnectErrorKind {
    match error.kind() {
        ErrorKind::IOError(error) => classify_io(error),
        ErrorKind::MissingHeartbeatError
        | ErrorKind::InvalidConnectionState(_)
        | ErrorKind::InvalidChannelState(..) => ConnectErrorKind::Unreachable,
        ErrorKind::ChannelsLimitReached => ConnectErrorKind::Limit,
        ErrorKind::ProtocolError(error) => classify_reply(error.get_id(), error.get_message().as_str()),
        ErrorKind::AuthProviderError(_) => ConnectErrorKind::Refused,
        _ => ConnectErrorKind::Protocol,
    }
}

/// RabbitMQ answers wrong credentials with `ACCESS_REFUSED`. With `NOT_ALLOWED` it answers a
/// virtual host that is missing or closed to the user, and every limit that is reached, and frames
/// that are too small; only the text tells them apart.
fn classify_reply(code: u16, text: &str) -> ConnectErrorKind {
    match code {
        403 => ConnectErrorKind::Refused,
        530 if text.contains("limit") || text.contains("channel_max") => ConnectErrorKind::Limit,
        530 if text.contains("vhost") => ConnectErrorKind::Refused,
        _ => ConnectErrorKind::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_allowed_is_told_apart_by_its_text() {
        for (text, kind) in [
            ("NOT_ALLOWED - vhost orders not found", ConnectErrorKind::Refused),
            ("NOT_ALLOWED - access to vhost 'orders' refused for user 'guest'", ConnectErrorKind::Refused),
            (
                "NOT_ALLOWED - access to vhost 'orders' refused for user 'guest': connection limit (7) is reached",
                ConnectErrorKind::Limit,
            ),
            (
                "NOT_ALLOWED - connection refused for user 'guest': user connection limit (7) is reached",
                ConnectErrorKind::Limit,
            ),
            (
                "NOT_ALLOWED - connection refused: node connection limit (7) is reached",
                ConnectErrorKind::Limit,
            ),
            (
                "NOT_ALLOWED - number of channels opened (7) has reached the negotiated channel_max (7)",
                ConnectErrorKind::Limit,
            ),
            (
                "NOT_ALLOWED - failed to negotiate connection parameters: negotiated frame_max = 4096 is lower than the minimum",
                ConnectErrorKind::Protocol,
            ),
        ] {
            assert_eq!(classify_reply(530, text), kind, "{text}");
        }
    }
}
