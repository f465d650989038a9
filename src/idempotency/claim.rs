//! What a store is asked, and what it answers.

use std::time::{Duration, SystemTime};

use super::key::{Scope, effect_key};
use crate::message::{Fingerprint, MessageId};

/// One identity to be claimed, with the fingerprint of the message that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimRequest {
    /// The consumer's identity.
    pub scope: Scope,
    /// The message's identity.
    pub message_id: MessageId,
    /// The hash of the message's body, remembered beside the ID.
    pub fingerprint: Fingerprint,
}

impl ClaimRequest {
    /// Asks for one identity.
    pub fn new(scope: Scope, message_id: MessageId, fingerprint: Fingerprint) -> Self {
        Self { scope, message_id, fingerprint }
    }
}

/// A store's answer to one [`ClaimRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "a claim that is not acted on loses a message or doubles its effect"]
pub enum Claim {
    /// The identity is new, and claimed until the session ends.
    Acquired,
    /// The identity was completed before.
    #[non_exhaustive]
    Completed {
        /// The fingerprint that was remembered with it.
        fingerprint: Fingerprint,
        /// When it was completed, by the store's clock.
        processed_at: SystemTime,
    },
    /// Another consumer holds a lease on it.
    #[non_exhaustive]
    InProgress {
        /// How long that lease still runs, unless it is renewed.
        remaining: Duration,
    },
}

impl Claim {
    /// For stores: the identity was completed before, with the fingerprint that was remembered, and
    /// when, by the store's clock.
    pub fn completed(fingerprint: Fingerprint, processed_at: SystemTime) -> Self {
        Self::Completed { fingerprint, processed_at }
    }

    /// For stores: another consumer holds a lease on it, for so long still.
    pub fn in_progress(remaining: Duration) -> Self {
        Self::InProgress { remaining }
    }
}

/// What a store remembers of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Record {
    /// It took effect.
    #[non_exhaustive]
    Completed {
        /// The fingerprint that was remembered with it.
        fingerprint: Fingerprint,
        /// When it was completed, by the store's clock.
        processed_at: SystemTime,
    },
    /// A consumer holds a lease on it.
    #[non_exhaustive]
    InProgress {
        /// How long that lease still runs, unless it is renewed.
        remaining: Duration,
    },
}

impl Record {
    /// For stores: it took effect, with the fingerprint that was remembered, and when, by the
    /// store's clock.
    pub fn completed(fingerprint: Fingerprint, processed_at: SystemTime) -> Self {
        Self::Completed { fingerprint, processed_at }
    }

    /// For stores: a consumer holds a lease on it, for so long still.
    pub fn in_progress(remaining: Duration) -> Self {
        Self::InProgress { remaining }
    }
}

impl From<Record> for Claim {
    fn from(record: Record) -> Self {
        match record {
            Record::Completed { fingerprint, processed_at } => Self::Completed { fingerprint, processed_at },
            Record::InProgress { remaining } => Self::InProgress { remaining },
        }
    }
}

/// A store's answer to a batch of requests.
#[derive(Debug)]
#[non_exhaustive]
#[must_use = "a session that is dropped is released sooner or later, not at once"]
pub struct Claims<S> {
    /// The open session; present if and only if at least one request was [`Claim::Acquired`].
    pub session: Option<S>,
    /// One answer per request, in their order.
    pub claims: Vec<Claim>,
}

/// A claim that expires, fenced by a token: the session of stores that have no transaction to
/// offer.
///
/// The effect is *not* committed together with the identity. A crash between the two repeats the
/// effect after the lease has run out, so an effect elsewhere should take the message ID as its
/// idempotency key, or [`token`](Self::token) as its fence: leases of different identities may have
/// the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a lease that is neither completed nor released blocks its message until it runs out"]
pub struct Lease {
    scope: Scope,
    message_id: MessageId,
    fingerprint: Fingerprint,
    token: u64,
}

impl<S> Claims<S> {
    /// For stores: the session, if at least one request was [`Claim::Acquired`], and one answer per
    /// request, in their order.
    ///
    /// ```
    /// use lapin_idempotent::{Lease, idempotency::{Claim, ClaimRequest, Claims}};
    ///
    /// /// Gives a new identity out, under the token that was counted for it.
    /// fn acquired(request: &ClaimRequest, token: u64) -> Claims<Lease> {
    ///     Claims::new(Some(Lease::new(request, token)), vec![Claim::Acquired])
    /// }
    /// ```
    pub fn new(session: Option<S>, claims: Vec<Claim>) -> Self {
        Self { session, claims }
    }

    /// The answer to one request that was not acquired.
    pub(crate) fn taken(record: Record) -> Self {
        Self { session: None, claims: vec![record.into()] }
    }
}

impl Claims<Lease> {
    /// The answer to one request that was acquired under a lease.
    pub(crate) fn leased(lease: Lease) -> Self {
        Self { session: Some(lease), claims: vec![Claim::Acquired] }
    }
}

impl Lease {
    /// For stores: the lease on a claim that was acquired under `token`.
    ///
    /// A token is never used twice for one identity, and a later lease has a greater one.
    pub fn new(request: &ClaimRequest, token: u64) -> Self {
        let ClaimRequest { scope, message_id, fingerprint } = request.clone();
        Self { scope, message_id, fingerprint, token }
    }

    /// The consumer's identity.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The message's identity.
    pub fn message_id(&self) -> &MessageId {
        &self.message_id
    }

    /// The fingerprint that is remembered when the lease is completed.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// A key for one step of the handler: see [`effect_key`].
    pub fn effect_key(&self, step: &str) -> MessageId {
        effect_key(&self.scope, &self.message_id, step)
    }

    /// The fencing token: greater for each later lease on the same identity.
    pub fn token(&self) -> u64 {
        self.token
    }
}
