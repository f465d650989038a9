//! A text is a message ID, byte for byte, or is refused in a few printable words.

#![no_main]

use lapin_idempotent::{
    MessageId,
    idempotency::{Scope, effect_key},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let control = text.chars().any(|c| matches!(c, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}'));
    let allowed = (1..=255).contains(&text.len()) && !control;
    match MessageId::new(text) {
        Ok(id) => {
            assert!(allowed);
            assert_eq!(id.as_str(), text);
            assert_eq!(id.to_string(), text);
            let json = serde_json::to_string(&id).unwrap();
            assert_eq!(serde_json::from_str::<MessageId>(&json).unwrap(), id);
            // What is made of it is an ID, too, and whatever time it claims can be told.
            let scope = Scope::new(text).unwrap();
            for made in [id.derive(text), effect_key(&scope, &id, text)] {
                assert_eq!(made.as_str().parse::<MessageId>().unwrap(), made);
            }
            let _ = (id.time(), format!("{id:?}"));
        }
        Err(error) => {
            assert!(!allowed);
            let shown = format!("{error} {error:?}");
            assert!(shown.len() < 200 && !shown.chars().any(char::is_control), "{shown:?}");
        }
    }
});
