//! Rows are put in.

use super::{SqlDatabase, SqlOutbox};
use crate::{
    idempotency::{StoreError, StoreErrorKind},
    outbox::NewRow,
    store::sql::error::not_claimed,
};

/// How many rows go into one statement, and how many bytes of bodies if it has more than one row:
/// servers bound what they take at once (`max_allowed_packet`: 16 MiB by default in MariaDB).
const ROWS: usize = 1024;
const BYTES: usize = 4 << 20;

/// A row is for a lane that its table does not have, so that nobody would read it.
#[derive(Debug, thiserror::Error)]
#[error("lane {lane} of a table that has {lanes}")]
struct NoLane {
    lane: u16,
    lanes: u16,
}

impl<DB: SqlDatabase> SqlOutbox<DB> {
    pub(super) async fn put_in(
        &self,
        connection: &mut DB::Connection,
        mut rows: &[NewRow],
    ) -> Result<(), StoreError> {
        if let Some(row) = rows.iter().find(|row| row.lane.0 >= DB::LANES) {
            let error = NoLane { lane: row.lane.0, lanes: DB::LANES };
            return Err(StoreError::new(StoreErrorKind::Configuration, error));
        }
        // No limit of time: the transaction is the caller's, and so are its limits.
        while !rows.is_empty() {
            let (some, rest) = rows.split_at(fitting(rows));
            DB::put(connection, &self.statements, some).await.map_err(not_claimed::<DB>)?;
            rows = rest;
        }
        Ok(())
    }
}

/// How many of the first rows go into one statement: at least one.
fn fitting(rows: &[NewRow]) -> usize {
    let mut bytes = 0;
    let fit = rows.iter().take(ROWS).take_while(|row| {
        bytes += row.body.len() + row.properties.as_ref().map_or(0, String::len);
        bytes <= BYTES
    });
    fit.count().max(1)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::outbox::Lane;

    #[test]
    fn statements_are_bounded_and_never_empty() {
        let row = |bytes| NewRow {
            lane: Lane(0),
            message_id: "a".parse().unwrap(),
            exchange: String::new(),
            routing_key: String::new(),
            order_key: None,
            properties: None,
            body: Bytes::from(vec![0; bytes]),
        };
        assert_eq!(fitting(&vec![row(1); 3000]), ROWS);
        assert_eq!(fitting(&vec![row(BYTES + 1); 2]), 1);
        assert_eq!(fitting(&vec![row(BYTES / 4); 9]), 4);
    }
}
