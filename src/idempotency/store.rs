//! The contract of a store.

use std::{error::Error, fmt, future::Future, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, join_all};

use super::{
    claim::{ClaimRequest, Claims, Record},
    key::Scope,
    replay::{ReplayClaim, ReplayRequest},
};
use crate::{error::BoxError, message::MessageId};

/// Remembers which messages took effect, and opens the session that an effect is written in.
///
/// # Contract
///
/// 1. `claim` answers every request, in order. Of several claims on one identity, by whatever
///    process, at most one is acquired at a time; the others wait, or are told that it is in
///    progress or completed.
/// 2. Identity is exact: every byte of scope and ID counts, case and trailing spaces included.
/// 3. After `complete` returned `Ok`, every later claim on its identities is `Completed` with the
///    fingerprint of the first, until purged.
/// 4. After `release`, or after the session was dropped or its process died, the identities can be
///    claimed again: at once, or when the lease has run out.
/// 5. `complete` on a session that lost its claim is an error of kind [`StoreErrorKind::LeaseLost`]
///    and changes nothing; so is `release`.
/// 6. An error of `complete` may leave the outcome unknown. The caller must then not settle the
///    message as handled.
/// 7. `purge` forgets completed identities older than the retention, by the store's clock, and
///    nothing else.
///
/// With the feature `testing`, `testing::conformance` tries a store against all of them.
pub trait IdempotencyStore: Send + Sync + 'static {
    /// What the handler gets: a transaction, or a [`Lease`](super::Lease).
    type Session: Send;

    /// Whether one session can hold the claims of several requests. A consumer then handles
    /// messages in batches, with one commit for each batch.
    const BATCHES: bool = false;

    /// Opens one session and claims all identities in it. No identity occurs twice in `requests`.
    ///
    /// A store of leases takes one request at a time here; see [`claim_each`](Self::claim_each).
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Busy`] if a rival held an identity for too long, [`StoreErrorKind::Full`]
    /// if a bounded store has no room, [`StoreErrorKind::Refused`] if one of the identities may be
    /// what it cannot take, [`StoreErrorKind::Unavailable`] and others if it could not be asked.
    /// Nothing is claimed then.
    fn claim(
        &self,
        requests: &[ClaimRequest],
    ) -> impl Future<Output = Result<Claims<Self::Session>, StoreError>> + Send;

    /// Claims every identity in a session of its own; answers in the order of `requests`. No
    /// identity occurs twice in them.
    ///
    /// Stores of leases do it in one round trip. By default each is claimed with
    /// [`claim`](Self::claim), all together.
    fn claim_each(
        &self,
        requests: &[ClaimRequest],
    ) -> impl Future<Output = Vec<Result<Claims<Self::Session>, StoreError>>> + Send {
        join_all(requests.chunks(1).map(|request| self.claim(request)))
    }

    /// Claims what takes effect in a replay, if its epoch is open in the scope, for a guard with
    /// [`ReplayPolicy::Opened`](super::ReplayPolicy::Opened). Until the session ends the epoch
    /// stays open; what is recorded of the replay is durable with the effect or not at all. What
    /// the store has no record of is claimed as well, as its first effect.
    ///
    /// By default no epoch is open.
    ///
    /// # Errors
    ///
    /// As [`claim`](Self::claim).
    fn claim_replay(
        &self,
        request: &ReplayRequest,
    ) -> impl Future<Output = Result<ReplayClaim<Self::Session>, StoreError>> + Send {
        let _ = request;
        async { Ok(ReplayClaim::Refused) }
    }

    /// Whether the store can tell which epochs are open: its tables. A consumer with
    /// [`ReplayPolicy::Opened`](super::ReplayPolicy::Opened) asks before it takes messages.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Schema`], saying what is missing; [`StoreErrorKind::Configuration`] by
    /// default, as no epoch can be opened.
    fn check_replays(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        async {
            Err(StoreError::new(
                StoreErrorKind::Configuration,
                "this store keeps no list of replays that are open: list them in the policy",
            ))
        }
    }

    /// Makes the effect and the identities durable together, as far as the session can.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::LeaseLost`] if the claim was not held any more;
    /// [`StoreErrorKind::RolledBack`] and [`StoreErrorKind::Conflict`] if nothing was made durable,
    /// for certain; with any other kind the outcome is unknown.
    fn complete(&self, session: Self::Session) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Completes several sessions, in one round trip if the store can; answers in their order.
    fn complete_each(
        &self,
        sessions: Vec<Self::Session>,
    ) -> impl Future<Output = Vec<Result<(), StoreError>>> + Send {
        join_all(sessions.into_iter().map(|session| self.complete(session)))
    }

    /// Gives the identities back, and undoes what was written through the session.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`]; the identities then become free later (contract, 4).
    fn release(&self, session: Self::Session) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets identities that were completed more than `retention` ago, at most `limit` of them;
    /// returns how many. A store that drops them by the partition may forget more.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`]; some may have been forgotten.
    fn purge(&self, retention: Duration, limit: u32) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// How many sessions can be open at the same time, if there is a limit. A consumer with more
    /// workers than that warns.
    fn sessions(&self) -> Option<usize> {
        None
    }

    /// For how long the store remembers a completed identity, if it forgets by itself. A consumer
    /// goes by it, and does not start if it was told a longer time.
    ///
    /// `None` for a store that forgets only what [`purge`](Self::purge) is told to.
    fn remembers(&self) -> Option<Duration> {
        None
    }

    /// Whether [`claim_each`](Self::claim_each) and [`complete_each`](Self::complete_each) take
    /// about as long as one claim, and an identity that fails there fails alone. A consumer then
    /// asks together for messages that it handles concurrently. The answer stays the same.
    fn pipelines(&self) -> bool {
        false
    }

    /// For stores with leases: a future that renews this session's lease, and ends only when the
    /// lease is lost.
    ///
    /// The guard runs it beside the handler, and cancels the handler when it ends.
    fn keep_alive(&self, session: &Self::Session) -> Option<BoxFuture<'static, StoreError>> {
        let _ = session;
        None
    }

    /// Whether an error of a handler says that the session was rolled back because of a rival (a
    /// deadlock, a serialization failure): the same work, done again from the claim on, may well
    /// succeed. The guard then does it again in place.
    fn is_conflict(&self, error: &(dyn Error + 'static)) -> bool {
        let _ = error;
        false
    }

    /// Whether the store can work: its tables, its rights, its server's settings. A consumer asks
    /// before it takes messages.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Schema`] or [`StoreErrorKind::Configuration`], saying what is missing and
    /// what to do about it.
    fn check(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        async { Ok(()) }
    }
}

