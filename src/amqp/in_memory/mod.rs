//! A broker in memory, for a publisher and a consumer that are tried without one: the default
//! exchange, direct bindings, queues, and what a delay queue does. All else is a real broker's.

mod queue;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use lapin::{
    BasicProperties,
    message::Delivery,
    types::{FieldTable, ShortString},
};

use super::convert::incoming;
use crate::{message::IncomingMessage, now::Now};
use queue::Queue;

/// Where something can go wrong on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// A publisher is about to send. A failure is a nack.
    Send,
    /// The broker has the message. A failure is a confirm that is lost.
    Confirm,
    /// The publisher has the confirm.
    Confirmed,
    /// A consumer is about to pass a delivery on. A failure is a nack.
    Copy,
    /// The copy is confirmed.
    Copied,
    /// A consumer is about to ack. A failure is an ack that is lost.
    Ack,
    /// The broker has the ack.
    Acked,
}

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Goes,
    Fails,
}

/// Decides what happens at each step. Where a process is to end, the future never does.
pub(crate) trait Fates: Send + Sync {
    fn at(&self, step: Step) -> BoxFuture<'_, Fate>;
}

/// A message, as a queue keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    pub(crate) redelivered: bool,
}

/// What the broker said of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Confirmed,
    Nacked,
    Returned,
    /// It is in its queues, and nobody knows.
    Unheard,
}

pub(crate) struct MemoryBroker {
    state: Mutex<State>,
    fates: Arc<dyn Fates>,
    now: Now,
}

#[derive(Debug, Default)]
struct State {
    queues: BTreeMap<String, Queue>,
    bindings: BTreeMap<(String, String), Vec<String>>,
    tags: u64,
    /// What came from publishers, each copy of it.
    published: Vec<Kept>,
    /// What came from them and went nowhere.
    unrouted: Vec<Kept>,
}

impl MemoryBroker {
    pub(crate) fn new(fates: Arc<dyn Fates>, now: Now) -> Self {
        Self { state: Mutex::default(), fates, now }
    }

    /// What it goes by.
    pub(crate) fn clock(&self) -> &Now {
        &self.now
    }

    /// Declares a queue, if it is not there. Of its arguments, those of a delay queue count.
    pub(crate) fn declare(&self, name: &str, arguments: &FieldTable) {
        self.state().queues.entry(name.to_owned()).or_insert_with(|| Queue::new(arguments));
    }

    /// A queue without arguments.
    pub(crate) fn declare_plain(&self, name: &str) {
        self.declare(name, &FieldTable::default());
    }

    pub(crate) fn bind(&self, exchange: &str, routing_key: &str, queue: &str) {
        let route = (exchange.to_owned(), routing_key.to_owned());
        self.state().bindings.entry(route).or_default().push(queue.to_owned());
    }

    /// Sends a message of a publisher, and waits for what the broker says.
    pub(crate) async fn publish(&self, message: Kept, mandatory: bool) -> Answer {
        if self.fates.at(Step::Send).await == Fate::Fails {
            return Answer::Nacked;
        }
        let is_routed = self.route(&message);
        self.note(message, is_routed);
        if self.fates.at(Step::Confirm).await == Fate::Fails {
            return Answer::Unheard;
        }
        let _ = self.fates.at(Step::Confirmed).await;
        if is_routed || !mandatory { Answer::Confirmed } else { Answer::Returned }
    }

    fn note(&self, message: Kept, is_routed: bool) {
        let mut state = self.state();
        let State { published, unrouted, .. } = &mut *state;
        if is_routed { published } else { unrouted }.push(message);
    }

    /// The same for a copy of a delivery.
    pub(crate) async fn copy(&self, message: Kept) -> Answer {
        if self.fates.at(Step::Copy).await == Fate::Fails {
            return Answer::Nacked;
        }
        let is_routed = self.route(&message);
        let _ = self.fates.at(Step::Copied).await;
        if is_routed { Answer::Confirmed } else { Answer::Returned }
    }

