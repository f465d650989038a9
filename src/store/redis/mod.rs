//! Identities in Redis, under leases.

mod address;
mod check;
mod connection;
mod deadline;
mod error;
mod inspect;
mod options;
mod script;
mod sentinel;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use redis::Value;
use uuid::Uuid;

pub use connection::RedisConnection;
pub use options::InvalidRedisSetting;

use self::{
    address::refused,
    connection::{Again, SharedConnection},
    error::Failure,
    options::Options,
    script::{Answer, CLAIM, COMPLETE, Call, FIND, RELEASE, RENEW, completion},
};
use super::lease;
use crate::{
    idempotency::{ClaimRequest, Claims, IdempotencyStore, Lease, Scope, StoreError, StoreErrorKind},
    message::MessageId,
};

/// Remembers identities in Redis or Valkey: one server, one that Sentinel looks after, or a
/// cluster.
///
/// # What is guaranteed, and where it stops
///
/// The session is a [`Lease`]. The effect is **not** committed together with the identity: a
/// process that dies between the two leaves an effect whose message is handled again, once the
/// lease has run out. An effect in a database is better guarded by a store of that database; one
/// elsewhere should take the message ID as its idempotency key, or [`Lease::token`] as its fence.
///
/// Claiming, completing, renewing and releasing are scripts, so that nothing comes between: of
/// several claims on an identity one is acquired, and a stale lease changes nothing. What is asked
/// together is one script for up to 64 identities, in a cluster one for each: a proxy in front of
/// several servers that goes by the first key cannot be used. Times are the server's. The token of
/// a later lease is greater, also after the identity was forgotten, unless the server's clock was
/// set back meanwhile.
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
/// Needs Redis 5 or later, or Valkey, and the rights to `EVALSHA`, `EVAL`, `GET`, `SET`, `PEXPIRE`,
/// `TIME` and `INFO`; for keys of before 0.1.0, which were hashes, `HMGET`; to count identities
/// `SCAN`, `GETRANGE` and `HEXISTS`. With the feature `tls`, `rediss://` trusts the system's
/// certificates; a program in which rustls has more than one crypto provider must have installed
/// one.
///
/// # Settings
///
/// [`lease`](Self::lease), [`retention`](Self::retention), [`timeout`](Self::timeout) and
/// [`prefix`](Self::prefix) are set in any order, and judged together: by
/// [`check`](IdempotencyStore::check), which a consumer calls before it takes messages, and by
/// every other call. While one of them cannot be, nothing is sent, and the error is of kind
/// [`StoreErrorKind::Configuration`], with an [`InvalidRedisSetting`] that names it for a source.
///
/// Clones share their connection. A store belongs to the Tokio runtime that first used it.
///
/// ```no_run
/// # async fn example() -> Result<(), lapin_idempotent::BoxError> {
/// use std::time::Duration;
/// use lapin_idempotent::RedisStore;
///
/// let store = RedisStore::connect("redis://localhost").await?.retention(Duration::from_secs(30 * 24 * 3600));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    link: Arc<SharedConnection>,
    options: Options,
    /// What is wrong with them.
    invalid: Option<InvalidRedisSetting>,
}

