//! IDs from JSON: however a value is written, its ID is the same, and a pointer finds what
//! `serde_json` finds.

#![no_main]

use lapin_idempotent::{IdStrategy, message::IdError};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// Members backwards, white space everywhere.
fn reworded(value: &Value) -> String {
    match value {
        Value::Array(values) => {
            format!("[ {} ]", values.iter().map(reworded).collect::<Vec<_>>().join("\t,\n"))
        }
        Value::Object(members) => {
            let member = |(name, value)| format!("{} :{}", Value::from(String::clone(name)), reworded(value));
            format!("{{\r{} }}", members.iter().rev().map(member).collect::<Vec<_>>().join(" , "))
        }
        scalar => scalar.to_string(),
    }
}

fuzz_target!(|text: &str| {
    // The pointer is the first line.
    let (pointer, body) = text.split_once('\n').unwrap_or(("", text));
    let (whole, part) =
        (IdStrategy::canonical_json(), IdStrategy::json_pointers([pointer]).with_structured_values());
    let (whole_id, part_id) =
        (whole.derive_from_body(body.as_bytes()), part.derive_from_body(body.as_bytes()));
    let Ok(value) = serde_json::from_str::<Value>(body) else {
        // `serde_json` refuses more than is refused here only where it reads what a pointer does
        // not lead to.
        return assert!(whole_id.is_err(), "{body}");
    };
    let reworded = reworded(&value);
    if let Ok(id) = whole_id {
        assert_eq!(whole.derive_from_body(value.to_string().as_bytes()).unwrap(), id);
        assert_eq!(whole.derive_from_body(reworded.as_bytes()).unwrap(), id);
    }
    let empty = [Value::Null, json!(""), json!([]), json!({})];
    let found = value.pointer(pointer).filter(|value| !empty.contains(value));
    match part_id {
        Ok(id) => {
            assert!(found.is_some(), "{text}");
            assert_eq!(part.derive_from_body(reworded.as_bytes()).unwrap(), id);
        }
        Err(IdError::PointerMissing { .. }) => assert!(found.is_none(), "{text}"),
        Err(_) => {}
    }
});
