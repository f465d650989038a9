//! Requests that get no reply.

use lapin::types::{AMQPValue, FieldTable};
use lapin_idempotent::{
    consumer::{ConsumeErrorKind, LostReply, UnclaimedReply, Unpark},
    idempotency::MissingIdPolicy,
    store::Replies,
};
use sqlx::Postgres;

use super::{Desk, Kind, Quote, Serving, to};
use crate::databases::support::{broker, eventually, unique};

trials! {
    requester_gone_is_acked_and_counted,
    requester_gone_is_parked_and_answered_when_it_is_back,
    full_mailbox_of_one_requester_is_parked_and_holds_up_no_other,
    reply_that_does_not_fit_into_a_frame_is_parked,
    unguarded_requests_are_refused_at_the_start,
    other_body_gets_no_reply<Postgres, MySql, Sqlite>,
    rejected_request_gets_no_reply,
    reply_that_is_lost_is_parked<Postgres, MySql, Sqlite>,
    reply_that_is_lost_is_acked_and_counted,
    too_large_a_reply_rolls_back_and_parks<Postgres, MySql, Sqlite>,
}

pub async fn requester_gone_is_acked_and_counted() {
    let desk = Desk::<Postgres>::open().await;
    let (serving, _) = desk.serve();
    for _ in 0..2 {
        desk.ask("order-42", "q", to(&unique("nowhere"))).await;
    }
    serving.answered("unclaimed", 2).await;
    let status = serving.monitor.status();
    serving.stop().await;
    assert_eq!((status.replies.len(), status.parked.len(), status.held), (1, 0, 0));
    assert_eq!(desk.table.effects().await, (1, 1));
    desk.all_settled().await;
}

pub async fn requester_gone_is_parked_and_answered_when_it_is_back() {
    let desk = Desk::<Postgres>::open().await;
    let quote = Quote::new(&desk.table);
    let serving = Serving::start(desk.consumer().replies(UnclaimedReply::Park), quote.clone());
    let mailbox = unique("back.again");
    desk.ask("order-42", "q", to(&mailbox)).await;
    let parked = |name| serving.monitor.status().parked.get(name).copied();
    eventually("it is parked", async || parked("reply-unclaimed")).await;
    desk.client.declare(&mailbox).await;
    let unparked = Unpark::new(broker(), format!("{}.parked", desk.queue)).run().await.expect("unpark");
    assert_eq!(unparked.moved, 1);
    assert_eq!(desk.answer(&mailbox).await.body, "run 0");
    serving.answered("sent", 1).await;
    serving.stop().await;
    assert_eq!(quote.insert.runs(), 1);
    desk.client.delete(&mailbox).await;
    desk.all_settled().await;
}

/// The publisher tries for half a minute.
pub async fn full_mailbox_of_one_requester_is_parked_and_holds_up_no_other() {
    let desk = Desk::<Postgres>::open().await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let full = desk.client.queue_with("full", arguments).await;
    desk.client.publish(&full, b"full", lapin::BasicProperties::default()).await;
    let mailbox = desk.mailbox().await;
    let serving = Serving::start(desk.consumer().prefetch(8), Quote::new(&desk.table));
    for n in 0..12 {
        desk.ask(&format!("order-{n}"), "q", to(&full)).await;
    }
    desk.ask("order-12", "q", to(&mailbox)).await;
    eventually("an answer", async || desk.client.get(&mailbox).await.map(drop)).await;
    let parked = || serving.monitor.status().parked.get("reply-unclaimed").copied();
    eventually("the others are parked", async || (parked() == Some(12)).then_some(())).await;
    serving.stop().await;
    assert_eq!(desk.table.effects().await, (13, 13));
    desk.client.delete(&full).await;
    desk.all_settled().await;
}

/// Each try to send the reply would have another identity.
pub async fn unguarded_requests_are_refused_at_the_start() {
    let desk = Desk::<Postgres>::open().await;
    let consumer = desk.consumer().missing_id(MissingIdPolicy::HandleUnguarded);
    let running = consumer.run_rpc_until(Quote::new(&desk.table), std::future::pending());
    let error = running.await.expect_err("it does not start");
    assert_eq!(error.kind(), ConsumeErrorKind::Invalid);
}

