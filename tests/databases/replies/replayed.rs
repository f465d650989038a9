//! A request that takes effect once more has a reply of its own.

use lapin::types::{AMQPValue, FieldTable};
use lapin_idempotent::{Scope, idempotency::ReplayPolicy, message::Epoch, store::Replays};

use super::{Answer, Desk, Kind, Quote, Serving, to};
use crate::databases::support::eventually;

trials! {
    replay_is_answered_once_more_and_copies_of_the_original_as_before<Postgres, MySql, Sqlite>,
    original_of_a_replay_that_was_the_first_effect_is_answered<Postgres, MySql, Sqlite>,
}

/// A consumer that answers replays, of an epoch that is open.
struct Replaying<K: Kind> {
    desk: Desk<K>,
    quote: Quote,
    serving: Serving,
    mailbox: String,
}

impl<K: Kind> Replaying<K> {
    async fn start() -> Self {
        let desk = Desk::<K>::open().await;
        let replays = Replays::new(desk.table.store.clone());
        replays.create_schema().await.expect("schema");
        let (scope, epoch) = (Scope::new(super::SCOPE).expect("scope"), Epoch::new("vat").expect("epoch"));
        replays.open(&scope, &epoch, "ops", "VAT was 16 %").await.expect("open");
        let quote = Quote::new(&desk.table);
        let serving = Serving::start(desk.consumer().replays(ReplayPolicy::Opened), quote.clone());
        let mailbox = desk.mailbox().await;
        Self { desk, quote, serving, mailbox }
    }
}

fn in_epoch() -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert("x-idempotency-replay".into(), AMQPValue::LongString("vat".into()));
    headers
}

pub async fn replay_is_answered_once_more_and_copies_of_the_original_as_before<K: Kind>() {
    let Replaying::<K> { desk, quote, serving, mailbox } = Replaying::start().await;
    let original = || to(&mailbox).with_correlation_id("c".into());
    let replayed = || original().with_headers(in_epoch());
    let mut ids = Vec::new();
    // One after the other, and each twice: a copy is answered with what its own kind was.
    for (properties, run) in
        [(original(), "run 0"), (replayed(), "run 1"), (original(), "run 0"), (replayed(), "run 1")]
    {
        desk.ask("order-42", "q", properties).await;
        let got = eventually("an answer", async || desk.client.get(&mailbox).await).await;
        let Answer { body, id, .. } = Answer::read(&got);
        assert_eq!(body, run);
        ids.push(id);
    }
    assert_eq!((&ids[0], &ids[1]), (&ids[2], &ids[3]));
    assert_ne!(ids[0], ids[1], "a requester that remembers IDs takes it for another reply");
    serving.stop().await;
    assert_eq!((quote.insert.runs(), desk.table.effects().await, desk.kept().await), (2, (2, 1), 2));
    desk.all_settled().await;
}

/// The replay counts as the first effect of its original; a copy of that is a duplicate.
pub async fn original_of_a_replay_that_was_the_first_effect_is_answered<K: Kind>() {
    let Replaying::<K> { desk, quote, serving, mailbox } = Replaying::start().await;
    desk.ask("order-42", "q", to(&mailbox).with_headers(in_epoch())).await;
    assert_eq!(desk.answer(&mailbox).await.body, "run 0");
    desk.ask("order-42", "q", to(&mailbox)).await;
    let status = eventually("it is settled", async || {
        let status = serving.monitor.status();
        (status.replies.get("sent") == Some(&2) || !status.parked.is_empty()).then_some(status)
    })
    .await;
    serving.stop().await;
    assert!(status.parked.is_empty(), "{:?}", status.parked);
    let Answer { body, .. } = desk.answer(&mailbox).await;
    assert_eq!((body.as_str(), quote.insert.runs()), ("run 0", 1));
}
