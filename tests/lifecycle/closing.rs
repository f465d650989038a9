//! One end for all who ask for it.

use std::{sync::mpsc, time::Duration};

use futures_util::poll;
use lapin_idempotent::publisher::{CloseError, PublishErrorKind, PublisherState};
use tokio::time::timeout;

use super::{DEADLINE, connected, publish};

const SHORT: Duration = Duration::from_millis(300);

fn left(closed: Result<(), CloseError>) -> Vec<String> {
    let error = closed.expect_err("something is unconfirmed");
    assert!(!error.is_incomplete(), "{error}");
    error.into_messages().iter().map(|message| message.id().expect("ID").to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_waits_for_the_same_end_and_gets_the_same_answer() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    let call = publish(&publisher, "unconfirmed");
    let id = peer.next().await.id();
    let (one, other) = (publisher.clone(), publisher.clone());
    let closes = async { tokio::join!(one.close(DEADLINE), other.close(SHORT)) };
    let (one, other) = timeout(DEADLINE, closes).await.expect("the earliest limit counts");
    assert_eq!((left(one), left(other)), (vec![id.clone()], vec![id.clone()]));
    assert_eq!(left(publisher.close(Duration::ZERO).await), [id], "also afterwards");
    let error = call.await.unwrap().expect_err("unconfirmed");
    assert_eq!((error.kind(), error.may_have_been_published()), (PublishErrorKind::Closed, true));
    assert_eq!(publisher.status().state, PublisherState::Closed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_told_that_all_was_confirmed() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    let call = publish(&publisher, "confirmed in the end");
    let published = peer.next().await;
    let (one, other) = (publisher.clone(), publisher.clone());
    let mut closes = Box::pin(async { tokio::join!(one.close(DEADLINE), other.close(DEADLINE)) });
    assert!(poll!(&mut closes).is_pending(), "one is in flight");
    peer.ack(published.tag, false).await;
    let ((one, other), goodbye) =
        timeout(DEADLINE, async { tokio::join!(closes, peer.next_or_end()) }).await.expect("in time");
    assert!(goodbye.is_none());
    one.expect("all is confirmed");
    other.expect("all is confirmed");
    call.await.unwrap().expect("confirmed");
    publisher.close(Duration::ZERO).await.expect("all was confirmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_close_goes_on_and_a_later_call_gets_its_result() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    let call = publish(&publisher, "unconfirmed");
    let id = peer.next().await.id();
    timeout(Duration::ZERO, publisher.close(SHORT)).await.expect_err("there is something to wait for");
    let error = timeout(DEADLINE, call).await.expect("closing goes on").unwrap().expect_err("unconfirmed");
    assert_eq!(error.kind(), PublishErrorKind::Closed);
    let closed = timeout(DEADLINE, publisher.close(DEADLINE)).await.expect("in time");
    assert_eq!(left(closed), [id]);
}

/// What blocks the publishing task cannot block who closes, and is not taken for success.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_returns_although_a_hook_never_does() {
    let (release, blocked) = mpsc::channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let (publisher, mut peer) = connected(move |builder| {
        builder.on_attempt(move |_| {
            let _ = blocked.lock().unwrap().recv();
        })
    })
    .await;
    let _call = publish(&publisher, "the hook hangs over it");
    let published = peer.next().await;
    peer.ack(published.tag, false).await;
    let closed = timeout(DEADLINE, publisher.close(SHORT)).await.expect("in time");
    assert!(closed.expect_err("not known to be over").is_incomplete());
    drop(release);
}

/// The task that publishes is gone with its runtime: nothing hangs, and nothing looks open or
/// confirmed.
#[test]
fn publisher_says_closed_when_its_runtime_is_gone() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let (publisher, peer) = first.block_on(connected(|builder| builder));
    #[expect(clippy::async_yields_async, reason = "it is awaited in the other runtime")]
    let pending = first.block_on(async {
        let call = publish(&publisher, "unconfirmed");
        let mut peer = peer;
        peer.next().await;
        call
    });
    let elsewhere = publisher.clone();
    first.shutdown_background();
    runtime().block_on(async move {
        let state = super::eventually("it says so", async || {
            (publisher.status().state == PublisherState::Closed).then_some(())
        });
        state.await;
        let late = timeout(DEADLINE, elsewhere.publish_idempotent(super::message("late")));
        let error = late.await.expect("no call hangs").expect_err("closed");
        assert_eq!((error.kind(), error.may_have_been_published()), (PublishErrorKind::Closed, false));
        let closed = timeout(DEADLINE, publisher.close(Duration::ZERO)).await.expect("in time");
        assert!(closed.expect_err("one was unconfirmed").is_incomplete());
        drop(pending);
    });
}
