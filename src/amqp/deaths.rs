//! The broker's record of dead-lettering: the header `x-death`, newest entry first.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray, FieldTable},
};

use super::values::header_value;

/// Where a message was when the broker dead-lettered it last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Death {
    pub(crate) queue: String,
    pub(super) exchange: String,
    pub(super) routing_key: String,
}

/// The last time that the broker dead-lettered a message, by its header `x-death`: the first entry.
pub(crate) fn last_death(properties: &BasicProperties) -> Option<Death> {
    let AMQPValue::FieldArray(deaths) = properties.headers().as_ref()?.inner().get("x-death")? else {
        return None;
    };
    let AMQPValue::FieldTable(death) = deaths.as_slice().first()? else { return None };
    let text = |name: &str| header_value(death.inner().get(name)?).as_str().map(ToOwned::to_owned);
    let routing_key = match death.inner().get("routing-keys")? {
        AMQPValue::FieldArray(keys) => header_value(keys.as_slice().first()?).as_str()?.to_owned(),
        _ => return None,
    };
    Some(Death { queue: text("queue")?, exchange: text("exchange")?, routing_key })
}

/// The broker's record of dead-lettering, without that of `queue` and its delay queues.
///
/// RabbitMQ drops a message that comes to a queue in whose name it was dead-lettered before, unless
/// somebody rejected it in between (its documentation, "Dead Letter Exchanges"): a delay queue
/// would lose a message that had expired in `queue` once. And the record of this crate's delays
/// would only grow.
pub(super) fn deaths_elsewhere(deaths: &AMQPValue, queue: &str) -> Option<AMQPValue> {
    let AMQPValue::FieldArray(deaths) = deaths else { return None };
    let others = deaths.as_slice().iter().filter(|death| match death {
        AMQPValue::FieldTable(death) => is_record(death) && !is_of(death, queue),
        _ => false,
    });
    let others: Vec<AMQPValue> = others.cloned().collect();
    (!others.is_empty()).then(|| AMQPValue::FieldArray(FieldArray::from(others)))
}

/// Whether the broker can read it. What it cannot, such as a list of texts that another client made
/// of it, ends its process that dead-letters, again and again: RabbitMQ 3.10 then moves nothing out
/// of any delay queue of that node.
fn is_record(death: &FieldTable) -> bool {
    death.inner().iter().all(|(name, value)| match (name.as_str(), value) {
        ("queue" | "reason" | "exchange", value) => matches!(value, AMQPValue::LongString(_)),
        ("count", value) => matches!(value, AMQPValue::LongLongInt(_)),
        ("time", value) => matches!(value, AMQPValue::Timestamp(_)),
        ("routing-keys", AMQPValue::FieldArray(keys)) => {
            keys.as_slice().iter().all(|key| matches!(key, AMQPValue::LongString(_)))
        }
        ("routing-keys", _) => false,
        _ => true,
    }) && ["queue", "reason"].iter().all(|name| death.contains_key(name))
}

/// Whether it is of `queue` or one of its delay queues.
fn is_of(death: &FieldTable, queue: &str) -> bool {
    let name = death.inner().get("queue").map(header_value);
    let rest = name.as_ref().and_then(|name| name.as_str()?.strip_prefix(queue));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(DELAY_SUFFIX))
}

/// How many bytes a quorum queue adds to the headers of a message that it delivers again:
/// `x-delivery-count` and `x-acquired-count`.
pub(crate) const COUNTS: usize = 2 * (1 + 16 + 1 + 8);

/// How many bytes the broker adds to the headers of a message that it brings back from this delay
/// queue: `x-death`, `x-first-death-*` and `x-last-death-*`, in which the name comes four times.
pub(crate) fn growth(delay_queue: &str) -> usize {
    320 + 4 * delay_queue.len()
}

/// What the name of a delay queue has behind that of the queue that it delays for; its milliseconds
/// follow.
pub(crate) const DELAY_SUFFIX: &str = ".retry.";

#[cfg(test)]
mod tests {
    use lapin::types::LongString;

    use super::*;

    #[test]
    fn what_the_broker_cannot_read_does_not_travel_on() {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let record = |fields: &[(&'static str, AMQPValue)]| {
            let mut table = FieldTable::default();
            for (name, value) in fields {
                table.insert((*name).into(), value.clone());
            }
            AMQPValue::FieldTable(table)
        };
        let list = |members: Vec<AMQPValue>| AMQPValue::FieldArray(FieldArray::from(members));
        let good = record(&[("queue", text("upstream")), ("reason", text("expired"))]);
        for bad in [
            text("died"),
            AMQPValue::LongInt(7),
            record(&[]),
            record(&[("queue", AMQPValue::LongInt(7)), ("reason", text("expired"))]),
            record(&[("queue", text("upstream"))]),
            record(&[("queue", text("q")), ("reason", text("expired")), ("count", text("often"))]),
            record(&[("queue", text("q")), ("reason", text("expired")), ("routing-keys", text("key"))]),
        ] {
            let kept = deaths_elsewhere(&list(vec![bad.clone(), good.clone()]), "debits");
            assert_eq!(kept, Some(list(vec![good.clone()])), "{bad:?}");
            assert_eq!(deaths_elsewhere(&list(vec![bad]), "debits"), None);
        }
    }

    #[test]
    fn record_that_is_none_says_nothing() {
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        let empty = AMQPValue::FieldTable(FieldTable::default());
        let list = |value: AMQPValue| AMQPValue::FieldArray(FieldArray::from(vec![value]));
        for forged in [text("debits"), list(text("debits")), list(empty), AMQPValue::Void] {
            let mut headers = FieldTable::default();
            headers.insert("x-death".into(), forged);
            assert_eq!(last_death(&BasicProperties::default().with_headers(headers)), None);
        }
    }
}
