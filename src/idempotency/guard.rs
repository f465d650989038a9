//! The guard: claim, handle, complete or release.

use std::{future::Future, sync::Arc, time::Duration};

use futures_util::{
    FutureExt,
    future::{self, Either},
};

use super::{
    asked::{Asked, NoSession},
    claim::ClaimRequest,
    coalesce::Coalescer,
    handler::{Failure, HandlerError, HandlerResult, IdempotentHandler},
    identity::{identified, known_as},
    key::{KeySource, Scope},
    outcome::{Inconclusive, Outcome},
    policy::{MismatchPolicy, MissingIdPolicy, StalePolicy},
    replay::ReplayPolicy,
    store::{IdempotencyStore, StoreError, StoreErrorKind},
};
use crate::{
    error::{BoxError, Chain, caught},
    message::IncomingMessage,
    now::Now,
};

/// How often a message is tried in place when a rival's transaction stood in the way each time.
const CONFLICTS: u32 = 5;

/// Lets each message take effect at most once per scope, within the retention of its store.
///
/// The consumer of this crate runs one; use it directly in a consume loop of your own:
/// [`process`](Self::process) says what became of a message, and
/// [`DeliverySettler`](crate::consumer::DeliverySettler) does about its delivery what follows.
///
/// ```
/// use lapin_idempotent::{Guard, IncomingMessage, Lease, MemoryStore, Scope, handler_fn};
/// use lapin_idempotent::consumer::{Settlement, settle};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let guard = Guard::new(MemoryStore::new(100), Scope::new("ledger")?);
/// let handler = handler_fn(|message, _: &mut Lease| {
///     Box::pin(async move {
///         println!("{}", message.text()?); // runs once
///         Ok(())
///     })
/// });
/// let delivery = IncomingMessage::new("500").with_message_id("debit/order-42");
/// for copy in [delivery.clone(), delivery] {
///     let outcome = guard.process(&copy, &handler).await;
///     assert_eq!(settle(&outcome), Settlement::Ack); // processed, then a duplicate
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Guard<S: IdempotencyStore> {
    pub(super) store: S,
    pub(super) scope: Scope,
    pub(super) key: KeySource,
    pub(super) missing_id: MissingIdPolicy,
    pub(super) retention: Option<Duration>,
    pub(super) stale: StalePolicy,
    limit: Option<Duration>,
    pub(super) mismatch: MismatchPolicy,
    pub(super) replays: ReplayPolicy,
    immediate_retries: u32,
    max_attempts: u32,
    pub(super) now: Now,
    /// Set by a consumer that runs it.
    pub(super) coalescer: Option<Arc<Coalescer<S>>>,
}

impl<S: IdempotencyStore> Guard<S> {
    /// A guard over `store`, for the consumer that `scope` names.
    pub fn new(store: S, scope: Scope) -> Self {
        Self {
            store,
            scope,
            key: KeySource::default(),
            missing_id: MissingIdPolicy::default(),
            retention: None,
            stale: StalePolicy::default(),
            limit: None,
            mismatch: MismatchPolicy::default(),
            replays: ReplayPolicy::default(),
            immediate_retries: 0,
            max_attempts: 36,
            now: Now::default(),
            coalescer: None,
        }
    }

    /// Sets which data of a message is its identity. Default: the message ID.
    #[must_use]
    pub fn key(mut self, key: KeySource) -> Self {
        self.key = key;
        self
    }

    /// Sets what happens to a message without an ID. Default: it is not handled.
    #[must_use]
    pub fn missing_id(mut self, policy: MissingIdPolicy) -> Self {
        self.missing_id = policy;
        self
    }

    /// Sets what happens to a message whose ID took effect with another body. Default: it is not
    /// acked as handled.
    #[must_use]
    pub fn fingerprint_mismatch(mut self, policy: MismatchPolicy) -> Self {
        self.mismatch = policy;
        self
    }

    /// Sets what happens to a message of a replay. Default: the header means nothing.
    #[must_use]
    pub fn replays(mut self, policy: ReplayPolicy) -> Self {
        self.replays = policy;
        self
    }

    /// Sets how often a failed message is tried again at once, each time in a session of its own,
    /// before its outcome is [`Outcome::Retry`]. Not done for a handler that asked for a delay, nor
    /// beyond [`max_attempts`](Self::max_attempts). Default: 0.
    #[must_use]
    pub fn immediate_retries(mut self, retries: u32) -> Self {
        self.immediate_retries = retries;
        self
    }

