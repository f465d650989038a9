//! The crash test with leases: an effect is not in the session, so one that knows its message
//! passes, and one that does not is found.

#![allow(clippy::future_not_send, reason = "a run is awaited where the test is")]

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use lapin_idempotent::{
    MessageId, OutgoingMessage, handler_fn,
    idempotency::Lease,
    testing::{CrashReport, Point, Subject, crash_everywhere},
};

use super::node;

trials! {
    effect_that_knows_its_message_passes_everywhere,
    effect_that_does_not_is_found,
}

type Effects = Arc<Mutex<Vec<String>>>;

/// `known`: whether who takes the effects asks for what.
async fn crashed(known: bool) -> CrashReport {
    let setup = async |_| {
        let store = node().await.lease(Duration::from_millis(60));
        let effects = Effects::default();
        let noting = Arc::clone(&effects);
        let handler = handler_fn(move |message, _: &mut Lease| {
            let (effects, key) = (Arc::clone(&noting), message.effect_key("debit"));
            Box::pin(async move {
                tokio::task::yield_now().await;
                effects.lock().expect("effects").push(key.expect("an identity").as_str().to_owned());
                Ok(())
            })
        });
        Subject::new(store, handler).state(async move || {
            let effects = effects.lock().expect("effects").clone();
            if known { effects.into_iter().collect::<BTreeSet<_>>().len() } else { effects.len() }
        })
    };
    let debit = MessageId::new("debit/42").expect("ID");
    let debit = OutgoingMessage::to("", "test").message_id(debit).text("500");
    crash_everywhere(setup).messages([debit]).run().await
}

pub(crate) async fn effect_that_knows_its_message_passes_everywhere() {
    let report = crashed(true).await;
    report.assert_same_everywhere();
    assert!(report.points().any(|point| point == Point::Await(1)));
}

pub(crate) async fn effect_that_does_not_is_found() {
    let report = crashed(false).await;
    for point in [Point::Commit, Point::HandlerFails] {
        let found = report.finding_at(point);
        assert_eq!(found.expect("a finding").difference, "the state 1 became 2", "{point}");
    }
    assert!(report.finding_at(Point::Committed).is_none(), "{report}");
}
