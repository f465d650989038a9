//! What a delivery says of its way here: the headers that publisher, consumer and `Unpark` leave
//! on it, and what the broker counts.
//!
//! They are headers like any other, which any publisher could write: they explain and bound, and
//! never decide whether a message is a duplicate.

use std::time::{Duration, SystemTime};

use super::{
    headers::{HeaderValue, reserved},
    incoming::IncomingMessage,
};

/// The longest delay that a handler may ask for.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_hours(365 * 24);

/// By how much clocks of consumers may differ before a delay that one noted is too long for
/// another.
const CLOCKS: Duration = Duration::from_hours(24);

impl IncomingMessage {
    /// The attempt in which this crate's publisher sent this copy, if it was not the first: 2 or
    /// more.
    ///
    /// `None` from other publishers, too. A header like any other, so treat it as a claim.
    pub fn attempt(&self) -> Option<u32> {
        self.header(reserved::ATTEMPT)?.as_i64()?.try_into().ok().filter(|attempt| *attempt > 1)
    }

    /// How often its handler failed before, over all deliveries through the consumer's delay
    /// queues. A header like any other, so treat it as a claim.
    pub fn failures(&self) -> u32 {
        self.counted(reserved::FAILURES).unwrap_or_default()
    }

    /// How often this copy was taken back into its queue before, as a quorum queue counts it
    /// (`x-delivery-count`): the number that the broker compares with the queue's delivery limit.
    /// `None` from classic queues, and at a first delivery.
    ///
    /// Up to RabbitMQ 4.2 every return counts: `basic.nack`, `basic.reject`, and a channel that
    /// ends. From 4.3 on `basic.nack` does not, and [`acquired_count`](Self::acquired_count) has
    /// them all. When a consumer of this crate publishes a message anew, the count begins anew.
    pub fn delivery_count(&self) -> Option<u32> {
        self.counted(reserved::DELIVERY_COUNT)
    }

    /// How often this copy was delivered before, for whatever reason it came back
    /// (`x-acquired-count`: quorum queues from RabbitMQ 4.3 on).
    pub fn acquired_count(&self) -> Option<u32> {
        self.counted(reserved::ACQUIRED_COUNT)
    }

    /// How often the broker took it back, in all: this copy, and those before it that a consumer
    /// published anew.
    pub(crate) fn returns(&self) -> u32 {
        let before = self.counted(reserved::DELIVERIES).unwrap_or_default();
        before.saturating_add(self.delivery_count().unwrap_or_default())
    }

    /// How many [`returns`](Self::returns) it had when it came under suspicion of ending its
    /// consumers.
    pub(crate) fn suspected_at(&self) -> Option<u32> {
        self.counted(reserved::SUSPECTED)
    }

    fn counted(&self, name: &str) -> Option<u32> {
        self.header(name)?.as_i64()?.try_into().ok()
    }

    /// Counts failures that no copy was made for.
    pub(crate) fn set_failures(&mut self, failures: u32) {
        self.properties.headers.insert(reserved::FAILURES, failures);
    }

    /// Whether it was parked and then put back into its queue, by
    /// [`Unpark`](crate::consumer::Unpark). A header like any other.
    pub fn is_replay(&self) -> bool {
        self.header(reserved::UNPARKED).is_some()
    }

    /// Why it was parked, in the words of
    /// [`ParkReason::name`](crate::consumer::ParkReason::name), if it comes from a parking
    /// queue.
    pub fn parked_reason(&self) -> Option<&str> {
        self.header(reserved::PARKED_REASON)?.as_str()
    }

    /// When it was parked, if it comes from a parking queue. A header like any other.
    pub fn parked_at(&self) -> Option<SystemTime> {
        self.header(reserved::PARKED_AT)?.as_time()
    }

    /// For how long nobody has known whether it took effect: its [`age`](Self::age), or less if
    /// `Unpark` vouches for it.
    pub(crate) fn unknown_for(&self, now: SystemTime) -> Option<Duration> {
        let age = self.age(now)?;
        let vouched = self.header(reserved::UNPARKED).and_then(HeaderValue::as_time);
        Some(vouched.map_or(age, |vouched| age.min(now.duration_since(vouched).unwrap_or_default())))
    }

