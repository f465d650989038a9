//! What is being done on the channel about deliveries that are not acked at once.

use std::{future::Future, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use lapin::{
    Acker, Channel,
    options::{BasicAckOptions, BasicRejectOptions},
};
use tokio::time::timeout;

use super::{
    ack_tracker::Ack,
    buffer::{Next, Unsettled},
};

/// How long an ack or reject may take to be written.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a delivery.
pub(crate) enum Settled {
    /// It was settled by itself; its tag.
    Away(u64),
    /// It could not be passed on, and stays here for a while.
    Held { unsettled: Unsettled, after: Duration, next: Next },
    /// Its copy could not be published anew; it is handled where it is.
    Stays(Unsettled),
    /// An ack was written.
    Written,
}

/// What is being done about the deliveries of one session.
#[derive(Default)]
pub(crate) struct PendingSettlements<'a> {
    /// Acks, and messages that are passed on. They are waited for at a shutdown.
    under_way: FuturesUnordered<BoxFuture<'a, Settled>>,
}

impl<'a> PendingSettlements<'a> {
    /// Goes on with all of it, until one thing is done.
    pub(crate) async fn next(&mut self) -> Settled {
        match self.under_way.next().await {
            Some(settled) => settled,
            None => std::future::pending().await,
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Writes acks, in this order. What cannot be written at once is waited for later.
    pub(crate) fn ack(&mut self, channel: &Channel, acks: Vec<Ack>) {
        for Ack { tag, multiple } in acks {
            let channel = channel.clone();
            let ack = async move { channel.basic_ack(tag, BasicAckOptions { multiple }).await };
            let mut ack = timeout(SETTLE_TIMEOUT, ack).map(|_| Settled::Written).boxed();
            // Its first poll queues the frame. The broker closes a channel on which an ack comes
            // for what a later one has settled.
            if (&mut ack).now_or_never().is_none() {
                self.under_way.push(ack);
            }
        }
    }

    pub(crate) fn begin(&mut self, work: impl Future<Output = Settled> + Send + 'a) {
        self.under_way.push(work.boxed());
    }

    /// Waits for all that is under way. What could not be passed on goes back when the channel
    /// closes.
    pub(crate) async fn finish(&mut self) {
        while self.under_way.next().await.is_some() {}
    }
}

// A settlement that cannot be written is no failure: the channel is gone, and the delivery comes
// again. lapin may leave one unanswered for ever when the connection dies under it, hence the
// limit.

pub(super) async fn ack(acker: &Acker) {
    let _ = timeout(SETTLE_TIMEOUT, acker.ack(BasicAckOptions { multiple: false })).await;
}

pub(super) async fn reject(acker: &Acker) {
    let _ = timeout(SETTLE_TIMEOUT, acker.reject(BasicRejectOptions { requeue: true })).await;
}
