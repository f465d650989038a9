//! Identities in this process's memory, under leases.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::{self, BoxFuture};
use tokio::time::Instant;

use super::lease;

use crate::{
    idempotency::{
        ClaimRequest, Claims, IdempotencyStore, Lease, Record as Known, Scope, StoreError, StoreErrorKind,
    },
    message::{Fingerprint, MessageId},
};

/// Remembers identities in memory: for tests, and for effects that end with the process.
///
/// The session is a [`Lease`]. Whatever is remembered is lost when the process ends, and is not shared with other processes.
/// Bounded: when `capacity` identities are remembered, further claims are refused with [`StoreErrorKind::Full`] until
/// some are purged, because forgetting one early could double an effect.
///
/// Clones share their content.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    capacity: usize,
    lease: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    records: HashMap<(Scope, MessageId), Record>,
    last_token: u64,
}

enum Record {
    InProgress { token: u64, expires: Instant },
    Completed { fingerprint: Fingerprint, at: Instant, processed_at: SystemTime },
}

impl MemoryStore {
    /// A store for at most `capacity` identities, those in progress included.
    pub fn new(capacity: usize) -> Self {
        Self::with_lease(capacity, lease::DEFAULT_LEASE)
    }

    /// Like [`new`](Self::new), with leases that run out after `lease`. They are renewed while the handler runs.
    pub fn with_lease(capacity: usize, lease: Duration) -> Self {
        Self { shared: Arc::new(Shared { capacity, lease, state: Mutex::default() }) }
    }

    /// How many identities are remembered.
    pub fn len(&self) -> usize {
        self.shared.state().records.len()
    }

    /// Whether no identity is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code path panics between two steps that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let now = Instant::now();
        match self.state().records.get_mut(&identity(lease)) {
            // A lease that ran out is still ours as long as nobody else took it.
            Some(Record::InProgress { token, expires }) if *token == lease.token() => {
                *expires = now + self.lease;
                Ok(())
            }
            _ => Err(StoreErrorKind::LeaseLost.into()),
        }
    }
}

fn identity(lease: &Lease) -> (Scope, MessageId) {
    (lease.scope().clone(), lease.message_id().clone())
}

impl State {
    fn claim(
        &mut self,
        request: &ClaimRequest,
        shared: &Shared,
        now: Instant,
    ) -> Result<Claims<Lease>, StoreError> {
        let identity = (request.scope.clone(), request.message_id.clone());
        match self.records.get(&identity) {
            Some(Record::Completed { fingerprint, processed_at, .. }) => {
                let (fingerprint, processed_at) = (*fingerprint, *processed_at);
                return Ok(Claims::taken(Known::Completed { fingerprint, processed_at }));
            }
            Some(Record::InProgress { expires, .. }) if *expires > now => {
                return Ok(Claims::taken(Known::InProgress { remaining: *expires - now }));
            }
            Some(Record::InProgress { .. }) => {}
            None if self.records.len() >= shared.capacity => return Err(StoreErrorKind::Full.into()),
            None => {}
        }
        self.last_token += 1;
        let token = self.last_token;
        self.records.insert(identity, Record::InProgress { token, expires: now + shared.lease });
        Ok(Claims::leased(Lease::new(request, token)))
    }
}

impl IdempotencyStore for MemoryStore {
    type Session = Lease;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Lease>, StoreError> {
        let request = lease::single(requests)?;
        self.shared.state().claim(request, &self.shared, Instant::now())
    }

    async fn complete(&self, session: Lease) -> Result<(), StoreError> {
        match self.shared.state().records.get_mut(&identity(&session)) {
            Some(record @ Record::InProgress { .. }) if record.is_held_by(&session) => {
                *record = Record::Completed {
                    fingerprint: *session.fingerprint(),
                    at: Instant::now(),
                    processed_at: SystemTime::now(),
                };
                Ok(())
            }
            _ => Err(StoreErrorKind::LeaseLost.into()),
        }
    }

    async fn release(&self, session: Lease) -> Result<(), StoreError> {
        let mut state = self.shared.state();
        let identity = identity(&session);
        if state.records.get(&identity).is_some_and(|record| record.is_held_by(&session)) {
            state.records.remove(&identity);
            Ok(())
        } else {
            Err(StoreErrorKind::LeaseLost.into())
        }
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        let now = Instant::now();
        let mut purged = 0;
        self.shared.state().records.retain(|_, record| {
            let expired = matches!(record, Record::Completed { at, .. } if now - *at > retention);
            if expired && purged < u64::from(limit) {
                purged += 1;
                return false;
            }
            true
        });
        Ok(purged)
    }

    fn keep_alive(&self, session: &Lease) -> Option<BoxFuture<'static, StoreError>> {
        let (shared, lease) = (Arc::clone(&self.shared), session.clone());
        Some(lease::keep_alive(self.shared.lease, move || future::ready(shared.renew(&lease))))
    }
}

impl Record {
    fn is_held_by(&self, lease: &Lease) -> bool {
        matches!(self, Self::InProgress { token, .. } if *token == lease.token())
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("len", &self.len())
            .field("capacity", &self.shared.capacity)
            .field("lease", &self.shared.lease)
            .finish()
    }
}
