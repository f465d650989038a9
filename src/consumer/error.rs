//! Why a consumer could not run.

use std::fmt;

use crate::{
    amqp::{ConnectError, is_refusal},
    error::BoxError,
    idempotency::{InvalidScope, StoreError},
};

/// A consumer could not start. Once it runs it reconnects by itself, and ends without an error when
/// it is told to.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct ConsumeError {
    kind: ConsumeErrorKind,
    source: BoxError,
}

/// The reason of a [`ConsumeError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConsumeErrorKind {
    /// The builder was given something that cannot work.
    Invalid,
    /// No connection to the broker, or it was lost before anything was consumed.
    Connect,
    /// The store answers, and is unusable: it says what is missing.
    Store,
    /// The broker refused the subscription: no such queue, or no permission.
    Refused,
}

impl ConsumeError {
    pub(crate) fn new(kind: ConsumeErrorKind, source: impl Into<BoxError>) -> Self {
        Self { kind, source: source.into() }
    }

    pub(crate) fn invalid(source: impl Into<BoxError>) -> Self {
        Self::new(ConsumeErrorKind::Invalid, source)
    }

    /// What was asked on a channel failed: the broker said no, or nobody answered any more.
    pub(crate) fn of_channel(error: BoxError) -> Self {
        let kind = if is_refusal(&*error) { ConsumeErrorKind::Refused } else { ConsumeErrorKind::Connect };
        Self::new(kind, error)
    }

    /// What went wrong.
    pub fn kind(&self) -> ConsumeErrorKind {
        self.kind
    }
}

impl From<ConnectError> for ConsumeError {
    fn from(error: ConnectError) -> Self {
        Self::new(ConsumeErrorKind::Connect, error)
    }
}

impl From<InvalidScope> for ConsumeError {
    fn from(error: InvalidScope) -> Self {
        Self::invalid(error)
    }
}

impl From<StoreError> for ConsumeError {
    fn from(error: StoreError) -> Self {
        Self::new(ConsumeErrorKind::Store, error)
    }
}

impl fmt::Display for ConsumeErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Invalid => "invalid configuration of the consumer",
            Self::Connect => "cannot connect to the broker",
            Self::Store => "unusable store",
            Self::Refused => "the broker refused the subscription",
        })
    }
}