/// Looks into a store, and takes one identity out of it: for operators and their tools.
///
/// ```
/// use lapin_idempotent::{MemoryStore, MessageId, Scope, idempotency::Inspect};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let store = MemoryStore::new(100);
/// let (scope, id) = (Scope::new("ledger")?, MessageId::new("debit/order-42")?);
/// if store.find(&scope, &id).await?.is_some() {
///     store.forget(&scope, &id).await?; // it takes effect once more when it comes again
/// }
/// # Ok(())
/// # }
/// ```
pub trait Inspect: IdempotencyStore {
    /// What is remembered of an identity; `None` if nothing, so that a claim would be acquired.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn find(
        &self,
        scope: &Scope,
        message_id: &MessageId,
    ) -> impl Future<Output = Result<Option<Record>, StoreError>> + Send;

    /// How many completed identities a scope has. Reads them all: not for every minute.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn count(&self, scope: &Scope) -> impl Future<Output = Result<u64, StoreError>> + Send;

    /// Forgets a completed identity, so that its message takes effect **once more** when it comes
    /// again: for a deliberate replay. Returns whether there was one; an identity in progress is
    /// left alone. Logged.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`].
    fn forget(
        &self,
        scope: &Scope,
        message_id: &MessageId,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;
}

impl<S: IdempotencyStore> IdempotencyStore for Arc<S> {
    type Session = S::Session;

