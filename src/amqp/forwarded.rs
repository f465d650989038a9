//! The properties of deliveries that are passed on: to a delay queue, to parking, and back from
//! there.
//!
//! A copy has the original's ID, body, properties and headers, but for what would make it vanish,
//! be refused or multiply.

use std::{collections::BTreeMap, time::SystemTime};

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};

use super::{
    convert::PERSISTENT,
    deaths::{deaths_elsewhere, last_death},
};
use crate::message::{Epoch, reserved, seconds_since_1970 as seconds};

/// The way that a message came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route<'a> {
    /// The queue that it was consumed from.
    pub(crate) queue: &'a str,
    /// What it was published with.
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a str,
}

/// What a parked message says of itself.
#[derive(Debug)]
pub(crate) struct Note<'a> {
    pub(crate) reason: &'a str,
    pub(crate) error: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) at: SystemTime,
    pub(crate) scope: &'a str,
    pub(crate) route: Route<'a>,
}

/// What a delayed message says of itself.
#[derive(Debug)]
pub(crate) struct Delay<'a> {
    /// How often its handler failed, in all.
    pub(crate) failures: u32,
    pub(crate) at: SystemTime,
    /// Not to be handled before, if this is later than the delay queue gives it back.
    pub(crate) until: Option<SystemTime>,
    pub(crate) route: Route<'a>,
}

/// What a message says of itself that is published anew to its own queue.
#[derive(Debug)]
pub(crate) struct Move<'a> {
    /// How often the broker took it back, in all.
    pub(crate) returns: u32,
    /// How many of them there were when it came under suspicion.
    pub(crate) suspected: Option<u32>,
    /// How often its handler failed, in all.
    pub(crate) failures: u32,
    pub(crate) at: SystemTime,
    /// Not to be handled before.
    pub(crate) until: Option<SystemTime>,
    pub(crate) route: Route<'a>,
}

/// The properties of a copy for the queue that it came from. The broker counts its deliveries anew.
pub(crate) fn moved_properties(original: &BasicProperties, moved: &Move<'_>) -> BasicProperties {
    let mut headers = kept_headers(original, moved.route.queue);
    headers.route(&moved.route);
    headers.first_seen(moved.at);
    headers.set(reserved::DELIVERIES, AMQPValue::LongLongInt(moved.returns.into()));
    if let Some(returns) = moved.suspected {
        headers.set(reserved::SUSPECTED, AMQPValue::LongLongInt(returns.into()));
    }
    headers.not_before(moved.until);
    if moved.failures > 0 {
        headers.set(reserved::FAILURES, AMQPValue::LongLongInt(moved.failures.into()));
    }
    with(original, headers)
}

/// The properties of a parked copy.
pub(crate) fn parked_properties(original: &BasicProperties, note: &Note<'_>) -> BasicProperties {
    let mut headers = kept_headers(original, note.route.queue);
    headers.remove(&[reserved::FAILURES, reserved::NOT_BEFORE, reserved::UNPARKED]);
    headers.remove(&OF_CRASHES);
    headers.text(reserved::PARKED_REASON, note.reason);
    if let Some(error) = &note.error {
        headers.text(reserved::PARKED_ERROR, error);
    }
    headers.text(reserved::PARKED_SCOPE, note.scope);
    headers.route(&note.route);
    headers.first_seen(note.at);
    headers.set(reserved::PARKED_AT, AMQPValue::Timestamp(seconds(note.at)));
    headers.set(reserved::PARKED_ATTEMPTS, AMQPValue::LongLongInt(note.attempts.into()));
    with(original, headers)
}

/// The properties of a copy for a delay queue.
pub(crate) fn delayed_properties(original: &BasicProperties, delay: &Delay<'_>) -> BasicProperties {
    let mut headers = kept_headers(original, delay.route.queue);
    headers.remove(&[reserved::NOT_BEFORE]);
    // Its handler failed and its consumer lived.
    headers.remove(&OF_CRASHES);
    headers.route(&delay.route);
    headers.first_seen(delay.at);
    headers.set(reserved::FAILURES, AMQPValue::LongLongInt(delay.failures.into()));
    headers.not_before(delay.until);
    with(original, headers)
}