impl RedisStore {
    /// Connects to one server, `redis://:password@host:6379/0`, and checks it with the default
    /// settings. A server that needs others to pass, such as
    /// [`allow_eviction`](Self::allow_eviction), is connected to with
    /// [`connect_lazy`](Self::connect_lazy), and checked by the consumer.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] for a URL that is refused, a login that fails, and what
    /// [`check`](IdempotencyStore::check) objects to; [`StoreErrorKind::Unavailable`] if the server
    /// cannot be reached. No error holds the password.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        let store = Self::connect_lazy(url)?;
        store.check().await?;
        Ok(store)
    }

    /// Connects to a cluster by the URLs of some of its nodes, and checks them all. Users and
    /// passwords must be the same.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    pub async fn connect_cluster(
        urls: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, StoreError> {
        let store = Self::connect_cluster_lazy(urls)?;
        store.check().await?;
        Ok(store)
    }

    /// Like [`connect`](Self::connect), but connects with the first call, and checks nothing: for a
    /// service that may start before its server. A consumer checks it before it takes messages, and
    /// waits for it while it cannot be reached.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] for a URL that is refused.
    pub fn connect_lazy(url: &str) -> Result<Self, StoreError> {
        Ok(Self::over(SharedConnection::to_node(url)?))
    }

    /// Like [`connect_cluster`](Self::connect_cluster), but connects with the first call, and
    /// checks nothing.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] for URLs that are refused.
    pub fn connect_cluster_lazy(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, StoreError> {
        Ok(Self::over(SharedConnection::to_cluster(urls)?))
    }

    /// A store over your own connection; its own limits hold, too. Nothing is checked.
    pub fn new(connection: impl Into<RedisConnection>) -> Self {
        Self::over(SharedConnection::over(connection.into()))
    }

    fn over(link: SharedConnection) -> Self {
        Self { link: Arc::new(link), options: Options::default(), invalid: None }
    }

    /// How long a lease runs unless it is renewed; it is, while the handler runs: a millisecond at
    /// least, and no longer than the retention. Default: 30 seconds.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        self.with(|options| options.lease = lease)
    }

    /// How long Redis remembers what was completed: choose it longer than any copy of a message can
    /// still arrive; a hundred years at most. Default: seven days.
    ///
    /// It holds for what is completed from now on.
    #[must_use]
    pub fn retention(self, retention: Duration) -> Self {
        self.with(|options| options.retention = retention)
    }

    /// How long one call may take: a millisecond at least; more than a day counts as a day.
    /// Default: five seconds.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|options| options.timeout = timeout)
    }

    /// What the keys begin with: 1 to 64 characters of visible ASCII, no braces. Default:
    /// `lapin-idempotent`.
    #[must_use]
    pub fn prefix(self, prefix: &str) -> Self {
        self.with(|options| options.prefix = prefix.into())
    }

    /// Accepts a server that may evict identities, or does not tell. **Each that it evicts can take
    /// effect again.** Default: it is refused.
    #[must_use]
    pub fn allow_eviction(self) -> Self {
        self.with(|options| options.eviction_allowed = true)
    }

    fn with(mut self, set: impl FnOnce(&mut Options)) -> Self {
        set(&mut self.options);
        self.invalid = self.options.check().err();
        self
    }

    /// The way to the servers, for a store whose settings can be.
    fn link(&self) -> Result<&SharedConnection, StoreError> {
        match self.invalid {
            None => Ok(&self.link),
            Some(invalid) => Err(refused(invalid)),
        }
    }

    /// The answers to so many calls of a store whose settings cannot be.
    fn refused<T>(&self, calls: usize) -> Vec<Result<T, StoreError>> {
        let refused = || self.link().and(Err(Failure::unexpected().into()));
        (0..calls).map(|_| refused()).collect()
    }

    /// Up to the message ID. The scope's length tells where it ends, whatever is in it. A cluster
    /// takes what stands between the first braces for the part that decides on the node; there is
    /// nothing, so it is all of the key, whatever braces follow.
    fn start_of_key(&self, scope: &Scope) -> String {
        let scope = scope.as_str();
        format!("{}{{}}:{}:{scope}:", self.options.prefix, scope.len())
    }

    fn key(&self, scope: &Scope, message_id: &MessageId) -> String {
        self.start_of_key(scope) + message_id.as_str()
    }

    fn key_of(&self, lease: &Lease) -> String {
        self.key(lease.scope(), lease.message_id())
    }

    fn claiming(&self, requests: &[ClaimRequest]) -> Call {
        let mut call = CLAIM.call().millis(self.options.lease).millis(self.options.retention);
        for request in requests {
            let asks = Uuid::new_v4().as_bytes().to_vec();
            call.add(self.key(&request.scope, &request.message_id), Some(asks));
        }
        call
    }

    fn completing(&self, leases: &[Lease]) -> Call {
        let mut call = COMPLETE.call().millis(self.options.retention);
        for lease in leases {
            call.add(self.key_of(lease), Some(completion(lease.token(), lease.fingerprint())));
        }
        call
    }

    /// The answer to a script on one identity.
    async fn ask(&self, call: Call) -> Result<Answer, StoreError> {
        Ok(Answer::parse(&one(self.run(&call, Again::Once).await?)?)?)
    }

    async fn run(&self, call: &Call, again: Again) -> Result<Vec<Result<Value, Failure>>, StoreError> {
        Ok(self.link()?.run(call, self.options.limit(), again).await)
    }

    async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let call = RENEW.on(self.key_of(lease)).millis(self.options.retention);
        done(&self.ask(call.token(lease.token()).millis(self.options.lease)).await?)
    }
}

