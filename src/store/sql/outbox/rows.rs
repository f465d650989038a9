//! Rows of the table, as they come from a driver.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    message::MessageId,
    outbox::{Lane, Row, RowId},
};

/// A row of a driver, by the numbers of its columns.
pub trait Cells {
    /// Text, which some databases keep as bytes.
    fn text(&self, column: usize) -> Result<Option<String>, sqlx::Error>;
    fn number(&self, column: usize) -> Result<Option<i64>, sqlx::Error>;
    fn bytes(&self, column: usize) -> Result<Vec<u8>, sqlx::Error>;

    /// A number that is always there.
    fn some(&self, column: usize) -> Result<i64, sqlx::Error> {
        self.number(column)?.ok_or_else(|| wrong("NULL where a number should be"))
    }
}

/// [`Cells`] of a driver's row.
macro_rules! cells {
    ($row:ty) => {
        impl $crate::store::sql::Cells for $row {
            fn text(&self, column: usize) -> Result<Option<String>, sqlx::Error> {
                let bytes: Option<Vec<u8>> = sqlx::Row::try_get_unchecked(self, column)?;
                let text = bytes.map(String::from_utf8).transpose();
                text.map_err(|error| sqlx::Error::Decode(error.into()))
            }

            fn number(&self, column: usize) -> Result<Option<i64>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }

            fn bytes(&self, column: usize) -> Result<Vec<u8>, sqlx::Error> {
                sqlx::Row::try_get(self, column)
            }
        }
    };
}

pub(in crate::store) use cells;

/// How many columns [`decode`] reads.
pub(super) const READ: usize = 11;

/// Something that this crate does not write.
pub(super) fn wrong(what: impl Into<String>) -> sqlx::Error {
    sqlx::Error::Decode(what.into().into())
}

/// The lane of a row, or the one that it was parked from, and its number.
pub(super) fn id(cells: &impl Cells) -> Result<RowId, sqlx::Error> {
    Ok(RowId { lane: lane(cells.some(0)?)?, seq: cells.some(1)? })
}

pub(super) fn lane(number: i64) -> Result<Lane, sqlx::Error> {
    let number = if number < 0 { -1 - number } else { number };
    u16::try_from(number).map(Lane).map_err(|_| wrong(format!("lane {number}")))
}

/// A row of the statements' columns.
pub(super) fn decode(cells: &impl Cells) -> Result<Row, sqlx::Error> {
    let text = |column| cells.text(column)?.ok_or_else(|| wrong("NULL where a text should be"));
    Ok(Row {
        id: id(cells)?,
        message_id: MessageId::new(text(2)?).map_err(|error| sqlx::Error::Decode(error.into()))?,
        exchange: text(3)?,
        routing_key: text(4)?,
        order_key: cells.text(5)?,
        properties: cells.text(6)?,
        body: Bytes::from(cells.bytes(7)?),
        age: ago(cells.some(8)?),
        attempts: u32::try_from(cells.some(9)?).unwrap_or_default(),
        retry_in: Duration::from_micros(
            u64::try_from(cells.number(10)?.unwrap_or_default()).unwrap_or_default(),
        ),
    })
}

/// How long ago something was that is so many microseconds ahead.
pub(super) fn ago(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(-micros).unwrap_or_default())
}
