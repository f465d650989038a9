//! The connection is cut, frozen or slowed down at every frame of one publish.

use std::time::Duration;

use lapin_idempotent::{IdempotentPublisher, OutgoingMessage, amqp::ConnectErrorKind};
use tokio::time::{Instant, timeout};

use super::support::{
    DEADLINE,
    amqp::Client,
    broker,
    proxy::{Action, From, Proxy, method, nth},
};

trials! {
    at_every_frame_both_directions,
    frozen_connection_is_given_up,
    late_confirm_is_waited_for,
    publish_lost_on_the_way_is_sent_again,
}

/// One publish on a new connection through the proxy: `None` if it could not even connect.
async fn publish_once(proxy: &Proxy, queue: &str) -> Option<u32> {
    let builder = IdempotentPublisher::builder(proxy.url())
        .confirm_timeout(Duration::from_secs(2))
        .connect_timeout(Duration::from_secs(2));
    let publisher = match builder.connect().await {
        Ok(publisher) => publisher,
        Err(error) => {
            // lapin 4.12.3 does not notice an end right after the broker's start or tune;
            // connect_timeout does.
            let expected = [ConnectErrorKind::Unreachable, ConnectErrorKind::TimedOut];
            assert!(expected.contains(&error.kind()), "{error:?}");
            return None;
        }
    };
    let receipt =
        publisher.publish_idempotent(OutgoingMessage::to("", queue).body("x")).await.expect("published");
    let _ = publisher.close(Duration::from_secs(2)).await;
    Some(receipt.attempts())
}

/// How many frames go each way for one connection with one publish, until its confirm.
async fn frames(proxy: &Proxy, queue: &str) -> [usize; 2] {
    let (count, mut counted) = tokio::sync::watch::channel([0, 0]);
    let mut confirmed = false;
    proxy.rule(move |frame| {
        if !confirmed {
            count.send_modify(|count| count[usize::from(frame.from == From::Broker)] += 1);
        }
        confirmed |= frame.is(From::Broker, method::BASIC_ACK);
        Action::Pass
    });
    assert_eq!(publish_once(proxy, queue).await, Some(1));
    *counted.borrow_and_update()
}

/// No call hangs, and none says that it published without a copy in the queue.
pub async fn at_every_frame_both_directions() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cuts").await;
    let proxy = Proxy::start(&broker()).await;
    let [by_client, by_broker] = frames(&proxy, &queue).await;
    // Handshake, channel, confirm.select; then publish, header, body; and the broker's side of it.
    assert_eq!([by_client, by_broker], [8, 6], "the sweep covers the whole exchange");
    assert!(client.get(&queue).await.is_some());
    let mut published = 0;
    for (from, frames) in [(From::Client, by_client), (From::Broker, by_broker)] {
        for number in 0..frames {
            for action in [Action::CutBefore, Action::CutAfter] {
                let first = proxy.connections();
                proxy.rule(move |frame| {
                    let here = frame.connection == first && frame.from == from && frame.number == number;
                    if here { action } else { Action::Pass }
                });
                let run = timeout(DEADLINE, publish_once(&proxy, &queue)).await;
                let attempts = run.unwrap_or_else(|_| panic!("hangs: {action:?} at {from:?} {number}"));
                let mut copies = 0;
                while client.get(&queue).await.is_some() {
                    copies += 1;
                }
                match attempts {
                    Some(attempts) => {
                        assert!(
                            (1..=attempts).contains(&copies),
                            "{copies} after {attempts}: {from:?} {number}"
                        );
                        published += 1;
                    }
                    None => assert_eq!(copies, 0),
                }
            }
        }
    }
    // Client: publish, header, body. Broker: ack. Each before and after; and what the last frame of
    // the handshake allows.
    assert!(published >= 9, "{published}");
    client.delete(&queue).await;
}

/// The connection stays open and nothing comes back on it any more.
pub async fn frozen_connection_is_given_up() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("frozen").await;
    let proxy = Proxy::start(&broker()).await;
    proxy.rule(nth(0, From::Broker, method::BASIC_ACK, Action::Freeze));
    assert_eq!(timeout(DEADLINE, publish_once(&proxy, &queue)).await.expect("no hang"), Some(2));
    proxy.thaw();
    assert_eq!(client.ready(&queue).await, 2);
    client.delete(&queue).await;
}

/// A slow confirm is a confirm: nothing is sent twice.
pub async fn late_confirm_is_waited_for() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("late").await;
    let proxy = Proxy::start(&broker()).await;
    let delay = Duration::from_millis(700);
    proxy.rule(nth(0, From::Broker, method::BASIC_ACK, Action::Delay(delay)));
    let started = Instant::now();
    assert_eq!(publish_once(&proxy, &queue).await, Some(1));
    assert!(started.elapsed() >= delay);
    assert_eq!(client.ready(&queue).await, 1);
    client.delete(&queue).await;
}

/// The publish never arrives, though the connection lives: sent again, one copy.
pub async fn publish_lost_on_the_way_is_sent_again() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("lost").await;
    let proxy = Proxy::start(&broker()).await;
    proxy.rule(nth(0, From::Client, method::BASIC_PUBLISH, Action::Freeze));
    assert_eq!(timeout(DEADLINE, publish_once(&proxy, &queue)).await.expect("no hang"), Some(2));
    assert_eq!(client.ready(&queue).await, 1);
    client.delete(&queue).await;
}
