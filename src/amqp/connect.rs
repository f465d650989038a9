//! Opening connections, each step under a deadline.

use std::{future::Future, ops::Deref, sync::Arc, time::Duration};

use lapin::{
    ConnectionProperties,
    tcp::OwnedTLSConfig,
    types::{LongString, ShortString},
};
use tokio::{runtime::Handle, time::timeout};

#[cfg(feature = "tls")]
use super::tls::TlsOptions;
use super::{
    credentials::CredentialSource,
    error::{ConnectError, ConnectErrorKind, classify},
    socket::Socket,
    uri::{Endpoint, InvalidUri},
};
use crate::error::Chain;

/// How long a polite close may take before the socket is ended.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Heartbeat when the URI sets none. RabbitMQ's default of 60 s notices a dead peer only after two
/// minutes.
const HEARTBEAT_SECONDS: u16 = 10;

/// The most bytes that a connection may be named with.
const LONGEST_CONNECTION_NAME: usize = 1024;

/// RabbitMQ's default.
const FRAME_MAX: u32 = 131_072;

/// Where and how to connect; shared by publisher and consumer, which never share a connection.
#[derive(Debug, Clone)]
pub(crate) struct ConnectOptions {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) name: Option<String>,
    pub(crate) timeout: Duration,
    /// The largest frame, where the URI does not say. lapin's buffers are 64 times as large.
    pub(crate) frame_max: u32,
    pub(crate) credentials: CredentialSource,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<TlsOptions>,
}

impl ConnectOptions {
    /// `uris` holds one URI, or the nodes of one cluster.
    pub(crate) fn new(uris: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, InvalidUri> {
        let parsed = uris.into_iter().map(|uri| Endpoint::parse(uri.as_ref()));
        let endpoints = parsed.collect::<Result<Vec<_>, _>>()?;
        if endpoints.is_empty() {
            return Err(InvalidUri::Missing);
        }
        if endpoints.iter().any(|endpoint| endpoint.amqp_uri().vhost != endpoints[0].amqp_uri().vhost) {
            return Err(InvalidUri::Mixed("virtual hosts"));
        }
        Ok(Self {
            endpoints,
            name: None,
            timeout: Duration::from_secs(10),
            frame_max: FRAME_MAX,
            credentials: CredentialSource::default(),
            #[cfg(feature = "tls")]
            tls: None,
        })
    }

    /// The largest frame that every endpoint takes, as far as is known.
    pub(crate) fn smallest_frame(&self) -> usize {
        let own = |endpoint: &Endpoint| endpoint.amqp_uri().query.frame_max.unwrap_or(self.frame_max);
        self.endpoints.iter().map(own).min().unwrap_or(self.frame_max) as usize
    }

    /// Why these settings cannot work, whatever the broker says.
    pub(crate) fn invalid_setting(&self) -> Option<&'static str> {
        // The broker takes the connection's first frames only up to a few kilobytes.
        let is_long = |name: &String| name.len() > LONGEST_CONNECTION_NAME;
        let refused = [
            ("connect_timeout is zero", self.timeout.is_zero()),
            ("connection_name has more than 1,024 bytes", self.name.as_ref().is_some_and(is_long)),
        ];
        refused.into_iter().find(|(_, refused)| *refused).map(|(what, _)| what)
    }

    /// Refuses settings of which one would be ignored, and warns of a password that travels in the
    /// clear.
    pub(crate) fn check(&self) -> Result<(), InvalidUri> {
        let set_apart = !matches!(self.credentials, CredentialSource::Uri);
        if set_apart && self.endpoints.iter().any(|endpoint| endpoint.has_credentials) {
            return Err(InvalidUri::CredentialsTwice);
        }
        #[cfg(feature = "tls")]
        if self.tls.is_some() && !self.endpoints.iter().all(Endpoint::is_tls) {
            return Err(InvalidUri::TlsNotUsed);
        }
        for endpoint in self.endpoints.iter().filter(|endpoint| !endpoint.is_tls() && !endpoint.is_loopback())
        {
            tracing::warn!(%endpoint, "amqp:// to another host: password and messages travel unencrypted; use amqps://");
        }
        Ok(())
    }

    /// Tries every endpoint once, in random order; the error is the last one's.
    pub(crate) async fn open(&self) -> Result<Arc<Connection>, ConnectError> {
        self.first(|endpoint| self.attempt(endpoint)).await.map(Arc::new)
    }

