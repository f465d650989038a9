//! What the application's functions do, and what a bug does, ends no publisher.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use lapin_idempotent::{
    IdempotentPublisher,
    amqp::{ConnectErrorKind, Credentials},
    publisher::PublishErrorKind,
};
use tokio::time::timeout;

use super::{DEADLINE, eventually, log, message, publish, scripted::ScriptedBroker};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panic_in_the_credentials_provider_is_a_failed_connect() {
    let broker = ScriptedBroker::start().await;
    let url = broker.url().replace("guest:guest@", "");
    let asked = Arc::new(AtomicU32::new(0));
    let builder = IdempotentPublisher::builder(url).credentials_provider({
        let asked = Arc::clone(&asked);
        move || {
            let number = asked.fetch_add(1, Ordering::SeqCst);
            assert_ne!(number, 1, "panicked when called");
            async move {
                assert_ne!(number, 2, "panicked when awaited");
                assert_ne!(number, 4, "panicked at the start");
                Ok(Credentials::new("guest", "guest"))
            }
        }
    });
    let (publisher, peer) = tokio::join!(builder.clone().connect(), broker.accept());
    let publisher = publisher.expect("connect");
    drop(peer);
    // Asked, and panicked, twice.
    let mut peer = broker.accept().await;
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    let error = publisher.status().last_error.expect("an error");
    assert!(error.contains("panicked when awaited"), "{error}");
    let call = publish(&publisher, "afterwards");
    let published = peer.next().await;
    peer.ack(published.tag, false).await;
    timeout(DEADLINE, call).await.expect("in time").unwrap().expect("published");

    let error = builder.connect().await.expect_err("panicked");
    assert_eq!(error.kind(), ConnectErrorKind::Credentials);
    let source = std::error::Error::source(&error).expect("source").to_string();
    assert!(source.contains("panicked at the start"), "{source}");
}

#[tokio::test]
async fn publishing_task_that_panics_fails_what_it_had_in_flight_and_goes_on() {
    // One thread, so it is the task that publishes that panics.
    log::start();
    log::panic_at("publishing channel lost");
    let broker = ScriptedBroker::start().await;
    let builder = IdempotentPublisher::builder(broker.url());
    let (publisher, mut peer) = tokio::join!(builder.connect(), broker.accept());
    let publisher = publisher.expect("connect");
    let call = publish(&publisher, "in flight");
    peer.next().await;
    drop(peer);
    let error = timeout(DEADLINE, call).await.expect("no call hangs").unwrap().expect_err("not confirmed");
    assert_eq!((error.kind(), error.attempts()), (PublishErrorKind::Disconnected, 1));
    assert!(error.may_have_been_published());
    let said = eventually("it is said", async || publisher.status().last_error).await;
    assert!(said.contains("panicked"), "{said}");

    let mut peer = broker.accept().await;
    let again = async { publisher.publish_idempotent(message("afterwards")).await };
    let (again, ()) = tokio::join!(again, async {
        let published = peer.next().await;
        peer.ack(published.tag, false).await;
    });
    again.expect("published");
    let (closed, _) = tokio::join!(publisher.close(DEADLINE), peer.next_or_end());
    closed.expect("nothing is left");
}

#[tokio::test]
async fn publishing_task_that_panics_again_and_again_keeps_deadlines() {
    log::start();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address");
    let publisher = IdempotentPublisher::builder(format!("amqp://{nobody}")).connect_lazy().expect("lazy");
    let panics = async {
        loop {
            log::panic_at("cannot open a publishing channel");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let call = publisher.publish_idempotent(message("nowhere").deadline(Duration::from_millis(500)));
    let error = tokio::select! {
        () = panics => unreachable!("it never ends"),
        result = timeout(DEADLINE, call) => result.expect("no call hangs").expect_err("nobody is there"),
    };
    assert!(!error.may_have_been_published());
    let said = publisher.status().last_error.expect("an error");
    assert!(said.contains("panicked"), "{said}");
}
