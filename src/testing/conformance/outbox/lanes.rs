//! Who has which lane.

use std::sync::Arc;

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{
    Transactions,
    handles::{Handles, LONG, OVER, SHORT, same},
};
use crate::{
    outbox::{Lane, Outbox, RelayId, Term},
    testing::conformance::{
        fixture::{AGAIN, Outcome, ensure, error, failed, passes},
        runner::Cases,
    },
};

const RIVALS: usize = 4;
const ROUNDS: usize = 10;

pub(super) async fn all<O: Outbox, T: Transactions<O>>(cases: &mut Cases<'_, Handles<O, T>>) {
    cases.case(("every_lane_is_there_and_free", "ownership"), &[], Handles::free).await;
    cases.case(("lane_is_taken_only_with_its_term", "contract 5"), &[], Handles::with_term).await;
    cases.case(("terms_grow", "contract 5"), &[], Handles::terms).await;
    cases.case(("lane_of_a_live_relay_stays_its_own", "contract 5"), &[], Handles::live).await;
    cases.case(("lane_of_a_dead_relay_is_taken", "contract 5"), &[], Handles::dead).await;
    cases.case(("takers_race_and_one_wins", "contract 5"), &[], Handles::race).await;
    cases.case(("beat_is_refused_after_the_lease", "contract 5"), &[], Handles::refused).await;
    cases.case(("beat_keeps_a_relay_alive", "beat"), &[], Handles::beats).await;
    cases.case(("released_lanes_are_free", "release"), &[], Handles::released).await;
    cases.case(("lanes_of_a_relay_that_left_are_free", "leave"), &[], Handles::left).await;
}

impl<O: Outbox, T: Transactions<O>> Handles<O, T> {
    async fn free(self) -> Outcome {
        let there = self.b.ownership(LONG).await.map_err(error("ownership"))?;
        same("relays", &there.relays, &[] as &[RelayId; 0])?;
        let lanes: Vec<(Lane, Option<RelayId>)> =
            there.lanes.iter().map(|(term, owner)| (term.lane, *owner)).collect();
        let expected: Vec<(Lane, Option<RelayId>)> =
            (0..self.a.lanes()).map(|lane| (Lane(lane), None)).collect();
        same("lanes, with their owners", &lanes, &expected)?;
        ensure!(!lanes.is_empty(), "lanes: expected one at least; came none");
        same("lanes of the other handle", &self.b.lanes(), &self.a.lanes())
    }

    async fn with_term(self) -> Outcome {
        let relay = self.relay(&self.a).await?;
        let (free, _) = self.owner(Lane(0)).await?;
        for wrong in [free.term + 1, free.term - 1] {
            let taken =
                self.a.take(relay, &[Term { term: wrong, ..free }], LONG).await.map_err(error("take"))?;
            same("lanes taken with a wrong term", &taken, &[] as &[Term; 0])?;
        }
        let taken = self.a.take(relay, &[free], LONG).await.map_err(error("take"))?;
        same("lanes taken with their term", &taken.len(), &1)?;
        let there = self.b.ownership(LONG).await.map_err(error("ownership"))?;
        same("relays", &there.relays, &[relay])?;
        let owned: Vec<_> = there.lanes.into_iter().filter(|(_, owner)| owner.is_some()).collect();
        same("lanes with an owner", &owned, &[(taken[0], Some(relay))])?;
        // Not a second time, even when it is free.
        self.a.release(&taken).await.map_err(error("release"))?;
        let again = self.a.take(relay, &[free], LONG).await.map_err(error("take"))?;
        same("lanes taken with the term of before", &again, &[] as &[Term; 0])
    }

    async fn terms(self) -> Outcome {
        let (mut last, _) = self.owner(self.last()).await?;
        for round in 0..6 {
            let outbox = if round % 2 == 0 { &self.a } else { &self.b };
            let relay = self.relay(outbox).await?;
            let now = self.owner(last.lane).await?.0;
            let taken = outbox.take(relay, &[now], LONG).await.map_err(error("take"))?;
            let [term] = taken.as_slice() else {
                return Err(failed(format!("take of {now:?}: expected it; came {taken:?}")));
            };
            ensure!(term.term > last.term, "term: expected one above {}; came {}", last.term, term.term);
            last = *term;
            if round < 3 {
                outbox.release(&taken).await.map_err(error("release"))?;
            }
            outbox.leave(relay).await.map_err(error("leave"))?;
        }
        Ok(())
    }

    async fn live(self) -> Outcome {
        let (owner, term) = self.take(Lane(0)).await?;
        let rival = self.relay(&self.b).await?;
        for relay in [rival, owner] {
            let taken = self.b.take(relay, &[term], LONG).await.map_err(error("take"))?;
            same("lanes taken from a live relay", &taken, &[] as &[Term; 0])?;
        }
        same("the lane's owner", &self.owner(Lane(0)).await?, &(term, Some(owner)))
    }

    async fn dead(self) -> Outcome {
        let (dead, term) = self.take(Lane(0)).await?;
        sleep(OVER).await;
        let deadline = Instant::now() + self.capabilities.patience();
        let (rival, taken) = loop {
            // One that was just heard of.
            let rival = self.relay(&self.b).await?;
            let relays = self.b.ownership(SHORT).await.map_err(error("ownership"))?.relays;
            ensure!(!relays.contains(&dead), "relays: expected none whose lease is over; it is among them");
            let taken = self.b.take(rival, &[term], SHORT).await.map_err(error("take"))?;
            if !taken.is_empty() || Instant::now() >= deadline {
                break (rival, taken);
            }
            sleep(AGAIN).await;
        };
        ensure!(
            taken.len() == 1 && taken[0].term > term.term,
            "lanes taken from a relay whose lease is over: expected one, with a term above {}; came {taken:?}",
            term.term
        );
        // Who comes back learns of it, and gives nothing away.
        let beats = self.a.beat(dead, SHORT).await.map_err(error("beat"))?;
        same("whether the beat of a relay counts that has lost its lanes", &beats, &false)?;
        self.a.release(&[term]).await.map_err(error("release"))?;
        self.a.leave(dead).await.map_err(error("leave"))?;
        same("the lane's owner", &self.owner(Lane(0)).await?, &(taken[0], Some(rival)))
    }

