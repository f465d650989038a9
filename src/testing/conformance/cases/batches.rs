//! Several messages in one session.

use std::sync::Arc;

use tokio::{
    task::{JoinSet, yield_now},
    time::sleep,
};

use crate::{
    idempotency::{Claim, ClaimRequest, Claims, IdempotencyStore},
    testing::conformance::{
        capabilities::Need::Batches,
        fixture::{AGAIN, Fixture, Outcome, Stop, ensure, error, failed, passes},
        runner::Runner,
    },
};

/// As many as a consumer of many small messages may put into one transaction.
const BIG: usize = 256;

const ROUNDS: u32 = 10;

pub(in super::super) async fn all<S: IdempotencyStore>(runner: &mut Runner<'_, S>) {
    runner.case(("batch_is_answered_in_order", "contract 1"), &[Batches], in_order).await;
    runner.case(("batch_is_completed_together", "I2"), &[Batches], together).await;
    runner.case(("released_batch_can_be_claimed", "I3"), &[Batches], released).await;
    runner.case(("big_batch", "contract 1"), &[Batches], big).await;
    runner.case(("opposite_batches_do_not_deadlock", "contract 1"), &[Batches], opposite).await;
}

impl<S: IdempotencyStore> Fixture<S> {
    /// Requests for the IDs, in their order.
    fn requests<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> Vec<ClaimRequest> {
        ids.into_iter().map(|id| self.request(id)).collect()
    }

    /// Claims all in one session, which must be open exactly if one is acquired.
    async fn claim_all(&self, store: &S, requests: &[ClaimRequest]) -> Result<Claims<S::Session>, Stop> {
        loop {
            match store.claim(requests).await {
                Ok(claims) => {
                    ensure!(
                        claims.claims.len() == requests.len(),
                        "expected {} answers; came {}",
                        requests.len(),
                        claims.claims.len()
                    );
                    let acquired = claims.claims.contains(&Claim::Acquired);
                    ensure!(
                        acquired == claims.session.is_some(),
                        "expected a session exactly if one is acquired; came session {}, acquired {acquired}",
                        claims.session.is_some()
                    );
                    return Ok(claims);
                }
                // For as long as the case may last.
                Err(error) if passes(&error) => sleep(AGAIN).await,
                Err(unexpected) => return Err(error("claim of a batch")(unexpected)),
            }
        }
    }

    async fn acquire_all(&self, store: &S, requests: &[ClaimRequest]) -> Result<S::Session, Stop> {
        let Claims { session, claims } = self.claim_all(store, requests).await?;
        ensure!(
            claims.iter().all(|claim| *claim == Claim::Acquired),
            "expected all Acquired; came {claims:?}"
        );
        session.ok_or_else(|| failed("expected a session; came none"))
    }
}

async fn in_order<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    for id in ["f", "b", "c"] {
        fixture.complete(&fixture.a, &fixture.request(id)).await?;
    }
    let requests = fixture.requests(["d", "b", "g", "f", "a", "c", "e"]);
    let Claims { session, claims } = fixture.claim_all(&fixture.a, &requests).await?;
    for (request, claim) in requests.iter().zip(&claims) {
        let id = request.message_id.as_str();
        let (expected, right) = match claim {
            _ if ["b", "c", "f"].contains(&id) => {
                let own = |claim: &Claim| matches!(claim, Claim::Completed { fingerprint, .. } if *fingerprint == request.fingerprint);
                ("Completed with its fingerprint", own(claim))
            }
            claim => ("Acquired", *claim == Claim::Acquired),
        };
        ensure!(right, "claim of {id:?} in a batch: expected {expected}; came {claim:?}");
    }
    let session = session.ok_or_else(|| failed("expected a session; came none"))?;
    fixture.a.complete(session).await.map_err(error("complete of a batch"))?;
    for request in &requests {
        fixture.completed(&fixture.b, request).await?;
    }
    Ok(())
}

async fn together<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let requests = fixture.requests(["b", "c", "a"]);
    let session = fixture.acquire_all(&fixture.a, &requests).await?;
    fixture.a.complete(session).await.map_err(error("complete of a batch"))?;
    for request in &requests {
        fixture.completed(&fixture.b, request).await?;
    }
    // All known by now: `claim_all` wants no session.
    let _ = fixture.claim_all(&fixture.b, &requests).await?;
    Ok(())
}

async fn released<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let requests = fixture.requests(["b", "c", "a"]);
    let session = fixture.acquire_all(&fixture.a, &requests).await?;
    fixture.a.release(session).await.map_err(error("release of a batch"))?;
    let session = fixture.acquire_all(&fixture.b, &requests).await?;
    drop(session);
    for request in &requests {
        let session = fixture.acquire_later(&fixture.a, request).await?;
        fixture.a.complete(session).await.map_err(error("complete"))?;
    }
    Ok(())
}

async fn big<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let requests: Vec<_> = (0..BIG).rev().map(|number| fixture.request(&format!("order-{number}"))).collect();
    let session = fixture.acquire_all(&fixture.a, &requests).await?;
    fixture.a.complete(session).await.map_err(error("complete of a big batch"))?;
    let Claims { claims, .. } = fixture.claim_all(&fixture.b, &requests).await?;
    let known = requests.iter().zip(&claims).filter(|(request, claim)| {
        matches!(claim, Claim::Completed { fingerprint, .. } if *fingerprint == request.fingerprint)
    });
    let known = known.count();
    ensure!(known == BIG, "expected {BIG} of {BIG} Completed with their fingerprints; came {known}");
    Ok(())
}

async fn opposite<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let fixture = Arc::new(fixture);
    for round in 0..ROUNDS {
        let forth: Vec<_> = (0..8).map(|number| fixture.request(&format!("{round}-{number}"))).collect();
        let back: Vec<_> = forth.iter().rev().cloned().collect();
        let mut rivals = JoinSet::new();
        rivals.spawn(all_of(Arc::clone(&fixture), Arc::clone(&fixture.a), forth.clone()));
        rivals.spawn(all_of(Arc::clone(&fixture), Arc::clone(&fixture.b), back));
        let mut won = 0;
        while let Some(rival) = rivals.join_next().await {
            won += rival.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        }
        ensure!(won == forth.len(), "expected each of {} identities to be won once; came {won}", forth.len());
    }
    Ok(())
}

/// Claims and completes until all are completed; says how many of them here.
async fn all_of<S: IdempotencyStore>(
    fixture: Arc<Fixture<S>>,
    store: Arc<S>,
    requests: Vec<ClaimRequest>,
) -> Result<usize, Stop> {
    loop {
        let Claims { session, claims } = fixture.claim_all(&store, &requests).await?;
        let acquired = claims.iter().filter(|claim| **claim == Claim::Acquired).count();
        match session {
            None if claims.iter().all(|claim| matches!(claim, Claim::Completed { .. })) => return Ok(0),
            None => sleep(AGAIN).await,
            Some(session) => {
                yield_now().await;
                match store.complete(session).await {
                    Ok(()) => return Ok(acquired),
                    Err(error) if passes(&error) => {}
                    Err(unexpected) => return Err(error("complete, beside a rival")(unexpected)),
                }
            }
        }
    }
}
