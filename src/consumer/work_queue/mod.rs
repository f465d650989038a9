//! Declaring a queue to consume from as it is best for the broker that is there.

mod arguments;
mod check;
mod compare;
mod difference;
mod error;
mod trial;

use std::{fmt, time::Duration};

pub use check::CheckedQueue;
pub use difference::Difference;
pub use error::DeclareError;

use self::{
    arguments::{Declaration, Options},
    compare::Declaring,
};
use super::parking::ParkingTarget;
use crate::amqp::{self, ClosedOnDrop, ConnectOptions, InvalidUri, ServerVersion, connection_settings};

/// As long as AMQP can say a name.
const NAME_BYTES: usize = 255;

/// Declares a queue to consume from, and its parking queue, as it is best for the broker that is
/// there (`RabbitMQ` 3.10 or later).
///
/// `<queue>` becomes a quorum queue. What the broker itself takes out of it, such as a message that
/// came back more often than the [delivery limit](Self::delivery_limit), is not deleted, but
/// dead-lettered at least once to `<queue>.parked`: a quorum queue without a limit, in which a
/// consumer parks its messages, too. [`Unpark`](super::Unpark) brings both back.
///
/// | | `<queue>` | `<queue>.parked` |
/// |---|---|---|
/// | `x-queue-type` | `quorum` | `quorum` |
/// | `x-delivery-limit` | 20 | 2,147,483,647, which is none (-1 would remove messages on 3.x) |
/// | `x-dead-letter-exchange`, `-routing-key` | the default exchange, `<queue>.parked` | |
/// | `x-dead-letter-strategy` | `at-least-once` | |
/// | `x-overflow` | `reject-publish`, which `at-least-once` needs | |
///
/// Declaring again is fine. A queue that is there and differs is left as it is, since a queue
/// cannot be changed, and the differences are in the result:
///
/// ```no_run
/// # async fn declare() -> Result<(), lapin_idempotent::consumer::DeclareError> {
/// use lapin_idempotent::consumer::WorkQueue;
///
/// let declared = WorkQueue::new("amqp://localhost", "payments.debit").delivery_limit(50).declare().await?;
/// println!("RabbitMQ {}, created: {}", declared.version, declared.created);
/// for difference in &declared.differences {
///     // payments.debit: x-delivery-limit is none; recommended 50: the broker's own limit of 20 applies, unless a policy says otherwise
///     eprintln!("{difference}");
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is declared before `declare` is awaited"]
pub struct WorkQueue {
    connect: Result<ConnectOptions, InvalidUri>,
    queue: String,
    options: Options,
}

/// What [`WorkQueue::declare`] did and found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeclaredQueue {
    /// The queue to consume from.
    pub queue: String,
    /// Its parking queue.
    pub parking: String,
    /// Whether the queue was not there before. Of two that declare it together, both may say so.
    pub created: bool,
    /// Whether the parking queue was not there before.
    pub parking_created: bool,
    /// The version of the node that answered.
    pub version: ServerVersion,
    /// In what existing queues differ from the recommendation. AMQP tells of their arguments only:
    /// what a policy sets besides is not seen.
    pub differences: Vec<Difference>,
    /// Whether `differences` are all of them. Not if the broker's answers could not be understood:
    /// names of more than about a hundred bytes do not fit into them.
    pub complete: bool,
}

impl DeclaredQueue {
    /// Whether both queues are as recommended.
    pub fn is_as_recommended(&self) -> bool {
        self.differences.is_empty() && self.complete
    }
}

impl WorkQueue {
    /// Declares `queue`, and `<queue>.parked`.
    ///
    /// URI parameters are those of
    /// [`IdempotentPublisher::builder`](crate::IdempotentPublisher::builder).
    pub fn new(uri: impl AsRef<str>, queue: impl Into<String>) -> Self {
        Self::for_cluster([uri.as_ref()], queue)
    }

    /// Like [`new`](Self::new), for several nodes of one cluster, which are tried in random order.
    pub fn for_cluster(uris: impl IntoIterator<Item = impl AsRef<str>>, queue: impl Into<String>) -> Self {
        Self { connect: ConnectOptions::new(uris), queue: queue.into(), options: Options::default() }
    }

    connection_settings!();

