//! Where a delivery comes from: a publisher, or a consumer of its queue that passed it on.

use lapin::{BasicProperties, message::Delivery, types::FieldTable};

use super::values::header_value;
use crate::message::reserved;

/// The exchange and routing key that a message had before a consumer passed it on to the queue
/// that it comes from.
pub(super) fn original_route(delivery: &Delivery) -> Option<(String, String)> {
    let properties = &delivery.properties;
    let route = || {
        let exchange = text_header(properties, reserved::ORIGINAL_EXCHANGE)?;
        Some((exchange, text_header(properties, reserved::ORIGINAL_ROUTING_KEY)?))
    };
    if is_ours(delivery) { route() } else { None }
}

/// Whether it was passed on by a consumer of its queue: that publishes to the queue by its name, as
/// does a delay queue.
fn is_ours(delivery: &Delivery) -> bool {
    delivery.exchange.as_str().is_empty()
        && text_header(&delivery.properties, reserved::ORIGINAL_QUEUE)
            .is_some_and(|queue| queue == delivery.routing_key.as_str())
}

/// What consumers obey.
const OBEYED: [&str; 5] =
    [reserved::FAILURES, reserved::NOT_BEFORE, reserved::DELIVERIES, reserved::SUSPECTED, reserved::UNPARKED];

/// The properties of a delivery without what is not to be obeyed, if there is something: the
/// headers that a consumer leaves for consumers, in a message that comes from somewhere else. An
/// application that copies all headers of a message into another one should not have that one
/// parked at its first failure, or never handled.
pub(super) fn believed(delivery: &Delivery) -> Option<BasicProperties> {
    let headers = delivery.properties.headers().as_ref()?;
    if !OBEYED.iter().any(|name| headers.contains_key(name)) || is_ours(delivery) {
        return None;
    }
    let mut kept = headers.inner().clone();
    for name in OBEYED {
        kept.remove(name);
    }
    Some(delivery.properties.clone().with_headers(FieldTable::from(kept)))
}

/// A text header of a message.
pub(crate) fn text_header(properties: &BasicProperties, name: &str) -> Option<String> {
    let value = properties.headers().as_ref()?.inner().get(name)?;
    header_value(value).as_str().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use lapin::types::{AMQPValue, LongString, ShortString};

    use super::*;

    fn delivery(exchange: &str, queue: &str) -> Delivery {
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString(LongString::from("t-1")));
        headers.insert(reserved::ORIGINAL_QUEUE.into(), AMQPValue::LongString(LongString::from("debits")));
        for name in OBEYED {
            headers.insert(name.into(), AMQPValue::LongLongInt(7));
        }
        let mut delivery =
            Delivery::mock(1, ShortString::from(exchange.to_owned()), queue.into(), false, Vec::new());
        delivery.properties = BasicProperties::default().with_headers(headers);
        delivery
    }

    #[test]
    fn what_a_stranger_says_of_failures_and_delays_is_not_obeyed() {
        assert_eq!(believed(&delivery("", "debits")), None, "a consumer passed it on");
        for (exchange, key) in [("payments", "debits"), ("", "refunds"), ("", "")] {
            let believed = believed(&delivery(exchange, key)).unwrap();
            let names: Vec<_> = believed.headers().as_ref().unwrap().inner().keys().cloned().collect();
            assert_eq!(names, [ShortString::from("tenant"), reserved::ORIGINAL_QUEUE.into()]);
        }
        let mut plain = delivery("payments", "debits");
        plain.properties = BasicProperties::default();
        assert_eq!(believed(&plain), None);
    }
}