    /// Puts a message into a queue, whatever its route.
    pub(crate) fn put(&self, queue: &str, message: Kept) {
        let now = self.now.get();
        if let Some(queue) = self.state().queues.get_mut(queue) {
            queue.push(message, now);
        }
    }

    /// Puts a message into the queues that it is routed to, if there are any.
    pub(crate) fn route(&self, message: &Kept) -> bool {
        let (now, mut state) = (self.now.get(), self.state());
        let State { queues, bindings, .. } = &mut *state;
        let route = (message.exchange.clone(), message.routing_key.clone());
        let bound = match &*message.exchange {
            "" => vec![message.routing_key.clone()],
            _ => bindings.get(&route).cloned().unwrap_or_default(),
        };
        let mut is_routed = false;
        for name in bound {
            if let Some(queue) = queues.get_mut(&name) {
                queue.push(message.clone(), now);
                is_routed = true;
            }
        }
        is_routed
    }

    /// The next message of a queue, unacknowledged from now on.
    pub(crate) fn deliver(&self, queue: &str) -> Option<Delivery> {
        let mut state = self.state();
        state.tags += 1;
        let tag = state.tags;
        let kept = state.queues.get_mut(queue)?.deliver(tag)?;
        Some(queue::delivery(tag, kept))
    }

    /// Acks a delivery. One whose ack is lost comes again.
    pub(crate) async fn ack(&self, queue: &str, tag: u64) {
        let is_lost = self.fates.at(Step::Ack).await == Fate::Fails;
        if let Some(queue) = self.state().queues.get_mut(queue) {
            queue.settle(tag, is_lost);
        }
        let _ = self.fates.at(Step::Acked).await;
    }

    /// What was delivered and is not settled comes again: its connection is gone. But for what is
    /// held still.
    pub(crate) fn take_back(&self, queue: &str, held: impl Fn(u64) -> bool) {
        if let Some(queue) = self.state().queues.get_mut(queue) {
            queue.take_back(held);
        }
    }

    /// Moves what has waited long enough in delay queues.
    pub(crate) fn expire(&self) {
        let now = self.now.get();
        let expired: Vec<Kept> =
            self.state().queues.iter_mut().flat_map(|(name, queue)| queue.expired(name, now)).collect();
        for message in expired {
            self.route(&message);
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(crate) fn next_expiry(&self) -> Option<SystemTime> {
        self.state().queues.values().filter_map(Queue::next_expiry).min()
    }

    /// What is ready in a queue.
    pub(crate) fn ready(&self, queue: &str) -> Vec<Kept> {
        self.state().queues.get(queue).map(Queue::ready).unwrap_or_default()
    }

    /// What came from publishers and was routed, each copy of it, in its order.
    pub(crate) fn published(&self) -> Vec<Kept> {
        self.state().published.clone()
    }

    /// How many those are.
    pub(crate) fn count(&self) -> usize {
        self.state().published.len()
    }

    /// What came from publishers and went nowhere, in its order.
    pub(crate) fn unrouted(&self) -> Vec<Kept> {
        self.state().unrouted.clone()
    }

    /// Takes all that is ready out of a queue.
    pub(crate) fn take(&self, queue: &str) -> Vec<Kept> {
        self.state().queues.get_mut(queue).map(Queue::take).unwrap_or_default()
    }

    /// Whether a queue has nothing, delivered or not.
    pub(crate) fn is_empty(&self, queue: &str) -> bool {
        self.state().queues.get(queue).is_none_or(Queue::is_empty)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBroker").finish_non_exhaustive()
    }
}

impl Kept {
    pub(crate) fn new(
        exchange: &ShortString,
        routing_key: &ShortString,
        properties: BasicProperties,
        body: Bytes,
    ) -> Self {
        let (exchange, routing_key) = (exchange.to_string(), routing_key.to_string());
        Self { exchange, routing_key, properties, body, redelivered: false }
    }

    /// As a consumer would see it.
    pub(crate) fn incoming(self) -> IncomingMessage {
        incoming(queue::delivery(0, self)).0
    }
}
