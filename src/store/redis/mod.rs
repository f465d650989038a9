//! Identities in Redis, under leases.

mod address;
mod check;
mod connection;
mod error;
mod inspect;
mod script;
mod sentinel;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use redis::Value;
use uuid::Uuid;

pub use connection::RedisConnection;

use self::{
    address::refused,
    connection::{Again, SharedConnection},
    error::Failure,
    script::{Answer, CLAIM, COMPLETE, Call, FIND, RELEASE, RENEW},
};
use super::lease;
use crate::{
    idempotency::{ClaimRequest, Claims, IdempotencyStore, Lease, Scope, StoreError, StoreErrorKind},
    message::MessageId,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const DEFAULT_RETENTION: Duration = DAY.saturating_mul(7);
/// Milliseconds since 1970 that are added to it are still exact in a script, whose numbers are
/// doubles.
const LONGEST: Duration = DAY.saturating_mul(36_500);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_PREFIX: &str = "lapin-idempotent";

/// Remembers identities in Redis or Valkey: one server, one that Sentinel looks after, or a
/// cluster.
///
/// # What is guaranteed, and where it stops
///
/// The session is a [`Lease`]. The effect is **not** committed together with the identity: a
/// process that dies between the two leaves an effect whose message is handled again, once the
/// lease has run out. An effect in a database is better guarded by a store of that database; an
/// effect elsewhere should take [`Lease::token`] or the message ID as its own idempotency key.
///
/// Claiming, completing, renewing and releasing are each one script on one key, so that nothing
/// comes between: of several claims on an identity one is acquired, and a stale lease changes
/// nothing. Times are the server's. The token of a later lease is greater, also after the identity
/// was forgotten, unless the server's clock was set back meanwhile.
///
/// Redis forgets what was completed longer ago than the [`retention`](Self::retention), by itself;
/// there is nothing to purge.
///
/// # What Redis can lose
///
/// An identity that Redis loses is new again, and its effect is repeated:
///
/// - **A failover.** Replication is asynchronous: a replica that is promoted may lack the latest
///   claims and completions. `WAIT` makes that rarer but no promise, and is not used.
///   `min-replicas-to-write 1` bounds the loss when a primary is cut off.
/// - **A crash.** Use `appendonly yes`. With `appendfsync everysec`, the default, the last second
///   may be lost; with `always` nothing that was answered is, at the price of a disk sync per round
///   trip. With snapshots only, or with nothing, much more is.
/// - **Eviction.** A server that runs full must refuse: `maxmemory-policy noeviction`.
///   [`check`](IdempotencyStore::check) insists on it. A full server refuses claims
///   ([`StoreErrorKind::Full`]); what was claimed before is still completed.
///
/// # Calls
///
/// No call takes longer than the [`timeout`](Self::timeout), connecting included. A connection that
/// broke is opened again by the next call. What was sent and not answered is sent again: every
/// script may run twice. Completing is tried until the time is up, as the effect is done by then;
/// if it may have been executed and no answer came, the error is
/// [`StoreErrorKind::OutcomeUnknown`].
///
/// Needs Redis 5 or later, or Valkey, and the rights to `EVALSHA`, `EVAL`, `HMGET`, `HSET`, `HDEL`,
/// `PEXPIRE`, `TIME` and `INFO`. With the feature `tls`, `rediss://` trusts the system's
/// certificates; a program in which rustls has more than one crypto provider must have installed
/// one.
///
/// Clones share their connection. A store belongs to the Tokio runtime that first used it.
///
/// ```no_run
/// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
/// use std::time::Duration;
/// use lapin_idempotent::RedisStore;
///
/// let store = RedisStore::connect("redis://localhost").await?.retention(Duration::from_secs(30 * 24 * 3600))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    link: Arc<SharedConnection>,
    prefix: Arc<str>,
    lease: Duration,
    retention: Duration,
    timeout: Duration,
    eviction_allowed: bool,
}

