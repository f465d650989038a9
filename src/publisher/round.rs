//! A round: everything that is ready in a set of futures, until nothing more is.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::{
    stream::{FuturesUnordered, StreamExt},
    task::AtomicWaker,
};

/// Collects rounds.
///
/// A `FuturesUnordered` may say `Pending` although more is ready: to let others run, or because a future is being
/// put on its queue at that moment. It then wakes its waker. So a round is over when the set said `Pending` and
/// nothing woke it since that poll began.
pub(crate) struct Rounds {
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

impl Rounds {
    pub(crate) fn new() -> Self {
        let signal = Arc::new(Signal { woken: AtomicBool::new(false), task: AtomicWaker::new() });
        let waker = Waker::from(Arc::clone(&signal));
        Self { signal, waker }
    }

    /// Appends the next round to `round`; pending while nothing is ready.
    pub(crate) fn poll<F: Future>(
        &self,
        futures: &mut FuturesUnordered<F>,
        round: &mut Vec<F::Output>,
        cx: &Context<'_>,
    ) -> Poll<()> {
        self.signal.task.register(cx.waker());
        loop {
            self.signal.woken.store(false, Ordering::SeqCst);
            match futures.poll_next_unpin(&mut Context::from_waker(&self.waker)) {
                Poll::Ready(Some(output)) => round.push(output),
                Poll::Ready(None) => break,
                Poll::Pending if self.signal.woken.load(Ordering::SeqCst) => {}
                Poll::Pending => break,
            }
        }
        if round.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}
