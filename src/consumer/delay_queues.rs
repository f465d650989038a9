//! Where failed messages wait before they are delivered again.

use std::time::Duration;

use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::{amqp::DELAY_SUFFIX, message::LONGEST_DELAY};

/// How a failed message comes to be delivered again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Redelivery {
    /// It is published to a delay queue with a confirm, and then acked. From there the broker
    /// brings it back to its queue. Its failures are counted in a header, so that the count
    /// outlives the consumer, and it takes no place in the prefetch window while it waits. Messages
    /// behind it overtake it.
    ///
    /// A delay queue is named `<queue>.retry.<milliseconds>` and declared when it is first needed:
    /// a quorum queue with `x-message-ttl`, that dead-letters to the consumed queue with the
    /// strategy `at-least-once`, so that the broker keeps a message that it cannot bring back
    /// (RabbitMQ 3.10 or later). The consumer's user needs the right to declare it. Where it cannot
    /// be used the message is [held](Self::Held).
    #[default]
    Delayed,
    /// It is held in the consumer, unacknowledged, until its delay is over, and then handled again.
    /// It takes a place in the prefetch window meanwhile, and its failures are counted by this
    /// consumer only: the count starts anew when the process does. A delay that is longer than the
    /// broker lets a consumer hold a message
    /// ([`consumer_timeout`](super::ConsumerBuilder::consumer_timeout)) is made of several.
    Held,
    /// It is given back with `basic.reject`, and the broker holds it: the delayed retries of quorum
    /// queues, RabbitMQ 4.3 or later. No delay queues and no copies; the broker counts, in
    /// `x-delivery-count`.
    ///
    /// The queue must be declared for it, as
    /// [`WorkQueue::delayed_retry`](super::WorkQueue::delayed_retry) does: with
    /// `x-delayed-retry-type` `failed` or `all`, `x-delayed-retry-min` and `x-delayed-retry-max`,
    /// or a policy. A consumer of an older broker does not start. The delays are the queue's:
    /// [`retry_delays`](super::ConsumerBuilder::retry_delays) is for a handler's own
    /// [`retry_after`](crate::HandlerError::retry_after) only, which is kept by a delay queue. A
    /// message is parked after as many deliveries as
    /// [`max_attempts`](super::ConsumerBuilder::max_attempts) come to, or near the queue's
    /// [`delivery_limit`](super::ConsumerBuilder::delivery_limit). A lost connection counts as a
    /// failed delivery here, as the broker counts it. Where the broker counts nothing, on a classic
    /// queue, what fails again goes through a delay queue.
    DelayedRetry,
}

/// How much longer each delay is than the one before.
const FACTOR: u32 = 4;

/// The most milliseconds that RabbitMQ takes as a TTL.
const LONGEST_TTL: Duration = Duration::from_millis(u32::MAX as u64);

/// The delay queues of one queue, by their delays.
#[derive(Debug, Clone)]
pub(crate) struct Delays {
    steps: Vec<Duration>,
}

/// A delay, and what can be had of it from a delay queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    /// How long the message is to wait.
    pub(crate) wanted: Duration,
    /// The delay of the queue that it waits in.
    pub(crate) step: Duration,
}

impl Delays {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let longest = longest.clamp(Duration::from_millis(1), LONGEST_TTL);
        let mut step = first.clamp(Duration::from_millis(1), longest);
        let mut steps = vec![step];
        while step < longest {
            step = step.saturating_mul(FACTOR).min(longest);
            steps.push(step);
        }
        Self { steps }
    }

    pub(crate) fn longest(&self) -> Duration {
        self.steps.last().copied().unwrap_or(LONGEST_TTL)
    }

    /// After so many failed deliveries, and not before the delay that the handler asked for.
    pub(crate) fn after(&self, deliveries: u32, least: Option<Duration>) -> Wait {
        let index = usize::try_from(deliveries.saturating_sub(1)).unwrap_or(usize::MAX);
        let own = self.steps.get(index).copied().unwrap_or_else(|| self.longest());
        let wanted = least.map_or(own, |least| own.max(least)).min(LONGEST_DELAY);
        let step = self.steps.iter().copied().find(|step| *step >= wanted).unwrap_or_else(|| self.longest());
        Wait { wanted, step }
    }

    /// All delays of a message together that fails as often as it may, with so many failures in
    /// each delivery.
    pub(crate) fn total(&self, max_attempts: u32, each: u32) -> Duration {
        // The last failed delivery is parked.
        let delays = max_attempts.div_ceil(each.max(1)).saturating_sub(1);
        let steps = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        let growing: Duration = self.steps.iter().take(delays as usize).sum();
        growing.saturating_add(self.longest().saturating_mul(delays.saturating_sub(steps)))
    }

    /// The rest of a delay that is longer than that of any queue.
    pub(crate) fn rest(&self, remaining: Duration) -> Wait {
        let wanted = remaining.min(LONGEST_DELAY);
        let fitting = self.steps.iter().copied().rev().find(|step| *step <= wanted);
        Wait { wanted, step: fitting.unwrap_or(self.steps[0]) }
    }
}

