//! What a consumer service implements.

use std::{error::Error, fmt, future::Future, time::Duration};

use super::store::IdempotencyStore;
use crate::{
    error::{BoxError, readable},
    message::{DecodeError, IncomingMessage},
};

/// Handles one message, once per scope.
///
/// The second argument is what the store opens around the handler: a SQL transaction, whose writes
/// are committed together with the message's identity; or a [`Lease`](super::Lease). The type of
/// the store picks it, so that a handler for a transaction cannot be run with a lease by mistake.
///
/// Write `async fn handle`, or make a closure a handler with [`handler_fn`](super::handler_fn). An
/// `Arc` of a handler is one, too. Do not commit or roll back the transaction: the guard does.
///
/// # Cancellation
///
/// The future is dropped when a lease is lost. The session is then released, and the message comes
/// again.
///
/// ```
/// use lapin_idempotent::{HandlerResult, IdempotentHandler, IncomingMessage, Lease, MemoryStore};
///
/// struct Notify;
///
/// impl IdempotentHandler<MemoryStore> for Notify {
///     async fn handle(&self, message: &IncomingMessage, _: &mut Lease) -> HandlerResult {
///         let email: String = message.json()?; // not decodable: parked
///         println!("to {email}"); // any other error is tried again
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle messages with the sessions of `{S}`",
    note = "implement `IdempotentHandler<{S}>`, whose `handle` takes `&IncomingMessage` and `&mut <{S} as IdempotencyStore>::Session`"
)]
pub trait IdempotentHandler<S: IdempotencyStore>: Send + Sync {
    /// Does the message's work through the session.
    ///
    /// # Errors
    ///
    /// A [`HandlerError`] says whether the message is worth another try, now or when what the
    /// handler depends on is back. `?` on any error means that it is, except for one with a
    /// [`DecodeError`] among its sources, which will not get better.
    fn handle(
        &self,
        message: &IncomingMessage,
        session: &mut S::Session,
    ) -> impl Future<Output = HandlerResult> + Send;

    /// Does the work of several messages through one session, which is committed as a whole. Calls
    /// [`handle`](Self::handle) for each, in order, unless it is overridden: to write many rows
    /// with one statement, for example.
    ///
    /// No two of them have the same identity, and none took effect before. An error rolls all of
    /// them back; then `handle` is called for each alone, in a session of its own, and decides
    /// about that one. So both must have the same effect.
    ///
    /// Called by stores whose session holds several claims: those of SQL transactions.
    ///
    /// # Errors
    ///
    /// Any: which messages are worth another try is for `handle` to say.
    fn handle_batch(
        &self,
        messages: &[&IncomingMessage],
        session: &mut S::Session,
    ) -> impl Future<Output = HandlerResult> + Send {
        async move {
            for message in messages {
                self.handle(message, session).await?;
            }
            Ok(())
        }
    }
}

/// What a handler returns.
pub type HandlerResult = Result<(), HandlerError>;

/// Why a message was not handled, and what is to become of it.
///
/// `?` makes one of every [`std::error::Error`]: a retry; or a reject, if it or one of its sources
/// is a [`DecodeError`]. For that it is deliberately no [`std::error::Error`] itself.
///
/// # `anyhow::Error`, `eyre::Report` and [`BoxError`]
///
/// These are no [`std::error::Error`] either, so `?` alone does not take them, and this crate
/// cannot make it: an implementation of `From` for them beside the one for all errors would overlap
/// with it if they became errors one day, and the compiler refuses that. Write
/// `.map_err(HandlerError::retry)?`, or `reject` for what will not get better: both take whatever
/// converts into a [`BoxError`], as these do. What is inside is not looked at then, a
/// [`DecodeError`] included.
///
/// ```
/// use lapin_idempotent::{BoxError, HandlerError, HandlerResult, IncomingMessage};
/// # #[derive(serde::Deserialize)] struct Debit;
/// # fn account(_: &Debit) -> Result<u32, std::io::Error> { Ok(7) }
/// # fn book(_: u32) -> Result<(), BoxError> { Ok(()) }
///
/// fn debit(message: &IncomingMessage) -> HandlerResult {
///     let debit: Debit = message.json()?; // a reject
///     let account = account(&debit)?; // a retry
///     book(account).map_err(HandlerError::retry) // a `BoxError`
/// }
/// # let _ = debit(&IncomingMessage::new("null"));
/// ```
///
/// ```compile_fail,E0277
/// # use lapin_idempotent::{BoxError, HandlerResult};
/// # fn book() -> Result<(), BoxError> { Ok(()) }
/// fn debit() -> HandlerResult {
///     book()?;
///     Ok(())
/// }
/// ```
pub struct HandlerError(pub(crate) Failure);

