//! What the guard asks its store: alone, or together with others that ask at the same moment.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures_util::future;

use super::{
    asked::{Asked, NoSession, Replay},
    claim::{Claim, ClaimRequest, Claims, Record},
    guard::Guard,
    outcome::Outcome,
    policy::MismatchPolicy,
    replay::{ReplayClaim, ReplayPolicy, ReplayRequest},
    store::{IdempotencyStore, StoreError, StoreErrorKind},
};
use crate::{
    error::{Chain, bounded},
    message::{Epoch, Fingerprint, IncomingMessage, MessageId},
};

/// How long a message is left alone when a rival holds its identity and the store cannot say for
/// how long.
const BUSY: Duration = Duration::from_secs(1);

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

    /// What to ask the store for a message, which may be of a replay; its outcome if there is
    /// nothing to ask.
    pub(super) fn asked(&self, message: &IncomingMessage) -> Result<Asked, Outcome> {
        Ok(Asked { request: self.request(message)?, replay: self.replay(message)? })
    }

    /// Whether a message is to be judged by the replay that it says it is of.
    pub(super) fn is_replay(&self, message: &IncomingMessage) -> bool {
        self.replays != ReplayPolicy::Ignore && message.claimed_epoch().is_some()
    }

    fn replay(&self, message: &IncomingMessage) -> Result<Option<Replay>, Outcome> {
        let Some(claimed) = message.claimed_epoch().filter(|_| self.is_replay(message)) else {
            return Ok(None);
        };
        let name = claimed.as_str().unwrap_or_default();
        match (Epoch::new(name), &self.replays) {
            (Ok(epoch), ReplayPolicy::Opened) => Ok(Some(Replay { epoch, opened: true })),
            (Ok(epoch), ReplayPolicy::Listed(listed)) if listed.contains(&epoch) => {
                Ok(Some(Replay { epoch, opened: false }))
            }
            _ => Err(Outcome::ReplayRefused { epoch: bounded(name) }),
        }
    }

    /// The session that a handler works in, and whether that is the first effect of a replay's
    /// original; or what became of the message without one.
    pub(super) async fn session(
        &self,
        message: &IncomingMessage,
        asked: &Asked,
    ) -> Result<(S::Session, bool), NoSession> {
        let mut claimed = self.claim_asked(asked).await;
        if claimed.as_ref().is_err_and(|error| error.kind() == StoreErrorKind::Refused) {
            // The message is to blame only if the store takes another one, before and after which
            // it refuses this one.
            self.probe().await.map_err(|error| Outcome::StoreUnavailable { error })?;
            claimed = self.claim_asked(asked).await;
        }
        let found = asked.request.fingerprint;
        let (claims, original) = match claimed {
            Ok(ReplayClaim::Open { claims, original }) => (claims, original),
            Ok(ReplayClaim::Refused) => {
                let epoch = asked.epoch().map(ToString::to_string).unwrap_or_default();
                return Err(Outcome::ReplayRefused { epoch }.into());
            }
            Err(error) => {
                return Err(match error.kind() {
                    StoreErrorKind::Conflict => NoSession::Conflict(error),
                    StoreErrorKind::Busy => Outcome::InProgress { remaining: BUSY }.into(),
                    StoreErrorKind::Refused => Outcome::Refused { error }.into(),
                    _ => Outcome::StoreUnavailable { error }.into(),
                });
            }
        };
        let Some(session) = claims.session else {
            return Err(self.decided(message, found, claims.claims.first()).into());
        };
        let is_first = original.is_none();
        let outcome = match (&asked.replay, original) {
            // Whoever opened the epoch vouches for its age.
            (Some(_), Some(Record::Completed { fingerprint: stored, .. }))
                if stored != found && self.mismatch == MismatchPolicy::Park =>
            {
                Outcome::FingerprintMismatch { stored, found }
            }
            (Some(replay), _) => return Ok((session, replay.opened && is_first)),
            (None, _) => match self.too_old(message) {
                Some(age) => Outcome::Indeterminate { age },
                None => return Ok((session, true)),
            },
        };
        self.give_back(session).await;
        Err(outcome.into())
    }

    async fn claim_asked(&self, asked: &Asked) -> Result<ReplayClaim<S::Session>, StoreError> {
        let Some(replay) = &asked.replay else {
            return Ok(ReplayClaim::open(self.claim(&asked.request).await?, None));
        };
        // On the heap: it is rare, and would be a part of every message's future.
        Box::pin(async {
            let request = ReplayRequest::new(asked.request.clone(), replay.epoch.clone());
            if replay.opened {
                return self.store.claim_replay(&request).await;
            }
            Ok(ReplayClaim::open(self.claim(&request.claim()).await?, None))
        })
        .await
    }

    pub(super) async fn claim(&self, request: &ClaimRequest) -> Result<Claims<S::Session>, StoreError> {
        match &self.coalescer {
            Some(coalescer) => coalescer.claim(request.clone()).await,
            None => self.store.claim(std::slice::from_ref(request)).await,
        }
    }

    /// Whether the store can work, and tell which replays are open if it is asked.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        self.store.check().await?;
        if self.replays == ReplayPolicy::Opened { self.store.check_replays().await } else { Ok(()) }
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
