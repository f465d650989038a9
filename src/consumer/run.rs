//! Subscribes again and again, until the consumer is told to stop.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep};

use super::{
    backoff::{Health, SubscriptionFailures},
    consumption::{Carried, Consumption, End},
    context::ConsumerContext,
    delay_queues::Redelivery,
    error::ConsumeError,
    failure_counts::FailureCounts,
    prefetch::Prefetch,
    status::ConsumerState,
    subscription::Subscription,
};
use crate::{
    amqp::{ServerVersion, server_version},
    error::Chain,
    idempotency::{IdempotencyStore, IdempotentHandler, StoreError, StoreErrorKind},
};

/// The broker cannot do what is asked of it.
#[derive(Debug, thiserror::Error)]
#[error(
    "delayed retries need RabbitMQ 4.3 or later, and this is {0}: with `Redelivery::Delayed` the consumer delays by itself"
)]
struct NoDelayedRetries(ServerVersion);

impl<S: IdempotencyStore, H: IdempotentHandler<S> + 'static> ConsumerContext<S, H> {
    pub(crate) async fn run(
        self: Arc<Self>,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), ConsumeError> {
        let shutdown = async {
            tokio::select! {
                () = shutdown => {}
                () = self.control.stopped() => {}
            }
        };
        let shutdown = shutdown.fuse();
        let mut shutdown = std::pin::pin!(shutdown);
        let options = &self.options;
        // It would begin small and never be adapted.
        let bytes = options.prefetch_bytes.filter(|_| !options.single_active);
        let mut prefetch = Prefetch::new(options.prefetch, bytes, options.consumer_timeout);
        if options.begins_cautiously() {
            prefetch.begin_cautiously();
        }
        let mut carried = Carried { attempts: FailureCounts::default(), prefetch, survived: 0 };
        let started = tokio::select! {
            biased;
            () = shutdown.as_mut() => return Ok(()),
            started = self.start(carried.prefetch.now()) => started?,
        };
        let mut session = Some(started);
        let mut sessions = SubscriptionFailures::default();
        loop {
            if let Some(session) = session.take() {
                if let Some(error) = &session.no_parking {
                    tracing::error!(queue = %options.queue, error, "what is to be parked is held until it can be");
                    self.monitor.failed(error);
                }
                self.settler.negotiated(session.frame_max());
                let started = Instant::now();
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
                opened = Subscription::open(&self.connect, options, carried.prefetch.now()) => match opened {
                    Ok(opened) => {
                        self.monitor.reconnected();
                        session = Some(opened);
                    }
                    Err(error) => {
                        self.monitor.failed(&Chain(&error).to_string());
                        tracing::warn!(queue = %options.queue, error = %Chain(&error), "cannot consume");
                    }
                },
            }
        }
        self.settler.close(Duration::ZERO).await;
        Ok(())
    }

    /// Finds out what will not work before anything is taken, and subscribes.
    async fn start(&self, prefetch: u16) -> Result<Subscription, ConsumeError> {
        self.check_store().await?;
        let store = self.guard.store();
        let workers = self.options.workers;
        if let Some(sessions) = store.sessions().filter(|sessions| *sessions < workers) {
            tracing::warn!(
                workers,
                sessions,
                "more workers than sessions of the store: the others wait for one, and their messages are held"
            );
        }
        self.check_broker().await?;
        Subscription::open(&self.connect, &self.options, prefetch).await
    }

    /// Waits until the store answers. What it lacks then is an error: no waiting would help.
    async fn check_store(&self) -> Result<(), StoreError> {
        let mut health = Health::default();
        loop {
            let error = match self.guard.check().await {
                Err(error) if error.kind() == StoreErrorKind::Unavailable => error,
                checked => {
                    self.monitor.enter(ConsumerState::Starting);
                    return checked;
                }
            };
            let pause = health.failed();
            self.store_failed(&error, pause);
            self.monitor.enter(ConsumerState::StoreAway);
            sleep(pause).await;
        }
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
        Err(ConsumeError::invalid(NoDelayedRetries(version)))
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
