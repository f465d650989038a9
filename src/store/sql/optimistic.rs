//! Claims of many identities that are all new, as they nearly always are.
//!
//! An INSERT that may skip rows looks for each of them first, and PostgreSQL takes 1.7 times as
//! long for it as for one that fails at the first row that is there. So a large batch is inserted
//! plainly, and once more with care if that fails. The unique key decides in both, and rivals wait
//! for each other in both; only the time is at stake.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    SqlDatabase,
    claim::{ROWS, identity},
    statements::Statements,
};
use crate::idempotency::ClaimRequest;

/// A batch of fewer rows gains less than the round trips that a failure costs.
const WORTH: usize = 32;

/// How many claims must meet nothing that is known before one is made plainly again: twice as many
/// after each that was made in vain, so that few are where copies are common. What is in vain is an
/// error in the server's log.
const CARE: (u32, u32) = (32, 4096);

/// Whether to expect that a batch is new.
#[derive(Debug)]
pub(super) struct OptimisticInsert {
    /// Claims to be made with care.
    careful: AtomicU32,
    /// So many after the next copy.
    care: AtomicU32,
}

impl Default for OptimisticInsert {
    fn default() -> Self {
        Self { careful: AtomicU32::new(0), care: AtomicU32::new(CARE.0 / 2) }
    }
}

impl OptimisticInsert {
    /// For so many identities.
    pub(super) fn is_worth_it(&self, identities: usize) -> bool {
        identities >= WORTH && self.is_likely()
    }

    /// Whether what comes next is likely to be new.
    pub(super) fn is_likely(&self) -> bool {
        self.careful.load(Ordering::Relaxed) == 0
    }

    /// A claim was made plainly, in vain.
    pub(super) fn missed(&self) {
        let doubled = |care: u32| Some(care.saturating_mul(2).min(CARE.1));
        let _ = self.care.fetch_update(Ordering::Relaxed, Ordering::Relaxed, doubled);
        self.learn(false);
    }

    /// What a claim met: whether all were new.
    pub(super) fn learn(&self, all_new: bool) {
        let care = self.care.load(Ordering::Relaxed);
        let next = |careful: u32| if all_new { careful.checked_sub(1) } else { Some(care.max(CARE.0)) };
        // Nothing to count down is no failure.
        let _ = self.careful.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

/// Inserts all, in sorted order so that two batches never wait for each other in a circle; fails at
/// the first one that is there.
pub(super) async fn claim_new<DB: SqlDatabase>(
    connection: &mut DB::Connection,
    statements: &Statements,
    requests: &[ClaimRequest],
) -> Result<(), sqlx::Error> {
    let mut rows: Vec<&ClaimRequest> = requests.iter().collect();
    rows.sort_unstable_by_key(|request| identity(request));
    for chunk in rows.chunks(ROWS) {
        DB::insert_new(connection, statements, chunk).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_claim_in_vain_makes_more_of_the_next_ones_careful() {
        let optimistic = OptimisticInsert::default();
        assert!(optimistic.is_worth_it(WORTH) && !optimistic.is_worth_it(WORTH - 1));
        optimistic.learn(true);
        assert!(optimistic.is_worth_it(1024));
        for care in [32, 64, 128, 256, 512, 1024, 2048, 4096, 4096] {
            optimistic.missed();
            for _ in 0..care {
                assert!(!optimistic.is_worth_it(1024) && !optimistic.is_likely());
                optimistic.learn(true);
            }
            assert!(optimistic.is_worth_it(1024) && optimistic.is_likely(), "after {care}");
        }
    }

    #[test]
    fn copy_that_a_careful_claim_meets_prolongs_the_care() {
        let optimistic = OptimisticInsert::default();
        optimistic.learn(false);
        optimistic.learn(true);
        optimistic.learn(false);
        for _ in 0..32 {
            assert!(!optimistic.is_likely());
            optimistic.learn(true);
        }
        assert!(optimistic.is_likely());
    }
}
