//! A store that ends the process at a chosen point.

use std::{
    error::Error,
    process::abort,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use clap::ValueEnum;
use futures_util::future::BoxFuture;
use lapin_idempotent::{
    IdempotencyStore,
    idempotency::{ClaimRequest, Claims, StoreError},
};

/// A point in the life of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AbortAt {
    /// The message was delivered and not claimed.
    BeforeClaim,
    /// It is claimed.
    Claim,
    /// The handler has written its effect.
    Effect,
    /// Effect and identity are durable, and nothing is acked.
    Commit,
    /// The broker has the ack. Sets the prefetch to 1 and waits for a second message, which shows
    /// that it has.
    Ack,
}

/// Does all that the store does, up to that point. The handler aborts at [`AbortAt::Effect`].
pub(crate) struct Aborting<S> {
    store: S,
    at: Option<AbortAt>,
    /// Whether a message was completed.
    completed: AtomicBool,
}

impl<S: IdempotencyStore> Aborting<S> {
    pub(crate) fn new(store: S, at: Option<AbortAt>) -> Self {
        Self { store, at, completed: AtomicBool::new(false) }
    }

    fn before_claim(&self) {
        let acked = self.completed.load(Ordering::SeqCst);
        if self.at == Some(AbortAt::BeforeClaim) || (self.at == Some(AbortAt::Ack) && acked) {
            abort();
        }
    }

    fn after_claim(&self, claims: &Result<Claims<S::Session>, StoreError>) {
        let acquired = claims.as_ref().is_ok_and(|claims| claims.session.is_some());
        if self.at == Some(AbortAt::Claim) && acquired {
            abort();
        }
    }

    fn after_complete(&self, completed: &Result<(), StoreError>) {
        if completed.is_ok() {
            if self.at == Some(AbortAt::Commit) {
                abort();
            }
            self.completed.store(true, Ordering::SeqCst);
        }
    }
}

impl<S: IdempotencyStore> IdempotencyStore for Aborting<S> {
    type Session = S::Session;

    const BATCHES: bool = S::BATCHES;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<S::Session>, StoreError> {
        self.before_claim();
        let claims = self.store.claim(requests).await;
        self.after_claim(&claims);
        claims
    }

    async fn claim_each(&self, requests: &[ClaimRequest]) -> Vec<Result<Claims<S::Session>, StoreError>> {
        self.before_claim();
        let all = self.store.claim_each(requests).await;
        for claims in &all {
            self.after_claim(claims);
        }
        all
    }

    async fn complete(&self, session: S::Session) -> Result<(), StoreError> {
        let completed = self.store.complete(session).await;
        self.after_complete(&completed);
        completed
    }

    async fn complete_each(&self, sessions: Vec<S::Session>) -> Vec<Result<(), StoreError>> {
        let all = self.store.complete_each(sessions).await;
        for completed in &all {
            self.after_complete(completed);
        }
        all
    }

    async fn release(&self, session: S::Session) -> Result<(), StoreError> {
        self.store.release(session).await
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        self.store.purge(retention, limit).await
    }

    fn keep_alive(&self, session: &S::Session) -> Option<BoxFuture<'static, StoreError>> {
        self.store.keep_alive(session)
    }

    fn is_conflict(&self, error: &(dyn Error + 'static)) -> bool {
        self.store.is_conflict(error)
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.store.check().await
    }
}
