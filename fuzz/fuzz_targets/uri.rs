//! Whatever a URI looks like around its password, nothing that is printed shows the password, nor
//! breaks the line.

#![no_main]

use std::error::Error;

use lapin_idempotent::{IdempotentConsumer, IdempotentPublisher, MemoryStore};
use libfuzzer_sys::fuzz_target;

const PASSWORD: &str = "Canary";

fuzz_target!(|parts: (&str, &str, &str, &str)| {
    let (user, before, after, place) = parts;
    // Also a password that should have been percent-encoded and was not.
    let uri = format!("amqp://{user}:{before}{PASSWORD}{after}@{place}");
    let innocent = [user, before, after, place].iter().all(|part| !part.contains(PASSWORD));
    if !innocent {
        return;
    }
    // Fails before anything goes to the network.
    let publisher = IdempotentPublisher::builder(&uri).credentials_provider(|| async { Err("none".into()) });
    let consumer = IdempotentConsumer::builder(&uri, "q", MemoryStore::new(8));
    let mut printed = format!("{publisher:?} {consumer:?}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let error = runtime.block_on(publisher.connect()).expect_err("no credentials");
    let mut cause: Option<&dyn Error> = Some(&error);
    while let Some(error) = cause {
        printed += &format!(" {error} {error:?}");
        cause = error.source();
    }
    assert!(!printed.contains(PASSWORD), "{uri:?}: {printed}");
    assert!(!printed.chars().any(char::is_control), "{uri:?}: {printed:?}");
});
