//! A store, with points before and after everything that is asked of it.

use std::{error::Error, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;

use crate::{
    idempotency::{
        ClaimRequest, Claims, IdempotencyStore, ReplayClaim, ReplayRequest, StoreError, StoreErrorKind,
    },
    testing::points::{Point, Points},
};

#[derive(Debug)]
pub(super) struct CrashingStore<S> {
    pub(super) store: Arc<S>,
    pub(super) points: Arc<Points>,
}

/// What the store says at a point at which something fails.
fn made_up(kind: StoreErrorKind) -> StoreError {
    StoreError::new(kind, "made up by the crash test")
}

impl<S: IdempotencyStore> IdempotencyStore for CrashingStore<S> {
    type Session = S::Session;

    const BATCHES: bool = S::BATCHES;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<S::Session>, StoreError> {
        self.points.crash_at(Point::Claim).await;
        if self.points.fails_at(Point::ClaimFails) {
            return Err(made_up(StoreErrorKind::Unavailable));
        }
        let claims = self.store.claim(requests).await?;
        if claims.session.is_some() {
            self.points.crash_at(Point::Claimed).await;
        }
        Ok(claims)
    }

    async fn claim_replay(&self, request: &ReplayRequest) -> Result<ReplayClaim<S::Session>, StoreError> {
        self.points.crash_at(Point::Claim).await;
        if self.points.fails_at(Point::ClaimFails) {
            return Err(made_up(StoreErrorKind::Unavailable));
        }
        let claim = self.store.claim_replay(request).await?;
        if matches!(&claim, ReplayClaim::Open { claims, .. } if claims.session.is_some()) {
            self.points.crash_at(Point::Claimed).await;
        }
        Ok(claim)
    }

    async fn check_replays(&self) -> Result<(), StoreError> {
        self.store.check_replays().await
    }

    async fn complete(&self, session: S::Session) -> Result<(), StoreError> {
        self.points.crash_at(Point::Commit).await;
        if self.points.fails_at(Point::CommitRefused) {
            // Whatever comes of it: it is not committed.
            let _ = self.store.release(session).await;
            return Err(made_up(StoreErrorKind::RolledBack));
        }
        self.store.complete(session).await?;
        self.points.crash_at(Point::Committed).await;
        if self.points.fails_at(Point::CommitAnswerLost) {
            return Err(made_up(StoreErrorKind::OutcomeUnknown));
        }
        Ok(())
    }

    async fn release(&self, session: S::Session) -> Result<(), StoreError> {
        self.points.crash_at(Point::Release).await;
        self.store.release(session).await
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        self.store.purge(retention, limit).await
    }

    fn sessions(&self) -> Option<usize> {
        self.store.sessions()
    }

    fn remembers(&self) -> Option<Duration> {
        self.store.remembers()
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
