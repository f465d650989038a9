//! The guard: claim, handle, complete or release.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::{
    FutureExt,
    future::{self, Either},
};

use super::{
    claim::{Claim, ClaimRequest, Claims},
    handler::{Failure, HandlerError, HandlerResult, IdempotentHandler},
    key::{KeySource, Scope},
    outcome::{Duplicate, Outcome},
    store::{IdempotencyStore, StoreError, StoreErrorKind},
};
use crate::message::{Fingerprint, IdStrategy, IncomingMessage, MessageId};

/// How long a message is left alone when a rival holds its identity and the store cannot say for how long.
const BUSY: Duration = Duration::from_secs(1);

/// Lets each message take effect at most once per scope, within the retention of its store.
///
/// The consumer of this crate runs one; use it directly in a consume loop of your own:
/// [`process`](Self::process) says what became of a delivery, and `settle` what to do with it.
#[derive(Debug, Clone)]
pub struct Guard<S> {
    store: S,
    scope: Scope,
    key: KeySource,
    missing_id: MissingIdPolicy,
}

/// What happens to a message without an ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum MissingIdPolicy {
    /// It is not handled; the outcome is [`Outcome::MissingId`], and the consumer parks it.
    #[default]
    Park,
    /// Its ID is the hash of its body ([`IdStrategy::content`]): two messages with equal bodies are one message.
    DeriveFromContent,
    /// It is handled at every delivery, under a random ID: no protection from duplicates.
    HandleUnguarded,
}

impl<S: IdempotencyStore> Guard<S> {
    /// A guard over `store`, for the consumer that `scope` names.
    pub fn new(store: S, scope: Scope) -> Self {
        Self { store, scope, key: KeySource::default(), missing_id: MissingIdPolicy::default() }
    }

    /// Which data of a message is its identity. Default: the message ID.
    #[must_use]
    pub fn key(mut self, key: KeySource) -> Self {
        self.key = key;
        self
    }

    /// What happens to a message without an ID. Default: it is not handled.
    #[must_use]
    pub fn missing_id(mut self, policy: MissingIdPolicy) -> Self {
        self.missing_id = policy;
        self
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
    /// Never fails: whatever goes wrong is an [`Outcome`], and only [`Outcome::Processed`] and [`Outcome::Duplicate`] say that
    /// the message may be acked as handled (I1). A panic of the handler counts as a failed attempt.
    ///
    /// # Cancellation
    ///
    /// Dropping the future drops the session, which releases the claim (SQL: rolls back; lease: runs out). If the commit was
    /// under way its outcome is unknown, and the next delivery finds out.
    pub async fn process<H>(&self, message: &IncomingMessage, handler: &H) -> Outcome
    where
        H: IdempotentHandler<S>,
    {
        let message_id = match self.identify(message) {
            Ok(id) => id,
            Err(outcome) => return outcome,
        };
        let fingerprint = message.fingerprint();
        let request = ClaimRequest { scope: self.scope.clone(), message_id, fingerprint };
        match self.store.claim(std::slice::from_ref(&request)).await {
            Ok(Claims { session: Some(session), .. }) => self.handle(message, handler, session).await,
            Ok(Claims { session: None, claims }) => decided(message, fingerprint, claims.first()),
            Err(error) => not_claimed(error),
        }
    }

    fn identify(&self, message: &IncomingMessage) -> Result<MessageId, Outcome> {
        let invalid = |error| Outcome::InvalidId { error };
        match (self.key.id(message).map_err(invalid)?, self.missing_id) {
            (Some(id), _) => Ok(id),
            (None, MissingIdPolicy::Park) => Err(Outcome::MissingId),
            (None, MissingIdPolicy::DeriveFromContent) => {
                IdStrategy::content().derive_from_body(message.body()).map_err(|error| invalid(error.into()))
            }
            (None, MissingIdPolicy::HandleUnguarded) => Ok(MessageId::random()),
        }
    }

    async fn handle<H>(&self, message: &IncomingMessage, handler: &H, mut session: S::Session) -> Outcome
    where
        H: IdempotentHandler<S>,
    {
        let keep_alive = self.store.keep_alive(&session);
        let handled = {
            // A panic must not take the consumer down; the session it may have left in disorder is released.
            let work = AssertUnwindSafe(handler.handle(message, &mut session)).catch_unwind();
            match keep_alive {
                None => work.await,
                Some(keep_alive) => match future::select(std::pin::pin!(work), keep_alive).await {
                    Either::Left((handled, _)) => handled,
                    Either::Right((lost, _)) => {
                        tracing::warn!(error = %lost, "lease lost; the handler is cancelled");
                        return Outcome::LeaseLost;
                    }
                },
            }
        };
        let result = handled.unwrap_or_else(|panic| Err(HandlerError::retry(panic_text(&*panic))));
        self.conclude(session, result).await
    }

    async fn conclude(&self, session: S::Session, result: HandlerResult) -> Outcome {
        match result {
            Ok(()) => match self.store.complete(session).await {
                Ok(()) => Outcome::Processed,
                Err(error) if error.kind() == StoreErrorKind::LeaseLost => Outcome::LeaseLost,
                Err(error) => Outcome::StoreUnavailable { error },
            },
            Err(HandlerError(failure)) => {
                if let Err(error) = self.store.release(session).await {
                    // The claim becomes free later, with its lease or its connection.
                    tracing::warn!(error = %error, "claim not released");
                }
                match failure {
                    Failure::Retry { after, error } => Outcome::Retry { after, error },
                    Failure::Reject { error } => Outcome::Reject { error },
                }
            }
        }
    }
}

/// The outcome of a claim that was not acquired.
fn decided(message: &IncomingMessage, found: Fingerprint, claim: Option<&Claim>) -> Outcome {
    match claim {
        Some(&Claim::Completed { fingerprint, processed_at }) if fingerprint == found => {
            Outcome::Duplicate(Duplicate::new(message, processed_at))
        }
        Some(&Claim::Completed { fingerprint: stored, .. }) => Outcome::FingerprintMismatch { stored, found },
        Some(&Claim::InProgress { remaining }) => Outcome::InProgress { remaining },
        Some(Claim::Acquired) | None => Outcome::StoreUnavailable {
            error: StoreError::new(
                StoreErrorKind::Configuration,
                "the store answered a claim without a session",
            ),
        },
    }
}

fn not_claimed(error: StoreError) -> Outcome {
    match error.kind() {
        StoreErrorKind::Busy => Outcome::InProgress { remaining: BUSY },
        _ => Outcome::StoreUnavailable { error },
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    format!("the handler panicked: {text}")
}
