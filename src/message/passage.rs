//! What a delivery says of its way here: the headers that our publisher, our consumer and `Unpark` leave on it.
//!
//! They are headers like any other, which any publisher could write: they explain and bound, and never decide whether a message is a duplicate.

use std::time::{Duration, SystemTime};

use super::{
    headers::{HeaderValue, reserved},
    incoming::IncomingMessage,
};

impl IncomingMessage {
    /// The attempt in which this crate's publisher sent this copy, if it was not the first: 2 or more.
    ///
    /// `None` from other publishers, too. A header like any other, so treat it as a claim.
    pub fn attempt(&self) -> Option<u32> {
        self.header(reserved::ATTEMPT)?.as_i64()?.try_into().ok().filter(|attempt| *attempt > 1)
    }

    /// How often its handler failed before, over all deliveries through the consumer's delay queues. A header like any other, so
    /// treat it as a claim.
    pub fn failures(&self) -> u32 {
        let failures = self.header(reserved::FAILURES).and_then(HeaderValue::as_i64);
        failures.and_then(|failures| failures.try_into().ok()).unwrap_or_default()
    }

    /// Whether it was parked and then put back into its queue, by [`Unpark`](crate::consumer::Unpark). A header like any other.
    pub fn is_replay(&self) -> bool {
        self.header(reserved::UNPARKED).is_some()
    }

    /// Why it was parked, in the words of [`ParkReason::as_str`](crate::consumer::ParkReason::as_str), if it comes from a parking queue.
    pub fn parked_reason(&self) -> Option<&str> {
        self.header(reserved::PARKED_REASON)?.as_str()
    }

    /// When it was parked, if it comes from a parking queue.
    pub(crate) fn parked_at(&self) -> Option<SystemTime> {
        self.header(reserved::PARKED_AT)?.as_time()
    }

    /// For how long nobody has known whether it took effect: its [`age`](Self::age), or less if `Unpark` vouches for it.
    pub(crate) fn unknown_for(&self, now: SystemTime) -> Option<Duration> {
        let age = self.age(now)?;
        let vouched = self.header(reserved::UNPARKED).and_then(HeaderValue::as_time);
        Some(vouched.map_or(age, |vouched| age.min(now.duration_since(vouched).unwrap_or_default())))
    }

    /// How long it is not to be handled yet, because its handler asked for a delay that is longer than those of the delay queues.
    pub(crate) fn early(&self, now: impl FnOnce() -> SystemTime) -> Option<Duration> {
        let due = self.header(reserved::NOT_BEFORE)?.as_i64()?.try_into().ok()?;
        let due = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(due))?;
        due.duration_since(now()).ok().filter(|early| !early.is_zero())
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
        for forged in [HeaderValue::Int(-1), i64::MIN.into(), "3".into(), HeaderValue::Void] {
            let message = message(forged);
            assert_eq!((message.failures(), message.early(|| now)), (0, None));
        }
        assert_eq!(message(i64::MAX.into()).failures(), 0);
        assert_eq!(message(100_000.into()).early(|| now), None, "just now");
    }
}
