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

/// How many claims must meet nothing that is known before one is made plainly again: where copies
/// are common, few are made in vain.
const CARE: u32 = 32;

/// Whether to expect that a batch is new.
#[derive(Debug, Default)]
pub(super) struct OptimisticInsert {
    /// Claims to be made with care.
    careful: AtomicU32,
}

impl OptimisticInsert {
    /// For so many identities.
    pub(super) fn is_worth_it(&self, identities: usize) -> bool {
        identities >= WORTH && self.careful.load(Ordering::Relaxed) == 0
    }

    /// What a claim met: whether all were new.
    pub(super) fn learn(&self, all_new: bool) {
        let next = |careful: u32| if all_new { careful.checked_sub(1) } else { Some(CARE) };
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
    fn one_copy_makes_the_next_claims_careful() {
        let optimistic = OptimisticInsert::default();
        assert!(optimistic.is_worth_it(WORTH) && !optimistic.is_worth_it(WORTH - 1));
        optimistic.learn(true);
        assert!(optimistic.is_worth_it(1024));
        optimistic.learn(false);
        for _ in 0..CARE {
            assert!(!optimistic.is_worth_it(1024));
            optimistic.learn(true);
        }
        assert!(optimistic.is_worth_it(1024));
    }
}
