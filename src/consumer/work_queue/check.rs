//! Looking at a queue without declaring anything.

use lapin::{options::QueueDeclareOptions, types::FieldTable};

use super::{
    WorkQueue,
    arguments::Declaration,
    compare::{ACCESS_REFUSED, Answer, Declaring, NOT_FOUND},
    difference::Difference,
    error::DeclareError,
    trial::Found,
};
use crate::amqp::{self, ClosedOnDrop, ServerVersion};

/// What [`WorkQueue::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each was found by itself")]
pub struct CheckedQueue {
    /// The queue to consume from.
    pub queue: String,
    /// Its parking queue.
    pub parking: String,
    /// Whether the queue is there.
    pub exists: bool,
    /// Whether the parking queue is there.
    pub parking_exists: bool,
    /// The version of the node that answered.
    pub version: ServerVersion,
    /// In what the queues that are there differ from the recommendation; see
    /// [`DeclaredQueue::differences`](super::DeclaredQueue::differences).
    pub differences: Vec<Difference>,
    /// Whether `differences` are all of them: see
    /// [`DeclaredQueue::complete`](super::DeclaredQueue::complete). Not if the user may not declare
    /// the queues, and so not compare them.
    pub complete: bool,
    /// Whether the user may declare the queues in which a consumer delays what failed.
    pub may_delay: bool,
    /// Whether the user may declare the parking queue.
    pub may_park: bool,
}

impl WorkQueue {
    /// Looks at both queues, and at the user's rights to declare those that a consumer needs
    /// besides, and declares none.
    ///
    /// The broker writes down what it refuses: it is asked for declarations that can never be.
    ///
    /// # Errors
    ///
    /// As [`declare`](Self::declare). That a queue or a right is missing is none.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn check(&self) -> Result<CheckedQueue, DeclareError> {
        let (connect, parking) = self.ready("check")?;
        let version = amqp::server_version(&connect).await?;
        let work = Declaration::of_work(&self.queue, &parking, &self.options, version)?;
        let park = Declaration::of_parking(&parking);
        let connection = ClosedOnDrop::new(connect.open().await?);
        let declaring = Declaring { connection: &connection, limit: connect.timeout };
        let checked = async {
            let found = declaring.look(&work).await?;
            let parking_found = declaring.look(&park).await?;
            // It is dead-lettered from, which takes rights of its own.
            let delay = Declaration { queue: format!("{}.retry.1000", self.queue), ..work.clone() };
            let mut checked = CheckedQueue {
                queue: work.queue.clone(),
                parking: park.queue.clone(),
                exists: found.is_some(),
                parking_exists: parking_found.is_some(),
                version,
                differences: Vec::new(),
                complete: true,
                may_delay: declaring.may(&delay).await?,
                may_park: declaring.may(&park).await?,
            };
            for (wanted, found) in [(&work, found), (&park, parking_found)] {
                let Some(found) = found else { continue };
                checked.complete &= found.complete;
                for (setting, current) in &found.settings {
                    checked.differences.push(Difference::new(wanted, setting, current, version));
                }
            }
            Ok(checked)
        }
        .await;
        amqp::close(&connection).await;
        checked
    }
}

impl Declaring<'_> {
    /// In what a queue differs; `None` if it is not there.
    async fn look(&self, wanted: &Declaration) -> Result<Option<Found>, DeclareError> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match self.ask(&wanted.queue, passive, FieldTable::default()).await? {
            Answer::Refused { code: NOT_FOUND, .. } => Ok(None),
            _ => match self.question(wanted).await {
                // Those who consume a queue need not be those who declare it.
                Err(DeclareError::NotPermitted { .. }) => Ok(Some(Found::default())),
                found => found.map(Some),
            },
        }
    }

    /// Whether the user has the right to declare a queue.
    async fn may(&self, wanted: &Declaration) -> Result<bool, DeclareError> {
        let answer = self.declare(wanted, Self::never()).await?;
        Ok(!matches!(answer, Answer::Refused { code: ACCESS_REFUSED, .. }))
    }
}