fn one(mut answers: Vec<Result<Value, Failure>>) -> Result<Value, Failure> {
    answers.pop().ok_or_else(Failure::unexpected)?
}

fn done(answer: &Answer) -> Result<(), StoreError> {
    match answer {
        Answer::Done => Ok(()),
        Answer::Not => Err(StoreErrorKind::LeaseLost.into()),
        _ => Err(Failure::unexpected().into()),
    }
}

fn claimed(request: &ClaimRequest, answer: Result<Value, Failure>) -> Result<Claims<Lease>, StoreError> {
    match Answer::parse(&answer?)? {
        Answer::Acquired { token } => Ok(Claims::leased(Lease::new(request, token))),
        Answer::Known(record) => Ok(Claims::taken(record)),
        _ => Err(Failure::unexpected().into()),
    }
}

fn completed(answer: Result<Value, Failure>) -> Result<(), StoreError> {
    match answer {
        Ok(value) => done(&Answer::parse(&value)?),
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
        claimed(request, one(self.run(&self.claiming(requests), Again::Once).await?))
    }

    async fn claim_each(&self, requests: &[ClaimRequest]) -> Vec<Result<Claims<Lease>, StoreError>> {
        let Ok(answers) = self.run(&self.claiming(requests), Again::Once).await else {
            return self.refused(requests.len());
        };
        requests.iter().zip(answers).map(|(request, answer)| claimed(request, answer)).collect()
    }

    /// Completed twice under the same lease is completed once: the second answers `Ok`, too.
    async fn complete(&self, session: Lease) -> Result<(), StoreError> {
        completed(one(self.run(&self.completing(&[session]), Again::Persistently).await?))
    }

    async fn complete_each(&self, sessions: Vec<Lease>) -> Vec<Result<(), StoreError>> {
        let Ok(answers) = self.run(&self.completing(&sessions), Again::Persistently).await else {
            return self.refused(sessions.len());
        };
        answers.into_iter().map(completed).collect()
    }

    async fn release(&self, session: Lease) -> Result<(), StoreError> {
        let call = RELEASE.on(self.key_of(&session)).millis(self.options.retention);
        done(&self.ask(call.token(session.token())).await?)
    }

    /// Does nothing and returns 0: Redis forgets by itself, after the retention that the identity
    /// was completed with.
    ///
    /// # Errors
    ///
    /// [`StoreErrorKind::Configuration`] if `retention` is longer than the store's own: identities
    /// would be forgotten too early (I7).
    async fn purge(&self, retention: Duration, _: u32) -> Result<u64, StoreError> {
        self.link()?;
        if retention > self.options.retention {
            return Err(refused(format!(
                "Redis forgets after {:?}, which is sooner than {retention:?}: set the retention on the store",
                self.options.retention
            )));
        }
        Ok(0)
    }

    fn remembers(&self) -> Option<Duration> {
        Some(self.options.retention)
    }

    /// Not in a cluster: there each call is sent to its own node, and a silent node must hold up
    /// nobody else.
    fn pipelines(&self) -> bool {
        !self.link.is_cluster()
    }

    fn keep_alive(&self, session: &Lease) -> Option<BoxFuture<'static, StoreError>> {
        let (store, session) = (self.clone(), Arc::new(session.clone()));
        Some(lease::keep_alive(self.options.lease, move || {
            let (store, session) = (store.clone(), Arc::clone(&session));
            async move { store.renew(&session).await }
        }))
    }

    /// Asks every node for its version and its `maxmemory-policy`, and tries whether scripts may
    /// run. Replicas are asked, too; one that cannot be reached is passed over.
    async fn check(&self) -> Result<(), StoreError> {
        check::check(self.link()?, self.options.limit(), self.options.eviction_allowed).await?;
        // Not a key of any identity: those have a colon after the braces.
        let key = format!("{}{{}}", self.options.prefix);
        self.ask(FIND.on(key.clone())).await?;
        // The right without which nothing that is claimed could be completed.
        let expire = redis::cmd("PEXPIRE").arg(key).arg(1).take();
        one(self.link()?.commands(&[expire], self.options.limit()).await)?;
        Ok(())
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("servers", &self.link.shown())
            .field("prefix", &self.options.prefix)
            .field("lease", &self.options.lease)
            .field("retention", &self.options.retention)
            .field("timeout", &self.options.timeout)
            .field("eviction_allowed", &self.options.eviction_allowed)
            .finish_non_exhaustive()
    }
}
