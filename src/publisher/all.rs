//! `publish_all`: one result per message, in order, with the window kept full.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_util::{
    future::BoxFuture,
    stream::{FusedStream, Stream},
};
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit},
    time::Instant,
};

use super::{
    error::{PublishError, PublishErrorKind},
    publish::{IdempotentPublisher, Pending, conclude, unsent},
    receipt::Receipt,
};
use crate::message::OutgoingMessage;

/// The results of [`IdempotentPublisher::publish_all`], one per message and in the order of the messages.
#[must_use = "nothing is published until the stream is polled"]
pub struct PublishAll<S> {
    publisher: IdempotentPublisher,
    source: Pin<Box<S>>,
    exhausted: bool,
    permit: Option<OwnedSemaphorePermit>,
    waiting: Option<BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>>,
    pending: VecDeque<Entry>,
    limit: usize,
}

enum Entry {
    Sent(Pending),
    Refused(PublishError),
}

impl<S: Stream<Item = OutgoingMessage>> PublishAll<S> {
    pub(super) fn new(publisher: IdempotentPublisher, source: S) -> Self {
        Self {
            limit: publisher.max_in_flight(),
            publisher,
            source: Box::pin(source),
            exhausted: false,
            permit: None,
            waiting: None,
            pending: VecDeque::new(),
        }
    }

    /// Hands messages over while there are both messages and places.
    fn fill(&mut self, cx: &mut Context<'_>) {
        // Results are given in order, so one slow message holds those behind it: they are bounded, too.
        while !self.exhausted && self.pending.len() < self.limit {
            if self.permit.is_none() && !self.acquire(cx) {
                return;
            }
            match self.source.as_mut().poll_next(cx) {
                Poll::Ready(Some(message)) => {
                    let entry = self.hand_over(message);
                    self.pending.push_back(entry);
                }
                Poll::Ready(None) => self.exhausted = true,
                Poll::Pending => return,
            }
        }
        if self.exhausted {
            self.permit = None;
        }
    }

    /// Gets a place in the window. Waits for one only if none of our own messages will free one.
    fn acquire(&mut self, cx: &mut Context<'_>) -> bool {
        let permits = self.publisher.permits();
        if permits.is_closed() {
            return true;
        }
        if self.waiting.is_none() {
            if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
                self.permit = Some(permit);
                return true;
            }
            if !self.pending.is_empty() {
                return false;
            }
        }
        let permits = Arc::clone(permits);
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(permits.acquire_owned()));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(permit) => {
                self.waiting = None;
                self.permit = permit.ok();
                true
            }
            Poll::Pending => false,
        }
    }

    fn hand_over(&mut self, message: OutgoingMessage) -> Entry {
        let started = Instant::now();
        match (self.publisher.stamper().stamp(message), self.permit.take()) {
            (Ok(stamped), Some(permit)) => Entry::Sent(self.publisher.submit(stamped, permit, started)),
            (Ok(stamped), None) => Entry::Refused(unsent(PublishErrorKind::Closed, stamped, started)),
            (Err(error), permit) => {
                self.permit = permit;
                Entry::Refused(error)
            }
        }
    }
}

impl<S: Stream<Item = OutgoingMessage>> Stream for PublishAll<S> {
    type Item = Result<Receipt, PublishError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        this.fill(cx);
        let reply = match this.pending.front_mut() {
            Some(Entry::Sent(pending)) => ready!(Pin::new(&mut pending.reply).poll(cx)).ok(),
            Some(Entry::Refused(_)) => None,
            None if this.exhausted => return Poll::Ready(None),
            None => return Poll::Pending,
        };
        Poll::Ready(this.pending.pop_front().map(|entry| match entry {
            Entry::Sent(Pending { stamped, started, .. }) => conclude(stamped, started, reply),
            Entry::Refused(error) => Err(error),
        }))
    }
}

impl<S: Stream<Item = OutgoingMessage>> FusedStream for PublishAll<S> {
    fn is_terminated(&self) -> bool {
        self.exhausted && self.pending.is_empty()
    }
}

impl<S> fmt::Debug for PublishAll<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PublishAll")
            .field("pending", &self.pending.len())
            .field("exhausted", &self.exhausted)
            .finish_non_exhaustive()
    }
}