/// The name of the queue that delays messages of `queue`.
pub(crate) fn name(queue: &str, step: Duration) -> String {
    format!("{queue}{DELAY_SUFFIX}{}", step.as_millis())
}

/// What it is declared with.
pub(crate) fn arguments(queue: &str, step: Duration) -> FieldTable {
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    let mut arguments = FieldTable::default();
    let mut set = |name: &'static str, value| {
        arguments.insert(ShortString::from(name), value);
    };
    set("x-queue-type", text("quorum"));
    set("x-message-ttl", AMQPValue::LongLongInt(i64::try_from(step.as_millis()).unwrap_or(i64::MAX)));
    set("x-dead-letter-exchange", text(""));
    set("x-dead-letter-routing-key", text(queue));
    // The default, at-most-once, loses what cannot be routed at that moment.
    set("x-dead-letter-strategy", text("at-least-once"));
    set("x-overflow", text("reject-publish"));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn wait(wanted: u64, step: u64) -> Wait {
        Wait { wanted: seconds(wanted), step: seconds(step) }
    }

    #[test]
    fn delays_grow_up_to_the_longest() {
        let delays = Delays::new(seconds(1), seconds(100));
        assert_eq!(delays.steps, [1, 4, 16, 64, 100].map(seconds));
        assert_eq!(
            [0, 1, 2, 3, 5, 6, u32::MAX].map(|n| delays.after(n, None).wanted.as_secs()),
            [1, 1, 4, 16, 100, 100, 100]
        );
        assert_eq!(Delays::new(seconds(5), seconds(5)).steps, [seconds(5)]);
        assert_eq!(Delays::new(Duration::ZERO, Duration::ZERO).steps, [Duration::from_millis(1)]);
        assert_eq!(Delays::new(seconds(1), Duration::MAX).longest(), LONGEST_TTL);
    }

    #[test]
    fn all_delays_of_a_message_are_those_between_its_deliveries() {
        let delays = Delays::new(seconds(1), seconds(100));
        assert_eq!(delays.total(1, 1), Duration::ZERO);
        assert_eq!(delays.total(3, 1), seconds(1 + 4));
        assert_eq!(delays.total(3, 3), Duration::ZERO);
        assert_eq!(delays.total(20, 3), seconds(1 + 4 + 16 + 64 + 100 + 100));
    }

    #[test]
    fn a_handlers_own_delay_is_never_cut_short() {
        let delays = Delays::new(seconds(1), seconds(100));
        assert_eq!(delays.after(1, Some(seconds(3))), wait(3, 4));
        assert_eq!(delays.after(3, Some(seconds(3))), wait(16, 16));
        assert_eq!(delays.after(1, Some(seconds(3600))), wait(3600, 100));
        assert_eq!(delays.rest(seconds(3500)), wait(3500, 100));
        assert_eq!(delays.rest(seconds(63)), wait(63, 16));
        assert_eq!(delays.rest(Duration::from_millis(10)).step, seconds(1));
    }

    #[test]
    fn every_wait_has_an_end_that_a_clock_can_say() {
        let delays = Delays::new(seconds(1), seconds(100));
        for wait in [delays.after(1, Some(Duration::MAX)), delays.rest(Duration::MAX)] {
            assert!(std::time::SystemTime::now().checked_add(wait.wanted).is_some());
            assert_eq!(wait.step, seconds(100));
        }
    }
}
