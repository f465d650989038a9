//! Copies that fit into a frame: all properties of a message travel in one (AMQP 0-9-1, section
//! 4.2.6.1), and those of this crate come on top of its own.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};

use crate::message::reserved;

/// What a copy can do without, the least useful first. The last one says that the others are a
/// consumer's, and where `Unpark` brings it back to.
const DISPENSABLE: [&str; 17] = [
    reserved::PARKED_ERROR,
    reserved::FIRST_SEEN,
    reserved::PARKED_AT,
    reserved::PARKED_SCOPE,
    reserved::PARKED_ATTEMPTS,
    reserved::ORIGINAL_USER_ID,
    reserved::ORIGINAL_EXPIRATION,
    reserved::ORIGINAL_CC,
    reserved::ORIGINAL_EXCHANGE,
    reserved::ORIGINAL_ROUTING_KEY,
    reserved::UNPARKED,
    reserved::PARKED_REASON,
    reserved::SUSPECTED,
    reserved::DELIVERIES,
    reserved::NOT_BEFORE,
    reserved::FAILURES,
    reserved::ORIGINAL_QUEUE,
];

/// What remains of an error that does not fit is not worth a header if it is shorter.
const LEAST_TEXT: usize = 16;

/// Leaves out of the properties of a copy what this crate says of it, as far as must be for them to
/// fit into a frame of so many bytes.
///
/// `None` if they do not fit without what is `needed`.
pub(crate) fn fitted(properties: &BasicProperties, frame: usize, needed: &[&str]) -> Option<BasicProperties> {
    let mut over = frame_len(properties).saturating_sub(frame);
    let Some(table) = properties.headers().as_ref().filter(|_| over > 0) else {
        return (over == 0).then(|| properties.clone());
    };
    let mut headers = table.inner().clone();
    for name in DISPENSABLE.into_iter().filter(|name| !needed.contains(name)) {
        if over == 0 {
            break;
        }
        let Some(value) = headers.remove(name) else { continue };
        let freed = entry_len(name, &value);
        over = match shortened(&value, over).filter(|_| name == reserved::PARKED_ERROR) {
            Some(shorter) => {
                headers.insert(ShortString::from(name), shorter);
                0
            }
            None => over.saturating_sub(freed),
        };
    }
    (over == 0).then(|| properties.clone().with_headers(FieldTable::from(headers)))
}

/// A text without its last bytes, if there is enough of it.
fn shortened(value: &AMQPValue, by: usize) -> Option<AMQPValue> {
    let AMQPValue::LongString(text) = value else { return None };
    let text = std::str::from_utf8(text.as_bytes()).ok()?;
    let end = text.floor_char_boundary(text.len().checked_sub(by)?);
    (end >= LEAST_TEXT).then(|| AMQPValue::LongString(LongString::from(&text[..end])))
}

/// How many bytes the frame of these properties takes: its own header and end, class, weight,
/// length of the body and flags (section 2.3.5.2), and what is set.
fn frame_len(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
        properties.cluster_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    let octets = [properties.delivery_mode(), properties.priority()].into_iter().flatten().count();
    let timestamp = properties.timestamp().map_or(0, |_| 8);
    7 + 1 + 14 + texts + octets + timestamp + properties.headers().as_ref().map_or(0, table_len)
}

fn table_len(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| entry_len(name.as_str(), value)).sum::<usize>()
}

fn entry_len(name: &str, value: &AMQPValue) -> usize {
    1 + name.len() + value_len(value)
}

/// With the octet that says its type (section 4.2.1, and RabbitMQ's additions).
fn value_len(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => 4 + values.as_slice().iter().map(value_len).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_len(table),
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    fn text(text: &str) -> AMQPValue {
        AMQPValue::LongString(LongString::from(text))
    }

    fn with(headers: &[(&'static str, AMQPValue)]) -> BasicProperties {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(ShortString::from(*name), value.clone());
        }
        BasicProperties::default().with_headers(table)
    }

    fn names(properties: &BasicProperties) -> Vec<&str> {
        properties.headers().iter().flat_map(|table| table.inner().keys()).map(ShortString::as_str).collect()
    }

    /// The frame in the bytes that AMQP 0-9-1 has for it, written out by hand.
    #[test]
    fn length_of_the_frame() {
        assert_eq!(frame_len(&BasicProperties::default()), 7 + 2 + 2 + 8 + 2 + 1);
        let some = BasicProperties::default()
            .with_message_id("ab".into())
            .with_priority(1)
            .with_delivery_mode(2)
            .with_timestamp(5);
        assert_eq!(frame_len(&some), 22 + 3 + 1 + 1 + 8);
        let list = AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Void, text("xyz")]));
        assert_eq!(frame_len(&with(&[("n", list)])), 22 + 4 + 2 + (1 + 4 + 1 + 1 + 4 + 3));
        let table = with(&[(
            "t",
            AMQPValue::FieldTable(with(&[("f", AMQPValue::Double(1.0))]).headers().clone().unwrap()),
        )]);
        assert_eq!(frame_len(&table), 22 + 4 + 2 + 1 + 4 + 2 + 1 + 8);
    }

    #[test]
    fn what_does_not_fit_is_left_out_in_order_and_the_messages_own_headers_never_are() {
        let copy = with(&[
            ("mine", text("0123456789")),
            (reserved::PARKED_ERROR, text(&"é".repeat(30))),
            (reserved::PARKED_REASON, text("rejected")),
            (reserved::ORIGINAL_QUEUE, text("debits")),
        ]);
        let full = frame_len(&copy);
        let fit = |frame| fitted(&copy, frame, &[]);
        assert_eq!(fit(full), Some(copy.clone()), "as it is");
        // The error's 60 bytes become 58, cut between two characters.
        let shorter = fit(full - 1).unwrap();
        assert_eq!((frame_len(&shorter), names(&shorter).len()), (full - 2, 4));
        let error = 1 + reserved::PARKED_ERROR.len() + 5 + 60;
        assert_eq!(
            names(&fit(full - error).unwrap()),
            ["mine", reserved::ORIGINAL_QUEUE, reserved::PARKED_REASON]
        );
        assert_eq!(names(&fit(full - error - 1).unwrap()), ["mine", reserved::ORIGINAL_QUEUE]);
        let bare = frame_len(&with(&[("mine", text("0123456789"))]));
        assert_eq!(names(&fit(bare).unwrap()), ["mine"]);
        assert_eq!(fit(bare - 1), None);
    }

    #[test]
    fn what_is_needed_is_never_left_out() {
        let copy = with(&[("mine", text("0123456789")), (reserved::FAILURES, AMQPValue::LongLongInt(3))]);
        let full = frame_len(&copy);
        assert_eq!(fitted(&copy, full - 1, &[reserved::FAILURES]), None);
        assert_eq!(names(&fitted(&copy, full - 1, &[]).unwrap()), ["mine"]);
    }
}