    /// Sets after how many failed runs of its handler, those of earlier deliveries included, a
    /// message is not tried again; at least 1. Default: 36.
    ///
    /// The guard then makes no more [`immediate_retries`](Self::immediate_retries), and whoever
    /// settles the deliveries parks the message:
    /// [`DeliverySettler`](crate::consumer::DeliverySettler) does, after as many as are said here.
    /// A loop that settles by itself compares this with the sum of
    /// [`IncomingMessage::failures`](crate::IncomingMessage::failures) and the failures of
    /// [`Outcome::Retry`].
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts.max(1);
        self
    }

    /// Whether a message without an ID takes effect each time that it is handled.
    pub(crate) fn is_unguarded(&self) -> bool {
        self.missing_id == MissingIdPolicy::HandleUnguarded
    }

    /// Goes by another clock than the system's.
    #[cfg(feature = "testing")]
    pub(crate) fn clocked(self, now: Now) -> Self {
        Self { now, ..self }
    }

    /// The same over another store.
    #[cfg(feature = "testing")]
    pub(crate) fn over<T: IdempotencyStore>(self, store: T) -> Guard<T> {
        let Self { scope, key, missing_id, retention, stale, limit, mismatch, replays, .. } = self;
        let Self { immediate_retries, max_attempts, now, .. } = self;
        Guard {
            store,
            scope,
            key,
            missing_id,
            retention,
            stale,
            limit,
            mismatch,
            replays,
            immediate_retries,
            max_attempts,
            now,
            coalescer: None,
        }
    }

    /// How often a failed message is tried again at once, and after how many failures it is not
    /// tried again at all.
    pub(crate) fn attempts(&self) -> (u32, u32) {
        (self.immediate_retries, self.max_attempts)
    }

    /// States for how long the store remembers an ID: the retention that it is purged with. A
    /// message that is older, by the time in its ID or its timestamp, cannot be judged by a missing
    /// record; `policy` says what happens to it. Not set by default: every ID is then taken to be
    /// remembered.
    #[must_use]
    pub fn retention(mut self, retention: Duration, policy: StalePolicy) -> Self {
        (self.retention, self.stale) = (Some(retention), policy);
        self
    }

    /// Sets the longest that a handler may take for one message; then it is dropped, and the
    /// message counts as failed. A batch has as many times that. Not set by default.
    #[must_use]
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Runs a handler for some messages: a panic must not take the consumer down, be it in the
    /// error that it returns or in what it drops, nor one that never ends hold it up. The session
    /// that it may have left in disorder is released then.
    pub(super) fn run(
        &self,
        messages: usize,
        work: impl Future<Output = HandlerResult> + Send,
    ) -> impl Future<Output = HandlerResult> + Send {
        let messages = u32::try_from(messages).unwrap_or(u32::MAX);
        // No `async fn`, and only the rare case in a block: each would keep the handler's future
        // once more.
        let work = match self.limit.map(|limit| limit.saturating_mul(messages)) {
            None => Either::Left(work),
            Some(limit) => {
                let work = Box::pin(work);
                Either::Right(async move {
                    let late = |_| inconclusive(format!("the handler took longer than {limit:?}"));
                    // Dropped in here, if it is late.
                    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
                })
            }
        };
        caught("the handler", work).map(|handled| {
            let handled = handled.unwrap_or_else(inconclusive);
            handled.map_err(HandlerError::readable)
        })
    }

    /// The store.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The consumer's identity.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Runs the handler on a message unless its effect is committed already.
    ///
    /// Never fails: whatever goes wrong is an [`Outcome`], and only [`Outcome::Processed`] and
    /// [`Outcome::Duplicate`] say that the message may be acked as handled (I1). A panic of the
    /// handler counts as a failed attempt.
    ///
    /// When a rival's transaction stood in the way (a deadlock, a serialization failure), also if
    /// the handler returned that error, the whole transaction is done again, up to five times: the
    /// handler runs again then, and nothing of its earlier runs was committed. After that the
    /// outcome is [`Outcome::Conflict`].
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops the session, which releases the claim (SQL: rolls back; lease:
    /// runs out). If the commit was under way its outcome is unknown, and the next delivery finds
    /// out.
    pub async fn process<H>(&self, message: &IncomingMessage, handler: &H) -> Outcome
    where
        H: IdempotentHandler<S>,
    {
        let asked = match self.asked(message) {
            Ok(asked) => asked,
            Err(outcome) => return outcome,
        };
        let mut conflicts = 0;
        let mut failed = 0;
        loop {
            match self.attempt(message, handler, &asked).await {
                Attempt::Failed { after: None, error } if self.again(message, failed + 1) => {
                    failed += 1;
                    tracing::debug!(failed, error = %Chain(&*error), "handler failed; once more");
                }
                Attempt::Failed { after, error } => {
                    return Outcome::Retry { after, failures: failed + 1, error };
                }
                // It did fail before, and that is counted.
                Attempt::Decided(Outcome::DependencyUnavailable { error }) if failed > 0 => {
                    let error = Inconclusive(error).into();
                    return Outcome::Retry { after: None, failures: failed, error };
                }
                Attempt::Decided(outcome) => return outcome,
                Attempt::Conflict(_) if conflicts < CONFLICTS => {
                    // Apart from the rival, which may be at the same point of its own loop.
                    let pause = Duration::from_millis(5 << conflicts).mul_f64(0.5 + fastrand::f64());
                    conflicts += 1;
                    tracing::debug!(conflicts, "a rival's transaction stood in the way; once more");
                    tokio::time::sleep(pause).await;
                }
                Attempt::Conflict(error) => return Outcome::Conflict { error },
            }
        }
    }

    /// Whether a message that has failed so often in this delivery is tried again at once.
    fn again(&self, message: &IncomingMessage, failed: u32) -> bool {
        failed <= self.immediate_retries && message.failures().saturating_add(failed) < self.max_attempts
    }

    /// Claims, handles and concludes once. After a conflict nothing of it was committed.
    async fn attempt<H>(&self, message: &IncomingMessage, handler: &H, asked: &Asked) -> Attempt
    where
        H: IdempotentHandler<S>,
    {
        match self.session(message, asked).await {
            Ok((session, is_first)) => {
                let message = identified(message, &asked.request, asked.taken(is_first).as_ref());
                self.handle(&message, handler, session).await
            }
            Err(NoSession::Decided(outcome)) => {
                if outcome.is_handled() {
                    // Whoever answers a copy asks for it.
                    known_as(message, &asked.request, asked.taken(false).as_ref());
                }
                Attempt::Decided(outcome)
            }
            Err(NoSession::Conflict(error)) => Attempt::Conflict(error.into()),
        }
    }

    /// What to ask the store for a message; its outcome if there is nothing to ask.
    pub(super) fn request(&self, message: &IncomingMessage) -> Result<ClaimRequest, Outcome> {
        if let Some(remaining) = message.early(|| self.now.get()) {
            return Err(Outcome::TooEarly { remaining });
        }
        let message_id = self.identify(message)?;
        Ok(ClaimRequest { scope: self.scope.clone(), message_id, fingerprint: message.fingerprint() })
    }

    async fn handle<H>(&self, message: &IncomingMessage, handler: &H, mut session: S::Session) -> Attempt
    where
        H: IdempotentHandler<S>,
    {
        let keep_alive = self.store.keep_alive(&session);
        let result = {
            let work = self.run(1, handler.handle(message, &mut session));
            match keep_alive {
                None => work.await,
                Some(keep_alive) => match future::select(std::pin::pin!(work), keep_alive).await {
                    Either::Left((result, _)) => result,
                    Either::Right((lost, _)) => {
                        tracing::warn!(error = %Chain(&lost), "lease lost; the handler is cancelled");
                        return Attempt::Decided(Outcome::LeaseLost);
                    }
                },
            }
        };
        self.conclude(session, result).await
    }

    async fn conclude(&self, session: S::Session, result: HandlerResult) -> Attempt {
        let failure = match result {
            Ok(()) => return completed(self.complete(session).await),
            Err(HandlerError(failure)) => failure,
        };
        self.give_back(session).await;
        match failure {
            Failure::Retry { after: None, error } if self.store.is_conflict(&*error) => {
                Attempt::Conflict(error)
            }
            Failure::Retry { after, error } => Attempt::Failed { after, error },
            Failure::Reject { error } => Attempt::Decided(Outcome::Reject { error }),
            Failure::Unavailable { error } => Attempt::Decided(Outcome::DependencyUnavailable { error }),
        }
    }
}

fn inconclusive(error: impl Into<BoxError>) -> HandlerResult {
    Err(HandlerError::retry(Inconclusive(error.into())))
}

/// What came of one claim and what followed.
enum Attempt {
    Decided(Outcome),
    /// The handler failed, and nothing was committed.
    Failed {
        after: Option<Duration>,
        error: BoxError,
    },
    /// A rival's transaction stood in the way, and nothing was committed.
    Conflict(BoxError),
}

fn completed(result: Result<(), StoreError>) -> Attempt {
    let Err(error) = result else { return Attempt::Decided(Outcome::Processed) };
    Attempt::Decided(match error.kind() {
        StoreErrorKind::Conflict => return Attempt::Conflict(error.into()),
        // The handler's own doing, and certain: it counts as a failed attempt.
        StoreErrorKind::RolledBack => return Attempt::Failed { after: None, error: error.into() },
        StoreErrorKind::LeaseLost => Outcome::LeaseLost,
        _ => Outcome::StoreUnavailable { error },
    })
}
