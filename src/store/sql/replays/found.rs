//! What operators see of replays.

use std::time::{Duration, SystemTime};

use crate::{
    idempotency::Scope,
    message::{Epoch, Fingerprint, MessageId},
    store::sql::outbox::Cells,
};

/// An opening of a replay: who let messages take effect once more, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayOpening {
    /// Where.
    pub scope: Scope,
    /// Which.
    pub epoch: Epoch,
    /// Who opened it.
    pub opened_by: String,
    /// Why.
    pub reason: String,
    /// When, by the database's clock.
    pub opened_at: SystemTime,
    /// When it was closed; `None` if it is open.
    pub closed_at: Option<SystemTime>,
    /// How many messages took effect in this epoch of this scope, in all its openings.
    pub replayed: u64,
}

/// A message that took effect in a replay.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplayedMessage {
    /// The original's ID.
    pub message_id: MessageId,
    /// The hash of the body that took effect.
    pub fingerprint: Fingerprint,
    /// When it took effect first, if that was known.
    pub first_effect_at: Option<SystemTime>,
    /// When it did so in the replay, by the database's clock.
    pub handled_at: SystemTime,
}

/// What a message of a replay would meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReplayOutlook {
    /// It took effect, and would do so once more.
    WouldRun,
    /// It has taken effect in this epoch: a copy is a duplicate.
    Known,
    /// It is not known to have taken effect: it never did, or the retention is over. It would do
    /// so.
    NeverRan,
}

fn time(micros: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

/// Something that this crate does not write.
fn wrong(error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::Decode(error.into())
}

fn text(cells: &impl Cells, column: usize) -> Result<String, sqlx::Error> {
    Ok(cells.text(column)?.unwrap_or_default())
}

pub(super) fn opening(cells: &impl Cells) -> Result<ReplayOpening, sqlx::Error> {
    Ok(ReplayOpening {
        scope: Scope::new(text(cells, 0)?).map_err(wrong)?,
        epoch: Epoch::new(text(cells, 1)?).map_err(wrong)?,
        opened_by: text(cells, 2)?,
        reason: text(cells, 3)?,
        opened_at: time(cells.some(4)?),
        closed_at: cells.number(5)?.map(time),
        replayed: u64::try_from(cells.some(6)?).unwrap_or_default(),
    })
}

pub(super) fn replayed(cells: &impl Cells) -> Result<ReplayedMessage, sqlx::Error> {
    let (fingerprint, handled_at) = recorded(cells, 1)?;
    Ok(ReplayedMessage {
        message_id: MessageId::new(text(cells, 0)?).map_err(wrong)?,
        fingerprint,
        first_effect_at: cells.number(3)?.map(time),
        handled_at,
    })
}

/// Fingerprint and time of what took effect, from this column on.
pub(super) fn recorded(cells: &impl Cells, from: usize) -> Result<(Fingerprint, SystemTime), sqlx::Error> {
    let fingerprint = Fingerprint::try_from(cells.bytes(from)?.as_slice()).map_err(wrong)?;
    Ok((fingerprint, time(cells.some(from + 1)?)))
}
