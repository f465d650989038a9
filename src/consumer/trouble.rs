//! How long to wait after something went wrong.

use std::time::Duration;

use tokio::time::Instant;

/// How many subscriptions in turn may end without having settled anything, before the consumer says that it is failing.
const FRUITLESS: u32 = 5;

/// A subscription that lasted so long is no failure, even if nothing was in the queue.
const LONG: Duration = Duration::from_secs(10);

/// Counts subscriptions that end.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    failures: u32,
    fruitless: u32,
}

impl Sessions {
    /// A subscription ended after a while, in which so many deliveries were decided.
    pub(super) fn ended(&mut self, lasted: Duration, decided: u64) {
        if lasted > LONG {
            self.failures = 0;
        }
        if lasted > LONG || decided > 0 { self.fruitless = 0 } else { self.fruitless += 1 }
    }

    /// Whether something in the queue or the broker ends every subscription before anything is done.
    pub(super) fn failing(&self) -> bool {
        self.fruitless >= FRUITLESS
    }

    /// How long to wait before the next one, varied so that consumers do not come back all at once.
    pub(super) fn pause(&mut self) -> Duration {
        self.failures += 1;
        let longest = Duration::from_secs(if self.failing() { 30 } else { 5 });
        varied(backoff(self.failures, Duration::from_millis(100), longest))
    }
}

/// Whether the store answers; nothing is taken while it does not.
#[derive(Debug, Default)]
pub(super) struct StoreHealth {
    failures: u32,
    until: Option<Instant>,
}

impl StoreHealth {
    pub(super) fn failed(&mut self) {
        self.failures += 1;
        let pause = backoff(self.failures, Duration::from_millis(200), Duration::from_secs(5));
        self.until = Some(Instant::now() + varied(pause));
    }

    /// It answered; whether it was away before.
    pub(super) fn answered(&mut self) -> bool {
        self.until = None;
        std::mem::take(&mut self.failures) > 0
    }

    /// Until when nothing is to be taken.
    pub(super) fn paused(&self) -> Option<Instant> {
        self.until.filter(|until| *until > Instant::now())
    }
}

/// The pause after so many failures: doubling from `first` up to `longest`.
fn backoff(failures: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(longest)
}

fn varied(pause: Duration) -> Duration {
    pause.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn subscriptions_that_get_nothing_done_are_failing() {
        let mut sessions = Sessions::default();
        for _ in 0..FRUITLESS {
            assert!(!sessions.failing());
            sessions.ended(SHORT, 0);
        }
        assert!(sessions.failing());
        sessions.ended(SHORT, 1);
        assert!(!sessions.failing(), "something was done");
        for _ in 0..FRUITLESS {
            sessions.ended(LONG * 2, 0);
        }
        assert!(!sessions.failing(), "an empty queue is no failure");
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let mut sessions = Sessions::default();
        let first = sessions.pause();
        assert!(first >= Duration::from_millis(50) && first <= Duration::from_millis(100), "{first:?}");
        let longest = (0..40).map(|_| sessions.pause()).max().unwrap_or_default();
        assert!(longest > Duration::from_secs(2) && longest <= Duration::from_secs(5), "{longest:?}");
        (0..FRUITLESS).for_each(|_| sessions.ended(SHORT, 0));
        let longest = (0..40).map(|_| sessions.pause()).max().unwrap_or_default();
        assert!(longest > Duration::from_secs(15) && longest <= Duration::from_secs(30), "{longest:?}");
    }

    #[test]
    fn store_that_answers_ends_the_pause() {
        let mut store = StoreHealth::default();
        assert!(!store.answered());
        assert_eq!(store.paused(), None);
        store.failed();
        assert!(store.paused().is_some());
        assert!(store.answered());
        assert_eq!(store.paused(), None);
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let delays = [1, 2, 4, 5, 90].map(|failures| backoff(failures, first, longest).as_millis());
        assert_eq!(delays, [100, 200, 800, 1000, 1000]);
    }
}
