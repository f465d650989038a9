//! A small store with transactions, which fails where it is told to.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use lapin_idempotent::{
    IdempotencyStore,
    idempotency::{Claim, ClaimRequest, Claims, StoreError, StoreErrorKind},
    message::Fingerprint,
};

/// How a commit ends.
#[derive(Debug, Clone, Copy)]
pub enum Commit {
    Succeeds,
    Fails {
        kind: StoreErrorKind,
        /// Whether it was made all the same.
        made: bool,
    },
}

/// What becomes of the next calls; those behind them succeed.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    claims: VecDeque<Option<StoreErrorKind>>,
    commits: VecDeque<Commit>,
    /// Whether every release fails; what was written is rolled back all the same, later.
    releases: bool,
}

impl Faults {
    pub fn new(claims: Vec<Option<StoreErrorKind>>, commits: Vec<Commit>, releases: bool) -> Self {
        Self { claims: claims.into(), commits: commits.into(), releases }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Transactions(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    done: BTreeMap<String, Fingerprint>,
    held: BTreeSet<String>,
    effects: Vec<(String, String)>,
    commits: usize,
    faults: Faults,
}

/// What is written in it is in the store only after its commit: to drop it is to roll it back.
#[derive(Debug)]
pub struct Transaction {
    acquired: Vec<ClaimRequest>,
    pub effects: Vec<(String, String)>,
}

impl Transactions {
    /// With what was done before, by ID and body, and the IDs that a rival holds.
    pub fn new(done: &BTreeMap<&str, &str>, held: &BTreeSet<&str>) -> Self {
        let print = |(id, body): (&&str, &&str)| ((*id).to_owned(), Fingerprint::of(body.as_bytes()));
        let state = State {
            done: done.iter().map(print).collect(),
            held: held.iter().map(ToString::to_string).collect(),
            ..State::default()
        };
        Self(Arc::new(Mutex::new(state)))
    }

    pub fn fail(&self, faults: Faults) {
        self.state().faults = faults;
    }

    pub fn done(&self) -> BTreeSet<String> {
        self.state().done.keys().cloned().collect()
    }

    pub fn effects(&self) -> Vec<(String, String)> {
        self.state().effects.clone()
    }

    pub fn commits(&self) -> usize {
        self.state().commits
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl IdempotencyStore for Transactions {
    type Session = Transaction;

    const BATCHES: bool = true;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Transaction>, StoreError> {
        let mut state = self.state();
        if let Some(kind) = state.faults.claims.pop_front().flatten() {
            return Err(kind.into());
        }
        if requests.iter().any(|request| state.held.contains(request.message_id.as_str())) {
            return Err(StoreErrorKind::Busy.into());
        }
        let claim = |request: &ClaimRequest| match state.done.get(request.message_id.as_str()) {
            Some(fingerprint) => Claim::completed(*fingerprint, SystemTime::UNIX_EPOCH),
            None => Claim::Acquired,
        };
        let claims: Vec<_> = requests.iter().map(claim).collect();
        let new = requests.iter().zip(&claims).filter(|(_, claim)| **claim == Claim::Acquired);
        let acquired: Vec<_> = new.map(|(request, _)| request.clone()).collect();
        let session = (!acquired.is_empty()).then(|| Transaction { acquired, effects: Vec::new() });
        Ok(Claims::new(session, claims))
    }

    async fn complete(&self, transaction: Transaction) -> Result<(), StoreError> {
        let mut state = self.state();
        let commit = state.faults.commits.pop_front().unwrap_or(Commit::Succeeds);
        if matches!(commit, Commit::Succeeds | Commit::Fails { made: true, .. }) {
            for request in transaction.acquired {
                let known = state.done.insert(request.message_id.as_str().to_owned(), request.fingerprint);
                assert!(known.is_none(), "the unique key is violated");
            }
            state.effects.extend(transaction.effects);
            state.commits += 1;
        }
        match commit {
            Commit::Succeeds => Ok(()),
            Commit::Fails { kind, .. } => Err(kind.into()),
        }
    }

    async fn release(&self, _: Transaction) -> Result<(), StoreError> {
        if self.state().faults.releases { Err(StoreErrorKind::Unavailable.into()) } else { Ok(()) }
    }

    async fn purge(&self, _: Duration, _: u32) -> Result<u64, StoreError> {
        Ok(0)
    }
}
