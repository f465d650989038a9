//! How many messages go into one batch.

use std::time::Duration;

/// The longest that a batch should take: while it lasts its transaction holds locks, and its first
/// message waits for the last one.
const LONGEST: Duration = Duration::from_millis(100);

/// The size of the next batch: grows while batches are full and fast, and shrinks when they are
/// slow or fail.
#[derive(Debug)]
pub(crate) struct BatchSize {
    most: usize,
    now: usize,
}

impl BatchSize {
    /// At most `most`, at least one, which it begins with: nothing is known of the handler yet.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), now: 1 }
    }

    pub(crate) fn now(&self) -> usize {
        self.now
    }

    /// What a batch of `count` messages was like; `together` if one commit held it.
    pub(crate) fn learn(&mut self, count: usize, took: Duration, together: bool) {
        if !together {
            // A message that fails makes its neighbours pay twice.
            self.now = (self.now / 2).max(1);
        } else if took > LONGEST && count > 1 {
            let each = took.as_micros() / count as u128;
            let fitting = usize::try_from(LONGEST.as_micros() / each.max(1)).unwrap_or(usize::MAX);
            self.now = fitting.clamp(1, self.now);
        } else if count >= self.now && took * 2 < LONGEST {
            self.now = (self.now * 2).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(1);

    #[test]
    fn it_stays_within_its_bounds() {
        let mut size = BatchSize::new(64);
        for _ in 0..10 {
            size.learn(size.now(), FAST, true);
        }
        assert_eq!(size.now(), 64);
        for _ in 0..10 {
            size.learn(size.now(), FAST, false);
        }
        assert_eq!(size.now(), 1);
        size.learn(1, FAST, true);
        assert_eq!(size.now(), 2);
        let mut single = BatchSize::new(0);
        single.learn(1, FAST, true);
        assert_eq!(single.now(), 1);
    }

    #[test]
    fn slow_handlers_get_small_batches() {
        let mut size = BatchSize { most: 64, now: 16 };
        size.learn(16, LONGEST * 4, true);
        assert_eq!(size.now(), 4);
        size.learn(4, LONGEST, true);
        assert_eq!(size.now(), 4, "just right");
        size.learn(1, LONGEST * 50, true);
        assert_eq!(size.now(), 4, "one message alone says nothing about batches");
    }

    #[test]
    fn what_was_not_full_says_nothing_about_more() {
        let mut size = BatchSize { most: 64, now: 16 };
        size.learn(3, FAST, true);
        assert_eq!(size.now(), 16);
    }
}