    /// What comes of the first endpoint with which `attempt` succeeds, each within the time for
    /// connecting.
    pub(super) async fn first<'a, T, F>(
        &'a self,
        attempt: impl Fn(&'a Endpoint) -> F,
    ) -> Result<T, ConnectError>
    where
        F: Future<Output = Result<T, ConnectError>>,
    {
        let mut endpoints: Vec<&Endpoint> = self.endpoints.iter().collect();
        fastrand::shuffle(&mut endpoints);
        let mut last = ConnectError::from(InvalidUri::Missing);
        for endpoint in endpoints {
            let outcome = timeout(self.timeout, attempt(endpoint)).await.unwrap_or_else(|elapsed| {
                Err(ConnectError::new(ConnectErrorKind::TimedOut, endpoint, elapsed.into()))
            });
            match outcome {
                Ok(first) => return Ok(first),
                Err(error) => {
                    tracing::debug!(%endpoint, error = %Chain(&error), "connection attempt failed");
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// What `amqps://` verifies the broker with.
    #[cfg(feature = "tls")]
    pub(super) async fn tls_config(&self) -> Result<OwnedTLSConfig, ConnectError> {
        match &self.tls {
            Some(tls) => tls.load().await,
            None => Ok(OwnedTLSConfig::default()),
        }
    }

    /// Nothing, without TLS.
    #[cfg(not(feature = "tls"))]
    #[expect(clippy::unused_async, reason = "the same as with TLS")]
    pub(super) async fn tls_config(&self) -> Result<OwnedTLSConfig, ConnectError> {
        Ok(OwnedTLSConfig::default())
    }

    async fn attempt(&self, endpoint: &Endpoint) -> Result<Connection, ConnectError> {
        let mut uri = endpoint.amqp_uri().clone();
        if let Some(credentials) = self.credentials.get().await? {
            uri.authority.userinfo.username = credentials.username;
            uri.authority.userinfo.password = credentials.password;
        }
        let tls = self.tls_config().await?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
        uri.query.frame_max.get_or_insert(self.frame_max);
        let mut properties = ConnectionProperties::default()
            .with_client_property(ShortString::from("product"), LongString::from(env!("CARGO_PKG_NAME")))
            .with_client_property(ShortString::from("version"), LongString::from(env!("CARGO_PKG_VERSION")));
        if let Some(name) = &self.name {
            properties = properties.with_connection_name(LongString::from(name.as_str()));
        }
        match Socket::connect(uri, properties, tls).await {
            (socket, Ok(connection)) => {
                Ok(Connection { lapin: connection, socket: Some(socket), runtime: Handle::current() })
            }
            (socket, Err(error)) => {
                // lapin may still have to say goodbye.
                Handle::current().spawn(leave(socket));
                Err(ConnectError::new(classify(&error), endpoint, error.into()))
            }
        }
    }
}

/// A connection of lapin over this crate's socket. Dropped or closed, it is gone a few seconds
/// later, whatever the peer does.
pub(crate) struct Connection {
    lapin: lapin::Connection,
    socket: Option<Socket>,
    runtime: Handle,
}

impl Deref for Connection {
    type Target = lapin::Connection;

    fn deref(&self) -> &lapin::Connection {
        &self.lapin
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take().filter(|socket| !socket.has_ended()) {
            self.runtime.spawn(leave(socket));
        }
    }
}

/// Leaves lapin some time to end by itself.
async fn leave(socket: Socket) {
    let _ = timeout(CLOSE_TIMEOUT, socket.ended()).await;
}

/// A connection that is closed in the background when it is dropped.
///
/// A connection of lapin that is only dropped goes on while something of it is under way in lapin
/// itself, such as a subscription that the broker has not confirmed yet. The broker then delivers
/// to nobody, and gives nothing back.
pub(crate) struct ClosedOnDrop {
    connection: Arc<Connection>,
    runtime: Handle,
}

impl ClosedOnDrop {
    /// To be called in a tokio runtime.
    pub(crate) fn new(connection: Arc<Connection>) -> Self {
        Self { connection, runtime: Handle::current() }
    }
}

impl Deref for ClosedOnDrop {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for ClosedOnDrop {
    fn drop(&mut self) {
        if self.connection.status().connected() {
            let connection = Arc::clone(&self.connection);
            self.runtime.spawn(async move { close(&connection).await });
        }
    }
}

/// Closes politely, but never for longer than [`CLOSE_TIMEOUT`]: a blocked or frozen peer does not
/// answer.
pub(crate) async fn close(connection: &Connection) {
    let goodbye = connection.close(200, ShortString::from("closed by the application"));
    if timeout(CLOSE_TIMEOUT, goodbye).await.is_err()
        && let Some(socket) = &connection.socket
    {
        socket.cut();
    }
}
