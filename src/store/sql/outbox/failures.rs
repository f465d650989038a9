//! Failures are noted, by whoever has the lane.

use std::collections::BTreeSet;

use sqlx::AssertSqlSafe;

use super::{LONGEST, SqlDatabase, SqlOutbox};
use crate::{
    error::bounded_to,
    idempotency::{StoreError, StoreErrorKind},
    outbox::{Failed, Lane, Next, RowId, Term},
    store::sql::{
        begin::begun,
        dialect::Value,
        error::{failed as error, not_committed},
        options::micros,
    },
};

/// How much of an error is kept.
const ERROR_BYTES: usize = 1000;

impl<DB: SqlDatabase> SqlOutbox<DB> {
    pub(super) async fn note(&self, held: &[Term], failed: &[Failed]) -> Result<Vec<Lane>, StoreError> {
        let noting = self.note_in_time(held, failed);
        self.answered(StoreErrorKind::OutcomeUnknown, noting).await
    }

    async fn note_in_time(&self, held: &[Term], failed: &[Failed]) -> Result<Vec<Lane>, StoreError> {
        let mut transaction = begun(&self.pool, DB::begin(&self.limits)).await.map_err(error::<DB>)?;
        let mut held = held.to_vec();
        // All in one order, so that two relays never wait for each other in a circle.
        held.sort_unstable_by_key(|term| term.lane);
        let (mut kept, mut lost) = (BTreeSet::new(), BTreeSet::new());
        for Term { lane, term } in held {
            let values = [Value::Integer(lane.0.into()), Value::Integer(term)];
            let fence = DB::bound(sqlx::query(AssertSqlSafe(self.statements.fence.as_str())), &values);
            // Nobody takes the lane from here to the commit.
            let found = DB::fetch(&mut transaction, fence).await.map_err(error::<DB>)?;
            if found.is_empty() {
                lost.insert(lane)
            } else {
                kept.insert(lane)
            };
        }
        let mut failed: Vec<&Failed> = failed.iter().collect();
        failed.sort_unstable_by_key(|failed| failed.row);
        for failed in failed {
            let row = failed.row;
            if !kept.contains(&row.lane) {
                lost.insert(row.lane);
                continue;
            }
            let (counted, why) =
                (Value::Integer(failed.counted.into()), bounded_to(&failed.error, ERROR_BYTES));
            let (why, lane, seq) =
                (Value::Text(&why), Value::Integer(row.lane.0.into()), Value::Integer(row.seq));
            let id = Value::Text(failed.message_id.as_str());
            let changed = match failed.next {
                Next::Retry(pause) => {
                    let pause = Value::Integer(micros(pause.min(LONGEST)));
                    let values = [counted, pause, why, lane, seq, id];
                    DB::execute(&mut transaction, &self.statements.retry, &values).await
                }
                Next::Park => {
                    if !failed.counted
                        && !Self::follows(&self.statements.follows, &mut transaction, row).await?
                    {
                        continue;
                    }
                    let values = [counted, why, lane, seq, id];
                    DB::execute(&mut transaction, &self.statements.park, &values).await
                }
            };
            // None, if it was removed meanwhile, or its number is another message's.
            changed.map_err(error::<DB>)?;
        }
        transaction.commit().await.map_err(not_committed::<DB>)?;
        Ok(lost.into_iter().collect())
    }

    /// Whether a row of its key with a lower number is parked.
    async fn follows(sql: &str, connection: &mut DB::Connection, row: RowId) -> Result<bool, StoreError> {
        let values = [Value::Integer(row.lane.0.into()), Value::Integer(row.seq)];
        let follows = DB::bound(sqlx::query(AssertSqlSafe(sql)), &values);
        Ok(!DB::fetch(connection, follows).await.map_err(error::<DB>)?.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters_and_hold_no_zero_byte() {
        assert_eq!(bounded_to("a\0b", 255), "a\\u{0}b");
        let cut = bounded_to(&"é".repeat(2000), ERROR_BYTES - 1);
        assert_eq!(cut.len(), ERROR_BYTES - 2);
    }
}
