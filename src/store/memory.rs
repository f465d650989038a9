//! Identities in this process's memory, under leases.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures_util::future::{self, BoxFuture};

use super::{
    clock::{Clock, SteadyClock},
    lease, log_forgotten,
};
use crate::{
    idempotency::{
        ClaimRequest, Claims, IdempotencyStore, Inspect, Lease, Record as Known, Scope, StoreError,
        StoreErrorKind,
    },
    message::{Fingerprint, MessageId},
};

/// Leases beyond a year are cut, so that no sum of times overflows.
const LONGEST_LEASE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Remembers identities in memory: for tests, and for effects that end with the process.
///
/// The session is a [`Lease`]. Whatever is remembered is lost when the process ends, and is not
/// shared with other processes. Bounded: when `capacity` identities are remembered, further claims
/// are refused with [`StoreErrorKind::Full`] until some are purged, because forgetting one early
/// could double an effect. Only a lease that has run out gives its room up.
///
/// Clones share their content.
#[derive(Clone)]
pub struct MemoryStore {
    capacity: usize,
    lease: Duration,
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

type Identity = (Scope, MessageId);

/// A time, and a number that tells two identities with the same time apart.
type Moment = (SystemTime, u64);

#[derive(Default)]
struct State {
    records: HashMap<Identity, Record>,
    /// Leases in the order in which they run out, so that an abandoned one is found without a scan.
    leased: BTreeMap<Moment, Identity>,
    /// Completed identities in the order of their completion, so that a purge looks at no more than
    /// it forgets.
    completed: BTreeMap<Moment, Identity>,
    /// One counter for all identities: tokens grow over releases and purges, too.
    last_token: u64,
}

#[derive(Clone, Copy)]
enum Record {
    InProgress { token: u64, expires: SystemTime },
    Completed { token: u64, fingerprint: Fingerprint, at: SystemTime },
}

impl MemoryStore {
    /// A store for at most `capacity` identities, those in progress included.
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            lease: lease::DEFAULT_LEASE,
            clock: Arc::new(SteadyClock::new()),
            state: Arc::default(),
        }
    }

    /// Sets how long a lease runs unless it is renewed; it is renewed while the handler runs. At
    /// most a year. Holds for claims through this handle and its later clones.
    ///
    /// Default: 30 seconds.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease.min(LONGEST_LEASE);
        self
    }

    /// Sets the clock that measures leases and the retention. Set it before the store is cloned:
    /// earlier clones keep theirs.
    ///
    /// By default the system's time when the store was made, and the monotonic time since: when
    /// somebody sets the system's clock, no lease ends and nothing is purged because of it.
    /// [`keep_alive`](IdempotencyStore::keep_alive) waits in tokio's time with any clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// How many identities are remembered.
    pub fn len(&self) -> usize {
        self.state().records.len()
    }

    /// Whether no identity is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code path panics between two steps that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acquire(&self, request: &ClaimRequest) -> Result<Claims<Lease>, StoreError> {
        let identity = (request.scope.clone(), request.message_id.clone());
        let now = self.clock.now();
        let mut state = self.state();
        match state.records.get(&identity).map(|record| record.known(now)) {
            Some(Known::InProgress { remaining: Duration::ZERO }) => state.forget(&identity),
            Some(known) => return Ok(Claims::taken(known)),
            None if state.records.len() < self.capacity => {}
            None => state.make_room(now)?,
        }
        state.last_token += 1;
        let token = state.last_token;
        state.remember(identity, Record::InProgress { token, expires: now + self.lease });
        Ok(Claims::leased(Lease::new(request, token)))
    }

    fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let expires = self.clock.now() + self.lease;
        let mut state = self.state();
        // A lease that ran out is still held as long as nobody else took it.
        let (identity, token) = state.held(lease)?;
        state.forget(&identity);
        state.remember(identity, Record::InProgress { token, expires });
        Ok(())
    }
}

impl State {
    /// The identity of a lease that is still held.
    fn held(&self, lease: &Lease) -> Result<(Identity, u64), StoreError> {
        let identity = (lease.scope().clone(), lease.message_id().clone());
        match self.records.get(&identity) {
            Some(Record::InProgress { token, .. }) if *token == lease.token() => Ok((identity, *token)),
            _ => Err(StoreErrorKind::LeaseLost.into()),
        }
    }

