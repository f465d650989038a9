//! Duplicates at delivery: the ack is lost, and the broker delivers again.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use lapin_idempotent::MessageId;

use super::support::{
    amqp::{Client, with_id},
    broker, eventually,
    ledger::{Debit, Ledger},
    proxy::{Action, From, Proxy, method},
};

trials! {
    ack_lost_one_effect,
    connection_cut_between_commit_and_ack_one_effect,
}

async fn delivered_twice_takes_effect_once(action: Action) {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("at-delivery").await;
    let id = MessageId::new("order-42").expect("id");
    client.publish(&queue, b"500", with_id(id.as_str())).await;
    let proxy = Proxy::start(&broker()).await;
    let acks = Arc::new(AtomicUsize::new(0));
    let passed = Arc::clone(&acks);
    proxy.rule(move |frame| match frame.is(From::Client, method::BASIC_ACK) {
        // Only the first connection's acks are lost.
        true if frame.connection == 0 => action,
        true => {
            passed.fetch_add(1, Ordering::SeqCst);
            Action::Pass
        }
        false => Action::Pass,
    });
    let ledger = Ledger::create().await;
    let handler = Debit::default();

    let consumer = ledger.consume(proxy.url(), &queue, handler.clone());
    eventually("the effect", async || (ledger.rows().await.0 == 1).then_some(())).await;
    if action == Action::Drop {
        // The ack vanished; the delivery stays out until the connection goes.
        proxy.cut_all();
    }
    eventually("the redelivery is acked", async || (acks.load(Ordering::SeqCst) == 1).then_some(())).await;
    consumer.stop().await;

    assert_eq!(client.ready(&queue).await, 0, "the redelivery was acked");
    assert_eq!(ledger.rows().await, (1, 1));
    assert_eq!(handler.runs(), 1, "the second delivery did not reach the handler");
    client.delete(&queue).await;
}

pub async fn ack_lost_one_effect() {
    delivered_twice_takes_effect_once(Action::Drop).await;
}

pub async fn connection_cut_between_commit_and_ack_one_effect() {
    delivered_twice_takes_effect_once(Action::CutBefore).await;
}
