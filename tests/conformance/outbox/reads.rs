//! Rows are read and removed, with a fault.

use std::time::Duration;

use lapin_idempotent::{
    MessageId,
    idempotency::StoreError,
    outbox::{Batch, Confirmed, Lane, Outbox, ReadRequest, Removed, Route, Row, RowId},
};
use tokio::time::sleep;

use super::{fault::Fault, faulty::Faulty};

fn route(row: &Row) -> Route {
    Route { exchange: row.exchange.clone(), routing_key: row.routing_key.clone() }
}

/// Changes places with its neighbour, there and back.
pub(super) fn swapped(seq: i64) -> i64 {
    if seq <= 0 || seq == i64::MAX { seq } else { ((seq - 1) ^ 1) + 1 }
}

impl Faulty {
    pub(super) async fn everything(&self) -> Result<Vec<Row>, StoreError> {
        let from: Vec<RowId> =
            (0..self.inner.lanes()).map(|lane| RowId { lane: Lane(lane), seq: 0 }).collect();
        let (without_keys, without_routes) = (&[][..], &[][..]);
        let all = ReadRequest {
            from: &from,
            without_rows: &[],
            without_keys,
            without_routes,
            rows: u32::MAX,
            bytes: u64::MAX,
        };
        Ok(self.inner.read(&all).await?.rows)
    }

