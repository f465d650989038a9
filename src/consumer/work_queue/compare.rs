//! Declares, and finds out in what a queue differs that is there already.
//!
//! AMQP has no way to ask. But a broker that refuses a declaration names the first argument in
//! which it differs, so declaring again with what is known by then names the next one, until the
//! declaration passes.

use std::{future::Future, time::Duration};

use lapin::{
    Connection,
    options::QueueDeclareOptions,
    types::{FieldTable, ShortString},
};
use tokio::time::timeout;

use super::{
    DeclaredQueue,
    arguments::{Declaration, Value},
    difference::Difference,
    error::DeclareError,
    trial::{Found, Trial, inequivalent},
};
use crate::{
    amqp::{self, ConnectError, ConnectErrorKind, ServerVersion},
    error::bounded,
};

pub(super) const ACCESS_REFUSED: u16 = 403;
pub(super) const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;

/// More than a queue has arguments.
const MOST_QUESTIONS: usize = 100;

/// An argument of streams with a value that is none. A queue that is there is not compared in it,
/// and one that is there no more is not declared with it: a question never creates a queue.
const NEVER_VALID: (&str, &str) = ("x-max-age", "never");

/// What the broker says to a declaration.
pub(super) enum Answer {
    Fine,
    Refused { code: u16, text: String },
}

pub(super) struct Declaring<'a> {
    pub(super) connection: &'a Connection,
    pub(super) limit: Duration,
}

impl Declaring<'_> {
    /// The parking queue first: nothing is dead-lettered before there is a place for it.
    pub(super) async fn both(
        &self,
        queue: &Declaration,
        parking: &Declaration,
        version: ServerVersion,
    ) -> Result<DeclaredQueue, DeclareError> {
        let (parking_created, parking_found) = self.one(parking).await?;
        let (created, found) = self.one(queue).await?;
        let differences =
            [(queue, &found), (parking, &parking_found)].into_iter().flat_map(|(wanted, found)| {
                found
                    .settings
                    .iter()
                    .map(move |(setting, current)| Difference::new(wanted, setting, current, version))
            });
        Ok(DeclaredQueue {
            queue: queue.queue.clone(),
            parking: parking.queue.clone(),
            created,
            parking_created,
            version,
            differences: differences.collect(),
            complete: found.complete && parking_found.complete,
        })
    }

    /// Whether it was created, and else what is different.
    async fn one(&self, wanted: &Declaration) -> Result<(bool, Found), DeclareError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let before = self.ask(&wanted.queue, passive, FieldTable::default()).await?;
        let absent = matches!(before, Answer::Refused { code: NOT_FOUND, .. });
        match self.declare(wanted, FieldTable::default()).await? {
            Answer::Fine => Ok((absent, Found { complete: true, ..Found::default() })),
            Answer::Refused { code: PRECONDITION_FAILED, text } => {
                Ok((false, self.compare(wanted, text).await?))
            }
            Answer::Refused { code, text } => Err(refused(&wanted.queue, code, &text)),
        }
    }

    /// Finds out in what the queue differs, beginning with the answer to the recommended
    /// declaration.
    async fn compare(&self, wanted: &Declaration, first: String) -> Result<Found, DeclareError> {
        let mut trial = Trial::of(wanted);
        let mut text = first;
        for _ in 0..MOST_QUESTIONS {
            let Some((setting, current)) = inequivalent(&text) else {
                return Err(refused(&wanted.queue, PRECONDITION_FAILED, &text));
            };
            if !trial.learn(&setting, current) {
                return Ok(trial.found);
            }
            match self.declare(&trial.declaration, Self::never()).await? {
                Answer::Fine => return Ok(trial.passed()),
                Answer::Refused { code: PRECONDITION_FAILED, text: next } => text = next,
                Answer::Refused { code, text } => return Err(refused(&wanted.queue, code, &text)),
            }
        }
        Ok(trial.found)
    }

    /// Like [`one`](Self::one) for a queue that is there, and creates none if it is not any more.
    pub(super) async fn question(&self, wanted: &Declaration) -> Result<Found, DeclareError> {
        match self.declare(wanted, Self::never()).await? {
            Answer::Fine => Ok(Found { complete: true, ..Found::default() }),
            Answer::Refused { code: PRECONDITION_FAILED, text } => self.compare(wanted, text).await,
            Answer::Refused { code, text } => Err(refused(&wanted.queue, code, &text)),
        }
    }

    /// What makes a declaration one that creates nothing.
    pub(super) fn never() -> FieldTable {
        let (name, value) = NEVER_VALID;
        let mut never = FieldTable::default();
        never.insert(ShortString::from(name), Value::Text(value.to_owned()).amqp());
        never
    }

    pub(super) async fn declare(
        &self,
        wanted: &Declaration,
        mut arguments: FieldTable,
    ) -> Result<Answer, DeclareError> {
        for (name, value) in &wanted.arguments {
            // Names that came from the broker fitted into a short string there.
            let name = ShortString::try_new(name.as_str());
            let name = name.map_err(|error| ConnectError::setup(ConnectErrorKind::Protocol, error))?;
            arguments.insert(name, value.amqp());
        }
        let Declaration { durable, auto_delete, .. } = *wanted;
        let options = QueueDeclareOptions { durable, auto_delete, ..QueueDeclareOptions::default() };
        self.ask(&wanted.queue, options, arguments).await
    }

    /// On a channel of its own: a declaration that is refused closes its channel.
    pub(super) async fn ask(
        &self,
        queue: &str,
        options: QueueDeclareOptions,
        arguments: FieldTable,
    ) -> Result<Answer, DeclareError> {
        let name = ShortString::try_new(queue);
        let name = name.map_err(|error| ConnectError::setup(ConnectErrorKind::Protocol, error))?;
        let channel =
            self.within(self.connection.create_channel()).await?.map_err(ConnectError::from_lapin)?;
        match self.within(channel.queue_declare(name, options, arguments)).await? {
            Ok(_) => {
                let _ = self.within(channel.close(200, ShortString::from(""))).await;
                Ok(Answer::Fine)
            }
            Err(error) => match amqp::refusal(&error) {
                Some((code, text)) => Ok(Answer::Refused { code, text }),
                None => Err(ConnectError::from_lapin(error).into()),
            },
        }
    }

    async fn within<T>(&self, step: impl Future<Output = T>) -> Result<T, ConnectError> {
        let done = timeout(self.limit, step).await;
        done.map_err(|elapsed| ConnectError::setup(ConnectErrorKind::TimedOut, elapsed))
    }
}

fn refused(queue: &str, code: u16, text: &str) -> DeclareError {
    let (queue, reason) = (queue.to_owned(), bounded(text));
    match code {
        ACCESS_REFUSED => DeclareError::NotPermitted { queue, reason },
        _ => DeclareError::Refused { queue, reason },
    }
}
