//! What the guard asks its store: alone, or together with others that ask at the same moment.

use std::{convert::Infallible, sync::Arc};

use futures_util::future;

use super::{
    claim::{Claim, ClaimRequest, Claims},
    guard::Guard,
    outcome::Outcome,
    store::{IdempotencyStore, StoreError, StoreErrorKind},
};
use crate::{
    error::Chain,
    message::{Fingerprint, IncomingMessage, MessageId},
};

/// The identities that a store is asked for to find out whether it takes any: the second one, in
/// the shape of a UUIDv7, if it refuses the first. They are released again: always the same, so
/// that a store that keeps something of what was released keeps it once.
const PROBES: [&str; 2] = ["lapin-idempotent/probe", "00000000-0000-7000-8000-000000000000"];

impl<S: IdempotencyStore> Guard<S> {
    /// For a consumer: asks for messages together, if the store can. Then [`drive`](Self::drive)
    /// must run beside them.
    pub(crate) fn coalesced(mut self) -> Self {
        self.coalescer = self.store.pipelines().then(Arc::default);
        self
    }

    /// Answers what the messages of a consumer ask its store.
    pub(crate) async fn drive(&self) -> Infallible {
        match &self.coalescer {
            Some(coalescer) => coalescer.run(&self.store).await,
            None => future::pending().await,
        }
    }

    pub(super) async fn claim(&self, request: &ClaimRequest) -> Result<Claims<S::Session>, StoreError> {
        match &self.coalescer {
            Some(coalescer) => coalescer.claim(request.clone()).await,
            None => self.store.claim(std::slice::from_ref(request)).await,
        }
    }

    /// Asks the store for something that concerns no message: whether it takes claims.
    pub(crate) async fn probe(&self) -> Result<(), StoreError> {
        match self.probe_with(PROBES[0]).await {
            Err(error) if error.kind() == StoreErrorKind::Refused => self.probe_with(PROBES[1]).await,
            answer => answer,
        }
    }

    async fn probe_with(&self, id: &'static str) -> Result<(), StoreError> {
        let probe = |error| StoreError::new(StoreErrorKind::Configuration, error);
        let message_id = MessageId::new(id).map_err(probe)?;
        let request =
            ClaimRequest { scope: self.scope.clone(), message_id, fingerprint: Fingerprint::of(b"") };
        match self.claim(&request).await {
            Ok(Claims { session: Some(session), .. }) => self.store.release(session).await,
            Ok(Claims { session: None, .. }) => Ok(()),
            // Another consumer is asking the same.
            Err(error) if matches!(error.kind(), StoreErrorKind::Busy | StoreErrorKind::Conflict) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn complete(&self, session: S::Session) -> Result<(), StoreError> {
        match &self.coalescer {
            Some(coalescer) => coalescer.complete(session).await,
            None => self.store.complete(session).await,
        }
    }

    pub(super) async fn give_back(&self, session: S::Session) {
        if let Err(error) = self.store.release(session).await {
            // The claim becomes free later, with its lease or its connection.
            tracing::warn!(error = %Chain(&error), "claim not released");
        }
    }

    /// The outcome of a claim that was not acquired.
    pub(super) fn decided(
        &self,
        message: &IncomingMessage,
        found: Fingerprint,
        claim: Option<&Claim>,
    ) -> Outcome {
        match claim {
            Some(&Claim::Completed { fingerprint: stored, processed_at }) => {
                self.known(message, processed_at, stored, found)
            }
            Some(&Claim::InProgress { remaining }) => Outcome::InProgress { remaining },
            Some(Claim::Acquired) | None => Outcome::StoreUnavailable {
                error: StoreError::new(
                    StoreErrorKind::Configuration,
                    "the store answered a claim without a session",
                ),
            },
        }
    }
}
