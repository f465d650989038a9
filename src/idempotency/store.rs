//! The contract of a store.

use std::{fmt, future::Future, time::Duration};

use futures_util::future::BoxFuture;

use super::claim::{ClaimRequest, Claims};
use crate::error::BoxError;

/// Remembers which messages took effect, and opens the session that an effect is written in.
///
/// # Contract
///
/// 1. `claim` answers every request, in order. Of several claims on one identity, by whatever process, at most one is
///    acquired at a time; the others wait, or are told that it is in progress or completed.
/// 2. Identity is exact: every byte of scope and ID counts, case and trailing spaces included.
/// 3. After `complete` returned `Ok`, every later claim on its identities is `Completed` with the fingerprint of the first, until purged.
/// 4. After `release`, or after the session was dropped or its process died, the identities can be claimed again: at once, or when the
///    lease has run out.
/// 5. `complete` on a session that lost its claim is an error of kind [`StoreErrorKind::LeaseLost`] and changes nothing; so is `release`.
/// 6. An error of `complete` may leave the outcome unknown. The caller must then not settle the message as handled.
/// 7. `purge` forgets completed identities older than the retention, by the store's clock, and nothing else.
pub trait IdempotencyStore: Send + Sync + 'static {
    /// What the handler gets: a transaction, or a [`Lease`](super::Lease).
    type Session: Send;

    /// Opens a session and claims all identities in it. No identity occurs twice in `requests`.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Busy`] if a rival held an identity for too long, [`StoreErrorKind::Full`] if a bounded store has
    /// no room, [`StoreErrorKind::Unavailable`] and others if it could not be asked. Nothing is claimed then.
    fn claim(
        &self,
        requests: &[ClaimRequest],
    ) -> impl Future<Output = Result<Claims<Self::Session>, StoreError>> + Send;

    /// Makes the effect and the identities durable together, as far as the session can.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::LeaseLost`] if the claim was not ours any more; otherwise the outcome is unknown.
    fn complete(&self, session: Self::Session) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Gives the identities back, and undoes what was written through the session.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`]; the identities then become free later (contract, 4).
    fn release(&self, session: Self::Session) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets identities that were completed more than `retention` ago, at most `limit` of them; returns how many.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`]; some may have been forgotten.
    fn purge(&self, retention: Duration, limit: u32) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// For stores with leases: a future that renews this session's lease, and ends only when the lease is lost.
    ///
    /// The guard runs it beside the handler, and cancels the handler when it ends.
    fn keep_alive(&self, session: &Self::Session) -> Option<BoxFuture<'static, StoreError>> {
        let _ = session;
        None
    }
}

/// A store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct StoreError {
    kind: StoreErrorKind,
    source: Option<BoxError>,
}

/// The reason of a [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// It cannot be reached, or answered with an error that may pass.
    Unavailable,
    /// A rival held the identity, or a lock, for longer than we wait.
    Busy,
    /// A bounded store has no room for another identity; it refuses rather than forget.
    Full,
    /// The claim was not ours any more.
    LeaseLost,
    /// The commit was sent and its outcome is not known.
    OutcomeUnknown,
    /// A table or column is missing or different.
    Schema,
    /// It was set up with something that cannot work.
    Configuration,
}

impl StoreError {
    /// An error of a kind, with its cause.
    pub fn new(kind: StoreErrorKind, source: impl Into<BoxError>) -> Self {
        Self { kind, source: Some(source.into()) }
    }

    /// What went wrong.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}

impl From<StoreErrorKind> for StoreError {
    fn from(kind: StoreErrorKind) -> Self {
        Self { kind, source: None }
    }
}

impl fmt::Display for StoreErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "the store is unavailable",
            Self::Busy => "the identity is held by another consumer",
            Self::Full => "the store is full",
            Self::LeaseLost => "the lease was lost",
            Self::OutcomeUnknown => "the outcome of the commit is unknown",
            Self::Schema => "the store's schema does not fit",
            Self::Configuration => "the store's configuration cannot work",
        })
    }
}
