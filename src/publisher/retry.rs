//! When a message is published again, and when the publisher gives up.

use std::time::Duration;

use super::error::PublishErrorKind;

/// No delay is longer: an `Instant` cannot be moved by every duration.
const LONGEST_DELAY: Duration = Duration::from_secs(365 * 86_400);

/// Exponential backoff with jitter, bounded by attempts and by total time.
///
/// All attempts of one message carry the same message ID and the same body, so trying again never
/// makes a second effect at a guarded consumer.
///
/// The delay before attempt `n + 1` is `initial_delay * factor^(n - 1)`, at most `max_delay`, then
/// spread by the jitter. A message whose connection was lost does not wait: it is published again
/// as soon as the broker is back. If connections end one after the other without a single confirm,
/// there is a growing pause before each, of up to 3 seconds.
///
/// ```
/// use std::time::Duration;
/// use lapin_idempotent::RetryPolicy;
///
/// // Patient: for a job that nobody waits for.
/// let patient = RetryPolicy::default()
///     .max_attempts(u32::MAX)
///     .max_elapsed(Duration::from_secs(600))
///     .max_delay(Duration::from_secs(30));
/// assert_ne!(patient, RetryPolicy::never());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    max_attempts: u32,
    max_elapsed: Duration,
    initial_delay: Duration,
    max_delay: Duration,
    factor: f64,
    jitter: f64,
    retries: Retries,
}

/// After which failures a message is tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(clippy::struct_excessive_bools)]
struct Retries {
    nacked: bool,
    unroutable: bool,
    timed_out: bool,
    disconnected: bool,
}

impl Default for RetryPolicy {
    /// Ten attempts within 30 seconds; delays from 100 milliseconds, doubling up to 5 seconds,
    /// spread by half.
    fn default() -> Self {
        Self {
            max_attempts: 10,
            max_elapsed: Duration::from_secs(30),
            initial_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
            factor: 2.0,
            jitter: 0.5,
            retries: Retries { nacked: true, unroutable: false, timed_out: true, disconnected: true },
        }
    }
}

impl RetryPolicy {
    /// A policy that publishes once and never again.
    pub fn never() -> Self {
        Self { max_attempts: 1, ..Self::default() }
    }

