//! A process that is gone between the commit and the reply. The test program starts itself as that
//! process.

use std::process::Command;

use lapin_idempotent::store::Replies;
use tokio::task::spawn_blocking;

use super::{Answer, Client, Desk, Kind, Quote, Table, broker, to};
use crate::databases::{processes, support::eventually};

trials! {
    killed_between_commit_and_reply_replies_once_redelivered<Postgres, MySql, Sqlite>,
}

/// The process: it dies with the first request that has taken effect.
pub async fn serve<K: Kind>(mut table: Table<K>) {
    table.store = table.store.clone().with_replies(Replies::new()).expect("name");
    let queue = std::env::var("QUEUE").expect("QUEUE");
    let desk = Desk { client: Client::connect(&broker()).await, queue, table };
    let quote = Quote { name: "the child's run", ..Quote::new(&desk.table) };
    // Before a delivery is settled, and after the commit.
    let consumer = desk.consumer().on_outcome(|_, _| std::process::abort());
    consumer.run_rpc_until(quote, std::future::pending()).await.expect("consumer");
}

pub async fn killed_between_commit_and_reply_replies_once_redelivered<K: Kind>() {
    let desk = Desk::<K>::open().await;
    let mailbox = desk.mailbox().await;
    desk.ask("order-42", "q", to(&mailbox)).await;
    let mut command = Command::new(std::env::current_exe().expect("program"));
    command.env(processes::TASK, "rpc").env("KIND", K::NAME).env("URL", &desk.table.url);
    command.env("TABLE", &desk.table.name).env("EFFECTS", &desk.table.effects).env("QUEUE", &desk.queue);
    let ended = spawn_blocking(move || command.status().expect("start")).await.expect("join");
    assert!(!ended.success() && ended.code().is_none(), "it was ended by a signal: {ended:?}");
    eventually("it goes back", async || (desk.client.ready(&desk.queue).await == 1).then_some(())).await;
    assert_eq!((desk.table.effects().await, desk.kept().await), ((1, 1), 1), "it was committed");
    assert_eq!(desk.client.ready(&mailbox).await, 0, "and nobody was told");
    let (serving, quote) = desk.serve();
    assert_eq!(desk.answer(&mailbox).await, Answer::of("order-42", "order-42", "the child's run 0"));
    serving.answered("sent", 1).await;
    serving.stop().await;
    assert_eq!((quote.insert.runs(), desk.client.ready(&mailbox).await), (0, 0));
    desk.all_settled().await;
}
