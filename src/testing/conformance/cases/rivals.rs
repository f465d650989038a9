//! Two consumers, one message.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::future::join;
use tokio::{
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};

use crate::{
    idempotency::{ClaimRequest, IdempotencyStore},
    testing::conformance::{
        capabilities::Need,
        fixture::{AGAIN, Answer, Fixture, Outcome, Stop, claim, ensure, error, failed, passes, unexpected},
        runner::Runner,
    },
};

const ROUNDS: u32 = 50;

/// How long a rival is watched while it waits.
const GLANCE: Duration = Duration::from_millis(100);

/// Stores may round up what remains of a lease.
const GRAIN: Duration = Duration::from_secs(1);

pub(in super::super) async fn all<S: IdempotencyStore>(runner: &mut Runner<'_, S>) {
    runner.case(("rival_is_kept_out_until_completion", "I2"), &[], kept_out).await;
    runner.case(("rival_acquires_after_release", "I3"), &[], after_release).await;
    runner.case(("race_has_one_winner", "I2"), &[], race).await;
}

async fn kept_out<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("x");
    let session = fixture.acquire(&fixture.a, &request).await?;
    let waits = fixture.capabilities.has(Need::Waits);
    let mut rival = pin!(claim(&*fixture.b, &request));
    let watched = if waits { GLANCE } else { fixture.capabilities.patience() };
    match timeout(watched, &mut rival).await {
        Err(_) if waits => {
            // Both together, as in two processes.
            let (completed, answer) = join(fixture.a.complete(session), rival).await;
            completed.map_err(error("complete, with a rival that waits"))?;
            let answer = answer?;
            let came_as_expected = match &answer {
                Answer::Completed { fingerprint, .. } => *fingerprint == request.fingerprint,
                Answer::Refused(_) => true,
                _ => false,
            };
            if !came_as_expected {
                return Err(unexpected(&request, "the rival's wait to end in Completed", &answer));
            }
        }
        Err(_) => return Err(failed("expected the rival to be told InProgress at once; it waits")),
        Ok(answer) => {
            check_told(&fixture, &request, answer?)?;
            fixture.a.complete(session).await.map_err(error("complete, with a rival about"))?;
        }
    }
    fixture.completed(&fixture.b, &request).await?;
    Ok(())
}

/// What a rival may be told while the first is at it.
fn check_told<S: IdempotencyStore>(
    fixture: &Fixture<S>,
    request: &ClaimRequest,
    answer: Answer<S::Session>,
) -> Outcome {
    match answer {
        Answer::Refused(_) => Ok(()),
        Answer::InProgress { remaining } if !fixture.capabilities.has(Need::Waits) => {
            let lease = fixture.capabilities.lease();
            ensure!(
                lease.is_zero() || remaining <= lease + GRAIN,
                "expected a rest of the lease of {lease:?}; came {remaining:?}"
            );
            Ok(())
        }
        other => {
            let waits = fixture.capabilities.has(Need::Waits);
            let expected = if waits { "the rival to wait, or Busy" } else { "InProgress, or Busy" };
            Err(unexpected(request, expected, &other))
        }
    }
}

async fn after_release<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    let request = fixture.request("x");
    let session = fixture.acquire(&fixture.a, &request).await?;
    let release = async {
        sleep(GLANCE).await;
        fixture.a.release(session).await
    };
    let (released, rival) = join(release, fixture.acquire_later(&fixture.b, &request)).await;
    released.map_err(error("release, with a rival about"))?;
    fixture.b.complete(rival?).await.map_err(error("complete, by the rival"))?;
    fixture.completed(&fixture.a, &request).await?;
    Ok(())
}

/// What the contenders of one round share.
#[derive(Default)]
struct Round {
    holders: AtomicU32,
    /// Whether the next to acquire gives the claim back.
    gives_back: AtomicBool,
}

async fn race<S: IdempotencyStore>(fixture: Fixture<S>) -> Outcome {
    for number in 0..ROUNDS {
        let request = fixture.request(&number.to_string());
        let round = Arc::new(Round::default());
        round.gives_back.store(number % 3 == 2, SeqCst);
        let mut contenders = JoinSet::new();
        for store in [&fixture.a, &fixture.b] {
            contenders.spawn(contend(Arc::clone(store), request.clone(), Arc::clone(&round)));
        }
        let mut winners = 0;
        while let Some(contender) = contenders.join_next().await {
            let won = contender.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
            winners += u32::from(won);
        }
        ensure!(winners == 1, "round {number}: expected one consumer to complete; {winners} did");
        fixture.completed(&fixture.a, &request).await?;
    }
    Ok(())
}

/// Claims until the identity is completed; says whether by this consumer.
async fn contend<S: IdempotencyStore>(
    store: Arc<S>,
    request: ClaimRequest,
    round: Arc<Round>,
) -> Result<bool, Stop> {
    loop {
        match claim(&*store, &request).await? {
            Answer::Completed { .. } => return Ok(false),
            Answer::InProgress { .. } | Answer::Refused(_) => sleep(AGAIN).await,
            Answer::Acquired(session) => {
                let holders = round.holders.fetch_add(1, SeqCst) + 1;
                yield_now().await;
                round.holders.fetch_sub(1, SeqCst);
                ensure!(holders == 1, "expected one consumer at a time; {holders} hold the claim");
                if round.gives_back.swap(false, SeqCst) {
                    store.release(session).await.map_err(error("release"))?;
                    continue;
                }
                match store.complete(session).await {
                    Ok(()) => return Ok(true),
                    Err(error) if passes(&error) => {}
                    Err(unexpected) => return Err(error("complete, in a race")(unexpected)),
                }
            }
        }
    }
}
