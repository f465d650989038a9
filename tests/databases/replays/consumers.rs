//! Replays through the broker.

use lapin_idempotent::{
    IdempotentPublisher, MessageId, OutgoingMessage,
    consumer::Unpark,
    idempotency::{ReplayPolicy, StoreErrorKind},
};

use super::{
    super::{
        consuming::{consumer, delete},
        database::{Kind, Table},
    },
    Books, EPOCH, epoch, scope,
    support::{
        amqp::{Client, header},
        broker,
        consumer::Running,
        eventually,
    },
};

trials! {
    closed_or_unknown_epoch_is_parked<Postgres, MySql, Sqlite>,
    parked_message_is_put_back_as_a_replay<Postgres, MySql, Sqlite>,
    consumer_of_opened_replays_does_not_start_without_the_tables<Postgres, MySql, Sqlite>,
}

fn debit(queue: &str, id: &str) -> OutgoingMessage {
    OutgoingMessage::to("", queue).message_id(MessageId::new(id).expect("ID")).body("500")
}

/// And handled when it was opened: the header is there through parking.
pub async fn closed_or_unknown_epoch_is_parked<K: Kind>() {
    let books = Books::<K>::create().await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("replay").await;
    let parking = format!("{queue}.parked");
    let publisher = IdempotentPublisher::builder(broker()).connect().await.expect("publisher");
    let start = || {
        let consumer = consumer(&books.table, &broker(), &queue).workers(1).replays(ReplayPolicy::Opened);
        Running::start(consumer, books.table.insert())
    };
    let parked = async |running: &Running| {
        let parked = async || running.monitor.status().parked.get("replay-refused").map(|_| ());
        eventually("it is parked", parked).await;
        assert_eq!(client.ready(&parking).await, 1);
    };
    let again = |id| debit(&queue, id).replay(EPOCH).expect("epoch");

    publisher.publish_idempotent(debit(&queue, "order-42")).await.expect("publish");
    publisher.publish_idempotent(again("order-42")).await.expect("publish");
    let running = start();
    parked(&running).await;
    assert_eq!(running.decided(2).await, ["processed", "replay_refused"], "nobody opened it");
    running.stop().await;
    books.replays.open(&scope("test"), &epoch(EPOCH), "ops", "VAT was 16 %").await.expect("open");
    assert_eq!(Unpark::new(broker(), &parking).run().await.expect("unpark").moved, 1);
    publisher.publish_idempotent(again("order-42")).await.expect("publish");
    let running = start();
    assert_eq!(running.decided(2).await, ["processed", "duplicate"]);
    running.stop().await;
    assert_eq!(books.table.effects().await, (2, 1));

    assert!(books.replays.close(&scope("test"), &epoch(EPOCH)).await.expect("close"));
    publisher.publish_idempotent(again("order-43")).await.expect("publish");
    let running = start();
    parked(&running).await;
    running.stop().await;
    let left = client.get(&parking).await.expect("parked");
    assert_eq!(header(&left, "x-idempotency-parked-reason").as_deref(), Some("replay-refused"));
    assert_eq!(header(&left, "x-idempotency-replay").as_deref(), Some(EPOCH));
    assert!(header(&left, "x-idempotency-parked-error").is_some_and(|error| error.contains(EPOCH)));
    assert_eq!(books.table.effects().await, (2, 1));
    publisher.close(std::time::Duration::from_secs(10)).await.expect("close");
    delete(&queue).await;
}

/// It fails at first, so that the header goes through a delay queue as well.
pub async fn parked_message_is_put_back_as_a_replay<K: Kind>() {
    let books = Books::<K>::open().await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("replay-parked").await;
    let parking = client.queue("replay-parked-parked").await;
    assert_eq!(books.table.process("order-42").await.name(), "processed");
    let publisher = IdempotentPublisher::builder(broker()).connect().await.expect("publisher");
    let copy = OutgoingMessage::to("", &*parking)
        .message_id(MessageId::new("order-42").expect("ID"))
        .body("order-42");
    publisher.publish_idempotent(copy).await.expect("publish");
    let unpark = Unpark::new(broker(), &parking).to(&*queue).replay(epoch(EPOCH));
    assert_eq!(unpark.run().await.expect("unpark").moved, 1);
    let mut insert = books.table.insert();
    insert.fail_first = 1;
    let consumer = consumer(&books.table, &broker(), &queue).workers(1).replays(ReplayPolicy::Opened);
    let running = Running::start(consumer.immediate_retries(0), insert);
    assert_eq!(running.decided(2).await, ["retry", "processed"]);
    running.stop().await;
    assert_eq!(books.table.effects().await, (2, 1));
    assert_eq!(books.recorded().await.len(), 1);
    publisher.close(std::time::Duration::from_secs(10)).await.expect("close");
    client.delete(&parking).await;
    delete(&queue).await;
}

pub async fn consumer_of_opened_replays_does_not_start_without_the_tables<K: Kind>() {
    let table = Table::<K>::create().await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("replay-tables").await;
    let consumer = consumer(&table, &broker(), &queue).replays(ReplayPolicy::Opened);
    let error = consumer.run_until(table.insert(), std::future::pending()).await.expect_err("no tables");
    let source = std::error::Error::source(&error).expect("source");
    let error = source.downcast_ref::<lapin_idempotent::idempotency::StoreError>().expect("the store's");
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error:?}");
    delete(&queue).await;
}