impl RedisStore {
    /// Connects to one server, `redis://:password@host:6379/0`, and checks it.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] for a URL that is refused, a login that fails, and what
    /// [`check`](IdempotencyStore::check) objects to; [`StoreErrorKind::Unavailable`] if the server
    /// cannot be reached. No error holds the password.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let store = Self::open(url)?;
        store.check().await?;
        Ok(store)
    }

    /// Connects to a cluster by the URLs of some of its nodes, and checks them all. Users and
    /// passwords must be the same.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    pub async fn connect_cluster<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, StoreError> {
        let store = Self::open_cluster(urls)?;
        store.check().await?;
        Ok(store)
    }

    /// Like [`connect`](Self::connect), but connects with the first call, and checks nothing.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] for a URL that is refused.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self::over(SharedConnection::to_node(url)?))
    }

    /// Like [`connect_cluster`](Self::connect_cluster), but connects with the first call, and
    /// checks nothing.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] for URLs that are refused.
    pub fn open_cluster<'a>(urls: impl IntoIterator<Item = &'a str>) -> Result<Self, StoreError> {
        Ok(Self::over(SharedConnection::to_cluster(urls)?))
    }

    /// A store over your own connection; its own limits hold, too. Nothing is checked.
    pub fn new(connection: impl Into<RedisConnection>) -> Self {
        Self::over(SharedConnection::over(connection.into()))
    }

    fn over(link: SharedConnection) -> Self {
        Self {
            link: Arc::new(link),
            prefix: DEFAULT_PREFIX.into(),
            lease: lease::DEFAULT_LEASE,
            retention: DEFAULT_RETENTION,
            timeout: DEFAULT_TIMEOUT,
            eviction_allowed: false,
        }
    }

    /// How long a lease runs unless it is renewed; it is, while the handler runs. Default: 30
    /// seconds.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] if it is shorter than a millisecond, or longer than the
    /// retention.
    pub fn lease(mut self, lease: Duration) -> Result<Self, StoreError> {
        if lease < Duration::from_millis(1) {
            return Err(refused("a lease must run for a millisecond at least"));
        }
        self.lease = lease;
        self.fits()
    }

    /// How long Redis remembers what was completed: choose it longer than any copy of a message can
    /// still arrive. Default: seven days.
    ///
    /// It holds for what is completed from now on.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] if it is shorter than the lease, or longer than a hundred
    /// years.
    pub fn retention(mut self, retention: Duration) -> Result<Self, StoreError> {
        if retention > LONGEST {
            return Err(refused("the retention must not be longer than a hundred years"));
        }
        self.retention = retention;
        self.fits()
    }

    fn fits(self) -> Result<Self, StoreError> {
        if self.retention < self.lease {
            return Err(refused("the retention must not be shorter than the lease"));
        }
        Ok(self)
    }

    /// How long one call may take. Default: five seconds.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] if it is shorter than a millisecond.
    pub fn timeout(mut self, timeout: Duration) -> Result<Self, StoreError> {
        if timeout < Duration::from_millis(1) {
            return Err(refused("the timeout must be a millisecond at least"));
        }
        self.timeout = timeout.min(DAY);
        Ok(self)
    }

    /// What the keys begin with: 1 to 64 characters of visible ASCII, no braces. Default:
    /// `lapin-idempotent`.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] if it is anything else.
    pub fn prefix(mut self, prefix: &str) -> Result<Self, StoreError> {
        let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'{' && byte != b'}';
        if !(1..=64).contains(&prefix.len()) || !prefix.bytes().all(plain) {
            return Err(refused("a prefix has 1 to 64 characters of visible ASCII, and no braces"));
        }
        self.prefix = prefix.into();
        Ok(self)
    }

    /// Accepts a server that may evict identities, or does not tell. **Each that it evicts can take
    /// effect again.**
    #[must_use]
    pub fn allow_eviction(mut self) -> Self {
        self.eviction_allowed = true;
        self
    }

    /// Up to the message ID. The scope's length tells where it ends, whatever is in it. A cluster
    /// takes what stands between the first braces for the part that decides on the node; there is
    /// nothing, so it is all of the key, whatever braces follow.
    fn start_of_key(&self, scope: &Scope) -> String {
        let scope = scope.as_str();
        format!("{}{{}}:{}:{scope}:", self.prefix, scope.len())
    }

    fn key(&self, scope: &Scope, message_id: &MessageId) -> String {
        self.start_of_key(scope) + message_id.as_str()
    }

    fn key_of(&self, lease: &Lease) -> String {
        self.key(lease.scope(), lease.message_id())
    }

    fn claiming(&self, request: &ClaimRequest) -> Call {
        let key = self.key(&request.scope, &request.message_id);
        CLAIM.on(key).millis(self.lease).millis(self.retention).bytes(Uuid::new_v4().as_bytes())
    }

    fn completing(&self, lease: &Lease) -> Call {
        COMPLETE
            .on(self.key_of(lease))
            .number(lease.token())
            .bytes(lease.fingerprint().as_bytes())
            .millis(self.retention)
    }

    async fn ask(&self, call: Call, again: Again) -> Result<Answer, Failure> {
        let mut answers = self.link.run(&[call], self.timeout, again).await;
        Answer::parse(answers.pop().ok_or_else(Failure::unexpected)??)
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let call =
            RENEW.on(self.key_of(lease)).number(lease.token()).millis(self.lease).millis(self.retention);
        done(&self.ask(call, Again::Once).await?)
    }
}

