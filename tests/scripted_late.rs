//! Confirms that do not come, on a broker that does what a test says: the message fails as what it
//! is, late, and keeps no other waiting.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::expect_used, clippy::unwrap_used)]

mod support {
    pub mod scripted;
}

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use lapin_idempotent::{
    IdempotentPublisher, OutgoingMessage, PublishError, RetryPolicy, publisher::PublishErrorKind,
};
use support::scripted::{Peer, Published, ScriptedBroker};
use tokio::time::{sleep, timeout};

const DEADLINE: Duration = Duration::from_secs(120);

fn number(published: &Published) -> usize {
    String::from_utf8_lossy(&published.body).parse().expect("a number")
}

/// Never confirms message 0, and confirms all others. Ends connection number `cut` itself over
/// message 0: the first one without a confirm, a later one behind one. Counts for each connection
/// with message 0 how many came behind it.
async fn never_confirms_one(broker: ScriptedBroker, first: Peer, cut: usize, beside: Arc<Mutex<Vec<usize>>>) {
    let mut peer = first;
    for connection in 0.. {
        let mut behind = None;
        while let Some(published) = peer.next_or_end().await {
            if number(&published) == 0 {
                behind = Some(0);
                beside.lock().unwrap().push(0);
            } else {
                peer.ack(published.tag, false).await;
                if let Some(behind) = &mut behind {
                    *behind += 1;
                    *beside.lock().unwrap().last_mut().expect("it has come") = *behind;
                }
            }
            if connection == cut && behind.is_some_and(|behind| cut == 0 || behind > 0) {
                // Or the end of the connection would overtake the confirm.
                sleep(Duration::from_millis(20)).await;
                break;
            }
        }
        drop(peer);
        peer = broker.accept().await;
    }
}

/// Publishes message 0, which is never confirmed, while others are published; gives its error, and
/// how many came behind it on each connection.
async fn publish_one_late_among_others(cut: usize) -> (PublishError, Vec<usize>) {
    let broker = ScriptedBroker::start().await;
    let policy = RetryPolicy::default().max_attempts(6).max_elapsed(Duration::from_secs(100));
    let builder = IdempotentPublisher::builder(broker.url()).retry(policy);
    let (publisher, peer) =
        tokio::join!(builder.confirm_timeout(Duration::from_millis(300)).connect(), broker.accept());
    let publisher = publisher.expect("connect");
    let beside = Arc::new(Mutex::new(Vec::new()));
    let serving = tokio::spawn(never_confirms_one(broker, peer, cut, Arc::clone(&beside)));
    let late = publisher.publish_idempotent(OutgoingMessage::to("e", "queue").body("0"));
    let mut late = std::pin::pin!(timeout(DEADLINE, late));
    let error = loop {
        let other = publisher.publish_idempotent(OutgoingMessage::to("e", "queue").body("1000"));
        tokio::select! {
            biased;
            result = &mut late => break result.expect("no call hangs").expect_err("never confirmed"),
            other = other => other.map(|_| ()).expect("published"),
        }
        sleep(Duration::from_millis(10)).await;
    };
    serving.abort();
    let beside = beside.lock().unwrap().clone();
    (error, beside)
}

/// The first connection ends over it, as far as anybody can tell; after that its confirms are late,
/// each time alone. That is another fault, and keeps nobody waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_whose_confirm_is_late_is_not_taken_for_one_that_ends_connections() {
    let (error, beside) = publish_one_late_among_others(0).await;
    assert_eq!(error.kind(), PublishErrorKind::TimedOut, "{error:?}");
    assert!(error.may_have_been_published());
    assert_eq!(beside[1], 0, "suspected, with nothing beside it: {beside:?}");
    assert!(beside[2..].iter().all(|others| *others > 0), "{beside:?}");
}

/// What was late again and again, as in a queue without a leader, is then lost with its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn message_whose_confirms_were_late_is_not_suspected_of_one_lost_connection() {
    let (error, beside) = publish_one_late_among_others(3).await;
    assert_eq!(error.kind(), PublishErrorKind::TimedOut, "{error:?}");
    assert!(beside[4..].iter().all(|others| *others > 0), "{beside:?}");
}
