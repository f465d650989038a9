//! How often a message failed here.

use std::{collections::HashMap, time::Duration};

/// Counts failed attempts of the messages that are being retried by this consumer.
///
/// A quorum queue counts deliveries in `x-delivery-count`; a classic queue says no more than `redelivered`. So the count is kept
/// here, for the messages that are in trouble, and starts anew when the consumer does.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    failed: HashMap<String, u32>,
}

/// Above this, counts are dropped: a store of troubles must not become one.
const BOUND: usize = 100_000;

impl Attempts {
    /// Counts a failure and returns how many there were, this one included.
    pub(crate) fn fail(&mut self, message: &str) -> u32 {
        if self.failed.len() >= BOUND {
            self.failed.clear();
        }
        let count = self.failed.entry(message.to_owned()).or_default();
        *count += 1;
        *count
    }

    /// Whether no message is in trouble.
    pub(crate) fn is_empty(&self) -> bool {
        self.failed.is_empty()
    }

    pub(crate) fn forget(&mut self, message: &str) {
        self.failed.remove(message);
    }
}

/// The delay before failure number `failures` is followed by another delivery: doubling from `first` up to `longest`.
pub(crate) fn backoff(failures: u32, first: Duration, longest: Duration) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_per_message_until_forgotten() {
        let mut attempts = Attempts::default();
        assert_eq!((attempts.fail("a"), attempts.fail("b"), attempts.fail("a")), (1, 1, 2));
        attempts.forget("a");
        assert_eq!(attempts.fail("a"), 1);
    }

    #[test]
    fn delays_double_up_to_the_longest() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let delays = [1, 2, 4, 5, 90].map(|failures| backoff(failures, first, longest).as_millis());
        assert_eq!(delays, [100, 200, 800, 1000, 1000]);
    }
}
