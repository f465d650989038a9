//! How many deliveries the broker may send ahead.
//!
//! AMQP 0-9-1 bounds them by count and by size (`basic.qos`), but RabbitMQ refuses a size. So a
//! bound by bytes is a count that follows the size of the bodies. The broker applies a new count to
//! new subscriptions only (its documentation, "Consumer Prefetch"), hence the consumer subscribes
//! anew, on the same channel, when it is far off.
//!
//! The count also follows the time that a message takes, so that the last one of the window has its
//! turn before the broker's consumer timeout; and it is one while what is delivered may be what
//! ends its consumers.

use std::time::Duration;

/// What a body is taken to have before any came.
const UNKNOWN: usize = 1024 * 1024;

/// How much less than the largest recent body is expected after each smaller one: a sixty-fourth.
const DECAY: usize = 64;

/// A larger count is worth a subscription when it is so many times the present one.
const GROWTH: u16 = 4;

/// What part of the broker's consumer timeout the last delivery of the window may wait for its
/// turn.
const SHARE: u32 = 2;

/// How much a new measurement of the time for a message counts: an eighth.
const SMOOTHING: u32 = 8;

#[derive(Debug)]
pub(crate) struct Prefetch {
    most: u16,
    bytes: Option<usize>,
    /// The broker's limit for how long a delivery may be unacknowledged.
    timeout: Option<Duration>,
    /// One at a time: what is delivered may end the process, and with it goes all that is in hand.
    cautious: bool,
    now: u16,
    /// The largest body of late.
    size: usize,
    /// How long a message takes, divided by how many are handled concurrently.
    time: Duration,
}

impl Prefetch {
    /// At most so many messages, and about so many bytes.
    pub(crate) fn new(most: u16, bytes: Option<usize>, timeout: Option<Duration>) -> Self {
        let (cautious, time) = (false, Duration::ZERO);
        let mut prefetch = Self { most, bytes, timeout, cautious, now: most, size: UNKNOWN, time };
        prefetch.now = prefetch.fitting();
        prefetch
    }

    /// Before a subscription: one at a time, until something was delivered that was not taken back
    /// often.
    pub(crate) fn begin_cautiously(&mut self) {
        self.cautious = true;
        self.now = self.fitting();
    }

    /// What the broker is told.
    pub(crate) fn now(&self) -> u16 {
        self.now
    }

    fn by_bytes(&self) -> Option<u128> {
        self.bytes.map(|bytes| (bytes / self.size.max(1)) as u128)
    }

    fn fitting(&self) -> u16 {
        if self.cautious {
            return 1;
        }
        let by_bytes = self.by_bytes();
        let by_time = self.timeout.map(|limit| (limit / SHARE).as_micros() / self.time.as_micros().max(1));
        let count = by_bytes.into_iter().chain(by_time).min().unwrap_or(u128::MAX);
        u16::try_from(count).unwrap_or(u16::MAX).clamp(1, self.most)
    }

    /// A delivery came; `suspect` if it may end its consumer.
    pub(crate) fn took(&mut self, bytes: usize, suspect: bool) {
        self.size = (self.size - self.size / DECAY).max(bytes);
        self.cautious = suspect;
    }

    /// Whether a suspect waits for its turn, as far as that was not known when it came.
    pub(crate) fn beware(&mut self, suspect: bool) {
        self.cautious = suspect;
    }

    /// So many messages took so long, one after the other, while others were handled beside them by
    /// as many `workers`.
    pub(crate) fn measured(&mut self, messages: usize, took: Duration, workers: usize) {
        let parts = u32::try_from(messages.saturating_mul(workers)).unwrap_or(u32::MAX);
        let each = took / parts.max(1);
        self.time = if self.time.is_zero() {
            each
        } else {
            self.time.saturating_sub(self.time / SMOOTHING) + each / SMOOTHING
        };
    }

