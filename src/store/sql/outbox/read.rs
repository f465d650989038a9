//! Rows are read, and removed when they are published.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::Ordering,
};

use super::{
    SqlDatabase, SqlOutbox,
    rows::{Cells, READ, decode, id, wrong},
};
use crate::{
    error::Chain,
    idempotency::{StoreError, StoreErrorKind},
    outbox::{Batch, Confirmed, Lane, ReadRequest, Removed, Row, RowId},
    store::sql::error::failed,
};

/// What was read of a lane.
#[derive(Default)]
struct Read {
    rows: u32,
    last: i64,
    /// Whether there is one behind the last one that did not fit.
    is_cut: bool,
}

impl<DB: SqlDatabase> SqlOutbox<DB> {
    pub(super) async fn read_rows(&self, request: &ReadRequest<'_>) -> Result<Batch, StoreError> {
        if request.from.is_empty() {
            return Ok(Batch::default());
        }
        let found = self.fetched(DB::read(&self.statements, request)).await?;
        self.batch(&found, request).map_err(failed::<DB>)
    }

    fn batch(&self, found: &[DB::Row], request: &ReadRequest<'_>) -> Result<Batch, sqlx::Error> {
        let mut batch = Batch::default();
        let mut lanes: HashMap<Lane, Read> = HashMap::new();
        for cells in found {
            if batch.ended_below.is_none() {
                batch.ended_below = transaction(cells, READ + 1)?;
            }
            if cells.number(0)?.is_none() {
                // Nothing was there, and only the snapshot is told.
                continue;
            }
            let RowId { lane, seq } = id(cells)?;
            let lane = lanes.entry(lane).or_default();
            lane.rows += 1;
            if seq >= lane.last {
                (lane.last, lane.is_cut) = (seq, cells.number(READ)?.is_some());
            }
            batch.rows.extend(self.message(cells)?);
        }
        let (keys, routes) = DB::LEFT_OUT;
        let keys: HashSet<&str> = request.without_keys.iter().skip(keys).map(String::as_str).collect();
        let routes = request.without_routes.iter().skip(routes);
        let routes: HashSet<_> = routes.map(|route| (&route.exchange, &route.routing_key)).collect();
        if !keys.is_empty() || !routes.is_empty() {
            batch.rows.retain(|row| match &row.order_key {
                Some(key) => !keys.contains(&**key),
                None => !routes.contains(&(&row.exchange, &row.routing_key)),
            });
        }
        batch.rows.sort_unstable_by_key(|row| row.id);
        let cut = lanes.into_iter().filter(|(_, read)| read.is_cut || read.rows >= request.rows);
        batch.cut = cut.map(|(lane, _)| lane).collect();
        batch.cut.sort_unstable();
        Ok(batch)
    }

    /// A row as a message. One that cannot be one, which somebody wrote by hand, must not stop all
    /// others.
    fn message(&self, cells: &DB::Row) -> Result<Option<Row>, sqlx::Error> {
        match decode(cells) {
            Ok(row) => Ok(Some(row)),
            Err(error) => {
                let RowId { lane, seq } = id(cells)?;
                if self.told.swap(seq, Ordering::Relaxed) != seq {
                    let (table, error) = (&self.statements.table, Chain(&error));
                    tracing::error!(%table, lane = lane.0, seq, %error, "a row is no message: it is left out");
                }
                Ok(None)
            }
        }
    }

    pub(super) async fn remove_rows(&self, confirmed: &[Confirmed]) -> Result<Removed, StoreError> {
        // Where transactions are told, the identity of one is asked for.
        if confirmed.is_empty() && !DB::TELLS_ENDED {
            return Ok(Removed::default());
        }
        let mut confirmed = confirmed.to_vec();
        // Whoever else removes some of them waits, and not in a circle.
        confirmed.sort_unstable();
        let removing =
            async { DB::remove(&self.pool, &self.statements, &confirmed).await.map_err(failed::<DB>) };
        self.answered(StoreErrorKind::OutcomeUnknown, removing).await
    }
}

/// The identity of a transaction, where the database has told one.
fn transaction(cells: &impl Cells, column: usize) -> Result<Option<u64>, sqlx::Error> {
    let text = cells.text(column)?;
    text.map(|text| text.parse().map_err(|_| wrong(format!("transaction {text}")))).transpose()
}
