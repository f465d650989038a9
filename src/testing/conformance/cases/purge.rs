//! What is forgotten, and what is not.

use std::{pin::pin, time::Duration};

use futures_util::future::join;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    idempotency::{ClaimRequest, IdempotencyStore, StoreError, StoreErrorKind},
    testing::conformance::{
        capabilities::Need::{Bound, Concurrency, Purges},
        fixture::{AGAIN, Answer, Fixture, Outcome, Stop, claim, ensure, error, failed, passes, unexpected},
        runner::Runner,
    },
};

/// Older than anything a run of the suite has made, and old enough to leave other data alone.
const AGES: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A retention that everything completed is soon older than.
const MOMENT: Duration = Duration::from_millis(20);

/// How many are forgotten in one call, where it does not matter.
const MANY: u32 = 1000;

/// How many identities a bounded store is given before it has to refuse.
const MOST: u32 = 20_000;

pub(in super::super) async fn all<S: IdempotencyStore>(runner: &mut Runner<'_, S>) {
    runner.case(("purge_keeps_what_is_young", "I7"), &[], young).await;
    runner.case(("purge_forgets_only_what_is_older", "I7"), &[Purges], only_older).await;
    runner.case(("purge_is_bounded", "contract 7"), &[Purges], bounded).await;
    runner.case(("purge_leaves_claims_in_progress", "I7"), &[Purges, Concurrency], in_progress).await;
    runner.case(("late_duplicate_is_acquired_after_purge", "contract 7"), &[Purges], late).await;
}

/// To be run last: it leaves a full store for a while.
pub(in super::super) async fn full<S: IdempotencyStore>(runner: &mut Runner<'_, S>) {
    runner.case(("full_store_refuses_rather_than_forgets", "I2"), &[Bound, Purges], refuses).await;
}

impl<S: IdempotencyStore> Fixture<S> {
    /// Purges once; others may be in the way.
    async fn purge(&self, retention: Duration, limit: u32) -> Result<u64, Stop> {
        let deadline = Instant::now() + self.capabilities.patience();
        loop {
            match self.b.purge(retention, limit).await {
                Ok(forgotten) => {
                    ensure!(
                        forgotten <= limit.into(),
                        "expected a purge of {limit} at most; it forgot {forgotten}"
                    );
                    return Ok(forgotten);
                }
                Err(error) if passes(&error) && Instant::now() < deadline => sleep(AGAIN).await,
                Err(unexpected) => return Err(error("purge")(unexpected)),
            }
        }
    }

    /// Purges until an identity is free.
    async fn purge_away(&self, request: &ClaimRequest) -> Outcome {
        let deadline = Instant::now() + self.capabilities.patience();
        while !self.is_free(&self.a, request).await? {
            ensure!(
                Instant::now() < deadline,
                "expected a purge to forget what is older than {MOMENT:?}; it is still Completed"
            );
            if self.purge(MOMENT, MANY).await? == 0 {
                sleep(AGAIN).await;
            }
        }
        Ok(())
    }
}

async fn young<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("young");
    fixture.complete(&fixture.a, &request).await?;
    // A store that expires identities by itself, and sooner, must refuse.
    let refused = |error: &StoreError| error.kind() == StoreErrorKind::Configuration;
    if !fixture.b.purge(AGES, MANY).await.is_err_and(|error| refused(&error)) {
        fixture.purge(AGES, MANY).await?;
    }
    fixture.completed(&fixture.a, &request).await?;
    Ok(())
}

async fn only_older<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    // On a busy machine the young one may have grown old before it is looked at: then once more,
    // with more time.
    for (round, millis) in [500_u64, 2_000, 6_000].into_iter().enumerate() {
        let retention = Duration::from_millis(millis);
        let (old, young) =
            (fixture.request(&format!("old-{round}")), fixture.request(&format!("young-{round}")));
        fixture.complete(&fixture.a, &old).await?;
        sleep(retention + MOMENT).await;
        let born = Instant::now();
        fixture.complete(&fixture.a, &young).await?;
        while fixture.purge(retention, MANY).await? == u64::from(MANY) {}
        let young_is_known = !fixture.is_free(&fixture.a, &young).await?;
        let too_late = born.elapsed() >= retention;
        ensure!(
            young_is_known || too_late,
            "expected what is younger than the retention of {retention:?} to be Completed; it was forgotten"
        );
        if young_is_known && fixture.is_free(&fixture.a, &old).await? {
            return Ok(());
        }
    }
    Err(failed("expected a purge to forget what is older than the retention; it is still Completed"))
}

