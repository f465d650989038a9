//! Promise: a message ID is a function of what the caller says identifies the message, and of
//! nothing else.
//!
//! Known answers first (RFC 9562, RFC 8785, and values that another implementation computed), then
//! properties.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::{Duration, SystemTime},
};

use lapin_idempotent::{
    IdStrategy, MessageId, OutgoingMessage,
    message::{IdError, InvalidMessageId},
};
use proptest::prelude::*;
use serde_json::json;
use uuid::Uuid;

fn message() -> OutgoingMessage {
    OutgoingMessage::to("payments", "debit")
}

fn key_id(key: &str) -> MessageId {
    IdStrategy::default().message_id(&message().idempotency_key(key)).unwrap()
}

fn parts_id(parts: &[String]) -> MessageId {
    IdStrategy::default().message_id(&message().idempotency_key_parts(parts)).unwrap()
}

fn canonical_id(body: &str) -> Result<MessageId, IdError> {
    IdStrategy::canonical_json().derive_from_body(body.as_bytes())
}

fn pointer_id(pointers: &[&str], body: &str) -> Result<MessageId, IdError> {
    IdStrategy::json_pointers(pointers.iter().copied()).derive_from_body(body.as_bytes())
}

/// RFC 9562, appendix A.4 and B.2: the name `www.example.com` in the DNS namespace.
#[test]
fn rfc_9562_vectors() {
    let v5 = IdStrategy::uuid_v5(Uuid::NAMESPACE_DNS);
    let id = v5.message_id(&message().idempotency_key("www.example.com")).unwrap();
    assert_eq!(id.as_str(), "2ed6657d-e927-568b-95e1-2665a8aea6a2");

    let v8 = IdStrategy::content().with_namespace(Uuid::NAMESPACE_DNS);
    let id = v8.message_id(&message().body("www.example.com")).unwrap();
    assert_eq!(id.as_str(), "5c146b14-3c52-8afd-938a-375d0df1fbf6");
}

