//! The end of a subscription: what is in hand is let finish.

use std::{convert::Infallible, future::Future, pin::Pin};

use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use super::{Consumption, End};
use crate::{
    consumer::{backoff::moment_after, status::ConsumerState},
    idempotency::{IdempotencyStore, IdempotentHandler},
};

impl<S: IdempotencyStore, H: IdempotentHandler<S> + 'static> Consumption<'_, S, H> {
    /// Lets those that are at work finish.
    pub(super) async fn drain(&mut self, end: &End, mut driving: Pin<&mut impl Future<Output = Infallible>>) {
        let monitor = &self.context.monitor;
        let shutting_down = matches!(end, End::Shutdown);
        self.draining = true;
        let limit = moment_after(self.context.options.drain_timeout);
        match end {
            End::Shutdown => {
                monitor.enter(ConsumerState::Draining);
                self.session.cancel(limit).await;
            }
            // Nothing comes any more, though handlers may go on for a while.
            End::Lost(reason) => {
                monitor.failed(reason);
                monitor.enter(ConsumerState::Reconnecting);
            }
        }
        // Handlers that run are let finish: what they commit needs no second run. On a lost
        // connection their acks go nowhere, and are not waited for.
        let drained = timeout_at(limit, async {
            loop {
                let done = tokio::select! {
                    biased;
                    done = self.working.next() => done,
                    never = driving.as_mut() => match never {},
                    settled = self.settling.next() => {
                        self.settled(settled);
                        continue;
                    }
                };
                let (Some(done), mut tags) = (done, Vec::new()) else { break };
                self.finished(done, &mut tags);
                self.settling.ack(self.session.channel(), self.buffer.acks.handled(tags));
            }
            if shutting_down {
                // What goes back is counted, up to RabbitMQ 4.2. The next process would take that
                // for a death.
                let _ = self.look();
                self.buffer.spare(Instant::now());
                self.set_aside();
                self.settling.finish().await;
            }
        });
        if drained.await.is_err() {
            tracing::warn!(queue = %self.context.options.queue, "handlers did not finish in time; their messages go back");
        }
    }
}
