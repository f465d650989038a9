//! Why a work queue could not be declared.

use crate::amqp::{ConnectError, ServerVersion};

/// A work queue could not be declared.
///
/// No rendering of it holds credentials.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeclareError {
    /// No connection to the broker, or it broke, or the broker did not answer in time.
    #[error("no connection to declare queues with")]
    Connect(#[from] ConnectError),
    /// The queue has no name, or one that is too long with the suffix of its parking queue.
    #[error(
        "the queue's name has {bytes} bytes: give it 1 to {most}, so that its parking queue has a name, too"
    )]
    Name {
        /// Its length in bytes.
        bytes: usize,
        /// As long as it can be.
        most: usize,
    },
    /// The broker does not know what was asked for, and would ignore it.
    #[error("`{option}` needs RabbitMQ {}.{} or later, and this is {version}: upgrade the broker, or do without it", .needs.0, .needs.1)]
    TooOld {
        /// What was asked for.
        option: &'static str,
        /// The version that it needs, as major and minor.
        needs: (u16, u16),
        /// The version that answered.
        version: ServerVersion,
    },
    /// The user lacks a right.
    #[error(
        "the user may not declare {queue:?}: it needs the rights to configure and read that queue, and to write to amq.default \
         (rabbitmqctl set_permissions), or somebody else declares it; the broker says: {reason}"
    )]
    NotPermitted {
        /// The queue that was being declared.
        queue: String,
        /// What the broker says.
        reason: String,
    },
    /// The broker refused for another reason, such as a limit of queues, or a queue that belongs to
    /// another connection.
    #[error("the broker refused to declare {queue:?}: {reason}")]
    Refused {
        /// The queue that was being declared.
        queue: String,
        /// What the broker says.
        reason: String,
    },
}
