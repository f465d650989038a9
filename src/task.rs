//! Tasks that belong to a future.

use std::{
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

/// A task that is ended when whoever waits for it is gone: where it next waits, if it computes at
/// that moment.
pub(crate) struct EndedOnDrop<T>(JoinHandle<T>);

impl<T> EndedOnDrop<T> {
    pub(crate) fn new(task: JoinHandle<T>) -> Self {
        Self(task)
    }
}

impl<T> Future for EndedOnDrop<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match ready!(Pin::new(&mut self.0).poll(cx)) {
            Ok(done) => Poll::Ready(done),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => resume_unwind(panic),
                // The runtime ends, and whoever waits with it.
                Err(_) => Poll::Pending,
            },
        }
    }
}

impl<T> Drop for EndedOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What computes for longer than this would be felt by others in the same task.
const LONG: Duration = Duration::from_micros(250);

/// So many quick ones are believed.
const QUICK: u32 = 32;

/// The most that one that took long has to be made up for; the scheduler may have interrupted it.
const MOST: u32 = 64;

/// Whether futures compute for long between their waits. Until they are known to be quick, each
/// belongs into a task of its own; then that would cost more than it gains.
#[derive(Debug, Default)]
pub(crate) struct Temper(AtomicU32);

impl Temper {
    pub(crate) fn is_quick(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= QUICK
    }

    /// Runs a future, and learns from it.
    pub(crate) async fn watched<F: Future>(&self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        let mut longest = Duration::ZERO;
        let done = std::future::poll_fn(|cx| {
            let begun = Instant::now();
            let polled = future.as_mut().poll(cx);
            longest = longest.max(begun.elapsed());
            polled
        });
        let done = done.await;
        self.learn(longest);
        done
    }

    fn learn(&self, longest: Duration) {
        let next = |score: u32| {
            Some(if longest < LONG { (score + 1).min(MOST) } else { score.saturating_sub(QUICK / 2) })
        };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn futures_are_quick_when_many_were() {
        let temper = Temper::default();
        assert!(!temper.is_quick(), "unknown");
        for _ in 0..MOST {
            temper.learn(Duration::ZERO);
        }
        temper.learn(LONG);
        assert!(temper.is_quick(), "one may have been interrupted");
        for _ in 0..2 {
            temper.learn(LONG);
        }
        assert!(!temper.is_quick());
    }

    #[tokio::test]
    async fn time_between_waits_counts() {
        let temper = Temper::default();
        for _ in 0..QUICK {
            temper.learn(Duration::ZERO);
        }
        temper.watched(async { std::thread::sleep(2 * LONG) }).await;
        assert!(!temper.is_quick(), "it held up its thread");
        for _ in 0..MOST {
            temper.learn(Duration::ZERO);
        }
        temper.watched(tokio::time::sleep(2 * LONG)).await;
        assert!(temper.is_quick(), "it only waited");
    }
}
