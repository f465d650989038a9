//! Whatever is read as a stored message: it is a valid one, and the same when it is stored and read
//! again.

#![no_main]

use lapin_idempotent::OutgoingMessage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let Ok(message) = serde_json::from_slice::<OutgoingMessage>(text) else { return };
    message.validate().unwrap();
    let stored = serde_json::to_string(&message).unwrap();
    assert_eq!(serde_json::from_str::<OutgoingMessage>(&stored).unwrap(), message);
});