    /// How long it is not to be handled yet, because its handler asked for a delay that is longer
    /// than those of the delay queues.
    ///
    /// A longer one than a handler can have asked for is not obeyed.
    pub(crate) fn early(&self, now: impl FnOnce() -> SystemTime) -> Option<Duration> {
        let due = self.header(reserved::NOT_BEFORE)?.as_i64()?.try_into().ok()?;
        let due = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(due))?;
        due.duration_since(now()).ok().filter(|early| !early.is_zero() && *early <= LONGEST_DELAY + CLOCKS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_read_only_if_they_make_sense() {
        let message = IncomingMessage::new("abc");
        assert_eq!(message.attempt(), None);
        assert_eq!(message.clone().with_header(reserved::ATTEMPT, 3).attempt(), Some(3));
        for forged in [HeaderValue::Int(-1), HeaderValue::Int(1), "3".into(), HeaderValue::Void] {
            assert_eq!(message.clone().with_header(reserved::ATTEMPT, forged).attempt(), None);
        }
    }

    #[test]
    fn returns_are_those_of_all_copies() {
        let message = IncomingMessage::new("");
        assert_eq!((message.delivery_count(), message.returns()), (None, 0));
        let counted = message.with_header("x-delivery-count", 4).with_header("x-acquired-count", 9);
        assert_eq!(
            (counted.delivery_count(), counted.acquired_count(), counted.returns()),
            (Some(4), Some(9), 4)
        );
        assert_eq!(counted.clone().with_header(reserved::DELIVERIES, 15).returns(), 19);
        for forged in [HeaderValue::Int(-1), i64::MAX.into(), "3".into(), HeaderValue::Void] {
            let forged = counted
                .clone()
                .with_header("x-delivery-count", forged.clone())
                .with_header(reserved::DELIVERIES, forged);
            assert_eq!((forged.delivery_count(), forged.returns()), (None, 0));
        }
        assert_eq!(counted.with_header(reserved::DELIVERIES, u32::MAX).returns(), u32::MAX);
    }

    #[test]
    fn whoever_put_it_back_says_since_when_it_may_have_taken_effect() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let message = IncomingMessage::new("").with_timestamp(1000);
        let unknown = |unparked: HeaderValue| {
            message
                .clone()
                .with_header(reserved::UNPARKED, unparked)
                .unknown_for(at(5000))
                .map(|d| d.as_secs())
        };
        assert_eq!(message.unknown_for(at(5000)), Some(Duration::from_secs(4000)));
        assert_eq!(unknown(HeaderValue::Timestamp(4900)), Some(100));
        assert_eq!(unknown(HeaderValue::Timestamp(0)), Some(4000), "it says nothing");
        assert_eq!(unknown(HeaderValue::Timestamp(9000)), Some(0));
        assert_eq!(unknown(HeaderValue::Int(4900)), Some(4000));
        assert_eq!(IncomingMessage::new("").unknown_for(at(5000)), None);
    }

    #[test]
    fn failures_and_delays_are_read_only_if_they_make_sense() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let message = |value: HeaderValue| {
            let message = IncomingMessage::new("").with_header(reserved::FAILURES, value.clone());
            message.with_header(reserved::NOT_BEFORE, value)
        };
        assert_eq!(message(3.into()).failures(), 3);
        assert_eq!(message(101_500.into()).early(|| now), Some(Duration::from_millis(1500)));
        let year = i64::try_from(LONGEST_DELAY.as_millis()).unwrap();
        assert_eq!(
            message((year + 200_000).into()).early(|| now),
            Some(LONGEST_DELAY + Duration::from_secs(100))
        );
        assert_eq!(message((2 * year).into()).early(|| now), None, "no handler can have asked for it");
        for forged in [HeaderValue::Int(-1), i64::MIN.into(), "3".into(), HeaderValue::Void] {
            let message = message(forged);
            assert_eq!((message.failures(), message.early(|| now)), (0, None));
        }
        assert_eq!(message(i64::MAX.into()).failures(), 0);
        assert_eq!(message(100_000.into()).early(|| now), None, "just now");
    }
}
