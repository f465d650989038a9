//! How a consumer subscribes: alone, before others, with how much ahead.

use std::time::Duration;

use futures_util::future::join_all;
use lapin_idempotent::{IdempotentConsumer, consumer::ConsumeErrorKind};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::support::{
    DEADLINE,
    amqp::{Client, with_id},
    broker, eventually,
    ledger::{Debit, Ledger},
    proxy::{Action, From, Proxy, nth},
    unique,
};

trials! {
    connection_lost_while_it_subscribes_is_no_refusal,
    exclusive_consumer_is_alone,
    consumer_of_higher_priority_is_served_first,
    prefetch_is_bounded_by_bytes,
    dropped_consumer_leaves_no_subscription,
}

pub async fn exclusive_consumer_is_alone() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("exclusive").await;
    let ledger = Ledger::create().await;
    let first = ledger.consume_with(&broker(), &queue, Debit::default(), |b| b.exclusive());
    client.publish(&queue, b"500", with_id("order-42")).await;
    first.decided(1).await;
    let second = IdempotentConsumer::builder(broker(), &queue, ledger.store.clone()).exclusive();
    let error = second.run_until(Debit::default(), std::future::pending()).await.expect_err("taken");
    assert_eq!(error.kind(), ConsumeErrorKind::Refused);
    let text = std::error::Error::source(&error).expect("a source").to_string();
    assert!(text.contains("ACCESS_REFUSED"), "{text}");
    first.stop().await;
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}

pub async fn consumer_of_higher_priority_is_served_first() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("priority").await;
    let ledger = Ledger::create().await;
    let (low, high) = (Debit::default(), Debit::default());
    let waiting = ledger.consume_with(&broker(), &queue, low.clone(), |b| b);
    let serving = ledger.consume_with(&broker(), &queue, high.clone(), |b| b.priority(5));
    eventually("both are there", async || (client.consumers(&queue).await == 2).then_some(())).await;
    // Each begins with room for one message.
    client.publish(&queue, b"1", with_id("first")).await;
    serving.decided(1).await;
    for n in 0..20 {
        client.publish(&queue, b"1", with_id(&format!("m{n}"))).await;
    }
    serving.decided(21).await;
    serving.stop().await;
    assert_eq!((low.runs(), high.runs()), (0, 21));
    client.publish(&queue, b"1", with_id("last")).await;
    waiting.decided(1).await;
    waiting.stop().await;
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}

/// The broker keeps what would be too much: large messages one by one, small ones many at once.
pub async fn prefetch_is_bounded_by_bytes() {
    const MB: usize = 1024 * 1024;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("bytes").await;
    // JSON, as the handler wants it: blanks are allowed before a number.
    let large = [vec![b' '; MB], b"1".to_vec()].concat();
    for n in 0..12 {
        client.publish(&queue, &large, with_id(&format!("large-{n}"))).await;
    }
    let ledger = Ledger::create().await;
    let slow = Debit { dawdle: Duration::from_secs(3600), ..Debit::default() };
    let bounded = |handler: Debit| {
        ledger.consume_with(&broker(), &queue, handler, |b| {
            b.prefetch_bytes(4 * MB).batch(1).drain_timeout(Duration::ZERO)
        })
    };
    let consumer = bounded(slow.clone());
    eventually("it is in the first", async || (slow.runs() == 1).then_some(())).await;
    // First four as if of a mebibyte, then three again when one was a byte more.
    let ready = client.ready(&queue).await;
    assert!((5..12).contains(&ready), "{ready} are with the broker");
    consumer.stop().await;
    let consumer = bounded(Debit::default());
    consumer.decided(12).await;
    for n in 0..1500 {
        client.publish(&queue, b"1", with_id(&format!("small-{n}"))).await;
    }
    consumer.decided(1512).await;
    consumer.stop().await;
    assert_eq!(ledger.rows().await, (1512, 1512));
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}

/// Whatever it was waiting for when it was dropped: a subscription without anybody behind it would
/// swallow messages.
pub async fn dropped_consumer_leaves_no_subscription() {
    const FRAMES: usize = 16;
    let ledger = &Ledger::create().await;
    let drops = [From::Client, From::Broker].into_iter().flat_map(|from| (0..FRAMES).map(move |n| (from, n)));
    let left = drops.map(|(from, number)| async move {
        let client = Client::connect(&broker()).await;
        let queue = client.queue("dropped").await;
        client.publish(&queue, b"500", with_id(&queue.replace('.', "-"))).await;
        let proxy = Proxy::start(&broker()).await;
        let (reached, mut there) = watch::channel(false);
        proxy.rule(move |frame| {
            if (frame.connection, frame.from, frame.number) == (0, from, number) {
                reached.send_replace(true);
                return Action::Delay(Duration::from_millis(500));
            }
            Action::Pass
        });
        let consumer = IdempotentConsumer::builder(proxy.url(), &queue, ledger.store.clone());
        tokio::select! {
            ended = consumer.run_until(Debit::default(), std::future::pending()) => panic!("{ended:?}"),
            _ = there.wait_for(|there| *there) => {}
            // It has all that it waits for.
            () = sleep(Duration::from_secs(10)) => {}
        }
        sleep(Duration::from_secs(1)).await;
        let gone = async || (client.consumers(&queue).await == 0).then_some(());
        let gone = timeout(Duration::from_secs(10), eventually("it is gone", gone)).await;
        proxy.cut_all();
        client.delete(&queue).await;
        client.delete(&format!("{queue}.parked")).await;
        gone.is_err().then_some((from, number))
    });
    let left: Vec<_> = join_all(left).await.into_iter().flatten().collect();
    assert!(left.is_empty(), "a subscription is left when it is dropped at these frames: {left:?}");
}

/// The broker refused nothing: the connection was cut, or frozen, in the middle of the first
/// subscription.
pub async fn connection_lost_while_it_subscribes_is_no_refusal() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("lost-at-first").await;
    let ledger = Ledger::create().await;
    let (open_channel, declare, prefetch, consume) = ((20, 10), (50, 10), (60, 10), (60, 20));
    let mut kinds = Vec::new();
    for method in [open_channel, declare, prefetch, consume] {
        for action in [Action::CutBefore, Action::Freeze] {
            let proxy = Proxy::start(&broker()).await;
            proxy.rule(nth(0, From::Client, method, action));
            let consumer = IdempotentConsumer::builder(proxy.url(), &queue, ledger.store.clone())
                .connect_timeout(Duration::from_secs(1));
            let ended = timeout(DEADLINE, consumer.run_until(Debit::default(), std::future::pending())).await;
            kinds.push((method, action, ended.expect("in time").expect_err("no subscription").kind()));
        }
    }
    let wrong: Vec<_> = kinds.iter().filter(|(.., kind)| *kind != ConsumeErrorKind::Connect).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    let nowhere = IdempotentConsumer::builder(broker(), unique("nowhere"), ledger.store.clone());
    let error = nowhere.run_until(Debit::default(), std::future::pending()).await.expect_err("no such queue");
    assert_eq!(error.kind(), ConsumeErrorKind::Refused);
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}
