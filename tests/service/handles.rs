//! Messages that are handed over one after the other, their confirms awaited later.

use lapin_idempotent::{IdempotentPublisher, OutgoingMessage};
use tokio::time::timeout;

use super::support::{DEADLINE, amqp::Client, broker};

trials! {
    enqueued_messages_are_in_the_queue_in_order,
}

pub async fn enqueued_messages_are_in_the_queue_in_order() {
    const COUNT: usize = 2_000;
    let client = Client::connect(&broker()).await;
    let queue = client.quorum_queue("enqueued").await;
    let publisher =
        IdempotentPublisher::builder(broker()).max_in_flight(100).connect().await.expect("connect");
    for n in 0..COUNT {
        let message = OutgoingMessage::to("", &queue).body(n.to_string());
        drop(publisher.enqueue(message).await.expect("a place becomes free"));
    }
    timeout(DEADLINE, publisher.flush()).await.expect("in time");
    let status = publisher.status();
    assert_eq!((status.confirmed, status.failed, status.in_flight), (COUNT as u64, 0, 0));
    for n in 0..COUNT {
        let message = client.get(&queue).await.expect("all of them");
        assert_eq!(message.data, n.to_string().into_bytes());
    }
    client.delete(&queue).await;
}
