//! What a consumer was set up with.

use std::{fmt, sync::Arc, time::Duration};

use super::{
    delay_queues::{self, Delays, Redelivery},
    delivery_limit::DeliveryLimit,
    error::ConsumeError,
    parking::ParkingTarget,
    replies::{LostReply, UnclaimedReply},
};
use crate::{
    amqp::{ConnectOptions, InvalidUri, Topology},
    error::caught_in,
    idempotency::Outcome,
    message::{HeaderValue, IncomingMessage},
    now::Now,
};

/// What the runner needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) queue: String,
    pub(crate) parking: ParkingTarget,
    pub(crate) prefetch: u16,
    pub(crate) prefetch_bytes: Option<usize>,
    pub(crate) exclusive: bool,
    pub(crate) single_active: bool,
    pub(crate) delivery_limit: Option<u32>,
    pub(crate) consumer_timeout: Option<Duration>,
    pub(crate) priority: i32,
    pub(crate) topology: Option<Topology>,
    pub(crate) arguments: Vec<(String, HeaderValue)>,
    pub(crate) workers: usize,
    pub(crate) batch: usize,
    pub(crate) redelivery: Redelivery,
    pub(crate) immediate_retries: u32,
    pub(crate) max_attempts: u32,
    pub(crate) first_delay: Duration,
    pub(crate) longest_delay: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) unclaimed: UnclaimedReply,
    pub(crate) lost: LostReply,
    pub(crate) on_outcome: Hook,
    pub(crate) now: Now,
}

/// The most bytes that a name may have (AMQP 0-9-1, section 4.2.5.3, short strings).
const LONGEST_NAME: usize = 255;

/// A name that AMQP cannot carry.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidName {
    #[error("the name of {what} has {bytes} bytes, and AMQP allows {LONGEST_NAME}: {remedy}")]
    TooLong { what: String, bytes: usize, remedy: &'static str },
    #[error(
        "the parking queue, `<queue>.parked`, would begin with `amq.`, which is reserved: name another with `parking`"
    )]
    Reserved,
}

/// What connects, if it can.
pub(crate) fn checked(connect: Result<ConnectOptions, InvalidUri>) -> Result<ConnectOptions, ConsumeError> {
    let connect = connect.map_err(ConsumeError::invalid)?;
    connect.check().map_err(ConsumeError::invalid)?;
    match connect.invalid_setting() {
        Some(what) => Err(ConsumeError::invalid(what)),
        None => Ok(connect),
    }
}

impl Options {
    /// The defaults.
    pub(crate) fn new(queue: String) -> Self {
        Self {
            parking: ParkingTarget::queue_beside(&queue),
            queue,
            prefetch: 256,
            prefetch_bytes: None,
            exclusive: false,
            single_active: false,
            delivery_limit: Some(20),
            consumer_timeout: Some(Duration::from_secs(30 * 60)),
            priority: 0,
            topology: None,
            arguments: Vec::new(),
            workers: 1,
            batch: 64,
            redelivery: Redelivery::default(),
            immediate_retries: 2,
            max_attempts: 36,
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(3600),
            drain_timeout: Duration::from_secs(20),
            unclaimed: UnclaimedReply::default(),
            lost: LostReply::default(),
            on_outcome: Hook::default(),
            now: Now::default(),
        }
    }

    /// The first delay is never longer than the longest.
    pub(crate) fn set_delays(&mut self, first: Duration, longest: Duration) {
        (self.first_delay, self.longest_delay) = (first, longest.max(first));
    }

    /// At least a second.
    pub(crate) fn set_consumer_timeout(&mut self, limit: Option<Duration>) {
        self.consumer_timeout = limit.map(|limit| limit.max(Duration::from_secs(1)));
    }

    /// Refuses names that are too long, or become so by what is put behind them.
    pub(crate) fn check(&self) -> Result<(), InvalidName> {
        let check = |what: &str, name: &str, remedy| {
            let bytes = name.len();
            if bytes <= LONGEST_NAME {
                Ok(())
            } else {
                Err(InvalidName::TooLong { what: what.to_owned(), bytes, remedy })
            }
        };
        check("the queue", &self.queue, "no queue has such a name")?;
        if let Some(queue) = self.parking.queue_to_declare() {
            check("the parking queue, `<queue>.parked`,", queue, "name another with `parking`")?;
            if queue.starts_with("amq.") {
                return Err(InvalidName::Reserved);
            }
        } else {
            let ParkingTarget { exchange, routing_key, .. } = &self.parking;
            check("the exchange for parking", exchange, "see `parking`")?;
            check("the routing key for parking", routing_key, "see `parking`")?;
        }
        if self.redelivery == Redelivery::Delayed {
            let longest = self.delays().longest();
            let (suffix, name) =
                (delay_queues::name("<queue>", longest), delay_queues::name(&self.queue, longest));
            let what = format!("a delay queue, `{suffix}`,");
            check(
                &what,
                &name,
                "shorten the queue's, or let a consumer hold failed messages with `redelivery(Redelivery::Held)`",
            )?;
        }
        Ok(())
    }

    pub(crate) fn delays(&self) -> Delays {
        Delays::new(self.first_delay, self.longest_delay)
    }

    /// How often the handler may fail in one delivery.
    pub(crate) fn failures_each(&self) -> u32 {
        self.immediate_retries.saturating_add(1)
    }

    /// Whether a subscription begins with one delivery at a time, until it is known what comes.
    /// That takes a second subscription, which another consumer could come before.
    pub(crate) fn begins_cautiously(&self) -> bool {
        !self.exclusive && !self.single_active
    }

    /// How the broker's count is watched.
    pub(crate) fn watched(&self) -> DeliveryLimit {
        let failures = match self.redelivery {
            Redelivery::DelayedRetry => self.max_attempts.div_ceil(self.failures_each()),
            Redelivery::Delayed | Redelivery::Held => 0,
        };
        DeliveryLimit::new(self.delivery_limit, failures, self.begins_cautiously())
    }

    /// How long a delivery may be here before it is published anew: four fifths of the time that
    /// the broker allows.
    pub(crate) fn patience(&self) -> Option<Duration> {
        self.consumer_timeout.map(|limit| limit / 5 * 4)
    }

    pub(super) fn redelivery_time(&self) -> Duration {
        self.delays().total(self.max_attempts, self.failures_each())
    }
}

type OutcomeFn = dyn Fn(&IncomingMessage, &Outcome) + Send + Sync;

/// The application's observer, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Hook(pub(super) Option<Arc<OutcomeFn>>);

impl Hook {
    /// A panic in the hook must not end the consumer.
    pub(crate) fn call(&self, message: &IncomingMessage, outcome: &Outcome) {
        let Some(observe) = &self.0 else { return };
        if let Err(error) = caught_in("the on_outcome hook", || observe(message, outcome)) {
            tracing::error!("{error}");
        }
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hook(set)" } else { "Hook(none)" })
    }
}