    const BATCHES: bool = S::BATCHES;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<S::Session>, StoreError> {
        (**self).claim(requests).await
    }

    async fn claim_each(&self, requests: &[ClaimRequest]) -> Vec<Result<Claims<S::Session>, StoreError>> {
        (**self).claim_each(requests).await
    }

    async fn claim_replay(&self, request: &ReplayRequest) -> Result<ReplayClaim<S::Session>, StoreError> {
        (**self).claim_replay(request).await
    }

    async fn check_replays(&self) -> Result<(), StoreError> {
        (**self).check_replays().await
    }

    async fn complete(&self, session: S::Session) -> Result<(), StoreError> {
        (**self).complete(session).await
    }

    async fn complete_each(&self, sessions: Vec<S::Session>) -> Vec<Result<(), StoreError>> {
        (**self).complete_each(sessions).await
    }

    async fn release(&self, session: S::Session) -> Result<(), StoreError> {
        (**self).release(session).await
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        (**self).purge(retention, limit).await
    }

    fn sessions(&self) -> Option<usize> {
        (**self).sessions()
    }

    fn remembers(&self) -> Option<Duration> {
        (**self).remembers()
    }

    fn pipelines(&self) -> bool {
        (**self).pipelines()
    }

    fn keep_alive(&self, session: &S::Session) -> Option<BoxFuture<'static, StoreError>> {
        (**self).keep_alive(session)
    }

    fn is_conflict(&self, error: &(dyn Error + 'static)) -> bool {
        (**self).is_conflict(error)
    }

    async fn check(&self) -> Result<(), StoreError> {
        (**self).check().await
    }
}

impl<S: Inspect> Inspect for Arc<S> {
    async fn find(&self, scope: &Scope, message_id: &MessageId) -> Result<Option<Record>, StoreError> {
        (**self).find(scope, message_id).await
    }

    async fn count(&self, scope: &Scope) -> Result<u64, StoreError> {
        (**self).count(scope).await
    }

    async fn forget(&self, scope: &Scope, message_id: &MessageId) -> Result<bool, StoreError> {
        (**self).forget(scope, message_id).await
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
    /// A rival held the identity, or a lock, for longer than the claim waits.
    Busy,
    /// A bounded store has no room for another identity; it refuses rather than forget.
    Full,
    /// It answers, and refuses one of the identities of this claim: by a constraint or a trigger of
    /// the table, an encoding without one of its characters, a column that is too short. Nothing
    /// was claimed.
    Refused,
    /// The claim was not held any more.
    LeaseLost,
    /// A rival's transaction stood in the way (a deadlock, a serialization failure). Nothing was
    /// committed; the same work may succeed.
    Conflict,
    /// Nothing was committed: a statement of the handler had failed and its error was swallowed,
    /// the handler ended the transaction by itself, or the commit was refused.
    RolledBack,
    /// The commit was sent and its outcome is not known.
    OutcomeUnknown,
    /// A table or column is missing or different.
    Schema,
    /// It was set up with something that cannot work.
    Configuration,
}

impl StoreErrorKind {
    /// Whether the same question may be answered soon.
    pub(crate) fn may_pass(self) -> bool {
        matches!(self, Self::Unavailable | Self::Busy | Self::Conflict | Self::OutcomeUnknown)
    }
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
            Self::Busy => "what is asked for is held by somebody else",
            Self::Full => "the store is full",
            Self::Refused => "the store refuses what it was given",
            Self::LeaseLost => "the lease was lost",
            Self::Conflict => "a rival's transaction stood in the way",
            Self::RolledBack => "the transaction was rolled back",
            Self::OutcomeUnknown => "the outcome of the commit is unknown",
            Self::Schema => "the store's schema does not match",
            Self::Configuration => "invalid configuration of the store",
        })
    }
}
