//! How long to wait after something went wrong.

use std::time::Duration;

use tokio::time::Instant;

/// How many subscriptions in turn may end without having settled anything, before the consumer says
/// that it is failing.
const FRUITLESS: u32 = 5;

/// A subscription that lasted so long is no failure, even if nothing was in the queue.
const LONG: Duration = Duration::from_secs(10);

/// Longer than anything is waited for.
const FAR: Duration = Duration::from_hours(24 * 365);

/// Counts subscriptions that end.
#[derive(Debug, Default)]
pub(super) struct SubscriptionFailures {
    failures: u32,
    fruitless: u32,
}

impl SubscriptionFailures {
    /// A subscription ended after a while, in which so many deliveries were decided.
    pub(super) fn ended(&mut self, lasted: Duration, decided: u64) {
        if lasted > LONG || decided > 0 {
            (self.failures, self.fruitless) = (0, 0);
        } else {
            self.fruitless += 1;
        }
    }

    /// Whether the last one ended before anything was done.
    pub(super) fn fruitless(&self) -> bool {
        self.fruitless > 0
    }

    /// Whether something in the queue or the broker ends every subscription before anything is
    /// done.
    pub(super) fn failing(&self) -> bool {
        self.fruitless >= FRUITLESS
    }

    /// How long to wait before the next one, varied so that consumers do not all come back
    /// together.
    pub(super) fn pause(&mut self) -> Duration {
        self.failures += 1;
        let longest = Duration::from_secs(if self.failing() { 30 } else { 5 });
        varied(backoff(self.failures, Duration::from_millis(100), longest))
    }
}

/// Whether something that the consumer needs is there. After it failed it is left alone for a
/// while, and then tried.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: u32,
    until: Option<Instant>,
}

impl Health {
    /// It failed; gives how long it is left alone.
    pub(super) fn failed(&mut self) -> Duration {
        self.failures += 1;
        let pause = varied(backoff(self.failures, Duration::from_millis(200), Duration::from_secs(5)));
        self.until = Some(Instant::now() + pause);
        pause
    }

    /// It is left alone no more. Whether it works is still to be seen: until then, the next pause
    /// is not a short one again.
    pub(super) fn resume(&mut self) {
        self.until = None;
    }

    /// It was used, and worked; gives whether that is news. While it is left alone that tells
    /// nothing of now.
    pub(super) fn works(&mut self) -> bool {
        self.until.is_none() && std::mem::take(&mut self.failures) > 0
    }

    /// Whether it is left alone.
    pub(super) fn is_away(&self) -> bool {
        self.until.is_some()
    }

    /// Whether it failed last, and nothing has shown yet that it is back.
    pub(super) fn is_doubtful(&self) -> bool {
        self.failures > 0
    }

    /// When it is to be tried, if it is left alone.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.until
    }
}

/// The moment after a pause of whatever length: an `Instant` cannot be moved by every duration.
pub(super) fn moment_after(pause: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(pause).unwrap_or(now + FAR)
}

/// How long a message is held that was held so often before.
pub(super) fn holding(holds: u32) -> Duration {
    if holds == 0 {
        Duration::ZERO
    } else {
        backoff(holds, Duration::from_millis(200), Duration::from_secs(10))
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
        let mut sessions = SubscriptionFailures::default();
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
        let mut sessions = SubscriptionFailures::default();
        let first = sessions.pause();
        assert!(first >= Duration::from_millis(50) && first <= Duration::from_millis(100), "{first:?}");
        let longest = (0..40).map(|_| sessions.pause()).max().unwrap_or_default();
        assert!(longest > Duration::from_secs(2) && longest <= Duration::from_secs(5), "{longest:?}");
        (0..FRUITLESS).for_each(|_| sessions.ended(SHORT, 0));
        let longest = (0..40).map(|_| sessions.pause()).max().unwrap_or_default();
        assert!(longest > Duration::from_secs(15) && longest <= Duration::from_secs(30), "{longest:?}");
    }

    #[test]
    fn store_is_away_until_it_answers_a_probe() {
        let mut store = Health::default();
        assert!(!store.is_away());
        assert_eq!(store.retry_at(), None);
        let first = store.failed();
        assert!(store.is_away() && store.retry_at().is_some() && first <= Duration::from_millis(200));
        let longest = (0..20).map(|_| store.failed()).max().unwrap_or_default();
        assert!(longest > Duration::from_secs(2) && longest <= Duration::from_secs(5), "{longest:?}");
        store.resume();
        assert!(!store.is_away());
        assert_eq!(store.retry_at(), None);
        assert!(store.failed() > Duration::from_secs(2), "it only answers probes");
        store.works();
        store.resume();
        assert!(store.failed() > Duration::from_secs(2), "not while it was away");
        store.resume();
        store.works();
        assert!(store.failed() <= Duration::from_millis(200));
    }

    #[test]
    fn message_that_is_held_again_and_again_is_held_longer() {
        let millis = |holds| holding(holds).as_millis();
        assert_eq!([0, 1, 2, 3, 90].map(millis), [0, 200, 400, 800, 10_000]);
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let delays = [1, 2, 4, 5, 90].map(|failures| backoff(failures, first, longest).as_millis());
        assert_eq!(delays, [100, 200, 800, 1000, 1000]);
    }
}
