//! What operators see and do.

use std::{pin::pin, time::Duration};

use futures_util::future::join;
use tokio::time::timeout;

use crate::{
    idempotency::{ClaimRequest, Inspect, Record},
    testing::conformance::{
        capabilities::Need::{Concurrency, Leases},
        fixture::{Fixture, Outcome, Stop, ensure, error, failed, passes},
        runner::Runner,
    },
};

/// How long a call may take that finds an open transaction in its way.
const GLANCE: Duration = Duration::from_millis(100);

pub(in super::super) async fn all<S: Inspect>(runner: &mut Runner<'_, S>) {
    runner.case(("find_tells_what_a_claim_would", "contract 3"), &[], find).await;
    runner.case(("find_tells_what_is_in_progress", "contract 1"), &[Leases], find_in_progress).await;
    runner.case(("find_is_exact", "contract 2"), &[], find_exact).await;
    runner.case(("count_is_of_one_scope", "contract 2"), &[], count).await;
    runner.case(("forgotten_identity_can_be_claimed", "I3"), &[], forget).await;
    runner.case(("forget_leaves_claims_in_progress", "I2"), &[Concurrency], forget_in_progress).await;
}

impl<S: Inspect> Fixture<S> {
    async fn find(&self, request: &ClaimRequest) -> Result<Option<Record>, Stop> {
        self.b.find(&request.scope, &request.message_id).await.map_err(error("find"))
    }

    async fn forget(&self, request: &ClaimRequest) -> Result<bool, Stop> {
        self.b.forget(&request.scope, &request.message_id).await.map_err(error("forget"))
    }

    async fn count(&self, request: &ClaimRequest) -> Result<u64, Stop> {
        self.b.count(&request.scope).await.map_err(error("count"))
    }
}

async fn find<S: Inspect>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("x");
    let found = fixture.find(&request).await?;
    ensure!(found.is_none(), "find of what is new: expected None; came {found:?}");
    let session = fixture.acquire(&fixture.a, &request).await?;
    fixture.a.release(session).await.map_err(error("release"))?;
    let found = fixture.find(&request).await?;
    ensure!(found.is_none(), "find of what was released: expected None; came {found:?}");
    fixture.complete(&fixture.a, &request).await?;
    let told = fixture.completed(&fixture.a, &request).await?;
    let expected = Some(Record::Completed { fingerprint: request.fingerprint, processed_at: told });
    let found = fixture.find(&request).await?;
    ensure!(found == expected, "find of what is completed: expected {expected:?}; came {found:?}");
    Ok(())
}

async fn find_in_progress<S: Inspect>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("x");
    let session = fixture.acquire(&fixture.a, &request).await?;
    let found = fixture.find(&request).await?;
    let in_progress = matches!(found, Some(Record::InProgress { .. }));
    ensure!(in_progress, "find of what is in progress: expected InProgress; came {found:?}");
    fixture.a.complete(session).await.map_err(error("complete"))
}

async fn find_exact<S: Inspect>(fixture: Fixture<S>) -> Outcome {
    fixture.complete(&fixture.a, &fixture.request("x")).await?;
    for other in
        [fixture.request("X"), fixture.request("x "), fixture.request("%"), fixture.request_in("-", "x")]
    {
        let found = fixture.find(&other).await?;
        ensure!(found.is_none(), "find of {:?}: expected None; came {found:?}", other.message_id.as_str());
        let forgotten = fixture.forget(&other).await?;
        ensure!(!forgotten, "forget of {:?}: expected false; came true", other.message_id.as_str());
    }
    fixture.completed(&fixture.a, &fixture.request("x")).await?;
    Ok(())
}

async fn count<S: Inspect>(fixture: Fixture<S>) -> Outcome {
    let (here, there) = (fixture.request_in("-here", "0"), fixture.request_in("-there", "0"));
    fixture.complete(&fixture.a, &there).await?;
    for expected in 0..3 {
        let counted = fixture.count(&here).await?;
        ensure!(counted == expected, "expected a count of {expected}; came {counted}");
        fixture.complete(&fixture.a, &fixture.request_in("-here", &expected.to_string())).await?;
    }
    // What was given back does not count.
    fixture.is_free(&fixture.a, &fixture.request_in("-here", "free")).await?;
    let counted = (fixture.count(&here).await?, fixture.count(&there).await?);
    ensure!(counted == (3, 1), "expected counts of (3, 1); came {counted:?}");
    Ok(())
}

async fn forget<S: Inspect>(fixture: Fixture<S>) -> Outcome {
    let (request, neighbour) = (fixture.request("x"), fixture.request("y"));
    ensure!(!fixture.forget(&request).await?, "forget of what is new: expected false; came true");
    fixture.complete(&fixture.a, &request).await?;
    fixture.complete(&fixture.a, &neighbour).await?;
    ensure!(fixture.forget(&request).await?, "forget of what is completed: expected true; came false");
    ensure!(!fixture.forget(&request).await?, "forget of what was forgotten: expected false; came true");
    fixture.complete(&fixture.a, &request).await?;
    fixture.completed(&fixture.b, &neighbour).await?;
    Ok(())
}

async fn forget_in_progress<S: Inspect>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("x");
    let session = fixture.acquire(&fixture.a, &request).await?;
    let mut forget = pin!(fixture.b.forget(&request.scope, &request.message_id));
    match timeout(GLANCE, &mut forget).await {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => return Err(failed("forget of what is in progress: expected false; came true")),
        Ok(Err(error)) if passes(&error) => {}
        Ok(Err(unexpected)) => return Err(error("forget of what is in progress")(unexpected)),
        Err(_) => {
            // It waits for the open transaction; what it finds when that has ended is in progress
            // no more.
            let (completed, forgotten) = join(fixture.a.complete(session), forget).await;
            completed.map_err(error("complete, with an operator about to forget it"))?;
            return match forgotten {
                Err(unexpected) if !passes(&unexpected) => Err(error("forget, after it waited")(unexpected)),
                _ => Ok(()),
            };
        }
    }
    fixture.a.complete(session).await.map_err(error("complete, after an operator tried to forget it"))?;
    fixture.completed(&fixture.a, &request).await?;
    Ok(())
}
