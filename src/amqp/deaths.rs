//! The broker's record of dead-lettering: the header `x-death`, newest entry first.

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldArray},
};

use super::header_value;

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
/// RabbitMQ drops a message that comes to a queue in whose name it was dead-lettered before, unless somebody rejected it in between
/// (its documentation, "Dead Letter Exchanges"): a delay queue would lose a message that had expired in `queue` once. And ours would only
/// grow.
pub(super) fn deaths_elsewhere(deaths: &AMQPValue, queue: &str) -> Option<AMQPValue> {
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

#[cfg(test)]
mod tests {
    use lapin::types::{FieldTable, LongString};

    use super::*;

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
