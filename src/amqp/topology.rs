//! What an application declares on every new connection.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt};
use lapin::{Channel, Connection, types::ShortString};
use tokio::time::timeout;

use super::error::{ConnectError, ConnectErrorKind};
use crate::error::{BoxError, caught, readable};

type Declare = dyn Fn(Channel) -> BoxFuture<'static, Result<(), BoxError>> + Send + Sync;

/// What the application declares on every new connection, before that is used.
#[derive(Clone)]
pub(crate) struct Topology(Arc<Declare>);

impl Topology {
    pub(crate) fn new<F, Fut, E>(declare: F) -> Self
    where
        F: Fn(Channel) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError> + 'static,
    {
        Self(Arc::new(move |channel| {
            let declared = declare(channel);
            async move { declared.await.map_err(Into::into) }.boxed()
        }))
    }

    /// Declares it, if there is something, on a channel of its own: a declaration that the broker
    /// refuses closes its channel.
    pub(crate) async fn declare(
        topology: Option<&Self>,
        connection: &Connection,
        limit: Duration,
    ) -> Result<(), ConnectError> {
        let Some(Self(declare)) = topology else { return Ok(()) };
        let channel = ConnectError::within(limit, connection.create_channel()).await?;
        // Called in there, too: a panic must not end the task that uses the connection.
        let declaring = caught("`topology`", async { declare(channel.clone()).await });
        match timeout(limit, declaring).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => {
                let error = readable("the error of `topology`", error);
                return Err(ConnectError::setup(ConnectErrorKind::Topology, error));
            }
            Ok(Err(error)) => return Err(ConnectError::setup(ConnectErrorKind::Topology, error)),
            Err(elapsed) => return Err(ConnectError::setup(ConnectErrorKind::TimedOut, elapsed)),
        }
        ConnectError::within(limit, channel.close(200, ShortString::default())).await
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Topology")
    }
}
