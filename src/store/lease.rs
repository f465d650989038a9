//! What the stores of leases share.

use std::{future::Future, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, interval_at, timeout_at};

use crate::{
    error::Chain,
    idempotency::{ClaimRequest, StoreError, StoreErrorKind},
};

/// How long a lease runs unless it is renewed, if nothing else is said.
pub(super) const DEFAULT_LEASE: Duration = Duration::from_secs(30);

/// Renews a lease at a third of its time, so that two renewals may fail before it runs out; ends
/// when the lease is lost.
///
/// A store that does not answer is asked again until the lease has run out by this process's clock:
/// from then on somebody else may hold it.
pub(super) fn keep_alive<R, F>(lease: Duration, renew: R) -> BoxFuture<'static, StoreError>
where
    R: Fn() -> F + Send + 'static,
    F: Future<Output = Result<(), StoreError>> + Send,
{
    // A longer one would overflow.
    let lease = lease.min(Duration::from_secs(31_536_000));
    let period = (lease / 3).max(Duration::from_millis(1));
    async move {
        let start = Instant::now();
        let mut tick = interval_at(start + period, period);
        let mut runs_out = start + lease;
        loop {
            tick.tick().await;
            let asked = Instant::now();
            match timeout_at(runs_out, renew()).await {
                Ok(Ok(())) => runs_out = asked + lease,
                Ok(Err(error)) if error.kind() == StoreErrorKind::LeaseLost => return error,
                Ok(Err(error)) if Instant::now() >= runs_out => return ran_out(error),
                Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "lease not renewed; trying again"),
                Err(elapsed) => return ran_out(elapsed),
            }
        }
    }
    .boxed()
}

fn ran_out(error: impl Into<crate::error::BoxError>) -> StoreError {
    StoreError::new(StoreErrorKind::LeaseLost, error)
}

/// The one request of a claim on a store whose sessions are leases.
pub(super) fn single(requests: &[ClaimRequest]) -> Result<&ClaimRequest, StoreError> {
    match requests {
        [request] => Ok(request),
        _ => Err(StoreError::new(StoreErrorKind::Configuration, "a lease is for one message at a time")),
    }
}