    fn remember(&mut self, identity: Identity, record: Record) {
        self.order(record).insert(record.moment(), identity.clone());
        self.records.insert(identity, record);
    }

    fn forget(&mut self, identity: &Identity) {
        if let Some(record) = self.records.remove(identity) {
            self.order(record).remove(&record.moment());
        }
    }

    fn order(&mut self, record: Record) -> &mut BTreeMap<Moment, Identity> {
        match record {
            Record::InProgress { .. } => &mut self.leased,
            Record::Completed { .. } => &mut self.completed,
        }
    }

    /// Forgets a lease that has run out; its consumer, if it is still there, finds that it lost it.
    fn make_room(&mut self, now: SystemTime) -> Result<(), StoreError> {
        match self.leased.first_key_value() {
            Some(((expires, _), identity)) if *expires <= now => {
                let identity = identity.clone();
                self.forget(&identity);
                Ok(())
            }
            _ => Err(StoreErrorKind::Full.into()),
        }
    }
}

impl Record {
    fn moment(self) -> Moment {
        match self {
            Self::InProgress { token, expires } => (expires, token),
            Self::Completed { token, at, .. } => (at, token),
        }
    }

    fn known(self, now: SystemTime) -> Known {
        match self {
            Self::InProgress { expires, .. } => {
                Known::InProgress { remaining: expires.duration_since(now).unwrap_or_default() }
            }
            Self::Completed { fingerprint, at, .. } => Known::Completed { fingerprint, processed_at: at },
        }
    }
}

impl IdempotencyStore for MemoryStore {
    type Session = Lease;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Lease>, StoreError> {
        self.acquire(lease::single(requests)?)
    }

    async fn complete(&self, session: Lease) -> Result<(), StoreError> {
        let at = self.clock.now();
        let mut state = self.state();
        let (identity, token) = state.held(&session)?;
        state.forget(&identity);
        state.remember(identity, Record::Completed { token, fingerprint: *session.fingerprint(), at });
        Ok(())
    }

    async fn release(&self, session: Lease) -> Result<(), StoreError> {
        let mut state = self.state();
        let (identity, _) = state.held(&session)?;
        state.forget(&identity);
        Ok(())
    }

    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, StoreError> {
        let now = self.clock.now();
        let mut state = self.state();
        let mut purged = 0;
        while purged < u64::from(limit) {
            match state.completed.first_key_value() {
                // A clock that was set back gives no age: nothing is forgotten.
                Some(((at, _), identity)) if now.duration_since(*at).is_ok_and(|age| age > retention) => {
                    let identity = identity.clone();
                    state.forget(&identity);
                    purged += 1;
                }
                _ => break,
            }
        }
        Ok(purged)
    }

    fn keep_alive(&self, session: &Lease) -> Option<BoxFuture<'static, StoreError>> {
        let (store, lease) = (self.clone(), session.clone());
        Some(lease::keep_alive(self.lease, move || future::ready(store.renew(&lease))))
    }
}

impl Inspect for MemoryStore {
    async fn find(&self, scope: &Scope, message_id: &MessageId) -> Result<Option<Known>, StoreError> {
        let now = self.clock.now();
        let record = self.state().records.get(&(scope.clone(), message_id.clone())).copied();
        // A claim on a lease that has run out would be acquired.
        let ran_out = |known: &Known| matches!(known, Known::InProgress { remaining: Duration::ZERO });
        Ok(record.map(|record| record.known(now)).filter(|known| !ran_out(known)))
    }

    async fn count(&self, scope: &Scope) -> Result<u64, StoreError> {
        let state = self.state();
        Ok(state.completed.values().map(|(completed, _)| u64::from(completed == scope)).sum())
    }

    async fn forget(&self, scope: &Scope, message_id: &MessageId) -> Result<bool, StoreError> {
        let identity = (scope.clone(), message_id.clone());
        let mut state = self.state();
        let completed = matches!(state.records.get(&identity), Some(Record::Completed { .. }));
        if completed {
            state.forget(&identity);
            log_forgotten(scope, message_id);
        }
        Ok(completed)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("len", &self.len())
            .field("capacity", &self.capacity)
            .field("lease", &self.lease)
            .finish_non_exhaustive()
    }
}
