//! How a publisher is set up.

use std::time::Duration;

use super::{
    lane::LaneOptions,
    publish::{IdempotentPublisher, Stamper},
    retry::RetryPolicy,
};
use crate::{
    amqp::{ConnectError, ConnectOptions, InvalidUri},
    message::IdStrategy,
};

/// Sets up an [`IdempotentPublisher`]; made by [`IdempotentPublisher::builder`].
#[derive(Debug, Clone)]
#[must_use = "nothing is connected before `connect` is awaited"]
pub struct PublisherBuilder {
    connect: Result<ConnectOptions, InvalidUri>,
    app_id: Option<String>,
    strategy: IdStrategy,
    max_in_flight: usize,
    lane: LaneOptions,
}

impl PublisherBuilder {
    pub(crate) fn new<'a>(uris: impl IntoIterator<Item = &'a str>) -> Self {
        Self::with(ConnectOptions::new(uris))
    }

    /// For a publisher beside something that has its connection settings already.
    pub(crate) fn over(connect: ConnectOptions) -> Self {
        Self::with(Ok(connect))
    }

    fn with(connect: Result<ConnectOptions, InvalidUri>) -> Self {
        Self {
            connect,
            app_id: None,
            strategy: IdStrategy::default(),
            max_in_flight: 1024,
            lane: LaneOptions {
                retry: RetryPolicy::default(),
                confirm_timeout: Duration::from_secs(10),
                mandatory: true,
            },
        }
    }

    /// The name of the publishing application: AMQP property `app_id` of every message. At most 255 bytes.
    pub fn app_id(mut self, name: impl Into<String>) -> Self {
        self.app_id = Some(name.into());
        self
    }

    /// How an ID is made for a message that has neither an ID nor an idempotency key. Default: UUIDv7.
    pub fn id_strategy(mut self, strategy: IdStrategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// When and how often a message is published again, and its deadline. Default: [`RetryPolicy::default`].
    pub fn retry(mut self, policy: impl Into<RetryPolicy>) -> Self {
        self.lane.retry = policy.into();
        self
    }

    /// How many messages may be unanswered at once, those that wait for a retry included; further callers wait.
    ///
    /// Default 1,024; at least 1. A quarter of it costs little throughput and a good part of the queueing delay.
    pub fn max_in_flight(mut self, messages: usize) -> Self {
        self.max_in_flight = messages.clamp(1, tokio::sync::Semaphore::MAX_PERMITS);
        self
    }

    /// How long one attempt may wait for its confirm. Default 10 seconds.
    ///
    /// When it has passed, the outcome is unknown: the connection is given up, and everything that was unconfirmed on
    /// it is published again under the same IDs. While the broker blocks the connection this clock stands still.
    pub fn confirm_timeout(mut self, limit: Duration) -> Self {
        self.lane.confirm_timeout = limit;
        self
    }

    /// How long connecting to one node, and each step of setting a channel up, may take. Default 10 seconds.
    pub fn connect_timeout(mut self, limit: Duration) -> Self {
        if let Ok(connect) = &mut self.connect {
            connect.timeout = limit;
        }
        self
    }

    /// The name that the broker's management shows for the connection. Default: the `app_id`.
    pub fn connection_name(mut self, name: impl Into<String>) -> Self {
        if let Ok(connect) = &mut self.connect {
            connect.name = Some(name.into());
        }
        self
    }

    /// Connects and opens the publishing channel.
    ///
    /// # Errors
    ///
    /// A [`ConnectError`] if a URI is not usable, or if no node let us in. Nothing is retried here; once connected,
    /// the publisher reconnects by itself.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn connect(self) -> Result<IdempotentPublisher, ConnectError> {
        let mut connect = self.connect?;
        connect.name = connect.name.or_else(|| self.app_id.clone());
        let stamper = Stamper::new(self.strategy, self.app_id)?;
        IdempotentPublisher::connect(connect, stamper, self.lane, self.max_in_flight).await
    }
}
