//! A small store with transactions, right or with one fault: rivals wait on a lock for each
//! identity.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use lapin_idempotent::{
    BoxError, IdempotencyStore,
    idempotency::{Claim, ClaimRequest, Claims, StoreError},
    message::Fingerprint,
    testing::conformance::Effects,
};
use tokio::{
    sync::{Mutex as Lock, OwnedMutexGuard},
    task::yield_now,
    time::Instant,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    AnswersSorted,
    LocksInTheOrderOfTheRequest,
    LooksBeforeItLocks,
    CompletesOnlyTheFirst,
    ReleasesOnlyTheFirst,
    RefusesBigBatches,
    OpensASessionForDuplicates,
    KeepsTheLocksOfDroppedSessions,
    EffectOutsideTheTransaction,
    EffectCommittedByRelease,
    EffectForgotten,
}

#[derive(Clone)]
pub(crate) struct Transactional {
    fault: Fault,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    done: HashMap<Key, (Fingerprint, SystemTime, Instant)>,
    locks: HashMap<Key, Arc<Lock<()>>>,
    effects: HashMap<String, u64>,
}

type Key = (String, String);

pub(crate) struct Transaction {
    fault: Fault,
    locks: Vec<OwnedMutexGuard<()>>,
    acquired: Vec<ClaimRequest>,
    effects: Vec<String>,
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.fault == Fault::KeepsTheLocksOfDroppedSessions {
            mem::forget(mem::take(&mut self.locks));
        }
    }
}

fn key(request: &ClaimRequest) -> Key {
    (request.scope.as_str().to_owned(), request.message_id.as_str().to_owned())
}

impl Transactional {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { fault, state: Arc::default() }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn look(&self, requests: &[ClaimRequest]) -> Vec<Claim> {
        let state = self.state();
        let claim = |request| match state.done.get(&key(request)) {
            Some((fingerprint, processed_at, _)) => Claim::completed(*fingerprint, *processed_at),
            None => Claim::Acquired,
        };
        requests.iter().map(claim).collect()
    }

    async fn lock(&self, requests: &[ClaimRequest]) -> Vec<OwnedMutexGuard<()>> {
        let mut keys: Vec<_> = requests.iter().map(key).collect();
        if !self.is(Fault::LocksInTheOrderOfTheRequest) {
            keys.sort();
        }
        let mut locks = Vec::new();
        for key in keys {
            let lock = Arc::clone(self.state().locks.entry(key).or_default());
            locks.push(lock.lock_owned().await);
            // As between two statements.
            yield_now().await;
        }
        locks
    }
}

impl IdempotencyStore for Transactional {
    type Session = Transaction;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Transaction>, StoreError> {
        assert!(requests.len() <= 100 || !self.is(Fault::RefusesBigBatches), "too many parameters");
        let early = self.look(requests);
        let locks = self.lock(requests).await;
        let claims = if self.is(Fault::LooksBeforeItLocks) { early } else { self.look(requests) };
        let new =
            |(request, claim): (&ClaimRequest, &Claim)| (*claim == Claim::Acquired).then(|| request.clone());
        let acquired: Vec<_> = requests.iter().zip(&claims).filter_map(new).collect();
        let open = !acquired.is_empty() || self.is(Fault::OpensASessionForDuplicates);
        let session = open.then(|| Transaction { fault: self.fault, locks, acquired, effects: Vec::new() });
        let claims = if self.is(Fault::AnswersSorted) {
            let mut sorted = requests.to_vec();
            sorted.sort_by_key(key);
            self.look(&sorted)
        } else {
            claims
        };
        Ok(Claims::new(session, claims))
    }

    async fn complete(&self, mut session: Transaction) -> Result<(), StoreError> {
        {
            let mut state = self.state();
            let most = if self.is(Fault::CompletesOnlyTheFirst) { 1 } else { usize::MAX };
            for request in session.acquired.iter().take(most) {
                state.done.insert(key(request), (request.fingerprint, SystemTime::now(), Instant::now()));
            }
            if !self.is(Fault::EffectForgotten) {
                for effect in mem::take(&mut session.effects) {
                    *state.effects.entry(effect).or_default() += 1;
                }
            }
        }
        session.locks.clear();
        Ok(())
    }

    async fn release(&self, mut session: Transaction) -> Result<(), StoreError> {
        if self.is(Fault::EffectCommittedByRelease) {
            for effect in mem::take(&mut session.effects) {
                *self.state().effects.entry(effect).or_default() += 1;
            }
        }
        if self.is(Fault::ReleasesOnlyTheFirst) {
            mem::forget(session.locks.split_off(1));
        }
        session.locks.clear();
        Ok(())
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        let mut purged = 0;
        self.state().done.retain(|_, (_, _, since)| {
            let goes = since.elapsed() > retention && purged < u64::from(limit);
            purged += u64::from(goes);
            !goes
        });
        Ok(purged)
    }
}

/// The effects that were written through a store.
pub(crate) struct Written(pub(crate) Transactional);

impl Effects<Transactional> for Written {
    async fn write(&self, session: &mut Transaction, name: &str) -> Result<(), BoxError> {
        if self.0.is(Fault::EffectOutsideTheTransaction) {
            *self.0.state().effects.entry(name.to_owned()).or_default() += 1;
        } else {
            session.effects.push(name.to_owned());
        }
        Ok(())
    }

    async fn count(&self, name: &str) -> u64 {
        self.0.state().effects.get(name).copied().unwrap_or_default()
    }
}
