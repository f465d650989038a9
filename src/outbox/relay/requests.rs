//! What the relay asks of the table, one thing at a time: one connection is enough for it.

use std::{future::Future, time::Duration};

use tokio::time::timeout;
use tracing::Instrument;

use crate::{
    idempotency::{StoreError, StoreErrorKind},
    outbox::{
        contract::{
            Batch, Confirmed, Failed, Lane, Outbox, ParkedKey, ReadRequest, Removed, Route, RowId, Term,
        },
        keys::Key,
    },
};

/// A table that takes longer is away: what was asked is asked again, over another connection.
const LIMIT: Duration = Duration::from_secs(30);

/// A failure that is to be written.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) failed: Failed,
    pub(super) key: Option<Key>,
    /// Of its lane, when it failed.
    pub(super) epoch: u64,
}

#[derive(Debug)]
pub(super) enum Request {
    Read(Reading),
    Remove(Vec<Confirmed>),
    Fail(Vec<Term>, Vec<Failure>),
    ParkedKeys(Vec<Lane>),
}

/// A read.
#[derive(Debug)]
pub(super) struct Reading {
    /// With the epoch of each.
    pub(super) lanes: Vec<(Lane, u64)>,
    pub(super) from: Vec<RowId>,
    pub(super) without_rows: Vec<RowId>,
    pub(super) without_keys: Vec<String>,
    pub(super) without_routes: Vec<Route>,
    pub(super) rows: u32,
    pub(super) bytes: u64,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Done {
    Read(Reading, Result<Batch, StoreError>),
    Removed(Vec<Confirmed>, Result<Removed, StoreError>),
    /// The lanes that are not held any more.
    Failed(Vec<Failure>, Result<Vec<Lane>, StoreError>),
    ParkedKeys(Vec<Lane>, Result<Vec<ParkedKey>, StoreError>),
}

pub(super) async fn perform<O: Outbox>(outbox: &O, request: Request) -> Done {
    match request {
        Request::Read(reading) => {
            let span = tracing::debug_span!("outbox read", lanes = reading.lanes.len());
            let request = ReadRequest {
                from: &reading.from,
                without_rows: &reading.without_rows,
                without_keys: &reading.without_keys,
                without_routes: &reading.without_routes,
                rows: reading.rows,
                bytes: reading.bytes,
            };
            let read = answered(outbox.read(&request)).instrument(span).await;
            Done::Read(reading, read)
        }
        Request::Remove(rows) => {
            let span = tracing::debug_span!("outbox remove", rows = rows.len());
            let removed = answered(outbox.remove(&rows)).instrument(span).await;
            Done::Removed(rows, removed)
        }
        Request::Fail(held, failures) => {
            let span = tracing::debug_span!("outbox fail", rows = failures.len());
            let failed: Vec<Failed> = failures.iter().map(|failure| failure.failed.clone()).collect();
            let lost = answered(outbox.fail(&held, &failed)).instrument(span).await;
            Done::Failed(failures, lost)
        }
        Request::ParkedKeys(lanes) => {
            let span = tracing::debug_span!("outbox parked keys", lanes = lanes.len());
            let keys = answered(outbox.parked_keys(&lanes)).instrument(span).await;
            Done::ParkedKeys(lanes, keys)
        }
    }
}

/// The answer, if there is one in time.
async fn answered<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    within(LIMIT, asked).await
}

/// The same with a limit of its own.
pub(super) async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::new(StoreErrorKind::Unavailable, format!("no answer within {limit:?}"))),
    }
}
