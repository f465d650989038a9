//! Subscribes again and again, until the consumer is told to stop.

use std::future::Future;

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

use super::{
    attempts::Attempts,
    consumption::{Consumption, End},
    delay::Redelivery,
    error::{ConsumeError, ConsumeErrorKind},
    options::Options,
    park::describe,
    prefetch::Prefetch,
    session::Session,
    settler::Settler,
    status::{ConsumerMonitor, ConsumerState},
    trouble::Sessions,
};
use crate::{
    amqp::{ConnectOptions, ServerVersion, server_version},
    idempotency::{Guard, IdempotencyStore, IdempotentHandler},
};

pub(crate) struct Runner<S: IdempotencyStore, H> {
    pub(super) guard: Guard<S>,
    pub(super) handler: H,
    pub(super) connect: ConnectOptions,
    pub(super) options: Options,
    pub(super) settler: Settler,
    pub(super) monitor: ConsumerMonitor,
}

/// The broker cannot do what is asked of it.
#[derive(Debug, thiserror::Error)]
#[error(
    "delayed retries need RabbitMQ 4.3 or later, and this is {0}: with `Redelivery::Delayed` the consumer delays by itself"
)]
struct NoDelayedRetries(ServerVersion);

/// What outlives a session.
pub(crate) struct Carried {
    pub(super) attempts: Attempts,
    pub(super) prefetch: Prefetch,
    /// How many subscriptions were lost that this process survived: the broker has counted each of them against all that it had delivered.
    pub(super) survived: u32,
}

impl<S: IdempotencyStore, H: IdempotentHandler<S>> Runner<S, H> {
    pub(crate) fn new(
        guard: Guard<S>,
        handler: H,
        connect: ConnectOptions,
        options: Options,
        monitor: ConsumerMonitor,
    ) -> Self {
        let settler = Settler::new(options.clone(), guard.scope().as_str(), connect.clone(), monitor.clone());
        Self { guard: guard.gather(), handler, connect, options, settler, monitor }
    }

    pub(crate) async fn run(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), ConsumeError> {
        let shutdown = shutdown.fuse();
        let mut shutdown = std::pin::pin!(shutdown);
        let options = &self.options;
        self.check_broker().await?;
        // It would begin small and never be adapted.
        let bytes = options.prefetch_bytes.filter(|_| !options.single_active);
        let mut prefetch = Prefetch::new(options.prefetch, bytes, options.consumer_timeout);
        if options.begins_cautiously() {
            prefetch.begin_cautiously();
        }
        let mut carried = Carried { attempts: Attempts::default(), prefetch, survived: 0 };
        let mut session = Some(Session::open(&self.connect, options, carried.prefetch.now()).await?);
        let mut sessions = Sessions::default();
        loop {
            if let Some(session) = session.take() {
                if let Some(error) = &session.no_parking {
                    tracing::error!(queue = %options.queue, error, "what is to be parked is held until it can be");
                    self.monitor.failed(error);
                }
                let started = Instant::now();
                self.monitor.enter(ConsumerState::Consuming);
                let (end, decided) =
                    Consumption::new(&self, &mut carried, session).run(shutdown.as_mut()).await;
                match end {
                    End::Shutdown => break,
                    End::Lost(reason) => {
                        carried.survived = carried.survived.saturating_add(1);
                        sessions.ended(started.elapsed(), decided);
                        if sessions.fruitless() && options.begins_cautiously() {
                            carried.prefetch.begin_cautiously();
                        }
                        self.lost(&reason, sessions.failing());
                    }
                }
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break,
                () = sleep(sessions.pause()) => {}
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break,
                () = self.settler.recovers() => {}
            }
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break,
                opened = Session::open(&self.connect, options, carried.prefetch.now()) => match opened {
                    Ok(opened) => {
                        self.monitor.reconnected();
                        session = Some(opened);
                    }
                    Err(error) => {
                        self.monitor.failed(&describe(&error));
                        tracing::warn!(queue = %options.queue, error = %error, "cannot consume");
                    }
                },
            }
        }
        self.settler.close().await;
        Ok(())
    }

    /// Refuses what the broker does not have, rather than let it be ignored.
    async fn check_broker(&self) -> Result<(), ConsumeError> {
        if self.options.redelivery != Redelivery::DelayedRetry {
            return Ok(());
        }
        let version = server_version(&self.connect).await?;
        if version >= (4, 3) {
            return Ok(());
        }
        Err(ConsumeError::new(ConsumeErrorKind::Invalid, NoDelayedRetries(version)))
    }

    fn lost(&self, reason: &str, failing: bool) {
        self.monitor.failed(reason);
        self.monitor.enter(if failing { ConsumerState::Failing } else { ConsumerState::Reconnecting });
        if failing {
            tracing::error!(
                queue = %self.options.queue,
                reason,
                "subscriptions end before anything is settled; trying again with long pauses"
            );
        } else {
            tracing::warn!(queue = %self.options.queue, reason, "subscription lost");
        }
    }
}
