//! The publisher's connection: opened again by this crate, never by lapin.
//!
//! lapin's automatic recovery stays off. It leaves unconfirmed publishes hanging for a whole outage
//! and reopens a channel before its topology is back. Here a generation is one connection with its
//! channels; whatever was in flight when it ended has an unknown outcome and is published again on
//! the next one. Generations never mix.

use std::sync::{Arc, PoisonError, Weak};

use lapin::{Channel, options::ConfirmSelectOptions};
use tokio::sync::Mutex;

use super::stamp::headers_within;
use crate::amqp::{self, ConnectError, ConnectErrorKind, ConnectOptions, Connection, Topology};

/// One connection that workers of a publisher share.
pub(crate) struct SharedConnection {
    options: ConnectOptions,
    topology: Option<Topology>,
    /// How many channels there are to be.
    channels: usize,
    current: Mutex<Option<Arc<Connection>>>,
    /// The last one that was up when it was given up.
    given_up: std::sync::Mutex<Weak<Connection>>,
}

impl SharedConnection {
    pub(crate) fn new(options: ConnectOptions, topology: Option<Topology>, channels: usize) -> Self {
        Self { options, topology, channels, current: Mutex::new(None), given_up: std::sync::Mutex::default() }
    }

    /// Opens a channel in confirm mode, on the current connection or, if that is gone, on a new
    /// one.
    pub(crate) async fn channel(&self) -> Result<(Arc<Connection>, Channel), ConnectError> {
        let mut current = self.current.lock().await;
        current.take_if(|connection| !connection.status().connected());
        let connection = if let Some(connection) = &*current {
            Arc::clone(connection)
        } else {
            let connection = self.options.open().await?;
            let mut ready = self.check(&connection);
            if ready.is_ok() {
                ready = Topology::declare(self.topology.as_ref(), &connection, self.options.timeout).await;
            }
            if let Err(error) = ready {
                discard(Some(connection));
                return Err(error);
            }
            Arc::clone(current.insert(connection))
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

    /// Whether it has several channels.
    pub(crate) fn is_shared(&self) -> bool {
        self.channels > 1
    }

    /// How many bytes of headers fit through a connection whose frames are smaller than was asked
    /// for.
    pub(crate) fn fewer_headers(&self, connection: &Connection) -> Option<usize> {
        let frame = connection.configuration().frame_max() as usize;
        (1..self.options.smallest_frame()).contains(&frame).then(|| headers_within(frame))
    }

    /// What is more than the broker allows is told before it gets in the way.
    fn check(&self, connection: &Connection) -> Result<(), ConnectError> {
        let (wanted, allowed) = (self.channels, usize::from(connection.configuration().channel_max()));
        if wanted <= allowed {
            return Ok(());
        }
        let source =
            format!("channels_per_connection is {wanted}, but the broker allows {allowed} on a connection");
        Err(ConnectError::setup(ConnectErrorKind::Setting, source))
    }

    async fn open_channel(&self, connection: &Connection) -> Result<Channel, ConnectError> {
        let limit = self.options.timeout;
        let channel = ConnectError::within(limit, connection.create_channel()).await?;
        // `nowait` must stay false: lapin waits for the answer all the same.
        ConnectError::within(limit, channel.confirm_select(ConfirmSelectOptions { nowait: false })).await?;
        Ok(channel)
    }

    /// Gives the connection up, unless it has been replaced already.
    pub(crate) async fn discard(&self, connection: &Arc<Connection>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            if connection.status().connected() {
                // Nothing panics while it is locked.
                *self.given_up.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(connection);
            }
            discard(current.take());
        }
    }

    /// Whether the connection ended because another channel of it was given up here.
    pub(crate) fn has_given_up(&self, connection: &Arc<Connection>) -> bool {
        let given_up = self.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        std::ptr::eq(given_up.as_ptr(), Arc::as_ptr(connection))
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
