//! What the broker's count of a delivery means, judged when it comes.
//!
//! A quorum queue counts how often it took a message back, and removes what exceeds its delivery
//! limit: into a dead-letter exchange, or for good. A lost connection takes back all that was
//! delivered on it, so the count says little about the message itself. Two things follow:
//!
//! - What comes near the limit is published anew, with a confirm, and acked: the copy is counted
//!   from 0, and the broker never decides.
//! - What comes back again and again although this process lost no connection may be what ends its
//!   consumers. It is published anew with a mark, and handled with nothing else in hand. What is
//!   taken back often after that is parked.

use crate::message::IncomingMessage;

/// Returns that this process does not explain, from which on a message is suspected of ending its
/// consumers.
const SUSPECTED: u32 = 3;

/// Returns that this process does not explain, after it came under suspicion, from which on it is
/// parked.
const CONVICTED: u32 = 3;

/// What the count of a delivery means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Nothing: it is handled in turn.
    Handle,
    /// It is handled with nothing else in hand.
    HandleAlone,
    /// It is published anew to its queue before it is handled; with a mark, if it is suspected.
    Move { suspected: bool },
    /// It is parked: it ended its consumers.
    Park,
}

/// Judges deliveries by the broker's count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeliveryLimit {
    /// The count from which on a message is published anew.
    threshold: Option<u32>,
    /// How many of the returns are the handler's failures, where the broker counts them.
    failures: u32,
    /// Whether nothing but a suspect is ever taken back with it.
    alone: bool,
}

impl DeliveryLimit {
    /// `limit` is the queue's. `failures`: how often a message may be rejected before it is parked,
    /// if the broker delays what failed.
    ///
    /// `alone`: whether a suspect is the only delivery on its channel. Where it is not, its
    /// neighbours come back as often as it does, and nothing is parked.
    pub(crate) fn new(limit: Option<u32>, failures: u32, alone: bool) -> Self {
        // Half of the limit is the margin: for connections that are lost while a message is
        // published anew.
        let threshold = limit.map(|limit| limit.div_ceil(2).max(1));
        Self { threshold, failures, alone }
    }

    /// Whether the broker may take it back once more, and there is still time to publish it anew.
    pub(crate) fn allows_return(&self, message: &IncomingMessage) -> bool {
        self.threshold.is_none_or(|threshold| {
            message.delivery_count().unwrap_or_default().saturating_add(1) < threshold
        })
    }

    /// Whether one more return brings a message under suspicion, or a suspect nearer to being
    /// parked, in a process that explains nothing: the next one.
    pub(crate) fn weighs(&self, message: &IncomingMessage) -> bool {
        let returns = message.returns().saturating_add(1).saturating_sub(self.failures);
        message.suspected_at().is_some() || returns >= SUSPECTED
    }

