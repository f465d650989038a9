//! What a store can do, as far as the contract leaves it open.

use std::time::Duration;

/// What a store can do, as far as the contract leaves it open: says which cases apply, and what
/// they expect.
///
/// Start from [`transactional`](Self::transactional) or [`leased`](Self::leased), whichever the
/// sessions are, and correct what differs:
///
/// | | `transactional()` | `leased(..)` |
/// |---|---|---|
/// | [`batches`](Self::batches): several requests in one session | yes | no |
/// | [`waits`](Self::waits): a rival's claim waits | yes | no: it is told `InProgress` |
/// | [`exclusive`](Self::exclusive): one open session at a time | no | no |
/// | [`purges`](Self::purges): `purge` forgets | yes | yes |
/// | [`bounded`](Self::bounded): refuses when it is full | no | no |
#[derive(Debug, Clone)]
#[must_use]
pub struct Capabilities {
    lease: Option<Duration>,
    has: Vec<Need>,
    limit: Option<Duration>,
}

/// What a case needs of a store in order to apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    Transactions,
    Leases,
    Batches,
    Waits,
    /// Two sessions open at the same time.
    Concurrency,
    Purges,
    Bound,
    /// A table of messages tells which transactions have ended.
    Ended,
}

impl Need {
    pub(super) fn missing(self) -> &'static str {
        match self {
            Self::Transactions => "the sessions are leases",
            Self::Leases => "the sessions are transactions",
            Self::Batches => "one request in each session",
            Self::Waits => "rivals do not wait",
            Self::Concurrency => "one open session or transaction at a time",
            Self::Purges => "the store is not purged",
            Self::Bound => "the store is not bounded",
            Self::Ended => "the table does not tell which transactions have ended",
        }
    }
}

impl Capabilities {
    /// The session is a transaction: it ends with its connection, and what is written through it is
    /// committed with the identity.
    pub fn transactional() -> Self {
        let has = vec![Need::Transactions, Need::Batches, Need::Waits, Need::Concurrency, Need::Purges];
        Self { lease: None, has, limit: None }
    }

    /// The session is a lease that runs out after `lease` unless it is renewed.
    ///
    /// Set the store up with a short one for the suite, which waits about fifteen times until one
    /// has run out. But a lease that runs out while the machine is busy with something else fails a
    /// case, so not less than half a second.
    pub fn leased(lease: Duration) -> Self {
        Self { lease: Some(lease), has: vec![Need::Leases, Need::Concurrency, Need::Purges], limit: None }
    }

    /// States whether one session can hold the claims of several requests.
    pub fn batches(self, yes: bool) -> Self {
        self.with(Need::Batches, yes)
    }

    /// States whether a claim on an identity that is in progress waits for the first session to
    /// end, or answers [`Busy`](crate::idempotency::StoreErrorKind::Busy) after a while. If not, it
    /// is told at once that it is in progress.
    pub fn waits(self, yes: bool) -> Self {
        self.with(Need::Waits, yes)
    }

    /// States that the store has one open session at a time, as SQLite has one writer: any other
    /// claim, and a purge, waits or ends [`Busy`](crate::idempotency::StoreErrorKind::Busy).
    pub fn exclusive(self) -> Self {
        self.with(Need::Concurrency, false)
    }

    /// States whether `purge` forgets. Say no for a store that expires identities by itself, and to
    /// spare what else is in the table.
    pub fn purges(self, yes: bool) -> Self {
        self.with(Need::Purges, yes)
    }

    /// States that the store refuses with [`Full`](crate::idempotency::StoreErrorKind::Full) when
    /// it is full, rather than forget.
    ///
    /// The last case then fills it, with at most 20,000 identities, and purges it: give the suite a
    /// store with room for 1,000 to 10,000.
    pub fn bounded(self) -> Self {
        self.with(Need::Bound, true)
    }

    /// Sets the longest time for one case. Default: 30 seconds, and ten leases.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    fn with(mut self, need: Need, yes: bool) -> Self {
        self.has.retain(|has| *has != need);
        if yes {
            self.has.push(need);
        }
        self
    }

    pub(super) fn has(&self, need: Need) -> bool {
        self.has.contains(&need)
    }

    pub(super) fn all(&self) -> Vec<Need> {
        self.has.clone()
    }

    /// How long a lease runs; nothing for transactions.
    pub(super) fn lease(&self) -> Duration {
        self.lease.unwrap_or_default()
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit.unwrap_or_else(|| Duration::from_secs(30).saturating_add(self.lease().saturating_mul(10)))
    }

    /// How long to ask again for what must come about by itself: less than the limit, so that the
    /// failure says what came instead.
    pub(super) fn patience(&self) -> Duration {
        self.limit() / 3
    }
}