    /// The count to subscribe with anew, if the present one is far off.
    pub(crate) fn change(&mut self) -> Option<u16> {
        let fitting = self.fitting();
        // The measured time always moves a little, so it is given a quarter.
        let by_size = self.by_bytes().is_some_and(|count| count < u128::from(self.now));
        let too_much = fitting < self.now && (by_size || fitting == 1 || fitting <= self.now / 4 * 3);
        let too_few = fitting > self.now && (fitting == self.most || fitting / GROWTH >= self.now);
        (too_much || too_few).then(|| {
            self.now = fitting;
            fitting
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1024 * 1024;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn without_a_bound_by_bytes_the_count_stays() {
        let mut prefetch = Prefetch::new(256, None, None);
        (0..1000).for_each(|_| prefetch.took(100 * MB, false));
        assert_eq!((prefetch.now(), prefetch.change()), (256, None));
    }

    #[test]
    fn it_begins_small_and_grows_while_bodies_are_small() {
        let mut prefetch = Prefetch::new(256, Some(8 * MB), None);
        assert_eq!(prefetch.now(), 8);
        let mut counts = Vec::new();
        for _ in 0..1000 {
            prefetch.took(500, false);
            counts.extend(prefetch.change());
        }
        assert_eq!(counts.last(), Some(&256));
        assert!(counts.len() <= 4 && counts.is_sorted(), "few subscriptions: {counts:?}");
    }

    #[test]
    fn it_shrinks_when_bodies_are_large_and_grows_again() {
        let mut prefetch = Prefetch::new(256, Some(8 * MB), None);
        prefetch.now = 256;
        prefetch.size = 500;
        prefetch.took(3 * MB, false);
        assert_eq!(prefetch.change(), Some(2));
        prefetch.took(20 * MB, false);
        assert_eq!(prefetch.change(), Some(1));
        prefetch.took(90 * MB, false);
        assert_eq!(prefetch.change(), None, "less than one cannot be");
        for _ in 0..1000 {
            prefetch.took(500, false);
            prefetch.change();
        }
        assert_eq!(prefetch.now(), 256);
    }

    #[test]
    fn it_shrinks_when_the_last_of_the_window_would_wait_too_long() {
        let mut prefetch = Prefetch::new(256, None, Some(HOUR));
        prefetch.measured(1, Duration::from_millis(20), 1);
        assert_eq!(prefetch.change(), None);
        prefetch.measured(64, Duration::ZERO, 1);
        (0..100).for_each(|_| prefetch.measured(1, Duration::from_secs(60), 1));
        let count = prefetch.change();
        assert!(count.is_some_and(|count| (30..=33).contains(&count)), "{count:?} in half an hour");
        (0..100).for_each(|_| prefetch.measured(1, HOUR, 1));
        assert_eq!(prefetch.change(), Some(1));
        (0..200).for_each(|_| prefetch.measured(8, Duration::from_millis(1), 4));
        assert_eq!(prefetch.change(), Some(256));
        let mut unlimited = Prefetch::new(256, None, None);
        unlimited.measured(1, HOUR, 1);
        assert_eq!(unlimited.change(), None);
    }

    #[test]
    fn small_steps_of_the_measured_time_do_not_make_it_subscribe_each_time() {
        let mut prefetch = Prefetch::new(256, None, Some(HOUR));
        let mut counts = Vec::new();
        for second in 0..400 {
            prefetch.measured(1, Duration::from_secs(second), 1);
            counts.extend(prefetch.change());
        }
        assert!(counts.len() <= 20 && counts.last() <= Some(&6), "{counts:?}");
    }

    #[test]
    fn one_at_a_time_until_something_harmless_was_delivered() {
        let mut prefetch = Prefetch::new(256, None, Some(HOUR));
        prefetch.begin_cautiously();
        assert_eq!(prefetch.now(), 1);
        prefetch.took(100, true);
        assert_eq!(prefetch.change(), None);
        prefetch.took(100, false);
        assert_eq!(prefetch.change(), Some(256));
        prefetch.took(100, true);
        assert_eq!(prefetch.change(), Some(1));
    }
}
