//! Which of some identities are new: the one algorithm of all SQL stores.

use super::{
    SqlDatabase,
    dialect::{Found, NewLease, Value},
    statements::Statements,
};
use crate::{
    idempotency::{Claim, ClaimRequest, Scope},
    message::MessageId,
};

/// How many rows one statement inserts; far below every database's limit of bound values.
pub(super) const ROWS: usize = 1024;

/// A claim could not be made.
pub(super) enum NotClaimed {
    Failed(sqlx::Error),
    /// A row was there and is gone: purged, or taken by a rival. Asked again, the answer will be
    /// another.
    Moved,
}

impl From<sqlx::Error> for NotClaimed {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error)
    }
}

/// The answer to one request, with the token of the lease if one was asked for.
pub(super) struct Answer {
    pub(super) claim: Claim,
    pub(super) token: i64,
}

/// Claims all requests, in sorted order so that two batches never wait for each other in a circle;
/// answers in the order asked.
pub(super) async fn claim_all<DB: SqlDatabase>(
    connection: &mut DB::Connection,
    statements: &Statements,
    requests: &[ClaimRequest],
    lease: Option<NewLease>,
) -> Result<Vec<Answer>, NotClaimed> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_unstable_by_key(|&index| identity(&requests[index]));
    let mut answers: Vec<Option<Answer>> = requests.iter().map(|_| None).collect();
    for chunk in order.chunks(ROWS) {
        let rows: Vec<&ClaimRequest> = chunk.iter().map(|&index| &requests[index]).collect();
        let new = DB::insert(connection, statements, &rows, lease).await?;
        let mut known: Vec<(&Scope, &MessageId)> = Vec::new();
        for (&index, new) in chunk.iter().zip(new) {
            if new {
                let token = lease.map_or(0, |lease| lease.token);
                answers[index] = Some(Answer { claim: Claim::Acquired, token });
            } else {
                known.push((&requests[index].scope, &requests[index].message_id));
            }
        }
        if known.is_empty() {
            continue;
        }
        let mut found = DB::select(connection, statements, &known).await?;
        found.sort_unstable_by(|a, b| a.identity().cmp(&b.identity()));
        for &index in chunk {
            if answers[index].is_none() {
                let at = found.binary_search_by(|row| row.identity().cmp(&identity(&requests[index])));
                let row = &found[at.map_err(|_| NotClaimed::Moved)?];
                answers[index] =
                    Some(known_row::<DB>(connection, statements, &requests[index], row, lease).await?);
            }
        }
    }
    answers.into_iter().map(|answer| answer.ok_or(NotClaimed::Moved)).collect()
}

pub(super) fn identity(request: &ClaimRequest) -> (&str, &str) {
    (request.scope.as_str(), request.message_id.as_str())
}

async fn known_row<DB: SqlDatabase>(
    connection: &mut DB::Connection,
    statements: &Statements,
    request: &ClaimRequest,
    row: &Found,
    lease: Option<NewLease>,
) -> Result<Answer, NotClaimed> {
    if let Some(record) = row.record() {
        return Ok(Answer { claim: record.into(), token: 0 });
    }
    // A lease that ran out, or was released: the first one to change its row has it.
    let token = row.free_token().ok_or(NotClaimed::Moved)?;
    let (scope, id) = identity(request);
    let fingerprint = Value::Bytes(request.fingerprint.as_bytes());
    let held = [Value::Text(scope), Value::Text(id), Value::Integer(token)];
    let taken = match lease {
        None => {
            let values = [fingerprint, held[0], held[1], held[2]];
            DB::execute(connection, &statements.take_over, &values).await?
        }
        Some(lease) => {
            let values = [fingerprint, Value::Integer(lease.micros), held[0], held[1], held[2]];
            DB::execute(connection, &statements.take_over_leased, &values).await?
        }
    };
    if taken == 1 { Ok(Answer { claim: Claim::Acquired, token: token + 1 }) } else { Err(NotClaimed::Moved) }
}

/// Which of the rows are among those that an INSERT returned as new.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(in crate::store) fn which(rows: &[&ClaimRequest], mut new: Vec<(&str, &str)>) -> Vec<bool> {
    if new.len() == rows.len() {
        return vec![true; rows.len()];
    }
    new.sort_unstable();
    rows.iter().map(|row| new.binary_search(&identity(row)).is_ok()).collect()
}
