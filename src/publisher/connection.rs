//! The publisher's connection: opened again by us, never by lapin.
//!
//! lapin's automatic recovery stays off. It leaves unconfirmed publishes hanging for a whole outage and reopens a channel
//! before its topology is back. Here a generation is one connection with its channels; whatever was in flight when it
//! ended has an unknown outcome and is published again on the next one. Generations never mix.

use std::{future::Future, sync::Arc};

use lapin::{Channel, Connection, options::ConfirmSelectOptions};
use tokio::{sync::Mutex, time::timeout};

use crate::amqp::{self, ConnectError, ConnectErrorKind, ConnectOptions};

/// One connection that the lanes of a publisher share.
pub(crate) struct Link {
    options: ConnectOptions,
    current: Mutex<Option<Arc<Connection>>>,
}

impl Link {
    pub(crate) fn new(options: ConnectOptions) -> Self {
        Self { options, current: Mutex::new(None) }
    }

    /// Opens a channel in confirm mode, on the current connection or, if that is gone, on a new one.
    pub(crate) async fn channel(&self) -> Result<(Arc<Connection>, Channel), ConnectError> {
        let mut current = self.current.lock().await;
        current.take_if(|connection| !connection.status().connected());
        let connection = match &*current {
            Some(connection) => Arc::clone(connection),
            None => Arc::clone(current.insert(self.options.open().await?)),
        };
        match self.open_channel(&connection).await {
            Ok(channel) => Ok((connection, channel)),
            Err(error) => {
                // A connection that cannot open a channel is of no use to anybody.
                discard(current.take());
                Err(error)
            }
        }
    }

    async fn open_channel(&self, connection: &Connection) -> Result<Channel, ConnectError> {
        let channel = self.within(connection.create_channel()).await?;
        // `nowait` must stay false: lapin waits for the answer all the same.
        self.within(channel.confirm_select(ConfirmSelectOptions { nowait: false })).await?;
        Ok(channel)
    }

    async fn within<T>(&self, step: impl Future<Output = lapin::Result<T>>) -> Result<T, ConnectError> {
        match timeout(self.options.timeout, step).await {
            Ok(result) => result.map_err(ConnectError::from_lapin),
            Err(elapsed) => Err(ConnectError::setup(ConnectErrorKind::TimedOut, elapsed)),
        }
    }

    /// Gives the connection up, unless it has been replaced already.
    pub(crate) async fn discard(&self, connection: &Arc<Connection>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            discard(current.take());
        }
    }

    /// Closes politely, within a few seconds.
    pub(crate) async fn close(&self) {
        if let Some(connection) = self.current.lock().await.take() {
            amqp::close(&connection).await;
        }
    }
}

/// Closes in the background: a peer that hangs would keep the caller waiting.
fn discard(connection: Option<Arc<Connection>>) {
    if let Some(connection) = connection {
        tokio::spawn(async move { amqp::close(&connection).await });
    }
}
