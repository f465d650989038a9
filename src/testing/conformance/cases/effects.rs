//! Effect and identity are committed together, or not at all.

use std::sync::Arc;

use tokio::{task::JoinSet, time::sleep};

use crate::{
    idempotency::{ClaimRequest, IdempotencyStore},
    testing::conformance::{
        Effects,
        bench::{AGAIN, Answer, Bench, Outcome, Stop, claim, ensure, error, failed, passes},
        capabilities::Need::Transactions,
        runner::Runner,
    },
};

const ROUNDS: u32 = 10;

pub(in super::super) async fn all<S: IdempotencyStore, E: Effects<S>>(
    runner: &mut Runner<'_, S>,
    effects: &Arc<E>,
) {
    let with = |bench| WithEffects { bench, effects: Arc::clone(effects) };
    let needs = &[Transactions];
    runner.case(("effect_is_committed_with_its_identity", "I1, I2"), needs, |b| with(b).committed()).await;
    runner.case(("effect_is_undone_by_release", "I2, I3"), needs, |b| with(b).released()).await;
    runner.case(("effect_is_undone_with_a_dropped_session", "I2, I3"), needs, |b| with(b).dropped()).await;
    runner.case(("effect_of_a_race_is_one", "I2"), needs, |b| with(b).race()).await;
}

struct WithEffects<S, E> {
    bench: Bench<S>,
    effects: Arc<E>,
}

impl<S: IdempotencyStore, E: Effects<S>> WithEffects<S, E> {
    fn name(&self) -> &str {
        self.bench.unique()
    }

    async fn check(&self, expected: u64, when: &str) -> Outcome {
        let count = self.effects.count(self.name()).await;
        ensure!(count == expected, "{when}: expected {expected} effect(s); came {count}");
        Ok(())
    }

    /// A session with one effect in it.
    async fn written(&self, request: &ClaimRequest) -> Result<S::Session, Stop> {
        let mut session = self.bench.acquire_later(&self.bench.a, request).await?;
        let written = self.effects.write(&mut session, self.name()).await;
        written.map_err(|error| failed(format!("write an effect: expected Ok; came {error}")))?;
        Ok(session)
    }

    async fn committed(self) -> Outcome {
        let bench = &self.bench;
        let request = bench.request("x");
        let session = self.written(&request).await?;
        bench.a.complete(session).await.map_err(error("complete"))?;
        self.check(1, "after complete").await?;
        bench.completed(&bench.b, &request).await?;
        self.check(1, "after a duplicate").await
    }

    async fn released(self) -> Outcome {
        let bench = &self.bench;
        let request = bench.request("x");
        let session = self.written(&request).await?;
        bench.a.release(session).await.map_err(error("release"))?;
        self.check(0, "after release").await?;
        // The next attempt.
        let session = self.written(&request).await?;
        bench.a.complete(session).await.map_err(error("complete"))?;
        self.check(1, "after release and another attempt").await
    }

    async fn dropped(self) -> Outcome {
        let bench = &self.bench;
        let request = bench.request("x");
        drop(self.written(&request).await?);
        // Once the identity is free again, the effect is gone.
        let session = bench.acquire_later(&bench.b, &request).await?;
        bench.b.release(session).await.map_err(error("release"))?;
        self.check(0, "after a dropped session").await?;
        let session = self.written(&request).await?;
        bench.a.complete(session).await.map_err(error("complete"))?;
        self.check(1, "after a dropped session and another attempt").await
    }

    async fn race(self) -> Outcome {
        for round in 1..=ROUNDS {
            let request = self.bench.request(&round.to_string());
            let mut rivals = JoinSet::new();
            for store in [&self.bench.a, &self.bench.b] {
                let name = self.name().to_owned();
                rivals.spawn(take_effect(
                    Arc::clone(store),
                    Arc::clone(&self.effects),
                    request.clone(),
                    name,
                ));
            }
            while let Some(rival) = rivals.join_next().await {
                rival.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
            }
            self.check(round.into(), "after a race, one more than before").await?;
        }
        Ok(())
    }
}

/// Claims until the identity is completed, with an effect in each session.
async fn take_effect<S: IdempotencyStore, E: Effects<S>>(
    store: Arc<S>,
    effects: Arc<E>,
    request: ClaimRequest,
    name: String,
) -> Outcome {
    loop {
        match claim(&*store, &request).await? {
            Answer::Completed { .. } => return Ok(()),
            Answer::InProgress { .. } | Answer::Refused(_) => sleep(AGAIN).await,
            Answer::Acquired(mut session) => {
                let written = effects.write(&mut session, &name).await;
                written.map_err(|error| failed(format!("write an effect: expected Ok; came {error}")))?;
                match store.complete(session).await {
                    Ok(()) => return Ok(()),
                    Err(error) if passes(&error) => {}
                    Err(unexpected) => return Err(error("complete, in a race")(unexpected)),
                }
            }
        }
    }
}