pub(crate) enum Failure {
    Retry { after: Option<Duration>, error: BoxError },
    Reject { error: BoxError },
    Unavailable { error: BoxError },
}

impl HandlerError {
    /// With an error that can be told.
    pub(super) fn readable(self) -> Self {
        let readable = |error| readable("the handler's error", error);
        Self(match self.0 {
            Failure::Retry { after, error } => Failure::Retry { after, error: readable(error) },
            Failure::Reject { error } => Failure::Reject { error: readable(error) },
            Failure::Unavailable { error } => Failure::Unavailable { error: readable(error) },
        })
    }

    /// The message is delivered again, after the consumer's own delay.
    pub fn retry(error: impl Into<BoxError>) -> Self {
        Self(Failure::Retry { after: None, error: error.into() })
    }

    /// The message is delivered again, not before `delay` has passed; a year at most.
    pub fn retry_after(delay: Duration, error: impl Into<BoxError>) -> Self {
        Self(Failure::Retry { after: Some(delay), error: error.into() })
    }

    /// The message will never be handled; it is parked.
    pub fn reject(error: impl Into<BoxError>) -> Self {
        Self(Failure::Reject { error: error.into() })
    }

    /// What the handler depends on is away, such as the service that it calls: the fault is not the
    /// message's, and other messages would fare no better.
    ///
    /// No attempt is counted and nothing is parked. The consumer takes nothing for a while
    /// ([`DependencyAway`](crate::consumer::ConsumerState::DependencyAway)), as if its store could
    /// not be asked; then it tries one message, that which said this least often, and goes on with
    /// all when a handler does not say it. One that is ended by its
    /// [`handler_timeout`](super::Guard::handler_timeout), or panics, shows nothing; if a trial
    /// takes longer than 10 seconds, another message is tried beside it, if the consumer has
    /// another worker. Pauses grow up to 5 seconds.
    ///
    /// A message that says it each of three times alone is held apart, up to 10 seconds at a time:
    /// others go before it and have nine tenths of the time, and while they are handled, what it
    /// says is taken for its own fault. So with one worker, too, messages can overtake those that
    /// say this.
    ///
    /// After failures in the same delivery
    /// ([`immediate_retries`](super::Guard::immediate_retries)) it is an error like any other: they
    /// are counted.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        Self(Failure::Unavailable { error: error.into() })
    }

    /// Whether the message is delivered again.
    pub fn is_retry(&self) -> bool {
        matches!(self.0, Failure::Retry { .. })
    }

    /// Whether the message is parked.
    pub fn is_reject(&self) -> bool {
        matches!(self.0, Failure::Reject { .. })
    }

    /// Whether what the handler depends on is away.
    pub fn is_unavailable(&self) -> bool {
        matches!(self.0, Failure::Unavailable { .. })
    }

    /// The least delay before the message is delivered again, if one was asked for with
    /// [`retry_after`](Self::retry_after).
    pub fn delay(&self) -> Option<Duration> {
        match self.0 {
            Failure::Retry { after, .. } => after,
            Failure::Reject { .. } | Failure::Unavailable { .. } => None,
        }
    }

    /// What went wrong.
    pub fn source(&self) -> &(dyn Error + Send + Sync + 'static) {
        match &self.0 {
            Failure::Retry { error, .. } | Failure::Reject { error } | Failure::Unavailable { error } => {
                &**error
            }
        }
    }
}

impl<E> From<E> for HandlerError
where
    E: std::error::Error + Send + Sync + 'static,
{
    fn from(error: E) -> Self {
        if DecodeError::is_in(&error) { Self::reject(error) } else { Self::retry(error) }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Failure::Retry { after, error } => {
                f.debug_struct("Retry").field("after", after).field("error", error).finish()
            }
            Failure::Reject { error } => f.debug_struct("Reject").field("error", error).finish(),
            Failure::Unavailable { error } => f.debug_struct("Unavailable").field("error", error).finish(),
        }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Failure::Retry { error, .. } => write!(f, "to be tried again: {error}"),
            Failure::Reject { error } => write!(f, "rejected: {error}"),
            Failure::Unavailable { error } => write!(f, "unavailable: {error}"),
        }
    }
}