/// Nobody would ever take it; others are answered.
pub async fn reply_that_does_not_fit_into_a_frame_is_parked() {
    let desk = Desk::<Postgres>::open().await;
    let quote = Quote::new(&desk.table);
    let small = desk.consumer_over(&format!("{}?frame_max=8192", broker()));
    let serving = Serving::start(small, quote.clone());
    let mailbox = desk.mailbox().await;
    desk.ask("order-41", "at length", to(&mailbox)).await;
    assert_eq!(desk.parked(&serving).await, "reply-refused");
    desk.ask("order-42", "q", to(&mailbox)).await;
    assert_eq!(desk.answer(&mailbox).await.body, "run 1");
    serving.stop().await;
    assert_eq!((quote.insert.runs(), desk.table.effects().await), (2, (2, 2)));
    desk.all_settled().await;
}

pub async fn other_body_gets_no_reply<K: Kind>() {
    let desk = Desk::<K>::open().await;
    let (serving, _) = desk.serve();
    let (first, second) = (desk.mailbox().await, desk.mailbox().await);
    desk.ask("order-42", "q", to(&first)).await;
    assert_eq!(desk.answer(&first).await.body, "run 0");
    desk.ask("order-42", "another", to(&second)).await;
    assert_eq!(desk.parked(&serving).await, "fingerprint-mismatch");
    serving.stop().await;
    assert_eq!(desk.client.ready(&second).await, 0);
    desk.all_settled().await;
}

pub async fn rejected_request_gets_no_reply() {
    let desk = Desk::<Postgres>::open().await;
    let (serving, _) = desk.serve();
    let mailbox = desk.mailbox().await;
    desk.ask("order-42", "fail", to(&mailbox)).await;
    assert_eq!(desk.parked(&serving).await, "rejected");
    serving.stop().await;
    assert_eq!((desk.client.ready(&mailbox).await, desk.kept().await), (0, 0));
    assert_eq!(desk.table.effects().await, (0, 0));
}

/// It was handled when the store kept no replies.
async fn handled_before<K: Kind>(desk: &Desk<K>) {
    let outcome = desk.table.process("order-42").await;
    assert_eq!((outcome.name(), desk.kept().await), ("processed", 0));
}

pub async fn reply_that_is_lost_is_parked<K: Kind>() {
    let desk = Desk::<K>::open().await;
    handled_before(&desk).await;
    let (serving, quote) = desk.serve();
    let mailbox = desk.mailbox().await;
    desk.ask("order-42", "order-42", to(&mailbox)).await;
    assert_eq!(desk.parked(&serving).await, "reply-lost");
    serving.stop().await;
    assert_eq!((desk.client.ready(&mailbox).await, quote.insert.runs()), (0, 0));
    desk.all_settled().await;
}

pub async fn reply_that_is_lost_is_acked_and_counted() {
    let desk = Desk::<Postgres>::open().await;
    handled_before(&desk).await;
    let serving = Serving::start(desk.consumer().lost_replies(LostReply::Ack), Quote::new(&desk.table));
    let mailbox = desk.mailbox().await;
    desk.ask("order-42", "order-42", to(&mailbox)).await;
    serving.answered("lost", 1).await;
    serving.stop().await;
    assert_eq!(desk.client.ready(&mailbox).await, 0);
    desk.all_settled().await;
}

pub async fn too_large_a_reply_rolls_back_and_parks<K: Kind>() {
    let desk = Desk::<K>::open_with(Replies::new().max_bytes("run 0".len() - 1)).await;
    let (serving, _) = desk.serve();
    let mailbox = desk.mailbox().await;
    desk.ask("order-42", "q", to(&mailbox)).await;
    assert_eq!(desk.parked(&serving).await, "rejected");
    serving.stop().await;
    assert_eq!((desk.client.ready(&mailbox).await, desk.kept().await), (0, 0));
    assert_eq!((desk.table.effects().await, desk.table.identities().await), ((0, 0), 0));
    desk.all_settled().await;
}
