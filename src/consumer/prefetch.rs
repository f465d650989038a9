//! How many deliveries the broker may send ahead.
//!
//! AMQP 0-9-1 bounds them by count and by size (`basic.qos`), but RabbitMQ refuses a size. So a bound by bytes is a count that follows the
//! size of the bodies. The broker applies a new count to new subscriptions only (its documentation, "Consumer Prefetch"), hence
//! the consumer subscribes anew, on the same channel, when it is far off.

/// What a body is taken to have before any came.
const UNKNOWN: usize = 1024 * 1024;

/// How much less than the largest recent body is expected after each smaller one: a sixty-fourth.
const DECAY: usize = 64;

/// A larger count is worth a subscription when it is so many times the present one.
const GROWTH: u16 = 4;

#[derive(Debug)]
pub(crate) struct Prefetch {
    most: u16,
    bytes: Option<usize>,
    now: u16,
    /// The largest body of late.
    size: usize,
}

impl Prefetch {
    /// At most so many messages, and about so many bytes.
    pub(crate) fn new(most: u16, bytes: Option<usize>) -> Self {
        let mut prefetch = Self { most, bytes, now: most, size: UNKNOWN };
        prefetch.now = prefetch.fitting();
        prefetch
    }

    /// What the broker is told.
    pub(crate) fn now(&self) -> u16 {
        self.now
    }

    fn fitting(&self) -> u16 {
        let Some(bytes) = self.bytes else { return self.most };
        let count = bytes / self.size.max(1);
        u16::try_from(count).unwrap_or(u16::MAX).clamp(1, self.most)
    }

    /// A delivery came.
    pub(crate) fn took(&mut self, bytes: usize) {
        self.size = (self.size - self.size / DECAY).max(bytes);
    }

    /// The count to subscribe with anew, if the present one is far off.
    pub(crate) fn change(&mut self) -> Option<u16> {
        let fitting = self.fitting();
        let too_much = fitting < self.now;
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

    #[test]
    fn without_a_bound_by_bytes_the_count_stays() {
        let mut prefetch = Prefetch::new(256, None);
        (0..1000).for_each(|_| prefetch.took(100 * MB));
        assert_eq!((prefetch.now(), prefetch.change()), (256, None));
    }

    #[test]
    fn it_begins_small_and_grows_while_bodies_are_small() {
        let mut prefetch = Prefetch::new(256, Some(8 * MB));
        assert_eq!(prefetch.now(), 8);
        let mut counts = Vec::new();
        for _ in 0..1000 {
            prefetch.took(500);
            counts.extend(prefetch.change());
        }
        assert_eq!(counts.last(), Some(&256));
        assert!(counts.len() <= 4 && counts.is_sorted(), "few subscriptions: {counts:?}");
    }

    #[test]
    fn it_shrinks_when_bodies_are_large_and_grows_again() {
        let mut prefetch = Prefetch::new(256, Some(8 * MB));
        prefetch.now = 256;
        prefetch.size = 500;
        prefetch.took(3 * MB);
        assert_eq!(prefetch.change(), Some(2));
        prefetch.took(20 * MB);
        assert_eq!(prefetch.change(), Some(1));
        prefetch.took(90 * MB);
        assert_eq!(prefetch.change(), None, "less than one cannot be");
        for _ in 0..1000 {
            prefetch.took(500);
            prefetch.change();
        }
        assert_eq!(prefetch.now(), 256);
    }
}