    /// Sets how often one message is sent at most, the first time included; at least 1.
    ///
    /// A message that the broker closes a channel or a connection over is found by sending what was
    /// in flight in smaller and smaller groups. The attempts that this costs the others do not
    /// count, unless this is 1. An attempt counts from when it is handed to the connection, even if
    /// the connection then ends before its frames are written.
    ///
    /// Default: 10.
    #[must_use]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts.max(1);
        self
    }

    /// Sets how long one message may take in all: waiting for capacity, reconnects, confirms and
    /// retries together.
    ///
    /// When it has passed, the publish fails with the kind of its last failure.
    ///
    /// Default: 30 seconds.
    #[must_use]
    pub fn max_elapsed(mut self, total: Duration) -> Self {
        self.max_elapsed = total;
        self
    }

    /// Sets the delay before the second attempt. Default: 100 milliseconds.
    #[must_use]
    pub fn initial_delay(mut self, delay: Duration) -> Self {
        self.initial_delay = delay;
        self
    }

    /// Sets the longest delay between two attempts. Default: 5 seconds.
    #[must_use]
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = delay;
        self
    }

    /// Sets by how much each delay is longer than the one before; values below 1 count as 1.
    /// Default: 2.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = if factor.is_finite() { factor.max(1.0) } else { 1.0 };
        self
    }

    /// Sets the spread of each delay, from 0 (none) to 1: a delay `d` becomes a random one in
    /// `d * (1 ± jitter)`. Default: 0.5.
    #[must_use]
    pub fn jitter(mut self, jitter: f64) -> Self {
        self.jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 };
        self
    }

    /// Sets whether a returned (unroutable) message is tried again, for a topology that may not be
    /// there yet. Default: false; the publish then fails at once.
    #[must_use]
    pub fn retry_unroutable(mut self, retry: bool) -> Self {
        self.retries.unroutable = retry;
        self
    }

    /// Sets whether a nacked message is tried again, for a queue that is full or a leader that
    /// moves. Default: true.
    #[must_use]
    pub fn retry_nacked(mut self, retry: bool) -> Self {
        self.retries.nacked = retry;
        self
    }

    /// Sets whether a message whose confirm did not come in time is tried again.
    ///
    /// Without it such a publish fails, and
    /// [`may_have_been_published`](super::PublishError::may_have_been_published).
    ///
    /// Default: true.
    #[must_use]
    pub fn retry_timed_out(mut self, retry: bool) -> Self {
        self.retries.timed_out = retry;
        self
    }

    /// Sets whether a message that was unconfirmed when its connection ended is tried again.
    ///
    /// Without it such a publish fails, and
    /// [`may_have_been_published`](super::PublishError::may_have_been_published). A message that
    /// was not sent yet waits for the next connection in any case.
    ///
    /// Default: true.
    #[must_use]
    pub fn retry_disconnected(mut self, retry: bool) -> Self {
        self.retries.disconnected = retry;
        self
    }

    /// What [`max_attempts`](Self::max_attempts) was set to.
    pub fn get_max_attempts(&self) -> u32 {
        self.max_attempts
    }

    /// What [`max_elapsed`](Self::max_elapsed) was set to.
    pub fn get_max_elapsed(&self) -> Duration {
        self.max_elapsed
    }

    /// What [`initial_delay`](Self::initial_delay) was set to.
    pub fn get_initial_delay(&self) -> Duration {
        self.initial_delay
    }

    /// What [`max_delay`](Self::max_delay) was set to.
    pub fn get_max_delay(&self) -> Duration {
        self.max_delay
    }

    /// What [`factor`](Self::factor) was set to.
    pub fn get_factor(&self) -> f64 {
        self.factor
    }

    /// What [`jitter`](Self::jitter) was set to.
    pub fn get_jitter(&self) -> f64 {
        self.jitter
    }

    /// Whether a message that failed like this is tried again, as long as there are attempts and
    /// time left.
    pub fn is_retried(&self, kind: PublishErrorKind) -> bool {
        match kind {
            PublishErrorKind::Nacked => self.retries.nacked,
            PublishErrorKind::Unroutable => self.retries.unroutable,
            PublishErrorKind::TimedOut => self.retries.timed_out,
            PublishErrorKind::Disconnected => self.retries.disconnected,
            PublishErrorKind::Refused
            | PublishErrorKind::Invalid
            | PublishErrorKind::Closed
            | PublishErrorKind::Full => false,
        }
    }

    pub(crate) fn total(&self) -> Duration {
        self.max_elapsed
    }

    /// Whether a message is sent once and never again.
    pub(crate) fn is_single(&self) -> bool {
        self.max_attempts == 1
    }

    /// Whether another attempt may follow number `attempts`, which failed like this.
    pub(crate) fn retries(&self, kind: PublishErrorKind, attempts: u32) -> bool {
        self.is_retried(kind) && attempts < self.max_attempts
    }

    /// The delay after `attempts` attempts, jitter included and never above `max_delay`.
    pub(crate) fn delay(&self, attempts: u32) -> Duration {
        if self.initial_delay.is_zero() {
            // However large the factor has become.
            return Duration::ZERO;
        }
        let exponent = i32::try_from(attempts.saturating_sub(1)).unwrap_or(i32::MAX);
        let longest = self.max_delay.min(LONGEST_DELAY);
        let ceiling = longest.as_secs_f64();
        let base = (self.initial_delay.as_secs_f64() * self.factor.powi(exponent)).min(ceiling);
        let spread = 1.0 + self.jitter * (2.0 * fastrand::f64() - 1.0);
        Duration::try_from_secs_f64((base * spread).min(ceiling)).unwrap_or(longest)
    }
}

