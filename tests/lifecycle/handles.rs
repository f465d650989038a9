//! Handed over now, answered later.

use std::time::Duration;

use futures_util::{FutureExt, future::join_all, poll};
use lapin_idempotent::{OutgoingMessage, publisher::PublishErrorKind};
use tokio::time::timeout;

use super::{
    DEADLINE, connected, eventually, log, message,
    scripted::{ack, nack, returned},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enqueued_messages_are_sent_in_order_and_answered_later() {
    const COUNT: usize = 500;
    let (publisher, mut peer) = connected(|builder| builder).await;
    let mut handles = Vec::new();
    for n in 0..COUNT {
        let message = OutgoingMessage::to("e", "queue").body(n.to_string());
        handles.push(publisher.enqueue(message).await.expect("there is a place"));
    }
    let published = peer.take(COUNT).await;
    let bodies: Vec<_> = published.iter().map(|p| String::from_utf8(p.body.clone()).unwrap()).collect();
    assert_eq!(bodies, (0..COUNT).map(|n| n.to_string()).collect::<Vec<_>>());
    let ids: Vec<_> = handles.iter().map(|handle| handle.message_id().to_string()).collect();
    assert_eq!(ids, published.iter().map(|p| p.id()).collect::<Vec<_>>());
    assert!((&mut handles[0]).now_or_never().is_none(), "not answered yet");
    peer.ack(COUNT as u64, true).await;
    let results = timeout(DEADLINE, join_all(handles)).await.expect("in time");
    let receipts: Vec<_> =
        results.into_iter().map(|r| r.expect("published").message_id().to_string()).collect();
    assert_eq!(receipts, ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enqueue_waits_for_a_place_and_try_enqueue_does_not() {
    let (publisher, mut peer) = connected(|builder| builder.max_in_flight(1)).await;
    let first = publisher.try_enqueue(message("first")).expect("there is a place");
    let error = publisher.try_enqueue(message("second")).expect_err("there is none");
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Full, 0));
    assert!(!error.may_have_been_published());
    let id = error.message_id().expect("ID").clone();
    let mut second = Box::pin(publisher.enqueue(error.into_message()));
    assert!(poll!(&mut second).is_pending(), "there is no place");
    let published = peer.next().await;
    peer.ack(published.tag, false).await;
    timeout(DEADLINE, first).await.expect("in time").expect("published");
    let second = timeout(DEADLINE, second).await.expect("in time").expect("now there is a place");
    assert_eq!(*second.message_id(), id);
    let published = peer.next().await;
    peer.ack(published.tag, false).await;
    timeout(DEADLINE, second).await.expect("in time").expect("published");

    let late = publisher.enqueue(message("invalid").idempotency_key("")).await.expect_err("invalid");
    assert_eq!(late.kind(), PublishErrorKind::Invalid);
    let (closed, _) = tokio::join!(publisher.close(DEADLINE), peer.next_or_end());
    closed.expect("nothing is left");
    for late in [publisher.try_enqueue(message("late")), publisher.enqueue(message("late")).await] {
        assert_eq!(late.expect_err("closed").kind(), PublishErrorKind::Closed);
    }
}

#[tokio::test]
async fn dropped_handle_takes_nothing_back() {
    log::start();
    let (publisher, mut peer) = connected(|builder| builder).await;
    drop(publisher.enqueue(message("not even sent")).await.expect("there is a place"));
    let first = peer.next().await;
    peer.say(&[nack(first.tag, false)]).await;
    let again = peer.next().await;
    assert_eq!(again.id(), first.id(), "tried again although nobody waits");
    peer.ack(again.tag, false).await;
    let mut status = publisher.watch();
    let confirmed = timeout(DEADLINE, status.wait_for(|status| status.confirmed == 1));
    assert_eq!(confirmed.await.expect("in time").expect("watch").failed, 0);

    drop(publisher.enqueue(message("to nowhere")).await.expect("there is a place"));
    let lost = peer.next().await;
    peer.say(&[returned(&lost), ack(lost.tag, false)]).await;
    eventually("it is counted", async || (publisher.status().failed == 1).then_some(())).await;
    eventually("it is told", async || {
        let told = log::lines_with("a message failed whose confirm nobody awaits");
        told.iter().any(|line| line.contains(&lost.id())).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flush_waits_for_what_was_handed_over_before_it() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    timeout(DEADLINE, publisher.flush()).await.expect("nothing was handed over");
    let mut kept = publisher.enqueue(message("kept")).await.expect("there is a place");
    drop(publisher.enqueue(message("dropped")).await.expect("there is a place"));
    let other = publisher.clone();
    let mut flush = Box::pin(other.flush());
    assert!(poll!(&mut flush).is_pending());
    let after = publisher.enqueue(message("after")).await.expect("a flush holds nobody up");
    let published = peer.take(3).await;
    peer.say(&[nack(published[0].tag, false), ack(published[1].tag, false)]).await;
    let again = peer.next().await;
    assert!(poll!(&mut flush).is_pending(), "one is to be tried again");
    peer.ack(again.tag, false).await;
    timeout(DEADLINE, flush).await.expect("in time");
    let kept = poll!(&mut kept).map(|result| result.expect("published").attempts());
    assert_eq!(kept, std::task::Poll::Ready(2), "answered before the flush ended");
    assert!(timeout(Duration::ZERO, after).await.is_err(), "not waited for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handle_of_a_closed_publisher_gives_the_message_back() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    let handle = publisher.enqueue(message("unconfirmed")).await.expect("there is a place");
    peer.next().await;
    let left = publisher.close(Duration::ZERO).await.expect_err("unconfirmed");
    drop(publisher);
    let error = timeout(DEADLINE, handle).await.expect("in time").expect_err("unconfirmed");
    assert_eq!((error.kind(), error.may_have_been_published()), (PublishErrorKind::Closed, true));
    assert_eq!(error.message_id(), left.messages()[0].id());
}