async fn bounded<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let requests: Vec<_> = (0..5).map(|number| fixture.request(&number.to_string())).collect();
    for request in &requests {
        fixture.complete(&fixture.a, request).await?;
    }
    sleep(MOMENT * 5).await;
    ensure!(fixture.purge(MOMENT, 0).await? == 0, "expected a purge of nothing to forget nothing");
    for request in &requests {
        fixture.completed(&fixture.a, request).await?;
    }
    let told = fixture.purge(MOMENT, 2).await?;
    let mut gone = 0;
    for request in &requests {
        gone += u64::from(fixture.is_free(&fixture.a, request).await?);
    }
    // Others' identities may have been among those that were forgotten.
    ensure!(gone <= told, "expected {told} at most to be forgotten; {gone} of 5 are");
    for request in &requests {
        fixture.purge_away(request).await?;
    }
    Ok(())
}

async fn in_progress<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("long");
    let session = fixture.acquire(&fixture.a, &request).await?;
    sleep(MOMENT * 2).await;
    let mut purge = pin!(fixture.b.purge(MOMENT, MANY));
    match timeout(MOMENT * 5, &mut purge).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) if passes(&error) => {}
        Ok(Err(unexpected)) => return Err(error("purge, beside an open session")(unexpected)),
        Err(_) => {
            // It waits for the open transaction; what it finds when that has ended is in progress
            // no more.
            let (completed, purged) = join(fixture.a.complete(session), purge).await;
            completed.map_err(error("complete, beside a purge that waits"))?;
            return match purged {
                Err(unexpected) if !passes(&unexpected) => Err(error("purge, after it waited")(unexpected)),
                _ => Ok(()),
            };
        }
    }
    fixture.a.complete(session).await.map_err(error("complete, after a purge"))?;
    fixture.completed(&fixture.a, &request).await?;
    Ok(())
}

/// Where the guarantee ends: what was forgotten takes effect again.
async fn late<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("late");
    fixture.complete(&fixture.a, &request).await?;
    fixture.purge_away(&request).await?;
    fixture.complete(&fixture.b, &request).await?;
    fixture.completed(&fixture.a, &request).await?;
    Ok(())
}

async fn refuses<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let first = fixture.request("first");
    fixture.complete(&fixture.a, &first).await?;
    let mut number = 0;
    let refused = loop {
        ensure!(number < MOST, "expected the store to be full after {MOST} identities at most; it is not");
        let request = fixture.request(&number.to_string());
        match fixture.a.claim(std::slice::from_ref(&request)).await {
            Ok(claims) => {
                let session = claims.session.ok_or_else(|| failed("expected a session; came none"))?;
                fixture.a.complete(session).await.map_err(error("complete"))?;
            }
            Err(full) if full.kind() == StoreErrorKind::Full => break request,
            Err(error) if passes(&error) => continue,
            Err(unexpected) => return Err(error("claim on a store that fills up")(unexpected)),
        }
        number += 1;
    };
    fixture.completed(&fixture.b, &first).await?;
    let deadline = Instant::now() + fixture.capabilities.patience();
    while Instant::now() < deadline {
        fixture.purge(MOMENT, u32::MAX).await?;
        match fixture.a.claim(std::slice::from_ref(&refused)).await {
            Ok(claims) => {
                let session = claims.session.ok_or_else(|| failed("expected a session; came none"))?;
                return fixture.a.complete(session).await.map_err(error("complete, after a purge"));
            }
            Err(_) => sleep(AGAIN).await,
        }
    }
    match claim(&*fixture.a, &refused).await? {
        Answer::Acquired(_) => Ok(()),
        other => Err(unexpected(&refused, "Acquired, after a purge made room", &other)),
    }
}