    async fn waits_for_producers(&self) -> Result<(), StoreError> {
        loop {
            let mark = self.inner.remove(&[]).await?.transaction;
            let from = [RowId { lane: Lane(0), seq: i64::MAX - 1 }];
            let read = ReadRequest {
                from: &from,
                without_rows: &[],
                without_keys: &[],
                without_routes: &[],
                rows: 1,
                bytes: 1,
            };
            if self.inner.read(&read).await?.ended_below > mark {
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn read_rows(&self, request: &ReadRequest<'_>) -> Result<Batch, StoreError> {
        let mut from = request.from.to_vec();
        let (mut keys, mut routes) = (request.without_keys.to_vec(), request.without_routes.to_vec());
        let (mut rows, mut bytes) = (request.rows, request.bytes);
        match self.fault {
            Fault::WaitsForProducers => self.waits_for_producers().await?,
            Fault::IgnoresNumbers | Fault::SwapsNumbers => from.iter_mut().for_each(|from| from.seq = 0),
            Fault::ReadsEveryLane => {
                let named = |lane: &Lane| request.from.iter().any(|from| from.lane == *lane);
                let others = (0..self.lanes()).map(Lane).filter(|lane| !named(lane));
                from.extend(others.map(|lane| RowId { lane, seq: 0 }));
                from.sort_unstable();
            }
            Fault::IgnoresTheLimitOfRows => rows = u32::MAX,
            Fault::IgnoresTheLimitOfBytes => bytes = u64::MAX,
            Fault::ReadsABodyTooMany => bytes = bytes.saturating_add(3),
            Fault::IgnoresKeys | Fault::LeavesKeysOutAfterwards => keys.clear(),
            Fault::LeavesRoutesOutAfterwards | Fault::IgnoresRoutes => routes.clear(),
            Fault::NamesAThousandKeys => keys.truncate(1000),
            Fault::NamesAThousandRoutes => routes.truncate(1000),
            _ => {}
        }
        let without_rows = if self.fault == Fault::IgnoresKnownRows { &[] } else { request.without_rows };
        let asked = ReadRequest {
            from: &from,
            without_rows,
            without_keys: &keys,
            without_routes: &routes,
            rows,
            bytes,
        };
        let mut batch = self.inner.read(&asked).await?;
        match self.fault {
            Fault::SwapsNumbers => {
                batch.rows.iter_mut().for_each(|row| row.id.seq = swapped(row.id.seq));
                let behind = |row: &Row| {
                    request.from.iter().any(|from| from.lane == row.id.lane && row.id.seq > from.seq)
                };
                batch.rows.retain(behind);
                batch.rows.sort_unstable_by_key(|row| row.id);
            }
            Fault::ReadsBackwards => batch.rows.reverse(),
            Fault::SkipsWhatCommitsLate => {
                let mut shared = self.shared();
                batch.rows.retain(|row| {
                    let highest = shared.highest.get(&row.id.lane).copied().unwrap_or_default();
                    row.id.seq > highest || shared.seen.contains(&row.id)
                });
                for row in &batch.rows {
                    shared.seen.insert(row.id);
                    let highest = shared.highest.entry(row.id.lane).or_default();
                    *highest = row.id.seq.max(*highest);
                }
            }
            Fault::TellsNoCut => batch.cut.clear(),
            Fault::TellsAlwaysOfACut => batch.cut = request.from.iter().map(|from| from.lane).collect(),
            Fault::ReadsNothingOversized => {
                let rows = std::mem::take(&mut batch.rows).into_iter();
                batch.rows = rows.take_while(|row| row.body.len() as u64 <= request.bytes).collect();
            }
            Fault::FoldsKeysOfReads => {
                let folded: Vec<String> = request.without_keys.iter().map(|key| key.to_lowercase()).collect();
                batch.rows.retain(|row| {
                    row.order_key.as_ref().is_none_or(|key| !folded.contains(&key.to_lowercase()))
                });
            }
            Fault::LeavesKeysOutAfterwards => batch
                .rows
                .retain(|row| row.order_key.as_ref().is_none_or(|key| !request.without_keys.contains(key))),
            Fault::LeavesRoutesOutAfterwards => batch
                .rows
                .retain(|row| row.order_key.is_some() || !request.without_routes.contains(&route(row))),
            Fault::LeavesKeysOutWithRoutes => {
                batch.rows.retain(|row| !request.without_routes.contains(&route(row)));
            }
            Fault::HidesWhatIsLeftAlone => batch.rows.retain(|row| row.retry_in.is_zero()),
            Fault::KnowsNoAge => batch.rows.iter_mut().for_each(|row| row.age = Duration::ZERO),
            Fault::UnparksWithAttempts => {
                let failed = self.shared().failed.clone();
                batch.rows.iter_mut().filter(|row| failed.contains(&row.id)).for_each(|row| row.attempts = 1);
            }
            Fault::TellsTheEndOfTheSnapshot => {
                batch.ended_below = self.inner.remove(&[]).await?.transaction.map(|last| last + 1);
            }
            Fault::NeverTellsOfAnEnd => batch.ended_below = Some(0),
            Fault::TellsNothing => batch.ended_below = None,
            _ => {}
        }
        Ok(batch)
    }

    /// Takes what is there for the message that is meant.
    pub(super) async fn taken_for(&self, id: RowId, meant: &mut MessageId) -> Result<(), StoreError> {
        let folds = matches!(self.fault, Fault::FoldsIdsOfRemovals | Fault::FoldsIdsOfFailures);
        let folded = |id: &MessageId| id.as_str().trim_end().to_lowercase();
        let there = self.everything().await?.into_iter().find(|row| row.id == id);
        let there = there.filter(|row| !folds || folded(&row.message_id) == folded(meant));
        if let Some(row) = there {
            *meant = row.message_id;
        }
        Ok(())
    }

    pub(super) async fn remove_rows(&self, confirmed: &[Confirmed]) -> Result<Removed, StoreError> {
        let mut rows = confirmed.to_vec();
        let asked = rows.len() as u64;
        match self.fault {
            Fault::EmptyRemovalIsNone if rows.is_empty() => return Ok(Removed::default()),
            Fault::SwapsNumbers => rows.iter_mut().for_each(|of| of.row.seq = swapped(of.row.seq)),
            Fault::RemovesInAnyLane => {
                let lanes = 0..self.lanes();
                let in_lane = |of: &Confirmed, lane| Confirmed {
                    row: RowId { lane: Lane(lane), ..of.row },
                    message_id: of.message_id.clone(),
                };
                rows = lanes.flat_map(|lane| rows.iter().map(move |of| in_lane(of, lane))).collect();
            }
            Fault::RemovesOnlyOfFreeLanes => {
                let real = self.real().await?;
                rows.retain(|of| real[&of.row.lane].1.is_none());
            }
            Fault::RemovesNothing => {
                let there = self.everything().await?;
                let is_there = |of: &&Confirmed| there.iter().any(|row| Confirmed::from(row) == **of);
                let found = rows.iter().filter(is_there).count() as u64;
                return Ok(Removed { rows: found, ..self.inner.remove(&[]).await? });
            }
            Fault::RemovesByNumber | Fault::FoldsIdsOfRemovals => {
                for of in &mut rows {
                    self.taken_for(of.row, &mut of.message_id).await?;
                }
            }
            _ => {}
        }
        let mut removed = self.inner.remove(&rows).await?;
        match self.fault {
            Fault::CountsWhatIsNotThere => removed.rows = asked,
            Fault::TellsNothing => removed.transaction = None,
            _ => {}
        }
        Ok(removed)
    }
}