/// Takes interval, multiplier, randomization factor and total time; attempts are not limited by
/// `backoff`.
///
/// `backoff` applies its jitter after its cap, so its longest delay can be half as long again; here
/// the cap holds. No total time (`None`) becomes one day, because every publish has a deadline.
#[cfg(feature = "backoff")]
#[cfg_attr(docsrs, doc(cfg(feature = "backoff")))]
impl From<backoff::ExponentialBackoff> for RetryPolicy {
    fn from(policy: backoff::ExponentialBackoff) -> Self {
        Self::default()
            .max_attempts(u32::MAX)
            .max_elapsed(policy.max_elapsed_time.unwrap_or(Duration::from_secs(86_400)))
            .initial_delay(policy.initial_interval)
            .max_delay(policy.max_interval)
            .factor(policy.multiplier)
            .jitter(policy.randomization_factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_the_longest() {
        let policy = RetryPolicy::default().jitter(0.0).max_delay(Duration::from_millis(500));
        let delays: Vec<u128> = (1..6).map(|n| policy.delay(n).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 500, 500]);
        assert_eq!(policy.delay(u32::MAX), Duration::from_millis(500));
    }

    #[test]
    fn jitter_stays_in_its_band_and_under_the_cap() {
        let policy = RetryPolicy::default().jitter(0.5).max_delay(Duration::from_millis(120));
        for _ in 0..1_000 {
            let delay = policy.delay(1);
            assert!(delay >= Duration::from_millis(50) && delay <= Duration::from_millis(120), "{delay:?}");
        }
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let policy = RetryPolicy::default().factor(f64::NAN).jitter(f64::INFINITY).max_attempts(0);
        assert_eq!((policy.delay(7), policy.get_max_attempts()), (Duration::from_millis(100), 1));
        let endless = RetryPolicy::default().factor(1e30).max_delay(Duration::MAX);
        assert!(tokio::time::Instant::now().checked_add(endless.delay(u32::MAX)).is_some());
        assert!(
            tokio::time::Instant::now().checked_add(endless.initial_delay(Duration::MAX).delay(1)).is_some()
        );
        assert_eq!(RetryPolicy::default().initial_delay(Duration::ZERO).delay(u32::MAX), Duration::ZERO);
    }

    #[test]
    fn what_was_set_can_be_read() {
        let second = Duration::from_secs(1);
        let policy = RetryPolicy::default().max_attempts(3).max_elapsed(9 * second).initial_delay(second);
        let policy = policy.max_delay(2 * second).factor(3.0).jitter(0.25).retry_unroutable(true);
        assert_eq!((policy.get_max_attempts(), policy.get_max_elapsed()), (3, 9 * second));
        assert_eq!((policy.get_initial_delay(), policy.get_max_delay()), (second, 2 * second));
        assert!((policy.get_factor() - 3.0).abs() < f64::EPSILON);
        assert!((policy.get_jitter() - 0.25).abs() < f64::EPSILON);
        assert!(policy.is_retried(PublishErrorKind::Unroutable));
        assert!(!policy.is_retried(PublishErrorKind::Refused));
    }

    #[test]
    fn each_failure_has_its_own_answer() {
        let kinds = [
            PublishErrorKind::Nacked,
            PublishErrorKind::Unroutable,
            PublishErrorKind::TimedOut,
            PublishErrorKind::Disconnected,
            PublishErrorKind::Invalid,
            PublishErrorKind::Closed,
        ];
        let retried = |policy: &RetryPolicy| kinds.map(|kind| policy.retries(kind, 9));
        let policy = RetryPolicy::default();
        assert_eq!(retried(&policy), [true, false, true, true, false, false]);
        let other = policy.retry_nacked(false).retry_unroutable(true).retry_timed_out(false);
        assert_eq!(retried(&other), [false, true, false, true, false, false]);
        assert_eq!(retried(&other.retry_disconnected(false)), [false, true, false, false, false, false]);
        assert_eq!(retried(&RetryPolicy::default().max_attempts(9)), [false; 6]);
    }

    #[cfg(feature = "backoff")]
    #[test]
    fn a_backoff_policy_keeps_its_numbers() {
        let backoff = backoff::ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(10))
            .with_multiplier(3.0)
            .with_max_interval(Duration::from_secs(1))
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(Some(Duration::from_secs(9)))
            .build();
        let policy = RetryPolicy::from(backoff);
        assert_eq!((policy.delay(2), policy.total()), (Duration::from_millis(30), Duration::from_secs(9)));
    }
}
