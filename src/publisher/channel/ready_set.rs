//! A round: everything that is ready in a set of futures, until nothing more is.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use futures_util::{
    future::poll_fn,
    stream::{FuturesUnordered, StreamExt},
    task::AtomicWaker,
};

/// How many boxes are kept for futures to come.
const KEPT: usize = 4096;

/// Futures in progress. Their memory is used again: a publish of lapin's takes one and a half
/// kilobytes, which is more than an allocator hands out quickly.
pub(crate) struct PublishSet<F> {
    futures: FuturesUnordered<Placed<F>>,
    boxes: Vec<Pin<Box<F>>>,
}

/// A future in its place; gives the place back when it is done.
struct Placed<F>(Option<Pin<Box<F>>>);

impl<F: Future> Future for Placed<F> {
    type Output = (F::Output, Option<Pin<Box<F>>>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Gone once it is done, after which nobody polls.
        let Some(place) = &mut self.0 else { return Poll::Pending };
        let output = ready!(place.as_mut().poll(cx));
        Poll::Ready((output, self.0.take()))
    }
}

impl<F: Future> PublishSet<F> {
    pub(crate) fn new() -> Self {
        Self { futures: FuturesUnordered::new(), boxes: Vec::new() }
    }

    /// Takes a future in; it is polled with the next round.
    #[inline(always)] // or the future is copied once more, all of its kilobyte and a half
    #[allow(clippy::inline_always)]
    pub(crate) fn push(&mut self, future: F) {
        let place = match self.boxes.pop() {
            Some(mut place) => {
                place.set(future);
                place
            }
            None => Box::pin(future),
        };
        self.futures.push(Placed(Some(place)));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.futures.is_empty()
    }
}

/// Collects rounds.
///
/// A `FuturesUnordered` may say `Pending` although more is ready: to let others run, or because a
/// future is being put on its queue at that moment. It then wakes its waker. So a round is over
/// when the set said `Pending` and nothing woke it since that poll began.
pub(crate) struct ReadySet {
    signal: Arc<Signal>,
    waker: Waker,
}

struct Signal {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}

impl ReadySet {
    pub(crate) fn new() -> Self {
        let signal = Arc::new(Signal { woken: AtomicBool::new(false), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&signal));
        Self { signal, waker }
    }

    /// Appends what has become ready since to a round that is not judged yet.
    pub(crate) async fn extend<F: Future>(&self, futures: &mut PublishSet<F>, round: &mut Vec<F::Output>) {
        poll_fn(|cx| {
            let _ = self.poll(futures, round, cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Appends the next round to `round`; pending while nothing is ready.
    pub(crate) fn poll<F: Future>(
        &self,
        PublishSet { futures, boxes }: &mut PublishSet<F>,
        round: &mut Vec<F::Output>,
        cx: &Context<'_>,
    ) -> Poll<()> {
        self.signal.task.register(cx.waker());
        loop {
            self.signal.woken.store(false, Ordering::SeqCst);
            match futures.poll_next_unpin(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Some((output, place))) => {
                    round.push(output);
                    boxes.extend(place.filter(|_| boxes.len() < KEPT));
                }
                Poll::Ready(None) => break,
                Poll::Pending if self.signal.woken.load(Ordering::SeqCst) => {}
                Poll::Pending => break,
            }
        }
        if round.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}