    /// What the count of a delivery means in a process that survived so many lost connections.
    pub(crate) fn judge(&self, message: &IncomingMessage, survived: u32) -> Judgement {
        let returns = message.returns();
        if returns == 0 {
            return Judgement::Handle;
        }
        let explained = survived.saturating_add(self.failures);
        let suspected_at = message.suspected_at();
        match suspected_at {
            Some(before)
                if self.alone && returns.saturating_sub(before).saturating_sub(explained) >= CONVICTED =>
            {
                return Judgement::Park;
            }
            None if returns.saturating_sub(explained) >= SUSPECTED => {
                return Judgement::Move { suspected: true };
            }
            _ => {}
        }
        let count = message.delivery_count().unwrap_or_default();
        if self.threshold.is_some_and(|threshold| count >= threshold) {
            Judgement::Move { suspected: false }
        } else if suspected_at.is_some() {
            Judgement::HandleAlone
        } else {
            Judgement::Handle
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::reserved;

    fn message(count: u32) -> IncomingMessage {
        IncomingMessage::new("").with_header(reserved::DELIVERY_COUNT, count)
    }

    const MOVE: Judgement = Judgement::Move { suspected: false };

    /// The most returns that a queue with this limit allows before the next one removes the
    /// message.
    #[test]
    fn what_comes_near_the_limit_is_published_anew_before_the_last_return() {
        for (limit, threshold) in [(20, 10), (11, 6), (5, 3), (2, 1), (1, 1)] {
            let watch = DeliveryLimit::new(Some(limit), 0, true);
            // A process that explains every return.
            let judge = |count| watch.judge(&message(count), u32::MAX);
            assert_eq!(judge(threshold), MOVE, "{limit}");
            assert_eq!(judge(limit), MOVE, "{limit}");
            assert!((0..threshold).all(|count| judge(count) == Judgement::Handle), "{limit}");
            assert!(threshold <= limit, "it is delivered with that count, and may be taken back once more");
        }
        assert_eq!(DeliveryLimit::new(None, 0, true).judge(&message(1000), u32::MAX), Judgement::Handle);
        assert_eq!(DeliveryLimit::new(Some(0), 0, true).judge(&message(0), 0), Judgement::Handle);
    }

    #[test]
    fn lost_connections_that_the_process_survived_are_no_deaths() {
        let watch = DeliveryLimit::new(Some(20), 0, true);
        assert_eq!(watch.judge(&message(2), 0), Judgement::Handle);
        assert_eq!(watch.judge(&message(3), 0), Judgement::Move { suspected: true });
        assert_eq!(watch.judge(&message(3), 1), Judgement::Handle);
        let anew = message(3).with_header(reserved::DELIVERIES, 15);
        assert_eq!(watch.judge(&anew, 18), Judgement::Handle);
        assert_eq!(watch.judge(&anew, 15), Judgement::Move { suspected: true });
    }

    #[test]
    fn no_number_of_graceful_stops_brings_a_message_under_suspicion() {
        let watch = DeliveryLimit::new(Some(20), 0, true);
        let mut message = message(0);
        for _ in 0..10 {
            // Given back, which is counted; or published anew, which is not.
            if !watch.weighs(&message) {
                message = message.clone().with_header(reserved::DELIVERY_COUNT, message.returns() + 1);
            }
            assert_eq!(watch.judge(&message, 0), Judgement::Handle);
        }
        assert_eq!(message.returns(), 2);
        assert!(watch.weighs(&message.with_header(reserved::SUSPECTED, 0)));
    }

    #[test]
    fn suspect_is_handled_alone_and_parked_when_it_comes_back_often() {
        let watch = DeliveryLimit::new(Some(20), 0, true);
        let suspect =
            |count| message(count).with_header(reserved::DELIVERIES, 3).with_header(reserved::SUSPECTED, 3);
        for (count, judgement) in [
            (0, Judgement::HandleAlone),
            (2, Judgement::HandleAlone),
            (3, Judgement::Park),
            (9, Judgement::Park),
        ] {
            assert_eq!(watch.judge(&suspect(count), 0), judgement, "{count}");
        }
        assert_eq!(watch.judge(&suspect(3), 1), Judgement::HandleAlone);
        let among_others = DeliveryLimit::new(Some(20), 0, false);
        assert_eq!(among_others.judge(&suspect(9), 0), Judgement::HandleAlone);
        assert_eq!(among_others.judge(&suspect(15), 0), MOVE);
        // A queue that allows two returns: each of them is a copy.
        let watch = DeliveryLimit::new(Some(2), 0, true);
        assert_eq!(watch.judge(&suspect(1), 0), MOVE);
        let again = message(1).with_header(reserved::DELIVERIES, 5).with_header(reserved::SUSPECTED, 3);
        assert_eq!(watch.judge(&again, 0), Judgement::Park);
    }

    #[test]
    fn failures_that_the_broker_counts_are_no_deaths() {
        let watch = DeliveryLimit::new(Some(20), 7, true);
        let unlimited = DeliveryLimit::new(None, 7, true);
        assert_eq!(unlimited.judge(&message(9), 0), Judgement::Handle);
        assert_eq!(unlimited.judge(&message(10), 0), Judgement::Move { suspected: true });
        assert!(watch.allows_return(&message(8)) && !watch.allows_return(&message(9)));
        assert!(DeliveryLimit::new(None, 7, true).allows_return(&message(1000)));
    }
}
