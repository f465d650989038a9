//! What may go wrong between the handler and the ack.

use std::sync::{Arc, atomic::AtomicBool};

use lapin_idempotent::{IdempotentConsumer, store::Replies};

use super::{Answer, DELAY, Desk, Kind, Quote, SCOPE, Serving, reply_id, to};
use crate::databases::{
    database::{
        Table,
        wire::{Cut, Wire},
    },
    support::{
        broker, eventually,
        proxy::{Action, From, Proxy, method},
    },
};

trials! {
    reply_is_sent_only_after_the_commit<Postgres, MySql, Sqlite>,
    commit_that_is_cut_off_is_answered_by_the_next_run<Postgres, MySql>,
    request_is_acked_only_after_its_reply_was_confirmed<Postgres, MySql, Sqlite>,
    reply_that_cannot_be_read_is_held_until_it_can_be<Postgres, MySql, Sqlite>,
}

/// Runs that were rolled back are not told of, and leave nothing that would be.
pub async fn reply_is_sent_only_after_the_commit<K: Kind>() {
    let desk = Desk::<K>::open().await;
    let mailbox = desk.mailbox().await;
    let quote = Quote::new(&desk.table).meddling(2);
    let serving = Serving::start(desk.consumer().immediate_retries(0), quote.clone());
    desk.ask("order-42", "q", to(&mailbox)).await;
    assert_eq!(desk.answer(&mailbox).await, Answer::of("order-42", "order-42", "run 2"));
    desk.ask("order-42", "q", to(&mailbox)).await;
    assert_eq!(desk.answer(&mailbox).await.body, "run 2", "it is the one that was kept");
    serving.answered("sent", 2).await;
    serving.stop().await;
    assert_eq!((quote.insert.runs(), desk.client.ready(&mailbox).await), (3, 0));
    desk.all_settled().await;
}

pub async fn commit_that_is_cut_off_is_answered_by_the_next_run<K: Kind>() {
    let desk = Desk::<K>::open().await;
    let mailbox = desk.mailbox().await;
    let wire = Wire::start(&desk.table.url, Cut::Before, Arc::new(AtomicBool::new(true))).await;
    let table = Table::<K>::open(&wire.through(&desk.table.url), &desk.table.name, &desk.table.effects).await;
    let store = table.store.clone().with_replies(Replies::new()).expect("name");
    let consumer = IdempotentConsumer::builder(broker(), &desk.queue, store).scope(SCOPE);
    desk.ask("order-42", "q", to(&mailbox)).await;
    let serving = Serving::start(consumer.retry_delays(DELAY, DELAY), Quote::new(&table));
    assert_eq!(desk.answer(&mailbox).await.body, "run 1", "of run 0 nothing was committed");
    assert_eq!(wire.fired(), 1);
    serving.answered("sent", 1).await;
    serving.stop().await;
    assert_eq!(desk.client.ready(&mailbox).await, 0);
    desk.all_settled().await;
}

/// The confirm is lost: the reply is there, and the request comes again, and is answered again.
pub async fn request_is_acked_only_after_its_reply_was_confirmed<K: Kind>() {
    let desk = Desk::<K>::open().await;
    let mailbox = desk.mailbox().await;
    let proxy = Proxy::start(&broker()).await;
    proxy.rule(|frame| if frame.is(From::Broker, method::BASIC_ACK) { Action::Drop } else { Action::Pass });
    let quote = Quote::new(&desk.table);
    let serving = Serving::start(desk.consumer_over(proxy.url()), quote.clone());
    desk.ask("order-42", "q", to(&mailbox)).await;
    let first = desk.answer(&mailbox).await;
    serving.die().await;
    drop(proxy);
    eventually("it goes back", async || (desk.client.ready(&desk.queue).await == 1).then_some(())).await;
    let (again, _) = desk.serve();
    assert_eq!((desk.answer(&mailbox).await, &first.id), (first.clone(), &reply_id("order-42")));
    again.answered("sent", 1).await;
    again.stop().await;
    assert_eq!(quote.insert.runs(), 1);
    desk.all_settled().await;
}

pub async fn reply_that_cannot_be_read_is_held_until_it_can_be<K: Kind>() {
    let desk = Desk::<K>::open().await;
    let mailbox = desk.mailbox().await;
    let (serving, quote) = desk.serve();
    desk.ask("order-42", "q", lapin::BasicProperties::default()).await;
    eventually("it takes effect", async || (desk.table.effects().await.0 == 1).then_some(())).await;
    let table = format!("{}_replies", desk.table.name);
    desk.table.sql(&format!("ALTER TABLE {table} RENAME TO {table}_away")).await;
    desk.ask("order-42", "q", to(&mailbox)).await;
    eventually("it is held", async || (serving.monitor.status().held == 1).then_some(())).await;
    assert_eq!(serving.replies().len(), 0);
    desk.table.sql(&format!("ALTER TABLE {table}_away RENAME TO {table}")).await;
    assert_eq!(desk.answer(&mailbox).await.body, "run 0");
    serving.answered("sent", 1).await;
    serving.stop().await;
    assert_eq!(quote.insert.runs(), 1);
    desk.all_settled().await;
}
