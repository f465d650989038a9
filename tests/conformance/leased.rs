//! A small store of leases, right or with one fault.

use std::{
    collections::HashMap,
    future::{pending, ready},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};
use lapin_idempotent::{
    IdempotencyStore, MessageId,
    idempotency::{Claim, ClaimRequest, Claims, Inspect, Lease, Record, Scope, StoreError, StoreErrorKind},
    message::Fingerprint,
};
use tokio::time::{Instant, sleep};

pub(crate) const LEASE: Duration = Duration::from_millis(500);

/// The capacity of the store that is bounded.
pub(crate) const CAPACITY: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    AcksWithoutRemembering,
    GivesCompletedOutAgain,
    GivesOutWhatIsInProgress,
    TakesTheAskersFingerprint,
    TellsNoTime,
    SessionForDuplicates,
    CompletesWithoutFence,
    ReleasesWithoutFence,
    RenewsWithoutFence,
    IgnoresRelease,
    LosesDroppedClaims,
    CountsTokensPerClaim,
    RenewsNothing,
    FoldsCase,
    TrimsSpaces,
    Normalizes,
    StripsQuotes,
    ReadsNumbers,
    CutsLongIds,
    IgnoresScope,
    RunsTogether,
    AnswersEachSorted,
    PurgesEverything,
    PurgesYoungWithOld,
    PurgesWithoutLimit,
    PurgesWhatIsInProgress,
    PurgesNothing,
    ForgetsWhenFull,
    Hangs,
    Panics,
    IsNotReady,
    FindsNothing,
    FindsNoLeases,
    CountsAllScopes,
    ForgetsWhatIsInProgress,
    ForgetsNothing,
}

#[derive(Clone)]
pub(crate) struct Leased {
    fault: Fault,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rows: HashMap<Key, Row>,
    last_token: u64,
}

type Key = (String, String);

#[derive(Clone, Copy)]
enum Row {
    Held { token: u64, expires: Instant },
    Done { fingerprint: Fingerprint, at: SystemTime, since: Instant },
}

impl Leased {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { fault, state: Arc::default() }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn key(&self, scope: &Scope, id: &MessageId) -> Key {
        let (scope, id) = (scope.as_str().to_owned(), id.as_str().to_owned());
        let both = |change: fn(&str) -> String| (change(&scope), change(&id));
        match self.fault {
            Fault::FoldsCase => both(str::to_lowercase),
            Fault::TrimsSpaces => both(|text| text.trim_end().to_owned()),
            Fault::Normalizes => both(|text| text.replace("e\u{301}", "é")),
            Fault::StripsQuotes => both(|text| text.replace('\'', "")),
            Fault::ReadsNumbers => {
                let number = id.parse::<f64>();
                (scope, number.map_or(id, |number| number.to_string()))
            }
            Fault::CutsLongIds => both(|text| text[..text.floor_char_boundary(200)].to_owned()),
            // Up to the random part, without which the cases would disturb each other.
            Fault::IgnoresScope => (scope[..scope.find('-').unwrap() + 33].to_owned(), id),
            Fault::RunsTogether => (scope + &id, String::new()),
            _ => (scope, id),
        }
    }

    fn of(&self, lease: &Lease) -> Key {
        self.key(lease.scope(), lease.message_id())
    }

    fn held(&self, lease: &Lease, unfenced: Fault) -> Result<(), StoreError> {
        match self.state().rows.get(&self.of(lease)) {
            _ if self.is(unfenced) => Ok(()),
            Some(Row::Held { token, .. }) if *token == lease.token() => Ok(()),
            _ => Err(StoreErrorKind::LeaseLost.into()),
        }
    }

    fn acquire(&self, request: &ClaimRequest) -> Claims<Lease> {
        let key = self.key(&request.scope, &request.message_id);
        let mut state = self.state();
        if state.rows.len() >= CAPACITY && self.is(Fault::ForgetsWhenFull) {
            state.rows.clear();
        }
        let token = match state.rows.get(&key) {
            Some(Row::Held { token, .. }) if self.is(Fault::CountsTokensPerClaim) => token + 1,
            None if self.is(Fault::CountsTokensPerClaim) => 1,
            _ => state.last_token + 1,
        };
        state.last_token += 1;
        state.rows.insert(key, Row::Held { token, expires: Instant::now() + LEASE });
        Claims::new(Some(Lease::new(request, token)), vec![Claim::Acquired])
    }
}

impl IdempotencyStore for Leased {
    type Session = Lease;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Lease>, StoreError> {
        let [request] = requests else { return Err(StoreErrorKind::Configuration.into()) };
        let row = self.state().rows.get(&self.key(&request.scope, &request.message_id)).copied();
        let claim = match row {
            Some(Row::Done { .. }) if self.is(Fault::Hangs) => return pending().await,
            Some(Row::Done { fingerprint, at, .. }) if !self.is(Fault::GivesCompletedOutAgain) => {
                let asked = self.is(Fault::TakesTheAskersFingerprint);
                Claim::completed(
                    if asked { request.fingerprint } else { fingerprint },
                    if self.is(Fault::TellsNoTime) { SystemTime::UNIX_EPOCH } else { at },
                )
            }
            Some(Row::Held { expires, .. })
                if (expires > Instant::now() && !self.is(Fault::GivesOutWhatIsInProgress))
                    || self.is(Fault::LosesDroppedClaims) =>
            {
                Claim::in_progress(expires - Instant::now())
            }
            _ => return Ok(self.acquire(request)),
        };
        let session = self.is(Fault::SessionForDuplicates).then(|| Lease::new(request, 0));
        Ok(Claims::new(session, vec![claim]))
    }