/// The properties of a parked message that goes back to `queue`: its failures are forgotten, its
/// route is not.
///
/// `unprocessed`: when it is known not to have taken effect. `replay`: what it is to be replayed
/// in.
pub(crate) fn unparked_properties(
    parked: &BasicProperties,
    queue: &str,
    unprocessed: SystemTime,
    replay: Option<&Epoch>,
) -> BasicProperties {
    let mut headers = kept_headers(parked, queue);
    headers.remove(&[
        reserved::FAILURES,
        reserved::NOT_BEFORE,
        reserved::PARKED_REASON,
        reserved::PARKED_ERROR,
        reserved::PARKED_SCOPE,
        reserved::PARKED_AT,
        reserved::PARKED_ATTEMPTS,
    ]);
    headers.remove(&OF_CRASHES);
    headers.set(reserved::UNPARKED, AMQPValue::Timestamp(seconds(unprocessed)));
    if let (false, Some(death)) = (headers.0.contains_key(reserved::ORIGINAL_EXCHANGE), last_death(parked)) {
        headers.text(reserved::ORIGINAL_EXCHANGE, &death.exchange);
        headers.text(reserved::ORIGINAL_ROUTING_KEY, &death.routing_key);
    }
    headers.text(reserved::ORIGINAL_QUEUE, queue);
    if let Some(epoch) = replay {
        headers.text(reserved::REPLAY, epoch.as_str());
    }
    with(parked, headers)
}

/// The properties of a copy that stays where it is, in `queue`: the broker counts its deliveries
/// anew.
pub(crate) fn renewed_properties(original: &BasicProperties, queue: &str) -> BasicProperties {
    with(original, kept_headers(original, queue))
}

/// What is said of a message that may end its consumers.
const OF_CRASHES: [&str; 2] = [reserved::DELIVERIES, reserved::SUSPECTED];

struct Kept(BTreeMap<ShortString, AMQPValue>);

impl Kept {
    fn set(&mut self, name: &'static str, value: AMQPValue) {
        self.0.insert(ShortString::from(name), value);
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.set(name, AMQPValue::LongString(LongString::from(value)));
    }

    fn route(&mut self, route: &Route<'_>) {
        self.text(reserved::ORIGINAL_QUEUE, route.queue);
        self.text(reserved::ORIGINAL_EXCHANGE, route.exchange);
        self.text(reserved::ORIGINAL_ROUTING_KEY, route.routing_key);
    }

    /// Said once, by the consumer that passes it on first.
    fn first_seen(&mut self, now: SystemTime) {
        if !self.0.contains_key(reserved::FIRST_SEEN) {
            self.set(reserved::FIRST_SEEN, AMQPValue::Timestamp(seconds(now)));
        }
    }

    fn not_before(&mut self, until: Option<SystemTime>) {
        if let Some(until) = until {
            let until = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
            let until = i64::try_from(until).unwrap_or(i64::MAX);
            self.set(reserved::NOT_BEFORE, AMQPValue::LongLongInt(until));
        }
    }

    fn remove(&mut self, names: &[&str]) {
        for name in names {
            self.0.remove(*name);
        }
    }
}

/// The headers of a delivery from `queue` that may travel on.
fn kept_headers(original: &BasicProperties, queue: &str) -> Kept {
    let mut kept = Kept(BTreeMap::new());
    for (name, value) in original.headers().iter().flat_map(|headers| headers.inner()) {
        match name.as_str() {
            // RabbitMQ routes copies to the queues that CC and BCC name.
            "CC" => kept.set(reserved::ORIGINAL_CC, value.clone()),
            // Counted by a quorum queue for one copy.
            "BCC" | reserved::DELIVERY_COUNT | reserved::ACQUIRED_COUNT => {}
            "x-death" => {
                if let Some(others) = deaths_elsewhere(value, queue) {
                    kept.0.insert(name.clone(), others);
                }
            }
            _ => {
                kept.0.insert(name.clone(), value.clone());
            }
        }
    }
    // A message in trouble must not expire.
    if let Some(expiration) = original.expiration() {
        kept.text(reserved::ORIGINAL_EXPIRATION, expiration.as_str());
    }
    // The broker refuses a user_id that is not the connection's own.
    if let Some(user) = original.user_id() {
        kept.text(reserved::ORIGINAL_USER_ID, user.as_str());
    }
    kept
}

