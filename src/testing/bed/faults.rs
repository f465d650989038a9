//! What goes wrong on demand.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::SeqCst},
};

use futures_util::{FutureExt, future::BoxFuture};

use crate::{
    amqp::{Fate, Fates, Step},
    testing::points::{Point, Points},
};

/// How often a publisher sends a message at most; as [`RetryPolicy`](crate::RetryPolicy) does by
/// default.
pub(super) const ATTEMPTS: u32 = 10;

/// What is to go wrong, by how often still.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(super) nacks: AtomicU32,
    pub(super) lost_confirms: AtomicU32,
    pub(super) lost_acks: AtomicU32,
    points: Option<Arc<Points>>,
}

impl Faults {
    /// Those at the points that are chosen.
    pub(crate) fn at(points: Arc<Points>) -> Self {
        Self { points: Some(points), ..Self::default() }
    }

    async fn crash(&self, point: Point) {
        if let Some(points) = &self.points {
            points.crash_at(point).await;
        }
    }

    fn fails(&self, point: Point) -> bool {
        self.points.as_ref().is_some_and(|points| points.fails_at(point))
    }

    async fn decide(&self, step: Step) -> Fate {
        let fails = match step {
            Step::Send => {
                self.crash(Point::Send).await;
                if self.fails(Point::PublishRefused) {
                    // Until the publisher gives up.
                    self.nacks.fetch_add(ATTEMPTS, SeqCst);
                }
                take(&self.nacks)
            }
            Step::Confirm => {
                self.crash(Point::Sent).await;
                self.fails(Point::ConfirmLost) || take(&self.lost_confirms)
            }
            Step::Confirmed => {
                self.crash(Point::Confirmed).await;
                false
            }
            Step::Copy => {
                self.crash(Point::Copy).await;
                false
            }
            Step::Copied => {
                self.crash(Point::Copied).await;
                false
            }
            Step::Ack => {
                self.crash(Point::Ack).await;
                self.fails(Point::AckLost) || take(&self.lost_acks)
            }
            Step::Acked => {
                self.crash(Point::Acked).await;
                false
            }
        };
        if fails { Fate::Fails } else { Fate::Goes }
    }
}

/// Whether there is one left, which is used up then.
fn take(left: &AtomicU32) -> bool {
    left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl Fates for Faults {
    fn at(&self, step: Step) -> BoxFuture<'_, Fate> {
        self.decide(step).boxed()
    }
}
