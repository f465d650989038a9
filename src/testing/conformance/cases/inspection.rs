//! What operators see and do.

use std::{pin::pin, time::Duration};

use futures_util::future::join;
use tokio::time::timeout;

use crate::{
    idempotency::{ClaimRequest, Inspect, Record},
    testing::conformance::{
        bench::{Bench, Outcome, Stop, ensure, error, failed, passes},
        capabilities::Need::{Concurrency, Leases},
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

impl<S: Inspect> Bench<S> {
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

async fn find<S: Inspect>(bench: Bench<S>) -> Outcome {
    let request = bench.request("x");
    let found = bench.find(&request).await?;
    ensure!(found.is_none(), "find of what is new: expected None; came {found:?}");
    let session = bench.acquire(&bench.a, &request).await?;
    bench.a.release(session).await.map_err(error("release"))?;
    let found = bench.find(&request).await?;
    ensure!(found.is_none(), "find of what was released: expected None; came {found:?}");
    bench.complete(&bench.a, &request).await?;
    let told = bench.completed(&bench.a, &request).await?;
    let expected = Some(Record::Completed { fingerprint: request.fingerprint, processed_at: told });
    let found = bench.find(&request).await?;
    ensure!(found == expected, "find of what is completed: expected {expected:?}; came {found:?}");
    Ok(())
}

async fn find_in_progress<S: Inspect>(bench: Bench<S>) -> Outcome {
    let request = bench.request("x");
    let session = bench.acquire(&bench.a, &request).await?;
    let found = bench.find(&request).await?;
    let in_progress = matches!(found, Some(Record::InProgress { .. }));
    ensure!(in_progress, "find of what is in progress: expected InProgress; came {found:?}");
    bench.a.complete(session).await.map_err(error("complete"))
}

async fn find_exact<S: Inspect>(bench: Bench<S>) -> Outcome {
    bench.complete(&bench.a, &bench.request("x")).await?;
    for other in [bench.request("X"), bench.request("x "), bench.request("%"), bench.request_in("-", "x")] {
        let found = bench.find(&other).await?;
        ensure!(found.is_none(), "find of {:?}: expected None; came {found:?}", other.message_id.as_str());
        let forgotten = bench.forget(&other).await?;
        ensure!(!forgotten, "forget of {:?}: expected false; came true", other.message_id.as_str());
    }
    bench.completed(&bench.a, &bench.request("x")).await?;
    Ok(())
}

async fn count<S: Inspect>(bench: Bench<S>) -> Outcome {
    let (here, there) = (bench.request_in("-here", "0"), bench.request_in("-there", "0"));
    bench.complete(&bench.a, &there).await?;
    for expected in 0..3 {
        let counted = bench.count(&here).await?;
        ensure!(counted == expected, "expected a count of {expected}; came {counted}");
        bench.complete(&bench.a, &bench.request_in("-here", &expected.to_string())).await?;
    }
    // What was given back does not count.
    bench.is_free(&bench.a, &bench.request_in("-here", "free")).await?;
    let counted = (bench.count(&here).await?, bench.count(&there).await?);
    ensure!(counted == (3, 1), "expected counts of (3, 1); came {counted:?}");
    Ok(())
}

async fn forget<S: Inspect>(bench: Bench<S>) -> Outcome {
    let (request, neighbour) = (bench.request("x"), bench.request("y"));
    ensure!(!bench.forget(&request).await?, "forget of what is new: expected false; came true");
    bench.complete(&bench.a, &request).await?;
    bench.complete(&bench.a, &neighbour).await?;
    ensure!(bench.forget(&request).await?, "forget of what is completed: expected true; came false");
    ensure!(!bench.forget(&request).await?, "forget of what was forgotten: expected false; came true");
    bench.complete(&bench.a, &request).await?;
    bench.completed(&bench.b, &neighbour).await?;
    Ok(())
}

async fn forget_in_progress<S: Inspect>(bench: Bench<S>) -> Outcome {
    let request = bench.request("x");
    let session = bench.acquire(&bench.a, &request).await?;
    let mut forget = pin!(bench.b.forget(&request.scope, &request.message_id));
    match timeout(GLANCE, &mut forget).await {
        Ok(Ok(false)) => {}
        Ok(Ok(true)) => return Err(failed("forget of what is in progress: expected false; came true")),
        Ok(Err(error)) if passes(&error) => {}
        Ok(Err(unexpected)) => return Err(error("forget of what is in progress")(unexpected)),
        Err(_) => {
            // It waits for the open transaction; what it finds when that has ended is in progress no more.
            let (completed, forgotten) = join(bench.a.complete(session), forget).await;
            completed.map_err(error("complete, with an operator about to forget it"))?;
            return match forgotten {
                Err(unexpected) if !passes(&unexpected) => Err(error("forget, after it waited")(unexpected)),
                _ => Ok(()),
            };
        }
    }
    bench.a.complete(session).await.map_err(error("complete, after an operator tried to forget it"))?;
    bench.completed(&bench.a, &request).await?;
    Ok(())
}
