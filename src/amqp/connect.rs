//! Opening connections, each step under a deadline.

use std::{fmt, sync::Arc, time::Duration};

use lapin::{
    Connection, ConnectionProperties, ErrorKind,
    types::{LongString, ShortString},
};
use tokio::time::timeout;

use super::uri::{Endpoint, InvalidUri};
use crate::error::BoxError;

/// How long a polite close may take before the socket is left to its heartbeat.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Heartbeat when the URI sets none. RabbitMQ's default of 60 s notices a dead peer only after two minutes.
const HEARTBEAT_SECONDS: u16 = 10;

/// Where and how to connect; shared by publisher and consumer, which never share a connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectOptions {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) name: Option<String>,
    pub(crate) timeout: Duration,
}

impl ConnectOptions {
    /// `uris` holds one URI, or the nodes of one cluster.
    pub(crate) fn new<'a>(uris: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidUri> {
        let endpoints = uris.into_iter().map(Endpoint::parse).collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(InvalidUri::Missing);
        }
        Ok(Self { endpoints, name: None, timeout: Duration::from_secs(10) })
    }

    /// Tries every endpoint once, in random order; the error is the last one's.
    pub(crate) async fn open(&self) -> Result<Arc<Connection>, ConnectError> {
        let mut endpoints: Vec<&Endpoint> = self.endpoints.iter().collect();
        fastrand::shuffle(&mut endpoints);
        let mut last = ConnectError::from(InvalidUri::Missing);
        for endpoint in endpoints {
            match self.open_one(endpoint).await {
                Ok(connection) => return Ok(Arc::new(connection)),
                Err(error) => {
                    tracing::debug!(%endpoint, error = %error, "connection attempt failed");
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn open_one(&self, endpoint: &Endpoint) -> Result<Connection, ConnectError> {
        let mut uri = endpoint.amqp_uri().clone();
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        let mut properties = ConnectionProperties::default()
            .with_client_property(ShortString::from("product"), LongString::from(env!("CARGO_PKG_NAME")))
            .with_client_property(ShortString::from("version"), LongString::from(env!("CARGO_PKG_VERSION")));
        if let Some(name) = &self.name {
            properties = properties.with_connection_name(LongString::from(name.as_str()));
        }
        match timeout(self.timeout, Connection::connect_uri(uri, properties)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(ConnectError::new(classify(&error), endpoint, error.into())),
            Err(elapsed) => Err(ConnectError::new(ConnectErrorKind::TimedOut, endpoint, elapsed.into())),
        }
    }
}

/// Closes politely, but never for longer than [`CLOSE_TIMEOUT`]: a blocked or frozen peer does not answer.
pub(crate) async fn close(connection: &Connection) {
    let _ =
        timeout(CLOSE_TIMEOUT, connection.close(200, ShortString::from("closed by the application"))).await;
}

fn classify(error: &lapin::Error) -> ConnectErrorKind {
    match error.kind() {
        ErrorKind::IOError(_) | ErrorKind::MissingHeartbeatError => ConnectErrorKind::Unreachable,
        // RabbitMQ answers wrong credentials with ACCESS_REFUSED, a missing virtual host with NOT_ALLOWED.
        ErrorKind::ProtocolError(error) if matches!(error.get_id(), 403 | 530) => ConnectErrorKind::Refused,
        ErrorKind::AuthProviderError(_) => ConnectErrorKind::Refused,
        _ => ConnectErrorKind::Protocol,
    }
}

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
    fn new(kind: ConnectErrorKind, endpoint: &Endpoint, source: BoxError) -> Self {
        Self { kind, endpoint: Some(endpoint.to_string()), source }
    }

    pub(crate) fn setup(kind: ConnectErrorKind, source: impl Into<BoxError>) -> Self {
        Self { kind, endpoint: None, source: source.into() }
    }

    /// Opening a channel, or a method on it, failed.
    pub(crate) fn from_lapin(error: lapin::Error) -> Self {
        Self::setup(classify(&error), error)
    }

    /// What went wrong.
    pub fn kind(&self) -> ConnectErrorKind {
        self.kind
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
            Self::TimedOut => "broker did not answer in time",
            Self::Protocol => "broker answered with an error",
        })
    }
}