    async fn race(self) -> Outcome {
        let mut relays = Vec::new();
        for n in 0..RIVALS {
            let outbox = if n % 2 == 0 { &self.a } else { &self.b };
            relays.push((Arc::clone(outbox), self.relay(outbox).await?));
        }
        for _ in 0..ROUNDS {
            let wanted: Vec<Term> = self.owners().await?.into_iter().map(|(term, _)| term).collect();
            let mut rivals = JoinSet::new();
            for (outbox, relay) in &relays {
                let (outbox, relay, wanted) = (Arc::clone(outbox), *relay, wanted.clone());
                rivals.spawn(async move {
                    loop {
                        match outbox.take(relay, &wanted, LONG).await {
                            Ok(taken) => return Ok((relay, taken)),
                            Err(error) if passes(&error) => sleep(AGAIN).await,
                            Err(unexpected) => return Err(error("take, in a race")(unexpected)),
                        }
                    }
                });
            }
            let mut won = Vec::new();
            while let Some(rival) = rivals.join_next().await {
                let (relay, taken) =
                    rival.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
                won.extend(taken.into_iter().map(|term| (term, Some(relay))));
            }
            won.sort_unstable_by_key(|(term, _)| term.lane);
            same(
                "lanes that were won in a race, against the owners afterwards",
                &won,
                &self.owners().await?,
            )?;
            let won: Vec<Term> = won.into_iter().map(|(term, _)| term).collect();
            self.a.release(&won).await.map_err(error("release"))?;
        }
        Ok(())
    }

    async fn refused(self) -> Outcome {
        let relay = self.relay(&self.a).await?;
        let beats = self.a.beat(relay, LONG).await.map_err(error("beat"))?;
        same("whether a beat within the lease counts", &beats, &true)?;
        sleep(OVER).await;
        for _ in 0..2 {
            let beats = self.a.beat(relay, SHORT).await.map_err(error("beat"))?;
            same("whether a beat after the lease counts", &beats, &false)?;
        }
        let stranger = RelayId(Uuid::new_v4());
        let beats = self.a.beat(stranger, LONG).await.map_err(error("beat"))?;
        same("whether the beat of a relay counts that nobody knows", &beats, &false)
    }

    async fn beats(self) -> Outcome {
        // Only what took less than the lease says anything.
        for _ in 0..10 {
            let relay = self.relay(&self.a).await?;
            sleep(SHORT * 7 / 10).await;
            let beat = Instant::now();
            let beats = self.a.beat(relay, LONG).await.map_err(error("beat"))?;
            same("whether a beat within the lease counts", &beats, &true)?;
            sleep(SHORT * 6 / 10).await;
            let relays = self.b.ownership(SHORT).await.map_err(error("ownership"))?.relays;
            if beat.elapsed() < SHORT {
                ensure!(
                    relays.contains(&relay),
                    "relays: expected one that beat within the lease; it is not there"
                );
                return Ok(());
            }
        }
        Err(failed(format!("a beat and a look: expected less than {SHORT:?}; they took longer ten times")))
    }

    async fn released(self) -> Outcome {
        let (relay, term) = self.take(Lane(0)).await?;
        for wrong in [term.term - 1, term.term + 1] {
            self.b.release(&[Term { term: wrong, ..term }]).await.map_err(error("release"))?;
            let owner = self.owner(Lane(0)).await?;
            same("the lane's owner, after another term was released", &owner, &(term, Some(relay)))?;
        }
        let others = if self.last() == Lane(0) { None } else { Some(self.take(self.last()).await?) };
        self.a.release(&[term]).await.map_err(error("release"))?;
        same("the lane's owner, after it was released", &self.owner(Lane(0)).await?.1, &None)?;
        if let Some((other, of_other)) = others {
            let owner = self.owner(self.last()).await?;
            same("the owner of another lane", &owner, &(of_other, Some(other)))?;
        }
        self.take(Lane(0)).await.map(|_| ())
    }

    async fn left(self) -> Outcome {
        let (relay, _) = self.take(Lane(0)).await?;
        let others = if self.last() == Lane(0) { None } else { Some(self.take(self.last()).await?) };
        self.leave(relay).await?;
        let there = self.b.ownership(LONG).await.map_err(error("ownership"))?;
        ensure!(!there.relays.contains(&relay), "relays: expected none that left; it is among them");
        let (next, term) = self.take(Lane(0)).await?;
        // Who got no answer says it again.
        self.leave(relay).await?;
        let owner = self.owner(Lane(0)).await?;
        same("the lane's owner, after another relay has left twice", &owner, &(term, Some(next)))?;
        if let Some((other, of_other)) = others {
            let owner = self.owner(self.last()).await?;
            same("the owner of another lane", &owner, &(of_other, Some(other)))?;
        }
        let beats = self.a.beat(relay, LONG).await.map_err(error("beat"))?;
        same("whether the beat of a relay counts that left", &beats, &false)
    }
}
