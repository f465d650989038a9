//! The properties of deliveries that we pass on: to a delay queue, to parking, and back from there.
//!
//! A copy has the original's ID, body, properties and headers, but for what would make it vanish, be refused or multiply.

use std::{collections::BTreeMap, time::SystemTime};

use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString},
};

use super::{PERSISTENT, header_value, seconds};
use crate::message::reserved;

/// What a parked message says of itself.
#[derive(Debug)]
pub(crate) struct Note<'a> {
    pub(crate) reason: &'a str,
    pub(crate) error: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) at: SystemTime,
    pub(crate) scope: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a str,
}

/// What a delayed message says of itself.
#[derive(Debug)]
pub(crate) struct Delay<'a> {
    /// How often its handler failed, in all.
    pub(crate) failures: u32,
    pub(crate) at: SystemTime,
    /// Not to be handled before, if this is later than the delay queue gives it back.
    pub(crate) until: Option<SystemTime>,
    pub(crate) queue: &'a str,
    pub(crate) exchange: &'a str,
    pub(crate) routing_key: &'a str,
}

/// The properties of a parked copy.
pub(crate) fn parked_properties(original: &BasicProperties, note: &Note<'_>) -> BasicProperties {
    let mut headers = kept_headers(original, note.queue);
    headers.remove(&[reserved::FAILURES, reserved::NOT_BEFORE, reserved::UNPARKED]);
    headers.text(reserved::PARKED_REASON, note.reason);
    if let Some(error) = &note.error {
        headers.text(reserved::PARKED_ERROR, error);
    }
    headers.text(reserved::PARKED_SCOPE, note.scope);
    headers.route(note.queue, note.exchange, note.routing_key);
    headers.first_seen(note.at);
    headers.set(reserved::PARKED_AT, AMQPValue::Timestamp(seconds(note.at)));
    headers.set(reserved::PARKED_ATTEMPTS, AMQPValue::LongLongInt(note.attempts.into()));
    with(original, headers)
}

/// The properties of a copy for a delay queue.
pub(crate) fn delayed_properties(original: &BasicProperties, delay: &Delay<'_>) -> BasicProperties {
    let mut headers = kept_headers(original, delay.queue);
    headers.remove(&[reserved::NOT_BEFORE]);
    headers.route(delay.queue, delay.exchange, delay.routing_key);
    headers.first_seen(delay.at);
    headers.set(reserved::FAILURES, AMQPValue::LongLongInt(delay.failures.into()));
    if let Some(until) = delay.until {
        let until = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let until = i64::try_from(until).unwrap_or(i64::MAX);
        headers.set(reserved::NOT_BEFORE, AMQPValue::LongLongInt(until));
    }
    with(original, headers)
}

/// The properties of a parked message that goes back to `queue`: its failures are forgotten, its route is not.
///
/// `unprocessed`: when it is known not to have taken effect.
pub(crate) fn unparked_properties(
    parked: &BasicProperties,
    queue: &str,
    unprocessed: SystemTime,
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
    headers.set(reserved::UNPARKED, AMQPValue::Timestamp(seconds(unprocessed)));
    headers.text(reserved::ORIGINAL_QUEUE, queue);
    with(parked, headers)
}

/// A text header of a message.
pub(crate) fn text_header(properties: &BasicProperties, name: &str) -> Option<String> {
    let value = properties.headers().as_ref()?.inner().get(name)?;
    header_value(value).as_str().map(ToOwned::to_owned)
}

/// The exchange and routing key that a message had before we passed it on to the queue that it comes from.
pub(super) fn original_route(delivery: &Delivery) -> Option<(String, String)> {
    let properties = &delivery.properties;
    // We publish to the queue by its name, as does a delay queue: anything else did not come from us.
    let ours = delivery.exchange.as_str().is_empty()
        && text_header(properties, reserved::ORIGINAL_QUEUE)? == delivery.routing_key.as_str();
    let route = || {
        let exchange = text_header(properties, reserved::ORIGINAL_EXCHANGE)?;
        Some((exchange, text_header(properties, reserved::ORIGINAL_ROUTING_KEY)?))
    };
    if ours { route() } else { None }
}

struct Kept(BTreeMap<ShortString, AMQPValue>);

impl Kept {
    fn set(&mut self, name: &'static str, value: AMQPValue) {
        self.0.insert(ShortString::from(name), value);
    }

    fn text(&mut self, name: &'static str, value: &str) {
        self.set(name, AMQPValue::LongString(LongString::from(value)));
    }

    fn route(&mut self, queue: &str, exchange: &str, routing_key: &str) {
        self.text(reserved::ORIGINAL_QUEUE, queue);
        self.text(reserved::ORIGINAL_EXCHANGE, exchange);
        self.text(reserved::ORIGINAL_ROUTING_KEY, routing_key);
    }

    /// Said once, by whoever passes it on first.
    fn first_seen(&mut self, now: SystemTime) {
        if !self.0.contains_key(reserved::FIRST_SEEN) {
            self.set(reserved::FIRST_SEEN, AMQPValue::Timestamp(seconds(now)));
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
            "BCC" | "x-delivery-count" => {}
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

/// The broker's record of dead-lettering, without that of `queue` and its delay queues.
///
/// RabbitMQ drops a message that comes to a queue in whose name it was dead-lettered before, unless somebody rejected it in between
/// (its documentation, "Dead Letter Exchanges"): a delay queue would lose a message that had expired in `queue` once. And ours would only
/// grow.
fn deaths_elsewhere(deaths: &AMQPValue, queue: &str) -> Option<AMQPValue> {
    let AMQPValue::FieldArray(deaths) = deaths else { return None };
    let ours = |death: &AMQPValue| match death {
        AMQPValue::FieldTable(death) => match death.inner().get("queue").map(header_value) {
            Some(name) => name.as_str().is_some_and(|name| {
                name.strip_prefix(queue).is_some_and(|rest| rest.is_empty() || rest.starts_with(DELAY_SUFFIX))
            }),
            None => false,
        },
        _ => false,
    };
    let others: Vec<AMQPValue> = deaths.as_slice().iter().filter(|death| !ours(death)).cloned().collect();
    (!others.is_empty()).then(|| AMQPValue::FieldArray(FieldArray::from(others)))
}

/// What the name of a delay queue has behind that of the queue that it delays for; its milliseconds follow.
pub(crate) const DELAY_SUFFIX: &str = ".retry.";

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
    use super::*;

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
        Delay {
            failures: 3,
            at: SystemTime::UNIX_EPOCH,
            until: None,
            queue: "debits",
            exchange: "payments",
            routing_key: "debit",
        }
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
            queue: "debits",
            exchange: "payments",
            routing_key: "debit",
        };
        let parked = parked_properties(&again, &note);
        assert_eq!(header(&parked, reserved::FIRST_SEEN), Some(AMQPValue::Timestamp(0)));
        assert_eq!(header(&parked, reserved::FAILURES), None);
        let unparked = unparked_properties(&parked, "debits", later);
        assert_eq!(header(&unparked, reserved::PARKED_REASON), None);
        assert_eq!(header(&unparked, reserved::PARKED_ATTEMPTS), None);
        assert_eq!(header(&unparked, reserved::UNPARKED), Some(AMQPValue::Timestamp(500)));
        assert_eq!(header(&unparked, reserved::ORIGINAL_EXCHANGE), Some(text("payments")));
    }
}
