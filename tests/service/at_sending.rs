//! Duplicates at sending: the confirm is lost, and the publisher sends again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin_idempotent::{IdempotentPublisher, OutgoingMessage};

use super::support::{
    amqp::Client,
    broker,
    ledger::{Debit, Ledger},
    proxy::{Action, From, Proxy, method},
};

trials! {
    confirm_lost_one_effect,
    connection_cut_before_the_confirm_one_effect,
}

async fn sent_twice_takes_effect_once(action: Action) {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("at-sending").await;
    let proxy = Proxy::start(&broker()).await;
    let confirms = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&confirms);
    proxy.rule(move |frame| {
        let first = frame.is(From::Broker, method::BASIC_ACK) && count.fetch_add(1, Ordering::SeqCst) == 0;
        if first { action } else { Action::Pass }
    });
    let publisher = IdempotentPublisher::builder(proxy.url())
        .confirm_timeout(Duration::from_millis(500))
        .connect()
        .await
        .expect("connect");

    let message = OutgoingMessage::to("", &queue).idempotency_key("debit/order-42").json(&500).expect("json");
    let receipt = publisher.publish_idempotent(message).await.expect("published");

    assert_eq!(receipt.attempts(), 2, "the first confirm was lost");
    assert_eq!(client.ready(&queue).await, 2, "both copies are in the queue");
    let ledger = Ledger::create().await;
    let handler = Debit::default();
    let consumer = ledger.consume(&broker(), &queue, handler.clone());
    assert_eq!(consumer.decided(2).await, ["processed", "duplicate"]);
    consumer.stop().await;
    assert_eq!(client.ready(&queue).await, 0, "nothing came back");
    assert_eq!(ledger.rows().await, (1, 1));
    assert_eq!(ledger.sum().await, 500);
    assert_eq!(handler.runs(), 1);
    client.delete(&queue).await;
}

pub async fn confirm_lost_one_effect() {
    sent_twice_takes_effect_once(Action::Drop).await;
}

pub async fn connection_cut_before_the_confirm_one_effect() {
    sent_twice_takes_effect_once(Action::CutBefore).await;
}