fn done(answer: &Answer) -> Result<(), StoreError> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Lost => Err(StoreErrorKind::LeaseLost.into()),
        _ => Err(Failure::unexpected().into()),
    }
}

fn claimed(request: &ClaimRequest, answer: Result<Value, Failure>) -> Result<Claims<Lease>, StoreError> {
    match Answer::parse(answer?)? {
        Answer::Acquired { token } => Ok(Claims::leased(Lease::new(request, token))),
        Answer::Known(record) => Ok(Claims::taken(record)),
        _ => Err(Failure::unexpected().into()),
    }
}

fn completed(answer: Result<Value, Failure>) -> Result<(), StoreError> {
    match answer {
        Ok(value) => done(&Answer::parse(value)?),
        Err(failure) if failure.sent => {
            Err(StoreError::new(StoreErrorKind::OutcomeUnknown, StoreError::from(failure)))
        }
        Err(failure) => Err(failure.into()),
    }
}

impl IdempotencyStore for RedisStore {
    type Session = Lease;

    async fn claim(&self, requests: &[ClaimRequest]) -> Result<Claims<Lease>, StoreError> {
        let request = lease::single(requests)?;
        let mut answers = self.link.run(&[self.claiming(request)], self.timeout, Again::Once).await;
        claimed(request, answers.pop().ok_or_else(Failure::unexpected)?)
    }

    async fn claim_each(&self, requests: &[ClaimRequest]) -> Vec<Result<Claims<Lease>, StoreError>> {
        let calls: Vec<Call> = requests.iter().map(|request| self.claiming(request)).collect();
        let answers = self.link.run(&calls, self.timeout, Again::Once).await;
        requests.iter().zip(answers).map(|(request, answer)| claimed(request, answer)).collect()
    }

    /// Completed twice under the same lease is completed once: the second answers `Ok`, too.
    async fn complete(&self, session: Lease) -> Result<(), StoreError> {
        let mut answers =
            self.link.run(&[self.completing(&session)], self.timeout, Again::Persistently).await;
        completed(answers.pop().ok_or_else(Failure::unexpected)?)
    }

    async fn complete_each(&self, sessions: Vec<Lease>) -> Vec<Result<(), StoreError>> {
        let calls: Vec<Call> = sessions.iter().map(|session| self.completing(session)).collect();
        let answers = self.link.run(&calls, self.timeout, Again::Persistently).await;
        answers.into_iter().map(completed).collect()
    }

    async fn release(&self, session: Lease) -> Result<(), StoreError> {
        let call = RELEASE.on(self.key_of(&session)).number(session.token());
        done(&self.ask(call, Again::Once).await?)
    }

    /// Does nothing and returns 0: Redis forgets by itself, after the retention that the identity
    /// was completed with.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] if `retention` is longer than the store's own: identities
    /// would be forgotten too early (I7).
    async fn purge(&self, retention: Duration, _: u32) -> Result<u64, StoreError> {
        if retention > self.retention {
            return Err(refused(format!(
                "Redis forgets after {:?}, which is sooner than {retention:?}: set the retention on the store",
                self.retention
            )));
        }
        Ok(0)
    }

    fn remembers(&self) -> Option<Duration> {
        Some(self.retention)
    }

    /// Not in a cluster: there each call is sent to its own node, and a silent node must hold up
    /// nobody else.
    fn pipelines(&self) -> bool {
        !self.link.is_cluster()
    }

    fn keep_alive(&self, session: &Lease) -> Option<BoxFuture<'static, StoreError>> {
        let (store, session) = (self.clone(), Arc::new(session.clone()));
        Some(lease::keep_alive(self.lease, move || {
            let (store, session) = (store.clone(), Arc::clone(&session));
            async move { store.renew(&session).await }
        }))
    }

    /// Asks every node for its version and its `maxmemory-policy`, and tries whether scripts may
    /// run. Replicas are asked, too; one that cannot be reached is passed over.
    async fn check(&self) -> Result<(), StoreError> {
        check::check(&self.link, self.timeout, self.eviction_allowed).await?;
        // Not a key of any identity: those have a colon after the braces.
        self.ask(FIND.on(format!("{}{{}}", self.prefix)), Again::Once).await?;
        Ok(())
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("servers", &self.link.shown())
            .field("prefix", &self.prefix)
            .field("lease", &self.lease)
            .field("retention", &self.retention)
            .field("timeout", &self.timeout)
            .field("eviction_allowed", &self.eviction_allowed)
            .finish()
    }
}
