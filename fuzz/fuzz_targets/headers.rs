//! Whatever properties a peer puts on the wire, the consumer reads them, decides, and takes a copy
//! for a copy.

#![no_main]

use std::time::{Duration, SystemTime};

use lapin_idempotent::{
    Guard, HandlerResult, IdempotentHandler, IncomingMessage, MemoryStore, Outcome,
    consumer::settle,
    idempotency::{KeySource, Lease, Scope, StalePolicy},
    lapin::{message::Delivery, protocol::basic::parse_properties, types::ShortString},
};
use libfuzzer_sys::fuzz_target;

struct Handler;

impl IdempotentHandler<MemoryStore> for Handler {
    async fn handle(&self, message: &IncomingMessage, _lease: &mut Lease) -> HandlerResult {
        // What handlers may ask a message.
        let _ = (message.timestamp(), message.trace_context(), message.attempt(), message.parked_reason());
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, wire)) = bytes.split_first() else { return };
    let Ok((body, properties)) = parse_properties(wire) else { return };
    // The route of a message that comes from a delay queue: its headers say where it was published.
    let mut delivery =
        Delivery::mock(1, ShortString::from(""), ShortString::from("q"), choice & 1 != 0, body.into());
    delivery.properties = properties;
    let message = IncomingMessage::from(&delivery);
    let _ = (format!("{message:?}"), message.age(SystemTime::now()), message.exchange().len());

    let mut guard = Guard::new(MemoryStore::new(8), Scope::new("fuzz").unwrap());
    if choice & 2 != 0 {
        guard = guard.retention(Duration::from_secs(3600), StalePolicy::Park);
    }
    if choice & 4 != 0 {
        guard = guard.key(KeySource::header("k"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let outcomes = [(); 2].map(|()| runtime.block_on(guard.process(&message, &Handler)));
    for outcome in &outcomes {
        let _ = settle(outcome);
    }
    match outcomes {
        [Outcome::Processed, second] => assert!(matches!(second, Outcome::Duplicate(_)), "{second:?}"),
        [first, second] => assert_eq!(first.name(), second.name()),
    }
});
