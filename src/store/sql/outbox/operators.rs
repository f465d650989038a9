//! What people ask for: the status, and what is parked.

use super::{
    SqlDatabase, SqlOutbox,
    rows::{Cells, READ, ago, decode, lane},
};
use crate::{
    idempotency::StoreError,
    outbox::{Lane, ParkedKey, ParkedRow, Select, TableStatus},
    store::sql::{dialect::Value, error::failed},
};

impl<DB: SqlDatabase> SqlOutbox<DB> {
    pub(super) async fn table_status(&self) -> Result<TableStatus, StoreError> {
        let found = self.selected(&self.statements.status, &[]).await?;
        status(&found).map_err(failed::<DB>)
    }

    pub(super) async fn keys_parked(&self, lanes: &[Lane]) -> Result<Vec<ParkedKey>, StoreError> {
        let found = self.selected(&self.statements.parked_keys, &[]).await?;
        keys(&found, lanes).map_err(failed::<DB>)
    }

    pub(super) async fn parked(
        &self,
        select: &Select,
        behind: i64,
        limit: u32,
    ) -> Result<Vec<ParkedRow>, StoreError> {
        let mut values = vec![Value::Integer(behind)];
        let sql = self.selected_by(&self.statements.list_parked, select, &mut values);
        values.push(Value::Integer(limit.into()));
        let sql = format!("{sql} ORDER BY seq LIMIT {}", (self.statements.value)(values.len()));
        let found = self.selected(&sql, &values).await?;
        found.iter().map(parked).collect::<Result<_, _>>().map_err(failed::<DB>)
    }

    pub(super) async fn put_back(&self, select: &Select) -> Result<u64, StoreError> {
        let mut values = Vec::new();
        let sql = self.selected_by(&self.statements.unpark, select, &mut values);
        self.changed(&sql, &values).await
    }

    pub(super) async fn delete_parked(&self, select: &Select) -> Result<u64, StoreError> {
        let mut values = Vec::new();
        let sql = self.selected_by(&self.statements.discard, select, &mut values);
        let rows = self.changed(&sql, &values).await?;
        if rows > 0 {
            tracing::warn!(table = %self.statements.table, rows, "parked messages were discarded on request, unpublished");
        }
        Ok(rows)
    }

    /// A statement that ends with its condition, with more of it.
    fn selected_by<'v>(&self, sql: &str, select: &'v Select, values: &mut Vec<Value<'v>>) -> String {
        let (column, value) = match select {
            Select::All => return sql.to_owned(),
            Select::Key(key) => ("order_key", Value::Text(key)),
            Select::Seq(seq) => ("seq", Value::Integer(*seq)),
        };
        values.push(value);
        format!("{sql} AND {column} = {}", (self.statements.value)(values.len()))
    }
}

fn status(found: &[impl Cells]) -> Result<TableStatus, sqlx::Error> {
    let mut status = TableStatus::default();
    for cells in found {
        let count = u64::try_from(cells.some(1)?).unwrap_or_default();
        match cells.some(0)? {
            -1 => status.parked = count,
            -2 => status.relays = count,
            _ => {
                status.backlog += count;
                status.oldest = status.oldest.max(cells.number(2)?.map(ago));
            }
        }
    }
    Ok(status)
}

fn keys(found: &[impl Cells], lanes: &[Lane]) -> Result<Vec<ParkedKey>, sqlx::Error> {
    let mut keys = Vec::new();
    for cells in found {
        if lanes.contains(&lane(cells.some(0)?)?) {
            let first = cells.some(1)?;
            keys.extend(cells.text(2)?.map(|key| ParkedKey { key, first }));
        }
    }
    Ok(keys)
}

fn parked(cells: &impl Cells) -> Result<ParkedRow, sqlx::Error> {
    let parked = cells.number(READ + 1)?.map(ago).unwrap_or_default();
    Ok(ParkedRow { row: decode(cells)?, error: cells.text(READ)?, parked })
}
