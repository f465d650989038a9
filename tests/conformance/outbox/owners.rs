//! Lanes are taken, and failures noted by their owners, with a fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lapin_idempotent::{
    idempotency::{StoreError, StoreErrorKind},
    outbox::{Failed, Lane, Next, Outbox, RelayId, Select, Term},
};
use tokio::task::yield_now;

use super::{
    fault::Fault,
    faulty::{Faulty, LONG},
    reads::swapped,
};

impl Faulty {
    /// The lanes as they are.
    pub(super) async fn real(&self) -> Result<BTreeMap<Lane, (i64, Option<RelayId>)>, StoreError> {
        let lanes = self.inner.ownership(LONG).await?.lanes;
        Ok(lanes.into_iter().map(|(term, owner)| (term.lane, (term.term, owner))).collect())
    }

    /// The terms of these lanes as they are.
    pub(super) async fn current(&self, lanes: &[Term]) -> Result<Vec<Term>, StoreError> {
        let real = self.real().await?;
        Ok(lanes.iter().map(|term| Term { term: real[&term.lane].0, ..*term }).collect())
    }

    pub(super) async fn take_lanes(
        &self,
        relay: RelayId,
        lanes: &[Term],
        lease: Duration,
    ) -> Result<Vec<Term>, StoreError> {
        let real = self.real().await?;
        let as_told = |term: &&Term| real[&term.lane].0 == term.term;
        let is_free = |term: &&Term| real[&term.lane].1.is_none();
        let wanted: Vec<Term> = match self.fault {
            Fault::TakesWithAnyTerm => self.current(lanes).await?,
            Fault::KnowsNoTerms => {
                let zero: Vec<Term> = lanes.iter().filter(|term| term.term == 0).copied().collect();
                self.current(&zero).await?
            }
            Fault::TakesFromTheLive => {
                self.inner.release(lanes).await?;
                lanes.to_vec()
            }
            Fault::NeverTakesFromTheDead => lanes.iter().filter(is_free).copied().collect(),
            Fault::LooksBeforeItTakes => {
                let free: Vec<Term> = lanes.iter().filter(as_told).filter(is_free).copied().collect();
                yield_now().await;
                let now = self.current(&free).await?;
                self.inner.release(&now).await?;
                now
            }
            _ => lanes.to_vec(),
        };
        let mut taken = self.inner.take(relay, &wanted, lease).await?;
        if self.is(Fault::KnowsNoTerms) {
            for term in &mut taken {
                term.term = 0;
            }
        }
        Ok(taken)
    }

    /// Parks it, if an attempt is what it takes.
    async fn parks(&self, failed: &Failed) -> Result<bool, StoreError> {
        let rows = self.everything().await?;
        let key = rows.into_iter().find(|row| row.id == failed.row).and_then(|row| row.order_key);
        let parked = self.inner.list_parked(&Select::All, 0, u32::MAX).await?;
        Ok(match self.fault {
            Fault::ParksEveryFollower => true,
            Fault::FollowsAnything => !parked.is_empty(),
            Fault::FollowsAnyOfItsKey => parked.iter().any(|parked| parked.row.order_key == key),
            _ => false,
        })
    }

    pub(super) async fn note(&self, held: &[Term], failed: &[Failed]) -> Result<Vec<Lane>, StoreError> {
        let mut held = held.to_vec();
        let mut failed = failed.to_vec();
        for failed in &mut failed {
            match self.fault {
                Fault::SwapsNumbers => failed.row.seq = swapped(failed.row.seq),
                Fault::CountsEverything => failed.counted = true,
                Fault::CountsNothing if failed.next != Next::Park => failed.counted = false,
                Fault::KnowsNoPauses if failed.next != Next::Park => {
                    failed.next = Next::Retry(Duration::ZERO);
                }
                Fault::FailsByNumber | Fault::FoldsIdsOfFailures => {
                    self.taken_for(failed.row, &mut failed.message_id).await?;
                }
                Fault::CutsErrors => failed.error.truncate(3),
                Fault::ParksNothing => failed.next = Next::Retry(Duration::ZERO),
                _ if failed.next == Next::Park && self.parks(failed).await? => failed.counted = true,
                _ => {}
            }
        }
        match self.fault {
            Fault::UnparksWithAttempts => self.shared().failed.extend(failed.iter().map(|failed| failed.row)),
            Fault::ParksNoFollower => failed.retain(|failed| failed.counted || failed.next != Next::Park),
            Fault::KnowsNoTerms => held = self.current(&held).await?,
            Fault::FailsUnderAnyTerm => {
                let lanes: BTreeSet<Lane> = failed.iter().map(|failed| failed.row.lane).collect();
                let all: Vec<Term> = lanes.into_iter().map(|lane| Term { lane, term: 0 }).collect();
                held = self.current(&all).await?;
            }
            Fault::NotesNothingBesideLostLanes if !self.inner.fail(&held, &[]).await?.is_empty() => {
                failed.clear();
            }
            Fault::FailsOverRowsThatAreGone => {
                let there = self.everything().await?;
                if failed.iter().any(|failed| there.iter().all(|row| row.id != failed.row)) {
                    return Err(StoreErrorKind::Refused.into());
                }
            }
            _ => {}
        }
        let lost = self.inner.fail(&held, &failed).await?;
        Ok(if self.is(Fault::TellsOfNoLostLanes) { Vec::new() } else { lost })
    }
}
