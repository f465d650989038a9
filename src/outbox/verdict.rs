//! What a publish's result means for its row.
//!
//! | Result | Row |
//! |---|---|
//! | confirmed | deleted (O1) |
//! | invalid | parked at once: it would be invalid again |
//! | unroutable, refused, or the publisher panicked | counted, left alone for a while, parked after the last attempt |
//! | nacked, or unconfirmed by a broker that is there | not counted; its route is held back |
//! | anything else | not counted and not written: the broker is away |

use std::time::Duration;

use super::contract::Next;
use crate::{
    error::{Chain, bounded_to},
    publisher::{PublishError, PublishErrorKind},
};

/// No error text in a table is longer.
const ERROR_BYTES: usize = 1_000;

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is deleted.
    Delete,
    /// Its message is at fault.
    Fault(Next),
    /// Whatever its route leads to takes nothing now.
    HoldRoute,
    /// There is no broker now.
    BrokerAway,
}

/// How patient a relay is with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    pub(super) first: Duration,
    pub(super) longest: Duration,
    pub(super) max_attempts: u32,
}

impl Patience {
    /// What a result means for a row that was tried in vain `attempts` times before. `ready`:
    /// whether the publisher has a connection now.
    pub(super) fn verdict(
        &self,
        result: Result<(), PublishErrorKind>,
        attempts: u32,
        ready: bool,
    ) -> Verdict {
        match result {
            Ok(()) => Verdict::Delete,
            Err(PublishErrorKind::Invalid) => Verdict::Fault(Next::Park),
            Err(PublishErrorKind::Unroutable | PublishErrorKind::Refused) => {
                if attempts.saturating_add(1) >= self.max_attempts {
                    Verdict::Fault(Next::Park)
                } else {
                    Verdict::Fault(Next::Retry(self.delay(attempts)))
                }
            }
            Err(PublishErrorKind::Nacked) => Verdict::HoldRoute,
            // A quorum queue without its majority confirms nothing, while others do.
            Err(PublishErrorKind::TimedOut) if ready => Verdict::HoldRoute,
            Err(
                PublishErrorKind::TimedOut
                | PublishErrorKind::Disconnected
                | PublishErrorKind::Closed
                | PublishErrorKind::Full,
            ) => Verdict::BrokerAway,
        }
    }

    /// The pause after `attempts` attempts and one more: doubling, and varied by a fifth so that
    /// what failed together is not tried together.
    fn delay(&self, attempts: u32) -> Duration {
        growing(self.first, self.longest, attempts).mul_f64(0.8 + 0.2 * fastrand::f64())
    }
}

/// `first`, doubled so many times, up to `longest`.
pub(super) fn growing(first: Duration, longest: Duration, times: u32) -> Duration {
    first.saturating_mul(2_u32.saturating_pow(times)).min(longest)
}

/// Why it failed, for the table and for people: with the broker's own words.
pub(super) fn reason(error: &PublishError) -> String {
    let said = Chain(error).to_string();
    match (error.reply_code(), error.reply_text()) {
        (Some(code), Some(text)) if !said.contains(text) => shortened(&format!("{said}: {code} {text}")),
        _ => shortened(&said),
    }
}

/// A text that fits into a row, without control characters.
pub(super) fn shortened(text: &str) -> String {
    bounded_to(text, ERROR_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::OutgoingMessage;

    const PATIENCE: Patience =
        Patience { first: Duration::from_secs(1), longest: Duration::from_secs(300), max_attempts: 3 };

    fn of(kind: PublishErrorKind, attempts: u32, ready: bool) -> Verdict {
        PATIENCE.verdict(Err(kind), attempts, ready)
    }

    #[test]
    fn row_is_deleted_only_after_its_own_confirm() {
        assert_eq!(PATIENCE.verdict(Ok(()), 9, false), Verdict::Delete);
        for kind in [
            PublishErrorKind::Invalid,
            PublishErrorKind::Unroutable,
            PublishErrorKind::Refused,
            PublishErrorKind::Nacked,
            PublishErrorKind::TimedOut,
            PublishErrorKind::Disconnected,
            PublishErrorKind::Closed,
            PublishErrorKind::Full,
        ] {
            for (attempts, ready) in [(0, true), (0, false), (u32::MAX, true), (u32::MAX, false)] {
                assert_ne!(of(kind, attempts, ready), Verdict::Delete, "{kind:?}");
            }
        }
    }

    #[test]
    fn own_faults_are_counted_and_parked_in_the_end() {
        for kind in [PublishErrorKind::Unroutable, PublishErrorKind::Refused] {
            for attempts in 0..2 {
                let Verdict::Fault(Next::Retry(delay)) = of(kind, attempts, true) else {
                    panic!("{kind:?} after {attempts}");
                };
                let longest = Duration::from_secs(1 << attempts);
                assert!(delay >= longest.mul_f64(0.8) && delay <= longest, "{delay:?}");
            }
            assert_eq!(of(kind, 2, true), Verdict::Fault(Next::Park));
            assert_eq!(of(kind, u32::MAX, true), Verdict::Fault(Next::Park));
        }
        assert_eq!(of(PublishErrorKind::Invalid, 0, true), Verdict::Fault(Next::Park));
    }

    #[test]
    fn what_is_the_brokers_is_not_counted() {
        assert_eq!(of(PublishErrorKind::Nacked, 99, false), Verdict::HoldRoute);
        assert_eq!(of(PublishErrorKind::TimedOut, 99, true), Verdict::HoldRoute, "others are confirmed");
        assert_eq!(of(PublishErrorKind::TimedOut, 99, false), Verdict::BrokerAway);
        for kind in [PublishErrorKind::Disconnected, PublishErrorKind::Closed, PublishErrorKind::Full] {
            assert_eq!(of(kind, 99, true), Verdict::BrokerAway);
        }
    }

    #[test]
    fn delays_grow_up_to_the_longest() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(300));
        let seconds = [0, 1, 8, 9, u32::MAX].map(|times| growing(first, longest, times).as_secs());
        assert_eq!(seconds, [1, 2, 256, 300, 300]);
    }

    #[test]
    fn reasons_fit_into_a_row() {
        let message = OutgoingMessage::to("e", "k");
        let error = PublishError::invalid(message.clone(), "no\nway".into());
        assert_eq!(reason(&error), "the message cannot be sent: no\\nway");
        let long = PublishError::invalid(message, "é".repeat(2_000).into());
        assert!(reason(&long).len() <= ERROR_BYTES && reason(&long).ends_with('é'));
    }
}