/// Computed with Python's `hashlib` from what the documentation says. A change here makes every
/// stored ID another one.
#[test]
fn derived_ids_never_change() {
    assert_eq!(IdStrategy::NAMESPACE.to_string(), "6f4dc2a3-7be5-4d39-9d2c-3a558e1b0c4f");
    assert_eq!(key_id("order-42").as_str(), "10d079a7-c5d0-5fc9-94e8-1ca14fe87d10");
    let parts = ["ab", "c"].map(str::to_owned);
    assert_eq!(parts_id(&parts).as_str(), "d7c962c0-ef35-5514-8dd3-f75be5c9e91e");
    let id = canonical_id(r#"{"b": [true, null], "a": 1.0}"#).unwrap();
    assert_eq!(id.as_str(), "fbb40058-1733-8939-96a5-78118426bdda");
    let id = pointer_id(&["/order/id", "/amount"], r#"{"order":{"id":"A-1"},"amount":5e2,"at":9}"#).unwrap();
    assert_eq!(id.as_str(), "fa56fb99-7199-8537-94ba-719a4b69cfa9");
    let child = MessageId::new("order-42").unwrap().derive("charge");
    assert_eq!(child.as_str(), "7e6ef2f3-6956-545c-b721-c400c5836aa3");
}

#[test]
fn an_id_goes_before_a_key_and_a_key_before_the_strategy() {
    let own = MessageId::new("own").unwrap();
    let keyed = message().idempotency_key("order-42").body("x");
    for strategy in [
        IdStrategy::uuid_v7(),
        IdStrategy::uuid_v4(),
        IdStrategy::ulid(),
        IdStrategy::content(),
        IdStrategy::from_fn(|_| Err("not called".into())),
    ] {
        assert_eq!(strategy.message_id(&keyed.clone().message_id(own.clone())).unwrap(), own, "{strategy:?}");
        assert_eq!(strategy.message_id(&keyed).unwrap(), key_id("order-42"), "{strategy:?}");
    }
}

#[test]
fn one_part_is_the_plain_key() {
    assert_eq!(parts_id(&["order-42".to_owned()]), key_id("order-42"));
}

#[test]
fn a_key_that_says_nothing_is_refused() {
    let none: [&str; 0] = [];
    for message in [
        message().idempotency_key(""),
        message().idempotency_key_parts(none),
        message().idempotency_key_parts([""]),
        message().idempotency_key_parts(["", ""]),
    ] {
        let refused = IdStrategy::default().message_id(&message);
        assert!(matches!(refused, Err(IdError::EmptyKey)), "{refused:?}");
    }
    assert!(IdStrategy::default().message_id(&message().idempotency_key_parts(["", "x"])).is_ok());
    let missing = IdStrategy::uuid_v5(Uuid::NAMESPACE_OID).message_id(&message());
    assert!(matches!(missing, Err(IdError::MissingKey)));
}

#[test]
fn random_ids_differ_and_say_what_they_are() {
    let now = SystemTime::now();
    for (strategy, timed) in
        [(IdStrategy::uuid_v7(), true), (IdStrategy::uuid_v4(), false), (IdStrategy::ulid(), true)]
    {
        let ids: HashSet<_> = (0..1_000).map(|_| strategy.message_id(&message()).unwrap()).collect();
        assert_eq!(ids.len(), 1_000, "{strategy:?}");
        for time in ids.iter().map(MessageId::time) {
            assert_eq!(time.is_some(), timed, "{strategy:?}");
            let off = time.map_or(Duration::ZERO, |time| {
                time.duration_since(now).unwrap_or_else(|ahead| ahead.duration())
            });
            assert!(off < Duration::from_mins(1), "{strategy:?}: {off:?}");
        }
    }
}

#[test]
fn ulids_grow_among_clones_and_threads() {
    let strategy = IdStrategy::ulid();
    let ids: Vec<Vec<MessageId>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let strategy = strategy.clone();
                scope.spawn(move || (0..2_000).map(|_| strategy.message_id(&message()).unwrap()).collect())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(ids.iter().all(|ids| ids.is_sorted_by(|a, b| a < b)));
    assert_eq!(ids.iter().flatten().collect::<HashSet<_>>().len(), 8_000);
}

#[test]
fn only_the_body_makes_a_content_id() {
    let strategy = IdStrategy::content();
    let id = strategy.message_id(&message().body("x")).unwrap();
    let elsewhere = OutgoingMessage::to("other", "key").body("x").header("a", 1).priority(3).kind("k");
    assert_eq!(strategy.message_id(&elsewhere).unwrap(), id);
    assert_eq!(strategy.derive_from_body(b"x").unwrap(), id);
    assert_ne!(strategy.derive_from_body(b"x ").unwrap(), id);
    assert_ne!(strategy.with_namespace(Uuid::NAMESPACE_URL).derive_from_body(b"x").unwrap(), id);
}

#[test]
fn publisher_and_consumer_derive_the_same() {
    let body = r#"{"order":{"id":"42"},"n":1}"#;
    for strategy in
        [IdStrategy::content(), IdStrategy::canonical_json(), IdStrategy::json_pointers(["/order/id"])]
    {
        let sent = strategy.message_id(&message().body(body)).unwrap();
        assert_eq!(strategy.derive_from_body(body.as_bytes()).unwrap(), sent, "{strategy:?}");
    }
    for strategy in [
        IdStrategy::uuid_v7(),
        IdStrategy::uuid_v4(),
        IdStrategy::ulid(),
        IdStrategy::uuid_v5(Uuid::NAMESPACE_OID),
        IdStrategy::from_fn(|_| Ok(Uuid::nil().into())),
    ] {
        let refused = strategy.derive_from_body(body.as_bytes());
        assert!(matches!(refused, Err(IdError::NotFromBody)), "{strategy:?}");
    }
}

/// Each way to derive an ID has a domain of its own.
#[test]
fn no_two_strategies_give_one_id() {
    let body = "1";
    let tagged = "lapin-idempotent: canonical JSON1";
    let ids = [
        IdStrategy::content().derive_from_body(body.as_bytes()).unwrap(),
        IdStrategy::content().derive_from_body(tagged.as_bytes()).unwrap(),
        canonical_id(body).unwrap(),
        pointer_id(&[""], body).unwrap(),
        key_id(body),
        key_id("lapin-idempotent: parts"),
        parts_id(&["1".to_owned(), String::new()]),
    ];
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
}

#[test]
fn pointers_count_with_their_values() {
    let body =
        r#"{"order":{"id":42},"refund":{"id":42},"text":{"id":"42"},"none":null,"big":9007199254740993}"#;
    let order = pointer_id(&["/order/id"], body).unwrap();
    assert_ne!(pointer_id(&["/refund/id"], body).unwrap(), order);
    assert_ne!(pointer_id(&["/text/id"], body).unwrap(), order);
    assert_ne!(pointer_id(&["/order/id"], r#"{"order":{"id":"42"}}"#).unwrap(), order);
    assert_eq!(pointer_id(&["/order/id"], r#"{"order":{"x":0,"id":4.2e1}}"#).unwrap(), order);
    let both = pointer_id(&["/order/id", "/refund/id"], body).unwrap();
    assert_eq!(pointer_id(&["/refund/id", "/order/id", "/refund/id"], body).unwrap(), both);

    for missing in ["/none", "/order/none", "/order/id/0"] {
        let refused = pointer_id(&["/order/id", missing], body);
        assert!(matches!(refused, Err(IdError::PointerMissing { pointer }) if pointer == missing));
    }
    assert!(matches!(pointer_id(&["/big"], body), Err(IdError::InexactNumber { .. })));
    for malformed in ["order", "/a~2", "/~", " "] {
        let refused = pointer_id(&[malformed], body);
        assert!(matches!(refused, Err(IdError::InvalidPointer { pointer }) if pointer == malformed));
    }
    assert!(matches!(pointer_id(&[], body), Err(IdError::InvalidPointer { .. })));
}

/// An empty key would make one message of all that have it.
#[test]
fn a_value_that_says_nothing_is_refused_and_a_structured_one_is_taken_only_when_asked_for() {
    let structured = IdStrategy::json_pointers(["/id"]).with_structured_values();
    for empty in ["null", r#""""#, "{}", "[]", "{ }", "[\n]"] {
        let body = format!("{{\"id\":{empty}}}");
        for refused in [pointer_id(&["/id"], &body), structured.derive_from_body(body.as_bytes())] {
            assert!(matches!(&refused, Err(IdError::PointerMissing { .. })), "{empty}: {refused:?}");
        }
    }
    for value in [r#"{"a":1}"#, "[0]", r#"[""]"#] {
        let body = format!("{{\"id\":{value}}}");
        let refused = pointer_id(&["/id"], &body);
        assert!(matches!(refused, Err(IdError::Structured { pointer }) if pointer == "/id"), "{value}");
        assert!(structured.derive_from_body(body.as_bytes()).is_ok(), "{value}");
    }
    for value in ["0", "false", r#"" ""#, "-0"] {
        let body = format!("{{\"id\":{value}}}");
        assert_eq!(
            pointer_id(&["/id"], &body).unwrap(),
            structured.derive_from_body(body.as_bytes()).unwrap()
        );
    }
}

/// RFC 8259, section 8.1: JSON is UTF-8. Exact bytes may be anything.
#[test]
fn json_that_is_not_utf_8_has_no_id() {
    for body in [b"{\"id\":\"caf\xe9\"}".as_slice(), b"{\"id\":1,\"a\":\"\xed\xa0\x80\"}"] {
        for strategy in [IdStrategy::canonical_json(), IdStrategy::json_pointers(["/id"])] {
            let refused = strategy.message_id(&message().content_type("application/json").body(body));
            assert!(matches!(refused, Err(IdError::NotJson(_))), "{refused:?}");
        }
        assert!(IdStrategy::content().derive_from_body(body).is_ok());
    }
}

#[test]
fn a_body_that_has_no_one_meaning_has_no_canonical_id() {
    assert!(matches!(canonical_id("{"), Err(IdError::NotJson(_))));
    assert!(matches!(canonical_id(r#"{"a":1,"a":1}"#), Err(IdError::DuplicateName { name }) if name == "a"));
    assert!(matches!(canonical_id(&"[".repeat(500)), Err(IdError::NotJson(_))));
    let deep = "[".repeat(500) + &"]".repeat(500);
    assert!(matches!(canonical_id(&deep), Err(IdError::TooDeep)));
    let inexact = canonical_id(r#"{"id":9007199254740993}"#);
    assert!(matches!(inexact, Err(IdError::InexactNumber { literal }) if literal == "9007199254740993"));
}

#[test]
fn errors_name_their_cause_once() {
    let custom = IdStrategy::from_fn(|_| Err("the reason".into())).message_id(&message()).unwrap_err();
    assert!(matches!(custom, IdError::Custom(_)));
    let syntax = canonical_id("nul").unwrap_err();
    let invalid = IdError::from(InvalidMessageId::Empty);
    for error in [&custom as &dyn std::error::Error, &syntax, &invalid] {
        let cause = error.source().unwrap().to_string();
        let shown = error.to_string();
        assert!(!shown.contains(&cause) && !shown.ends_with('.'), "{shown}");
        assert_eq!(shown, shown.to_lowercase().replace("json", "JSON").replace("id ", "ID "));
    }
}

#[test]
fn an_id_looks_up_as_text() {
    let mut seen = HashMap::new();
    seen.insert(MessageId::new("order-42").unwrap(), 1);
    assert_eq!(seen.get("order-42"), Some(&1));
    let sorted: BTreeSet<MessageId> = ["b", "a", "B"].map(|id| id.parse().unwrap()).into();
    assert_eq!(sorted.iter().map(MessageId::as_str).collect::<Vec<_>>(), ["B", "a", "b"]);
}

proptest! {
    /// Against the rule as one would say it.
    #[test]
    fn a_message_id_is_what_the_rule_says(
        text in prop_oneof![
            any::<String>(),
            "\\PC{0,260}",
            "[a-zé€😀\u{80}-\u{a0}\u{0}-\u{20}\u{7f}]{0,8}",
            (0_usize..300).prop_map(|n| "é".repeat(n)),
            (250_usize..260).prop_map(|n| "x".repeat(n)),
        ],
    ) {
        let control = text.chars().any(|c| c < ' ' || ('\u{7f}'..='\u{9f}').contains(&c));
        let good = !text.is_empty() && text.len() < 256 && !control;
        match MessageId::new(text.as_str()) {
            Ok(id) => {
                prop_assert!(good);
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert_eq!(id.to_string(), text.as_str());
                prop_assert_eq!(serde_json::to_value(&id).unwrap(), json!(text));
                prop_assert_eq!(serde_json::from_value::<MessageId>(json!(text)).unwrap(), id);
            }
            Err(error) => {
                prop_assert!(!good);
                let shown = format!("{error} {error:?}");
                prop_assert!(!shown.chars().any(char::is_control), "{}", shown);
                prop_assert!(serde_json::from_value::<MessageId>(json!(text)).is_err());
            }
        }
    }

    #[test]
    fn ids_are_equal_if_their_bytes_are(a in "[aAé ]{1,3}", b in "[aAé ]{1,3}") {
        let (x, y) = (MessageId::new(a.as_str()).unwrap(), MessageId::new(b.as_str()).unwrap());
        prop_assert_eq!(x == y, a == b);
        prop_assert_eq!(x.cmp(&y), a.cmp(&b));
        prop_assert_eq!(key_id(&a) == key_id(&b), a == b);
    }

    #[test]
    fn keys_are_equal_if_all_their_parts_are(
        a in prop::collection::vec("[ab\u{0}]{1,2}", 1..4),
        b in prop::collection::vec("[ab\u{0}]{1,2}", 1..4),
    ) {
        prop_assert_eq!(parts_id(&a) == parts_id(&b), a == b);
        prop_assert_eq!(parts_id(&a), parts_id(&a));
    }

    #[test]
    fn children_are_equal_if_parent_and_name_are(
        a in "[ab]{1,3}", b in "[ab]{1,3}", name in "[ab]{0,3}", other in "[ab]{0,3}",
    ) {
        let (x, y) = (MessageId::new(a.as_str()).unwrap(), MessageId::new(b.as_str()).unwrap());
        prop_assert_eq!(x.derive(&name) == y.derive(&other), (a, name) == (b, other));
    }

    #[test]
    fn a_uuid_or_ulid_gives_back_its_time(millis in 0_u64..1 << 48, random in any::<u128>()) {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let v7 = uuid::Builder::from_unix_timestamp_millis(millis, &random.to_be_bytes()[..10].try_into().unwrap());
        prop_assert_eq!(MessageId::from(v7.into_uuid()).time(), Some(at));
        prop_assert_eq!(MessageId::from(ulid::Ulid::from_parts(millis, random)).time(), Some(at));
        prop_assert_eq!(MessageId::from(Uuid::new_v8(random.to_be_bytes())).time(), None);
    }

    /// Whatever the bytes: an answer or an error, the same each time, and never a panic.
    #[test]
    fn no_body_is_too_odd(body in prop_oneof![
        any::<Vec<u8>>(),
        "[\\[\\]{}\",:\\\\ 0-9eE.+-]{0,40}".prop_map(String::into_bytes),
    ]) {
        for strategy in [IdStrategy::canonical_json(), IdStrategy::json_pointers(["/0", "/a"])] {
            let (a, b) = (strategy.derive_from_body(&body), strategy.derive_from_body(&body));
            prop_assert_eq!(a.ok(), b.ok());
        }
        prop_assert!(IdStrategy::content().derive_from_body(&body).is_ok());
    }
}
