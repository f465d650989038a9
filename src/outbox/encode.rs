//! A message as a row, and back.
//!
//! Route, ID and body have columns. Everything else is JSON, and as short as it can be in common
//! rows: nothing for a persistent message, a string if it has a content type besides, and otherwise
//! an object of version 1. A version or a field that is not known is an error, as half a message is
//! not published.

use std::time::SystemTime;

use super::contract::Row;
use crate::message::OutgoingMessage;

/// What a row has beside route, ID and body.
///
/// The message's deadline is not part of it: it says how long a caller waits, and nobody waits for
/// a relay.
pub(super) fn properties(message: &OutgoingMessage) -> Result<Option<String>, serde_json::Error> {
    message.stored_properties()
}

/// The message of a row, under its ID.
///
/// Every copy of it has the same timestamp. A row without one has an ID that was made when it was
/// enqueued and tells the time; a publisher, for which that ID is the application's, would set the
/// time of each copy. As one that it has made, it goes without: a timestamp costs the broker a
/// tenth of what it does.
pub(super) fn message(row: Row) -> Result<OutgoingMessage, serde_json::Error> {
    let (is_told, age) = (row.message_id.time().is_some(), row.age);
    let message =
        OutgoingMessage::to(row.exchange, row.routing_key).message_id(row.message_id).body(row.body);
    let message = match row.properties {
        Some(json) => message.with_stored_properties(&json)?,
        None => message,
    };
    if message.properties().timestamp.is_some() {
        return Ok(message);
    }
    if is_told {
        return Ok(message.timed_by_id());
    }
    // Only a row that was not written by this crate has neither.
    Ok(match SystemTime::now().checked_sub(age) {
        Some(at) => message.timestamp(at),
        None => message,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        MessageId,
        message::{HeaderValue, Headers},
        outbox::contract::{Lane, RowId},
    };

    fn row(message: &OutgoingMessage) -> Row {
        Row {
            id: RowId { lane: Lane(3), seq: 7 },
            message_id: message.id().unwrap().clone(),
            exchange: message.exchange().to_owned(),
            routing_key: message.routing_key().to_owned(),
            order_key: None,
            properties: properties(message).unwrap(),
            body: message.payload().clone(),
            age: Duration::from_secs(60),
            attempts: 0,
            retry_in: Duration::ZERO,
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn plain() -> OutgoingMessage {
        OutgoingMessage::to("payments", "debit").message_id(MessageId::new("order-42").unwrap())
    }

    /// Never change it: rows that were enqueued by an older release are published by this one.
    #[test]
    fn version_1_never_changes() {
        let full = plain()
            .body(vec![0, 255])
            .content_type("application/json")
            .content_encoding("identity")
            .kind("order.created")
            .correlation_id("c-1")
            .reply_to("answers")
            .user_id("guest")
            .priority(9)
            .expiration(Duration::from_millis(60_001))
            .timestamp(at(1_700_000_000))
            .mandatory(false)
            .transient()
            .header("bytes", vec![0_u8, 255])
            .header("float", 0.1);
        let text = r#"{"version":"1","persistent":false,"content_type":"application/json","#.to_owned()
            + r#""content_encoding":"identity","kind":"order.created","correlation_id":"c-1","#
            + r#""reply_to":"answers","user_id":"guest","priority":9,"expiration_millis":60001,"#
            + r#""timestamp":1700000000,"mandatory":false,"#
            + r#""headers":{"bytes":{"bytes":"AP8="},"float":{"float":"0.1"}}}"#;
        assert_eq!(properties(&full).unwrap(), Some(text));
        assert_eq!(message(row(&full)).unwrap(), full);
    }

    #[test]
    fn common_row_has_few_properties() {
        assert_eq!(properties(&plain().body("500")).unwrap(), None);
        let json = properties(&plain().json(&500).unwrap()).unwrap();
        assert_eq!(json.as_deref(), Some(r#""application/json""#));
        let waited = plain().idempotency_key("key").deadline(Duration::from_secs(5));
        assert_eq!(properties(&waited).unwrap(), None);
        assert_eq!(message(row(&waited)).unwrap().properties().deadline, None);
        let odd = plain().content_type("\"\\\u{e9}\0");
        assert_eq!(message(row(&odd)).unwrap().properties().content_type, Some("\"\\\u{e9}\0"));
    }

    #[test]
    fn every_copy_has_the_time_of_its_row() {
        let stamped = plain().message_id(MessageId::random());
        assert_eq!(properties(&stamped).unwrap(), None);
        for _ in 0..2 {
            let copy = message(row(&stamped)).unwrap();
            assert!(copy.is_timed_by_id() && copy.properties().timestamp.is_none());
        }
        let given = message(row(&plain().timestamp(at(60)))).unwrap();
        assert!(!given.is_timed_by_id() && given.properties().timestamp == Some(at(60)));
        let by_hand = message(row(&plain())).unwrap();
        assert!(!by_hand.is_timed_by_id() && by_hand.properties().timestamp.is_some());
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let read = |json: &str| {
            let row = Row { properties: Some(json.to_owned()), ..row(&plain()) };
            message(row).map_err(|error| error.to_string())
        };
        assert!(read(r#"{"version":"1"}"#).is_ok());
        for (json, told) in [
            ("", "EOF"),
            (r#""text"#, "EOF"),
            (r#""text"{}"#, "trailing"),
            ("{}", "version"),
            (r#"{"version":"2"}"#, "`2`"),
            (r#"{"version":"1","later":1}"#, "`later`"),
            (r#"{"version":"1","exchange":"e"}"#, "`exchange`"),
            (r#"{"version":"1","routing_key":"k"}"#, "`routing_key`"),
            (r#"{"version":"1","body":""}"#, "`body`"),
            (r#"{"version":"1","message_id":"m"}"#, "`message_id`"),
            (r#"{"version":"1","idempotency_key":["k"]}"#, "`idempotency_key`"),
            (r#"{"version":"1","deadline":{"secs":1,"nanos":0}}"#, "`deadline`"),
            (r#"{"version":"1","headers":{"a":{"decimal":1}}}"#, "`decimal`"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(told), "{json}: {error}");
        }
    }

    fn any_value() -> impl Strategy<Value = HeaderValue> {
        let leaf = prop_oneof![
            Just(HeaderValue::Void),
            any::<bool>().prop_map(HeaderValue::from),
            any::<i64>().prop_map(HeaderValue::from),
            any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(HeaderValue::from),
            any::<String>().prop_map(HeaderValue::from),
            any::<Vec<u8>>().prop_map(HeaderValue::from),
            any::<u64>().prop_map(HeaderValue::Timestamp),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(HeaderValue::List),
                prop::collection::vec(("[a-z]{1,3}", inner), 0..3)
                    .prop_map(|table| HeaderValue::Table(table.into_iter().collect::<Headers>())),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_message_comes_back(
            body: Vec<u8>,
            kind: Option<String>,
            priority: Option<u8>,
            expiration in prop::option::of(0_u64..100_000),
            seconds in 0_u64..4_000_000_000,
            mandatory: Option<bool>,
            transient: bool,
            headers in prop::collection::vec(("[a-zA-Z.]{1,8}", any_value()), 0..4),
        ) {
            let mut message = plain().body(body).timestamp(at(seconds));
            message = kind.into_iter().fold(message, OutgoingMessage::kind);
            message = priority.into_iter().fold(message, OutgoingMessage::priority);
            message = mandatory.into_iter().fold(message, OutgoingMessage::mandatory);
            let expiration = expiration.map(Duration::from_millis);
            message = expiration.into_iter().fold(message, OutgoingMessage::expiration);
            message = headers.into_iter().fold(message, |message, (name, value)| message.header(name, value));
            message = if transient { message.transient() } else { message };
            prop_assert_eq!(super::message(row(&message)).unwrap(), message);
        }
    }
}
