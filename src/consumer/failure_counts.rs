//! How often a message failed here.

use std::collections::HashMap;

use super::telemetry;
use crate::message::IncomingMessage;

/// Remembers the failures of messages of which no copy was made that counts them: those that are
/// held until they are tried again.
///
/// A quorum queue counts in `x-delivery-count` what it takes back, also what did not fail; a
/// classic queue says no more than `redelivered`. So the count is kept here over lost connections,
/// for the messages that are in trouble, and starts anew when the process does.
#[derive(Debug, Default)]
pub(crate) struct FailureCounts {
    failed: HashMap<String, u32>,
}

/// Above this, counts are dropped: a store of troubles must not become one.
const BOUND: usize = 100_000;

impl FailureCounts {
    /// Remembers how often a message has failed in all.
    pub(crate) fn remember(&mut self, name: &str, failures: u32) {
        if self.failed.len() >= BOUND {
            self.failed.clear();
        }
        self.failed.insert(name.to_owned(), failures);
    }

    /// Tells a message that was delivered again what its copy does not know.
    pub(crate) fn recall(&self, message: &mut IncomingMessage) {
        if self.failed.is_empty() {
            return;
        }
        if let Some(failures) =
            self.failed.get(&telemetry::name(message)).filter(|known| **known > message.failures())
        {
            message.set_failures(*failures);
        }
    }

    /// Whether no message is in trouble.
    pub(crate) fn is_empty(&self) -> bool {
        self.failed.is_empty()
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.failed.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_remembered_per_message_until_forgotten() {
        let mut attempts = FailureCounts::default();
        let recalled = |attempts: &FailureCounts, mut message: IncomingMessage| {
            attempts.recall(&mut message);
            message.failures()
        };
        let message = IncomingMessage::new("").with_message_id("a");
        attempts.remember("a", 3);
        attempts.remember("b", 1);
        assert_eq!(recalled(&attempts, message.clone()), 3);
        assert_eq!(recalled(&attempts, message.clone().with_header("x-idempotency-failures", 5)), 5);
        assert_eq!(recalled(&attempts, IncomingMessage::new("").with_message_id("c")), 0);
        attempts.forget("a");
        assert_eq!(recalled(&attempts, message), 0);
        assert!(!attempts.is_empty());
    }
}
