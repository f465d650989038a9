//! What a message can hold, and what it keeps.

use std::time::SystemTime;

use futures_util::StreamExt;
use lapin_idempotent::{IdempotentPublisher, OutgoingMessage, publisher::PublishErrorKind};

use super::support::{amqp::Client, broker, eventually, unique};

trials! {
    one_number_that_the_broker_cannot_read_fails_alone,
    message_that_is_handed_back_keeps_its_first_timestamp,
    a_messages_own_mandatory_goes_before_the_publishers,
    user_id_travels_and_a_wrong_one_fails_alone,
}

/// RabbitMQ's parser has no clause for such a number, and closes the connection over it.
pub async fn one_number_that_the_broker_cannot_read_fails_alone() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("not-finite").await;
    let publisher = IdempotentPublisher::builder(broker()).connect().await.expect("connect");
    let messages = (0..501).map(|n| {
        let message = OutgoingMessage::to("", &queue).body(n.to_string());
        if n == 250 { message.header("ratio", f64::NAN) } else { message.header("ratio", f64::MAX) }
    });
    let results: Vec<_> = publisher.publish_all(messages).collect().await;
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(failed[0].kind(), PublishErrorKind::Invalid);
    assert_eq!(client.ready(&queue).await, 500);
    assert_eq!(publisher.status().reconnects, 0);
    client.delete(&queue).await;
}

/// A consumer's age gate judges by it.
pub async fn message_that_is_handed_back_keeps_its_first_timestamp() {
    let client = Client::connect(&broker()).await;
    let publisher = IdempotentPublisher::builder(broker()).connect().await.expect("connect");
    let queue = unique("handed-back");
    let message = OutgoingMessage::to("", &queue).idempotency_key(queue.as_str()).body("x");
    let error = publisher.publish_idempotent(message).await.expect_err("no such queue");
    let id = error.message_id().cloned();
    let returned = error.into_message();
    let first = returned.properties().timestamp.expect("the time of the publish");
    let stored = serde_json::to_string(&returned).expect("stored");
    eventually("the next second", async || {
        (SystemTime::now().duration_since(first).unwrap_or_default().as_secs() > 1).then_some(())
    })
    .await;
    client.declare(&queue).await;
    let read: OutgoingMessage = serde_json::from_str(&stored).expect("read");
    assert_eq!(read, returned);
    for again in [returned, read] {
        let receipt = publisher.publish_idempotent(again).await.expect("confirmed");
        assert_eq!(Some(receipt.message_id()), id.as_ref());
        let seen = client.get(&queue).await.expect("message");
        let seconds = first.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        assert_eq!(*seen.properties.timestamp(), Some(seconds));
        assert_eq!(seen.data, b"x");
    }
    client.delete(&queue).await;
}

pub async fn a_messages_own_mandatory_goes_before_the_publishers() {
    let target = unique("no-such-queue");
    for publishers in [true, false] {
        let publisher = IdempotentPublisher::builder(broker());
        let publisher = publisher.mandatory(publishers).connect().await.expect("connect");
        let message = || OutgoingMessage::to("", &target);
        let results = [message(), message().mandatory(true), message().mandatory(false)]
            .map(|message| publisher.publish_idempotent(message));
        let kinds = futures_util::future::join_all(results).await;
        let kinds: Vec<_> = kinds.into_iter().map(|result| result.err().map(|error| error.kind())).collect();
        let unroutable = Some(PublishErrorKind::Unroutable);
        assert_eq!(kinds, [unroutable.filter(|_| publishers), unroutable, None]);
    }
}

pub async fn user_id_travels_and_a_wrong_one_fails_alone() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("user").await;
    let publisher = IdempotentPublisher::builder(broker()).connect().await.expect("connect");
    let message = |user: &str| OutgoingMessage::to("", &queue).user_id(user);
    let (wrong, right) = tokio::join!(
        publisher.publish_idempotent(message("nobody")),
        publisher.publish_idempotent(message("guest"))
    );
    assert_eq!(wrong.expect_err("not the user").kind(), PublishErrorKind::Refused);
    right.expect("confirmed");
    let seen = client.get(&queue).await.expect("message");
    assert_eq!(seen.properties.user_id().as_ref().map(|user| user.as_str()), Some("guest"));
    client.delete(&queue).await;
}
