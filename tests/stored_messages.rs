//! Promise: a message that is stored and read again is the same message, with its ID and the time
//! of its first publish; what cannot be read in full is refused.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::{Duration, SystemTime};

use lapin_idempotent::{
    MessageId, OutgoingMessage,
    message::{HeaderValue, Headers},
};
use proptest::prelude::*;

/// The text of version 1. Never change it: messages that were stored by an older release are read
/// by this one.
const VERSION_1: &str = include_str!("fixtures/stored_message_v1.json");

fn table(entries: impl IntoIterator<Item = (&'static str, HeaderValue)>) -> Headers {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// Everything that can be set.
fn full() -> OutgoingMessage {
    OutgoingMessage::to("payments", "debit")
        .message_id(MessageId::new("order-42/é").unwrap())
        .idempotency_key_parts(["debit", "order-42"])
        .body(b"\x00\xff{\"amount\":500}".to_vec())
        .content_type("application/json")
        .content_encoding("identity")
        .kind("order.created")
        .correlation_id("c-1")
        .reply_to("answers")
        .user_id("guest")
        .priority(9)
        .expiration(Duration::from_millis(60_001))
        .timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
        .mandatory(false)
        .deadline(Duration::new(5, 1))
        .transient()
        .header("void", HeaderValue::Void)
        .header("bool", true)
        .header("int", i64::MIN)
        .header("large", i64::MAX)
        .header("float", 0.1)
        .header("zero", -0.0)
        .header("smallest", f64::from_bits(1))
        .header("string", "é\"\\\n")
        .header("bytes", vec![0_u8, 255])
        .header("timestamp", HeaderValue::Timestamp(1_700_000_000))
        .header("list", vec![1.into(), "two".into(), HeaderValue::List(Vec::new())])
        .header("table", table([("a", table([("b", HeaderValue::Void)]).into())]))
}

fn read(text: &str) -> Result<OutgoingMessage, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[test]
fn version_1_never_changes() {
    assert_eq!(serde_json::to_string_pretty(&full()).unwrap() + "\n", VERSION_1);
    assert_eq!(read(VERSION_1).unwrap(), full());
}

#[test]
fn what_is_not_known_is_refused_with_its_name() {
    let plain = r#"{"version":"1","exchange":"","routing_key":"q","body":"","persistent":true}"#;
    assert_eq!(read(plain).unwrap(), OutgoingMessage::to("", "q"));
    // The order of members does not matter: databases change it.
    let other = r#"{"body":"","persistent":true,"routing_key":"q","exchange":"","version":"1"}"#;
    assert_eq!(read(other).unwrap(), OutgoingMessage::to("", "q"));
    let changed = |from: &str, to: &str| read(&plain.replace(from, to)).unwrap_err();
    for (from, to, told) in [
        (r#""1""#, r#""2","later":1"#, "stored messages of version 1: unknown variant `2`"),
        (r#""version":"1","#, "", "`version`"),
        ("persistent", "durable", "`durable`"),
        (r#""body":"","#, "", "`body`"),
        (r#""body":"""#, r#""body":"a""#, "Base64"),
        (r#""body":"""#, r#""body":"","message_id":"""#, "must not be empty"),
        (r#""body":"""#, r#""body":"","headers":{"a":{"decimal":1}}"#, "`decimal`"),
        (r#""body":"""#, r#""body":"","headers":{"a":{"float":"NaN"}}"#, "not finite"),
        (r#""body":"""#, r#""body":"","headers":{"a":{"float":"1e999"}}"#, "not finite"),
        (r#""body":"""#, r#""body":"","headers":{"x-idempotency-attempt":{"int":2}}"#, "reserved"),
        (r#""body":"""#, r#""body":"","headers":{"CC":{"string":"q"}}"#, "CC"),
        (r#""body":"""#, r#""body":"","timestamp":18446744073709551615"#, "timestamp"),
        (r#""body":"""#, r#""body":"","expiration_millis":18446744073709551615"#, "ten years"),
    ] {
        let error = changed(from, to);
        assert!(error.contains(told), "{to}: {error}");
    }
    assert!(read(&plain.replace(r#""q""#, &format!("{:?}", "q".repeat(256)))).unwrap_err().contains("256"));
}

#[test]
fn what_could_not_be_read_again_is_not_stored() {
    for value in [f64::NAN.into(), HeaderValue::from(u64::MAX)] {
        let message = OutgoingMessage::to("", "q").header("a", value);
        assert!(serde_json::to_string(&message).is_err());
    }
}

#[test]
fn what_was_set_can_be_read() {
    let message = full();
    let properties = message.properties();
    assert_eq!(properties.content_type, Some("application/json"));
    assert_eq!(properties.kind, Some("order.created"));
    assert_eq!((properties.user_id, properties.mandatory), (Some("guest"), Some(false)));
    assert_eq!(properties.expiration, Some(Duration::from_millis(60_001)));
    assert_eq!(properties.idempotency_key, Some(["debit".to_owned(), "order-42".to_owned()].as_slice()));
    assert!(!properties.is_persistent);
    let plain = OutgoingMessage::to("", "q");
    let none = plain.properties();
    assert!(none.is_persistent && none.timestamp.is_none() && none.mandatory.is_none());
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
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(HeaderValue::List),
            prop::collection::btree_map("[^\u{0}]{1,8}", inner, 0..4)
                .prop_map(|entries| HeaderValue::Table(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_stored_message_is_the_same_message(
        route in ("[^\u{0}]{0,40}", "[^\u{0}]{0,40}"),
        body: Vec<u8>,
        id in prop::option::of("[!-~é]{1,40}"),
        key in prop::option::of(prop::collection::vec(any::<String>(), 0..3)),
        texts in prop::collection::vec(prop::option::of("[^\u{0}]{0,20}"), 6),
        (priority, mandatory, persistent) in any::<(Option<u8>, Option<bool>, bool)>(),
        (expiration, timestamp, deadline) in (
            prop::option::of(0_u64..1 << 38),
            prop::option::of(0_u64..1 << 40),
            any::<Option<(u64, u32)>>(),
        ),
        headers in prop::collection::btree_map("[a-zé /]{1,8}", any_value(), 0..5),
    ) {
        type Text = fn(OutgoingMessage, String) -> OutgoingMessage;
        let setters: [Text; 6] = [
            OutgoingMessage::content_type,
            OutgoingMessage::content_encoding,
            OutgoingMessage::kind,
            OutgoingMessage::correlation_id,
            OutgoingMessage::reply_to,
            OutgoingMessage::user_id,
        ];
        let mut message = OutgoingMessage::to(route.0, route.1).body(body);
        for (setter, text) in setters.into_iter().zip(texts) {
            message = text.into_iter().fold(message, setter);
        }
        message = id.into_iter().fold(message, |m, id| m.message_id(MessageId::new(id).unwrap()));
        message = key.into_iter().fold(message, |m, key| m.idempotency_key_parts(key));
        message = priority.into_iter().fold(message, OutgoingMessage::priority);
        message = mandatory.into_iter().fold(message, OutgoingMessage::mandatory);
        message = expiration.into_iter().fold(message, |m, millis| m.expiration(Duration::from_millis(millis)));
        message = timestamp
            .into_iter()
            .fold(message, |m, seconds| m.timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)));
        message = deadline
            .into_iter()
            .fold(message, |m, (seconds, nanos)| m.deadline(Duration::new(seconds, nanos % 1_000_000_000)));
        message = headers.into_iter().fold(message, |m, (name, value)| m.header(name, value));
        if !persistent {
            message = message.transient();
        }
        let text = serde_json::to_string(&message).unwrap();
        let back: OutgoingMessage = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&back, &message);
        prop_assert_eq!(serde_json::to_string(&back).unwrap(), text);
        // Through a reader that changes the order of members.
        let value: serde_json::Value = serde_json::to_value(&message).unwrap();
        prop_assert_eq!(serde_json::from_value::<OutgoingMessage>(value).unwrap(), message);
    }
}
