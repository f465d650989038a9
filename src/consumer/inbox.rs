//! What the broker has sent and nobody has begun with.

use std::collections::VecDeque;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;

use super::{builder::Options, park::describe, prefetch::Prefetch, session::Session, window::Window};

/// The deliveries of one session: those that wait, and which of all may be acked.
pub(crate) struct Inbox<'a> {
    waiting: VecDeque<Delivery>,
    pub(crate) window: Window,
    prefetch: &'a mut Prefetch,
}

/// What the subscription gives next; `None` if it has ended.
pub(crate) type Received = Option<lapin::Result<Delivery>>;

/// Why a subscription is lost.
pub(crate) type Lost = String;

impl<'a> Inbox<'a> {
    pub(crate) fn new(prefetch: &'a mut Prefetch) -> Self {
        Self { waiting: VecDeque::new(), window: Window::new(), prefetch }
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Takes up to so many of those that wait, in the order of the queue.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Delivery> {
        self.waiting.drain(..count.min(self.waiting.len())).collect()
    }

    fn put(&mut self, delivery: Delivery) {
        self.prefetch.took(delivery.data.len());
        self.window.deliver(delivery.delivery_tag);
        self.waiting.push_back(delivery);
    }

    /// Puts in what the subscription gave.
    pub(crate) fn receive(&mut self, received: Received) -> Result<(), Lost> {
        match received {
            Some(Ok(delivery)) => {
                self.put(delivery);
                Ok(())
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the broker cancelled the consumer".to_owned()),
        }
    }

    /// Puts in all that is there: a batch is what is there, and never waits for more.
    pub(crate) fn look(&mut self, session: &mut Session) -> Result<(), Lost> {
        while let Some(received) = session.deliveries.next().now_or_never() {
            self.receive(received)?;
        }
        Ok(())
    }

    /// Subscribes with another prefetch count, if the size of the bodies asks for it.
    pub(crate) async fn adapt(&mut self, session: &mut Session, options: &Options) -> Result<(), Lost> {
        let Some(count) = self.prefetch.change() else { return Ok(()) };
        tracing::debug!(queue = %options.queue, count, "prefetch follows the size of the bodies");
        let before = session.resubscribe(options, count).await.map_err(|error| describe(&*error))?;
        for delivery in before {
            self.put(delivery);
        }
        Ok(())
    }
}
