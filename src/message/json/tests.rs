//! Properties of IDs that are made of JSON: every way to write a value gives one ID, and every
//! other value another.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::message::{IdError, IdStrategy, MessageId};

fn canonical_id(body: &str) -> MessageId {
    IdStrategy::canonical_json().derive_from_body(body.as_bytes()).unwrap()
}

fn pointer_id(pointer: &str, body: &str) -> Result<MessageId, IdError> {
    IdStrategy::json_pointers([pointer]).with_structured_values().derive_from_body(body.as_bytes())
}

/// JSON of numbers that are exact as doubles, of which canonical JSON refuses none.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-1_000_000_000_000_i64..1_000_000_000_000).prop_map(Value::from),
        any::<i32>().prop_map(|n| json!(f64::from(n) / 64.0)),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

/// The same value in other words: members in reverse, white space between tokens, every string
/// escaped throughout.
fn reworded(value: &Value) -> String {
    let escaped = |text: &str| {
        let units: Vec<String> = text.encode_utf16().map(|unit| format!("\\u{unit:04X}")).collect();
        format!("\"{}\"", units.concat())
    };
    match value {
        Value::Object(members) => {
            let members: Vec<_> = members
                .iter()
                .rev()
                .map(|(name, value)| format!("\t{} :\r\n{}", escaped(name), reworded(value)))
                .collect();
            format!("{{ {} }}", members.join(" ,"))
        }
        Value::Array(values) => {
            format!("[ {} ]", values.iter().map(reworded).collect::<Vec<_>>().join(" , "))
        }
        Value::String(text) => escaped(text),
        Value::Number(number) if number.is_i64() => format!("{number}.00E+0"),
        plain => plain.to_string(),
    }
}

/// Every value that one small change makes of this one.
fn changed(value: &Value) -> Vec<Value> {
    let mut all = match value {
        Value::Null => vec![json!(false), json!("null")],
        Value::Bool(flag) => vec![json!(!flag), json!(flag.to_string())],
        Value::Number(number) => {
            vec![json!(number.to_string()), json!(number.as_f64().unwrap() + 1.0)]
        }
        Value::String(text) => vec![json!(format!("{text} ")), json!([text])],
        Value::Array(values) => {
            vec![json!([values.as_slice(), &[Value::Null]].concat()), json!({ "0": values })]
        }
        Value::Object(_) => vec![json!([value])],
    };
    match value {
        Value::Array(values) => {
            for (index, inner) in values.iter().enumerate() {
                let mut fewer = values.clone();
                fewer.remove(index);
                all.push(Value::Array(fewer));
                for other in changed(inner) {
                    let mut values = values.clone();
                    values[index] = other;
                    all.push(Value::Array(values));
                }
            }
        }
        Value::Object(members) => {
            for (name, inner) in members {
                let mut fewer = members.clone();
                fewer.remove(name);
                all.push(Value::Object(fewer.clone()));
                let fresh = (0..100).map(|n| format!("{name}{n}")).find(|name| !members.contains_key(name));
                fewer.insert(fresh.unwrap(), inner.clone());
                all.push(Value::Object(fewer));
                for other in changed(inner) {
                    let mut members = members.clone();
                    members.insert(name.clone(), other);
                    all.push(Value::Object(members));
                }
            }
        }
        _ => {}
    }
    all
}

proptest! {
    /// Neither order, white space nor spelling counts; the value at a pointer to everything is the
    /// whole.
    #[test]
    fn one_json_value_has_one_id(value in any_json()) {
        let (plain, other) = (value.to_string(), reworded(&value));
        prop_assert_eq!(canonical_id(&plain), canonical_id(&other), "{} {}", plain, other);
        let wrapped = |body: &str| format!("{{\"big\":9007199254740993,\"it\":[{body}]}}");
        let (plain, other) = (wrapped(&plain), wrapped(&other));
        match (pointer_id("/it/0", &plain), pointer_id("/it/0", &other)) {
            (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
            (a, b) => {
                let both_missing = matches!((a, b), (Err(IdError::PointerMissing { .. }), Err(IdError::PointerMissing { .. })));
                let empty = [json!(null), json!(""), json!({}), json!([])];
                prop_assert!(both_missing && empty.contains(&value));
            }
        }
    }

    #[test]
    fn any_change_of_a_json_value_changes_its_id(value in any_json()) {
        let id = canonical_id(&value.to_string());
        for other in changed(&value) {
            prop_assert_ne!(&canonical_id(&other.to_string()), &id, "{} {}", value, other);
        }
    }
}