    /// Sets how often a message may come back before the broker takes it out and parks it; `None`
    /// for as often as it will.
    ///
    /// It is a last resort, for other consumers than this crate's, and for messages that take their
    /// consumers down. Up to 4.2 all returns count, those of a lost connection for each message
    /// that it held; from 4.3 on `basic.nack` does not. Tell it to the consumer, too:
    /// [`ConsumerBuilder::delivery_limit`](super::ConsumerBuilder::delivery_limit).
    ///
    /// Default: 20.
    pub fn delivery_limit(mut self, returns: impl Into<Option<u32>>) -> Self {
        self.options.delivery_limit = returns.into();
        self
    }

    /// Lets the broker hold messages back that come back with `basic.reject`: for `min` times the
    /// number of their failures, up to `max`. From 1 ms to 49 days. Needs 4.3
    /// (`x-delayed-retry-type` = `failed`).
    pub fn delayed_retry(mut self, min: Duration, max: Duration) -> Self {
        self.options.delayed_retry = Some((min, max.max(min)));
        self
    }

    /// Sets how long a consumer may hold a message of this queue before the broker takes it back
    /// (`x-consumer-timeout`). Needs 3.12. That an existing queue differs in it is told from 4.3.2
    /// on.
    ///
    /// Default: what the broker is set to, 30 minutes by default.
    pub fn consumer_timeout(mut self, limit: Duration) -> Self {
        self.options.consumer_timeout = Some(limit);
        self
    }

    /// Declares both queues.
    ///
    /// The broker logs one connection that its client closed unexpectedly: that is how it is asked
    /// for its version.
    ///
    /// # Errors
    ///
    /// A [`DeclareError`] if there is no connection, the broker is too old for what was asked for,
    /// the name is too long, or the user lacks a right. A queue that differs is none.
    ///
    /// # Cancellation
    ///
    /// Closes the connection. Neither, one or both queues may have been declared; declaring again
    /// is fine.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn declare(&self) -> Result<DeclaredQueue, DeclareError> {
        let (connect, parking) = self.ready("declare")?;
        let version = amqp::server_version(&connect).await?;
        let queue = Declaration::of_work(&self.queue, &parking, &self.options, version)?;
        let parking = Declaration::of_parking(&parking);
        let connection = ClosedOnDrop::new(connect.open().await?);
        let declaring = Declaring { connection: &connection, limit: connect.timeout };
        let declared = declaring.both(&queue, &parking, version).await;
        amqp::close(&connection).await;
        declared
    }

    /// How to connect, and the name of the parking queue.
    fn ready(&self, what: &str) -> Result<(ConnectOptions, String), DeclareError> {
        let mut connect = self.connect.clone().map_err(amqp::ConnectError::from)?;
        connect.check().map_err(amqp::ConnectError::from)?;
        connect.name.get_or_insert_with(|| format!("{what} {}", self.queue));
        let parking = ParkingTarget::queue_beside(&self.queue).routing_key;
        if self.queue.is_empty() || parking.len() > NAME_BYTES {
            let most = NAME_BYTES - (parking.len() - self.queue.len());
            return Err(DeclareError::Name { bytes: self.queue.len(), most });
        }
        Ok((connect, parking))
    }
}

impl fmt::Debug for WorkQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkQueue")
            .field("queue", &self.queue)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rendering_shows_the_password() {
        let queue = WorkQueue::new("amqp://user:canary@host", "orders").delivery_limit(None);
        assert!(!format!("{queue:?} {queue:#?}").contains("canary"));
    }

    #[tokio::test]
    async fn names_that_do_not_fit_are_refused_before_connecting() {
        for (bytes, most) in [(249, 248), (1000, 248), (0, 248)] {
            let declared = WorkQueue::new("amqp://127.0.0.1:1", "q".repeat(bytes)).declare().await;
            let Err(error @ DeclareError::Name { .. }) = declared else { panic!("{bytes}: {declared:?}") };
            assert!(error.to_string().contains(&most.to_string()), "{error}");
        }
        let fits = WorkQueue::new("amqp://127.0.0.1:1", "q".repeat(248)).declare().await;
        assert!(matches!(fits, Err(DeclareError::Connect(_))), "{fits:?}");
    }
}
