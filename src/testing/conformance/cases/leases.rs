//! Leases that run out, and leases that are kept.

use std::{any::Any, pin::pin};

use futures_util::future::{Either, select};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    idempotency::{ClaimRequest, IdempotencyStore, Lease, StoreErrorKind},
    message::Fingerprint,
    testing::conformance::{
        capabilities::Need::Leases,
        fixture::{Answer, Fixture, Outcome, Stop, claim, ensure, error, failed, lost, unexpected},
        runner::Runner,
    },
};

pub(in super::super) async fn all<S: IdempotencyStore>(runner: &mut Runner<'_, S>) {
    runner.case(("stale_lease_does_not_complete", "I4"), &[Leases], stale_complete).await;
    runner.case(("stale_lease_does_not_release", "I4"), &[Leases], stale_release).await;
    runner.case(("stale_lease_is_not_renewed", "I4"), &[Leases], stale_renewal).await;
    runner.case(("tokens_grow", "I4"), &[Leases], tokens).await;
    runner.case(("keep_alive_keeps_a_lease", "I2"), &[Leases], kept_alive).await;
}

/// A lease that has run out, and the one of its successor.
struct Succession<T> {
    request: ClaimRequest,
    stale: T,
    fresh: T,
}

/// Two successions together, so that only one lease's time passes.
async fn successions<S: IdempotencyStore>(fixture: &Fixture<S>) -> Result<[Succession<S::Session>; 2], Stop> {
    let [first, second] = ["in progress", "completed"].map(|id| fixture.request(id));
    let stale = [fixture.acquire(&fixture.a, &first).await?, fixture.acquire(&fixture.a, &second).await?];
    // A later message with that ID and another body, so that it shows whose fingerprint is
    // remembered.
    let [first, second] = [first, second].map(|mut request| {
        request.fingerprint = Fingerprint::of(b"the successor's");
        request
    });
    let [stale_first, stale_second] = stale;
    Ok([
        Succession {
            fresh: fixture.acquire_later(&fixture.b, &first).await?,
            stale: stale_first,
            request: first,
        },
        Succession {
            fresh: fixture.acquire_later(&fixture.b, &second).await?,
            stale: stale_second,
            request: second,
        },
    ])
}

/// The successor still holds its claim, and completes it.
async fn untouched<S: IdempotencyStore>(
    fixture: &Fixture<S>,
    request: &ClaimRequest,
    fresh: S::Session,
) -> Outcome {
    match claim(&*fixture.a, request).await? {
        Answer::InProgress { .. } | Answer::Refused(_) => {}
        other => return Err(unexpected(request, "InProgress, by the successor", &other)),
    }
    fixture.b.complete(fresh).await.map_err(error("complete, by the successor"))?;
    fixture.completed(&fixture.a, request).await?;
    Ok(())
}

async fn stale_complete<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let [running, done] = successions(&fixture).await?;
    lost("complete with a stale lease", fixture.a.complete(running.stale).await)?;
    untouched(&fixture, &running.request, running.fresh).await?;
    fixture.b.complete(done.fresh).await.map_err(error("complete, by the successor"))?;
    lost("complete with a stale lease, of what is completed", fixture.a.complete(done.stale).await)?;
    fixture.completed(&fixture.a, &done.request).await?;
    Ok(())
}

async fn stale_release<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let [running, done] = successions(&fixture).await?;
    lost("release of a stale lease", fixture.a.release(running.stale).await)?;
    untouched(&fixture, &running.request, running.fresh).await?;
    fixture.b.complete(done.fresh).await.map_err(error("complete, by the successor"))?;
    lost("release of a stale lease, of what is completed", fixture.a.release(done.stale).await)?;
    fixture.completed(&fixture.a, &done.request).await?;
    Ok(())
}

async fn stale_renewal<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("x");
    let stale = fixture.acquire(&fixture.a, &request).await?;
    let fresh = fixture.acquire_later(&fixture.b, &request).await?;
    let keep_alive = fixture.a.keep_alive(&stale).ok_or_else(no_renewal)?;
    let keep_fresh = fixture.b.keep_alive(&fresh).ok_or_else(no_renewal)?;
    let patience = fixture.capabilities.patience();
    match timeout(patience, select(keep_alive, keep_fresh)).await {
        Ok(Either::Left((lost, _))) if lost.kind() == StoreErrorKind::LeaseLost => {}
        Ok(Either::Left((other, _))) => {
            return Err(failed(format!(
                "renewal of a stale lease: expected LeaseLost; came {:?}",
                other.kind()
            )));
        }
        Ok(Either::Right((lost, _))) => {
            let kind = lost.kind();
            return Err(failed(format!("expected the successor's lease to be kept; it ended with {kind:?}")));
        }
        Err(_) => {
            return Err(failed(format!(
                "expected keep_alive of a stale lease to end; it ran for {patience:?}"
            )));
        }
    }
    untouched(&fixture, &request, fresh).await
}

fn no_renewal() -> Stop {
    failed("expected keep_alive to answer with a future, as sessions are leases; came None")
}

async fn tokens<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("x");
    let mut last = None;
    let steps = ["at first", "after release", "after the lease ran out", "after release again"];
    for (step, store) in steps.into_iter().zip([&fixture.a, &fixture.b, &fixture.a, &fixture.b]) {
        let session = fixture.acquire_later(store, &request).await?;
        let Some(token) = (&session as &dyn Any).downcast_ref::<Lease>().map(Lease::token) else {
            return Err(Stop::NotApplicable("the session is not a `Lease`".to_owned()));
        };
        ensure!(last < Some(token), "{step}: expected a token greater than {last:?}; came {token}");
        last = Some(token);
        if step == "after release" {
            drop(session);
        } else {
            store.release(session).await.map_err(error("release"))?;
        }
    }
    Ok(())
}

async fn kept_alive<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("long");
    let session = fixture.acquire(&fixture.a, &request).await?;
    let keep_alive = fixture.a.keep_alive(&session).ok_or_else(no_renewal)?;
    let lease = fixture.capabilities.lease();
    let rival = pin!(async {
        let end = Instant::now() + lease.mul_f64(2.5);
        while Instant::now() < end {
            match claim(&*fixture.b, &request).await? {
                Answer::InProgress { .. } | Answer::Refused(_) => sleep(lease / 10).await,
                other => return Err(unexpected(&request, "InProgress, as the lease is renewed", &other)),
            }
        }
        Ok(())
    });
    match select(keep_alive, rival).await {
        Either::Left((lost, _)) => {
            let kind = lost.kind();
            return Err(failed(format!("expected the lease to be renewed; keep_alive ended with {kind:?}")));
        }
        Either::Right((kept_out, _)) => kept_out?,
    }
    fixture.a.complete(session).await.map_err(error("complete, after more than two leases"))?;
    fixture.completed(&fixture.b, &request).await?;
    Ok(())
}