    async fn claim_each(&self, requests: &[ClaimRequest]) -> Vec<Result<Claims<Lease>, StoreError>> {
        let mut requests = requests.to_vec();
        if self.is(Fault::AnswersEachSorted) {
            requests.sort_by_key(|request| self.key(&request.scope, &request.message_id));
        }
        let mut answers = Vec::new();
        for request in &requests {
            answers.push(self.claim(std::slice::from_ref(request)).await);
        }
        answers
    }

    async fn complete(&self, session: Lease) -> Result<(), StoreError> {
        self.held(&session, Fault::CompletesWithoutFence)?;
        let (at, since) = (SystemTime::now(), Instant::now());
        let done = Row::Done { fingerprint: *session.fingerprint(), at, since };
        if self.is(Fault::AcksWithoutRemembering) {
            self.state().rows.remove(&self.of(&session));
        } else {
            self.state().rows.insert(self.of(&session), done);
        }
        Ok(())
    }

    async fn release(&self, session: Lease) -> Result<(), StoreError> {
        assert!(!self.is(Fault::Panics), "the store panics on purpose");
        self.held(&session, Fault::ReleasesWithoutFence)?;
        if !self.is(Fault::IgnoresRelease) {
            self.state().rows.remove(&self.of(&session));
        }
        Ok(())
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        let old = |row: &Row| match row {
            Row::Done { since, .. } => since.elapsed() > retention,
            Row::Held { .. } => false,
        };
        let limit = if self.is(Fault::PurgesWithoutLimit) { u32::MAX } else { limit };
        let mut state = self.state();
        let any_old = state.rows.values().any(old);
        let before = state.rows.len();
        let mut left = limit;
        state.rows.retain(|_, row| {
            let in_progress = matches!(row, Row::Held { .. });
            let goes = match self.fault {
                Fault::PurgesNothing => false,
                Fault::PurgesEverything => !in_progress,
                Fault::PurgesYoungWithOld => any_old && !in_progress,
                Fault::PurgesWhatIsInProgress => in_progress || old(row),
                _ => old(row),
            } && left > 0;
            left -= u32::from(goes);
            !goes
        });
        let forgotten = (before - state.rows.len()) as u64;
        // It does not say what it did, either.
        Ok(if self.is(Fault::PurgesWithoutLimit) { 0 } else { forgotten })
    }

    fn keep_alive(&self, session: &Lease) -> Option<BoxFuture<'static, StoreError>> {
        let (store, lease) = (self.clone(), session.clone());
        let renewal = async move {
            loop {
                sleep(LEASE / 3).await;
                if let Err(lost) = store.held(&lease, Fault::RenewsWithoutFence) {
                    return lost;
                }
                if let Some(Row::Held { expires, .. }) = store.state().rows.get_mut(&store.of(&lease)) {
                    *expires = Instant::now() + LEASE;
                }
            }
        };
        (!self.is(Fault::RenewsNothing)).then(|| renewal.boxed())
    }

    fn check(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        ready(if self.is(Fault::IsNotReady) { Err(StoreErrorKind::Schema.into()) } else { Ok(()) })
    }
}

impl Inspect for Leased {
    async fn find(&self, scope: &Scope, id: &MessageId) -> Result<Option<Record>, StoreError> {
        let row = self.state().rows.get(&self.key(scope, id)).copied();
        Ok(match row {
            Some(Row::Done { fingerprint, at, .. }) if !self.is(Fault::FindsNothing) => {
                Some(Record::completed(fingerprint, at))
            }
            Some(Row::Held { expires, .. }) if !self.is(Fault::FindsNoLeases) => {
                Some(Record::in_progress(expires - Instant::now()))
            }
            _ => None,
        })
    }

    async fn count(&self, scope: &Scope) -> Result<u64, StoreError> {
        let counts = |(key, row): &(&Key, &Row)| {
            (key.0 == scope.as_str() || self.is(Fault::CountsAllScopes)) && matches!(row, Row::Done { .. })
        };
        Ok(self.state().rows.iter().filter(counts).count() as u64)
    }

    async fn forget(&self, scope: &Scope, id: &MessageId) -> Result<bool, StoreError> {
        let key = self.key(scope, id);
        let mut state = self.state();
        let known = match state.rows.get(&key) {
            Some(Row::Done { .. }) => !self.is(Fault::ForgetsNothing),
            Some(Row::Held { .. }) => self.is(Fault::ForgetsWhatIsInProgress),
            None => false,
        };
        if known {
            state.rows.remove(&key);
        }
        Ok(known)
    }
}
