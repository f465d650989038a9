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
    sync::AcquireError,
    time::{Instant, Sleep},
};
use tracing::Span;

use super::{
    error::{PublishError, PublishErrorKind},
    pending::Pending,
    permits::Permit,
    publish::IdempotentPublisher,
    receipt::Receipt,
    telemetry,
};
use crate::message::{OutgoingMessage, Stamped};

/// The results of [`IdempotentPublisher::publish_all`], one per message and in the order of the
/// messages.
#[must_use = "nothing is published until the stream is polled"]
pub struct PublishAll<S> {
    publisher: IdempotentPublisher,
    source: Pin<Box<S>>,
    exhausted: bool,
    /// The message that waits for a permit, and its wait once it has begun.
    next: Option<Staged>,
    waiting: Option<Waiting>,
    pending: VecDeque<Entry>,
    limit: usize,
}

struct Staged {
    stamped: Arc<Stamped>,
    span: Span,
    started: Instant,
}

struct Waiting {
    permit: BoxFuture<'static, Result<Permit, AcquireError>>,
    deadline: Pin<Box<Sleep>>,
}

enum Entry {
    Sent(Pending),
    Refused(PublishError),
}

impl<S: Stream<Item = OutgoingMessage>> PublishAll<S> {
    pub(super) fn new(publisher: IdempotentPublisher, source: S) -> Self {
        Self {
            limit: publisher.permits().max_messages(),
            publisher,
            source: Box::pin(source),
            exhausted: false,
            next: None,
            waiting: None,
            pending: VecDeque::new(),
        }
    }

    /// Hands messages over while there are both messages and permits.
    fn fill(&mut self, cx: &mut Context<'_>) {
        // Results are given in order, so one slow message holds those behind it: they are bounded,
        // too.
        while self.pending.len() < self.limit {
            let staged = match self.next.take() {
                Some(staged) => staged,
                None if self.exhausted => return,
                None => match self.source.as_mut().poll_next(cx) {
                    Poll::Ready(Some(message)) => match self.stage(message) {
                        Ok(staged) => staged,
                        Err(error) => {
                            self.pending.push_back(Entry::Refused(error));
                            continue;
                        }
                    },
                    Poll::Ready(None) => {
                        self.exhausted = true;
                        return;
                    }
                    Poll::Pending => return,
                },
            };
            match self.acquire(&staged, cx) {
                Poll::Ready(Ok(permit)) => {
                    let Staged { stamped, span, started } = staged;
                    let sent = self.publisher.submit(stamped, permit, span, started);
                    self.pending.push_back(Entry::Sent(sent));
                }
                Poll::Ready(Err(kind)) => {
                    let Staged { stamped, span, started } = staged;
                    if let Err(error) = self.publisher.refuse(kind, stamped, &span, started) {
                        self.pending.push_back(Entry::Refused(error));
                    }
                }
                Poll::Pending => {
                    self.next = Some(staged);
                    return;
                }
            }
        }
    }

    fn stage(&self, message: OutgoingMessage) -> Result<Staged, PublishError> {
        let started = Instant::now();
        let stamped = self.publisher.stamp(message)?;
        let span = telemetry::span(&stamped);
        Ok(Staged { stamped, span, started })
    }

    /// Gets a permit, whichever message frees it: the results to come first may be long in coming.
    fn acquire(&mut self, staged: &Staged, cx: &mut Context<'_>) -> Poll<Result<Permit, PublishErrorKind>> {
        let permits = self.publisher.permits();
        let body = staged.stamped.message.payload().len();
        if self.waiting.is_none() {
            if let Ok(permit) = permits.try_enter(body) {
                return Poll::Ready(Ok(permit));
            }
            if permits.is_closed() {
                return Poll::Ready(Err(PublishErrorKind::Closed));
            }
        }
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            permit: Box::pin(Arc::clone(permits).enter(body)),
            deadline: Box::pin(tokio::time::sleep_until(
                self.publisher.deadline(&staged.stamped, staged.started),
            )),
        });
        let permit = match waiting.permit.as_mut().poll(cx) {
            Poll::Ready(permit) => permit.map_err(|_| PublishErrorKind::Closed),
            Poll::Pending => {
                ready!(waiting.deadline.as_mut().poll(cx));
                Err(PublishErrorKind::TimedOut)
            }
        };
        self.waiting = None;
        Poll::Ready(permit)
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
            None if this.exhausted && this.next.is_none() => return Poll::Ready(None),
            None => return Poll::Pending,
        };
        Poll::Ready(this.pending.pop_front().map(|entry| match entry {
            Entry::Sent(pending) => this.publisher.conclude(pending, reply),
            Entry::Refused(error) => Err(error),
        }))
    }
}

impl<S: Stream<Item = OutgoingMessage>> FusedStream for PublishAll<S> {
    fn is_terminated(&self) -> bool {
        self.exhausted && self.next.is_none() && self.pending.is_empty()
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
