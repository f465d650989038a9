//! A database that is away, or does not answer.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use lapin_idempotent::{
    IdempotencyStore, IdempotentConsumer, consumer::ConsumerState, idempotency::StoreErrorKind,
    store::SqlStore,
};
use sqlx::Postgres;
use tokio::{sync::watch, time::timeout};

use super::{
    claims::request,
    database::{Insert, Kind, Table, server::Server},
    support::{
        DEADLINE,
        amqp::{Client, with_id},
        broker, eventually,
    },
};

pub async fn server_stopped_and_started_nothing_acked_meanwhile() {
    const MESSAGES: i64 = 400;
    let server = Server::start("postgres", &[]).await;
    let table = Table::<Postgres>::create_on(server.url()).await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("database-outage").await;
    for n in 0..MESSAGES {
        client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
    }
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&outcomes);
    let (stop, mut stopped) = watch::channel(false);
    let handler = Insert { dawdle: Duration::from_millis(5), ..table.insert() };
    let consumer = IdempotentConsumer::builder(broker(), &queue, table.store.clone())
        .scope("test")
        .prefetch(32)
        .workers(4)
        .retry_delays(Duration::from_millis(50), Duration::from_millis(500))
        .on_outcome(move |_, outcome| seen.lock().unwrap().push(outcome.is_handled()));
    let monitor = consumer.monitor();
    let running = tokio::spawn(async move {
        consumer.run_until(handler, async move { drop(stopped.wait_for(|stop| *stop).await) }).await
    });
    let handled = || outcomes.lock().unwrap().iter().filter(|handled| **handled).count();
    eventually("some are handled", async || (handled() >= 50).then_some(())).await;
    server.stop().await;
    let before = handled();
    eventually("the outage is noticed, several times", async || {
        let outcomes = outcomes.lock().unwrap();
        (outcomes.iter().rev().take_while(|handled| !**handled).count() >= 10).then_some(())
    })
    .await;
    assert_eq!(monitor.status().state, ConsumerState::StoreAway);
    assert!(handled() <= before + 4, "nothing counts as handled while the store is away");
    assert_eq!(client.ready(&format!("{queue}.parked")).await, 0, "and nothing is parked for it");
    server.start_again().await;
    eventually("all are handled", async || (table.effects().await.1 == MESSAGES).then_some(())).await;
    assert_eq!(monitor.status().state, ConsumerState::Consuming);
    stop.send(true).expect("running");
    timeout(DEADLINE, running).await.expect("stops").expect("task").expect("consumer");
    assert_eq!(table.effects().await, (MESSAGES, MESSAGES), "none lost, none twice");
    assert_eq!(client.ready(&queue).await, 0);
    assert_eq!(client.ready(&format!("{queue}.parked")).await, 0);
    client.delete(&queue).await;
    client.delete(&format!("{queue}.parked")).await;
}

pub async fn frozen_server_is_an_error_in_time<K: Kind>() {
    let server = Server::start(if K::NAME == "MySQL" { "mariadb" } else { "postgres" }, &[]).await;
    let table = Table::<K>::create_on(server.url()).await;
    let store =
        table.store.clone().lock_timeout(Duration::from_secs(1)).statement_timeout(Duration::from_secs(1));
    let session = store.claim(&[request("test", "a")]).await.expect("claim").session.expect("acquired");
    let other = [request("test", "b")];
    server.pause().await;
    let (completed, claimed) =
        tokio::join!(timeout(DEADLINE, store.complete(session)), timeout(DEADLINE, store.claim(&other)),);
    assert_eq!(completed.expect("in time").expect_err("frozen").kind(), StoreErrorKind::OutcomeUnknown);
    let claimed = claimed.expect("in time").map(|_| ()).expect_err("frozen");
    assert_eq!(claimed.kind(), StoreErrorKind::Unavailable, "{claimed:?}");
    server.resume().await;
    eventually("it works again", async || table.store.claim(&[request("test", "c")]).await.ok().map(|_| ()))
        .await;
}

/// An error with everything that it was made from.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text} {error} {error:?}");
        next = error.source();
    }
    text
}

pub async fn passwords_are_never_printed<K: Kind>() {
    const SECRET: &str = "s3cr3t-pa55";
    let mut url = url::Url::parse(&K::url()).unwrap();
    url.set_username("nobody-known").unwrap();
    url.set_password(Some(SECRET)).unwrap();
    let good = Table::<K>::create().await;
    assert!(!format!("{:?}", good.store).contains("://"), "{:?}", good.store);
    let mut unreachable = url.clone();
    unreachable.set_port(Some(1)).unwrap();
    let mut odd = url.clone();
    odd.set_query(Some("ssl-mode=perhaps&sslmode=perhaps"));
    let urls =
        [url.to_string(), unreachable.to_string(), odd.to_string(), format!("{url}:x:y"), format!("x{url}")];
    for url in urls {
        let error = match timeout(DEADLINE, SqlStore::<K>::connect(&url)).await.expect("in time") {
            Err(error) => error,
            // A server that trusts everybody.
            Ok(store) => match store.create_schema().await {
                Err(error) => error,
                Ok(()) => continue,
            },
        };
        let told = told(&error);
        assert!(!told.contains(SECRET), "{told}");
    }
}
