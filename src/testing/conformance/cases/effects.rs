//! Effect and identity are committed together, or not at all.

use std::sync::Arc;

use tokio::{task::JoinSet, time::sleep};

use crate::{
    idempotency::{ClaimRequest, IdempotencyStore},
    testing::conformance::{
        Effects,
        capabilities::Need::Transactions,
        fixture::{AGAIN, Answer, Fixture, Outcome, Stop, claim, ensure, error, failed, passes},
        runner::Runner,
    },
};

const ROUNDS: u32 = 10;

pub(in super::super) async fn all<S: IdempotencyStore, E: Effects<S>>(
    runner: &mut Runner<'_, S>,
    effects: &Arc<E>,
) {
    let with = |fixture| WithEffects { fixture, effects: Arc::clone(effects) };
    let needs = &[Transactions];
    runner.case(("effect_is_committed_with_its_identity", "I1, I2"), needs, |b| with(b).committed()).await;
    runner.case(("effect_is_undone_by_release", "I2, I3"), needs, |b| with(b).released()).await;
    runner.case(("effect_is_undone_with_a_dropped_session", "I2, I3"), needs, |b| with(b).dropped()).await;
    runner.case(("effect_of_a_race_is_one", "I2"), needs, |b| with(b).race()).await;
}

struct WithEffects<S, E> {
    fixture: Fixture<S>,
    effects: Arc<E>,
}

impl<S: IdempotencyStore, E: Effects<S>> WithEffects<S, E> {
    fn name(&self) -> &str {
        self.fixture.unique()
    }

    async fn check(&self, expected: u64, when: &str) -> Outcome {
        let count = self.effects.count(self.name()).await;
        ensure!(count == expected, "{when}: expected {expected} effect(s); came {count}");
        Ok(())
    }

    /// A session with one effect in it.
    async fn written(&self, request: &ClaimRequest) -> Result<S::Session, Stop> {
        let mut session = self.fixture.acquire_later(&self.fixture.a, request).await?;
        let written = self.effects.write(&mut session, self.name()).await;
        written.map_err(|error| failed(format!("write an effect: expected Ok; came {error}")))?;
        Ok(session)
    }

    async fn committed(self) -> Outcome {
        let fixture = &self.fixture;
        let request = fixture.request("x");
        let session = self.written(&request).await?;
        fixture.a.complete(session).await.map_err(error("complete"))?;
        self.check(1, "after complete").await?;
        fixture.completed(&fixture.b, &request).await?;
        self.check(1, "after a duplicate").await
    }

    async fn released(self) -> Outcome {
        let fixture = &self.fixture;
        let request = fixture.request("x");
        let session = self.written(&request).await?;
        fixture.a.release(session).await.map_err(error("release"))?;
        self.check(0, "after release").await?;
        // The next attempt.
        let session = self.written(&request).await?;
        fixture.a.complete(session).await.map_err(error("complete"))?;
        self.check(1, "after release and another attempt").await
    }

    async fn dropped(self) -> Outcome {
        let fixture = &self.fixture;
        let request = fixture.request("x");
        drop(self.written(&request).await?);
        // Once the identity is free again, the effect is gone.
        let session = fixture.acquire_later(&fixture.b, &request).await?;
        fixture.b.release(session).await.map_err(error("release"))?;
        self.check(0, "after a dropped session").await?;
        let session = self.written(&request).await?;
        fixture.a.complete(session).await.map_err(error("complete"))?;
        self.check(1, "after a dropped session and another attempt").await
    }

    async fn race(self) -> Outcome {
        for round in 1..=ROUNDS {
            let request = self.fixture.request(&round.to_string());
            let mut rivals = JoinSet::new();
            for store in [&self.fixture.a, &self.fixture.b] {
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