/// The original's properties, but for its expiration and user: lapin's can be set but not unset.
fn with(original: &BasicProperties, headers: Kept) -> BasicProperties {
    let mut kept = BasicProperties::default();
    macro_rules! keep {
        ($($get:ident => $set:ident),* $(,)?) => {$(
            if let Some(value) = original.$get().clone() {
                kept = kept.$set(value);
            }
        )*};
    }
    keep! {
        content_type => with_content_type,
        content_encoding => with_content_encoding,
        priority => with_priority,
        correlation_id => with_correlation_id,
        reply_to => with_reply_to,
        message_id => with_message_id,
        timestamp => with_timestamp,
        kind => with_type,
        app_id => with_app_id,
        cluster_id => with_cluster_id,
    }
    kept.with_delivery_mode(PERSISTENT).with_headers(FieldTable::from(headers.0))
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    const ROUTE: Route<'static> = Route { queue: "debits", exchange: "payments", routing_key: "debit" };

    fn table(headers: &[(&'static str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(ShortString::from(*name), value.clone());
        }
        table
    }

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(LongString::from(text))
    }

    fn death(queue: &str) -> AMQPValue {
        AMQPValue::FieldTable(table(&[("queue", text(queue)), ("reason", text("expired"))]))
    }

    fn delay<'a>() -> Delay<'a> {
        Delay { failures: 3, at: SystemTime::UNIX_EPOCH, until: None, route: ROUTE }
    }

    #[test]
    fn broker_does_not_take_a_delayed_copy_for_a_cycle() {
        let deaths = ["debits.retry.1000", "debits", "upstream", "debits.retry"].map(death);
        let headers = table(&[
            ("x-death", AMQPValue::FieldArray(FieldArray::from(deaths.to_vec()))),
            ("x-delivery-count", AMQPValue::LongLongInt(2)),
            ("tenant", text("t-1")),
        ]);
        let delayed = delayed_properties(&BasicProperties::default().with_headers(headers), &delay());
        let headers = delayed.headers().as_ref().unwrap().inner();
        let kept = AMQPValue::FieldArray(FieldArray::from(["upstream", "debits.retry"].map(death).to_vec()));
        assert_eq!(headers.get("x-death"), Some(&kept));
        assert_eq!(headers.get("x-delivery-count"), None);
        assert_eq!(headers.get("tenant"), Some(&text("t-1")));
        assert_eq!(headers.get(reserved::FAILURES), Some(&AMQPValue::LongLongInt(3)));
    }

    #[test]
    fn what_the_broker_dead_lettered_goes_back_to_where_it_was() {
        let keys = AMQPValue::FieldArray(FieldArray::from(vec![text("debit.eu")]));
        let entry = |queue| {
            let fields =
                [("queue", text(queue)), ("exchange", text("payments")), ("routing-keys", keys.clone())];
            AMQPValue::FieldTable(table(&fields))
        };
        let deaths = AMQPValue::FieldArray(FieldArray::from(vec![entry("debits"), entry("upstream")]));
        let dead = BasicProperties::default()
            .with_headers(table(&[("x-death", deaths), (reserved::DELIVERIES, AMQPValue::LongLongInt(9))]));
        assert_eq!(last_death(&dead).unwrap().queue, "debits");
        let unparked = unparked_properties(&dead, "debits", SystemTime::UNIX_EPOCH, None);
        let headers = unparked.headers().as_ref().unwrap().inner();
        assert_eq!(headers.get(reserved::ORIGINAL_EXCHANGE), Some(&text("payments")));
        assert_eq!(headers.get(reserved::ORIGINAL_ROUTING_KEY), Some(&text("debit.eu")));
        assert_eq!(headers.get(reserved::DELIVERIES), None);
    }

    #[test]
    fn copy_for_its_own_queue_is_counted_anew_and_knows_what_was() {
        let headers = table(&[("x-delivery-count", AMQPValue::LongLongInt(15)), ("tenant", text("t-1"))]);
        let original = BasicProperties::default().with_headers(headers).with_message_id("order-42".into());
        let moved = Move {
            returns: 15,
            suspected: None,
            failures: 0,
            at: SystemTime::UNIX_EPOCH,
            until: None,
            route: ROUTE,
        };
        let first = moved_properties(&original, &moved);
        let header = |properties: &BasicProperties, name: &str| {
            properties.headers().as_ref().unwrap().inner().get(name).cloned()
        };
        assert_eq!(first.message_id(), original.message_id());
        assert_eq!(header(&first, "x-delivery-count"), None);
        assert_eq!(header(&first, "tenant"), Some(text("t-1")));
        assert_eq!(header(&first, reserved::DELIVERIES), Some(AMQPValue::LongLongInt(15)));
        assert_eq!((header(&first, reserved::SUSPECTED), header(&first, reserved::FAILURES)), (None, None));
        let second =
            moved_properties(&first, &Move { returns: 17, suspected: Some(17), failures: 2, ..moved });
        assert_eq!(header(&second, reserved::SUSPECTED), Some(AMQPValue::LongLongInt(17)));
        assert_eq!(header(&second, reserved::FAILURES), Some(AMQPValue::LongLongInt(2)));
        let failed = delayed_properties(&second, &delay());
        assert_eq!(
            (header(&failed, reserved::DELIVERIES), header(&failed, reserved::SUSPECTED)),
            (None, None)
        );
    }

    #[test]
    fn when_it_was_first_seen_is_said_once_and_failures_end_with_parking() {
        let delayed = delayed_properties(&BasicProperties::default(), &delay());
        let later = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(500);
        let again =
            delayed_properties(&delayed, &Delay { failures: 4, at: later, until: Some(later), ..delay() });
        let header = |properties: &BasicProperties, name: &str| {
            properties.headers().as_ref().unwrap().inner().get(name).cloned()
        };
        assert_eq!(header(&again, reserved::FIRST_SEEN), Some(AMQPValue::Timestamp(0)));
        assert_eq!(header(&again, reserved::FAILURES), Some(AMQPValue::LongLongInt(4)));
        assert_eq!(header(&again, reserved::NOT_BEFORE), Some(AMQPValue::LongLongInt(500_000)));
        let once_more = delayed_properties(&again, &delay());
        assert_eq!(header(&once_more, reserved::NOT_BEFORE), None);
        let note = Note {
            reason: "attempts-exhausted",
            error: None,
            attempts: 5,
            at: later,
            scope: "ledger",
            route: ROUTE,
        };
        let parked = parked_properties(&again, &note);
        assert_eq!(header(&parked, reserved::FIRST_SEEN), Some(AMQPValue::Timestamp(0)));
        assert_eq!(header(&parked, reserved::FAILURES), None);
        let unparked = unparked_properties(&parked, "debits", later, None);
        assert_eq!(header(&unparked, reserved::PARKED_REASON), None);
        assert_eq!(header(&unparked, reserved::PARKED_ATTEMPTS), None);
        assert_eq!(header(&unparked, reserved::UNPARKED), Some(AMQPValue::Timestamp(500)));
        assert_eq!(header(&unparked, reserved::ORIGINAL_EXCHANGE), Some(text("payments")));
    }

    #[test]
    fn a_replay_stays_one_wherever_it_is_passed_on() {
        let of = |epoch: &str| table(&[(reserved::REPLAY, text(epoch))]);
        let delayed = delayed_properties(&BasicProperties::default().with_headers(of("vat")), &delay());
        let (at, error) = (SystemTime::UNIX_EPOCH, None);
        let note = Note { reason: "replay-refused", error, attempts: 0, at, scope: "ledger", route: ROUTE };
        let parked = parked_properties(&delayed, &note);
        let fees = Epoch::new("fees").unwrap();
        for (epoch, said) in [(None, "vat"), (Some(&fees), "fees")] {
            let unparked = unparked_properties(&parked, "debits", at, epoch);
            let headers = unparked.headers().as_ref().unwrap().inner();
            assert_eq!(headers.get(reserved::REPLAY), Some(&text(said)));
        }
    }
}
