//! How often a message failed here.

use std::collections::HashMap;

/// Counts failed attempts of the messages that go back to their queue: no header can count there.
///
/// A quorum queue counts deliveries in `x-delivery-count`, also those that did not fail; a classic queue says no more than
/// `redelivered`. So the count is kept here, for the messages that are in trouble, and starts anew when the consumer does.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    failed: HashMap<String, u32>,
}

/// Above this, counts are dropped: a store of troubles must not become one.
const BOUND: usize = 100_000;

impl Attempts {
    /// Counts failures and returns how many there were, these included.
    pub(crate) fn fail(&mut self, message: &str, failures: u32) -> u32 {
        if self.failed.len() >= BOUND {
            self.failed.clear();
        }
        let count = self.failed.entry(message.to_owned()).or_default();
        *count = count.saturating_add(failures);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_per_message_until_forgotten() {
        let mut attempts = Attempts::default();
        assert_eq!((attempts.fail("a", 1), attempts.fail("b", 1), attempts.fail("a", 2)), (1, 1, 3));
        attempts.forget("a");
        assert_eq!(attempts.fail("a", 1), 1);
    }
}
