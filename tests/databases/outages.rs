//! A database that is away, or does not answer.

use std::time::Duration;

use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, PostgresStore,
    consumer::{ConsumeErrorKind, ConsumerState},
    idempotency::StoreErrorKind,
    store::SqlStore,
};
use sqlx::{Postgres, Transaction};
use tokio::time::{Instant, sleep, timeout};

use super::{
    claims::request,
    consuming::{assert_one_effect_each, consumer, delete},
    database::{Insert, Kind, Table, message, short},
    flow::Flow,
    support::{
        DEADLINE,
        amqp::{Client, with_id},
        broker,
        consumer::Running,
        eventually,
        proxy::Proxy,
        server::Server,
    },
    tags::Tags,
};

/// How long one call waits for a server that is not there.
const SOON: Duration = Duration::from_millis(500);

trials! {
    server_stopped_for_20_seconds_nothing_acked_meanwhile,
    batch_asks_a_store_that_is_away_once,
    consumer_waits_for_a_database_that_is_not_there_yet<Postgres, MySql>,
    consumer_does_not_start_on_a_lazy_store_without_its_table<Postgres, MySql, Sqlite>,
    frozen_server_is_an_error_in_time<Postgres, MySql>,
    server_that_is_not_there_is_an_error_that_says_so<Postgres, MySql>,
    passwords_are_never_printed<Postgres, MySql>,
}

/// Publishing goes on meanwhile.
pub async fn server_stopped_for_20_seconds_nothing_acked_meanwhile() {
    let server = Server::start("postgres", &[]).await;
    let table = Table::<Postgres>::create_on(server.url()).await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("database-outage").await;
    let proxy = Proxy::start(&broker()).await;
    let tags = Tags::watch(&proxy);
    let handler = Insert { dawdle: Duration::from_millis(2), ..table.insert() };
    let consumer = Running::start(consumer(&table, proxy.url(), &queue), handler);
    let monitor = consumer.monitor.clone();
    let flow = Flow::start(&broker(), &queue, 200).await;
    consumer.decided(200).await;
    server.stop().await;
    let handled = || {
        let outcomes = monitor.status().outcomes;
        ["processed", "duplicate"].iter().filter_map(|name| outcomes.get(name)).sum::<u64>()
    };
    // What was committed just before is counted when nothing is in hand any more.
    let before = eventually("the outage is noticed", async || {
        let status = monitor.status();
        (status.state == ConsumerState::StoreAway && status.in_hand == 0).then(handled)
    })
    .await;
    let published = flow.confirmed();
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        // Read in this order: what is acked was counted before.
        let acked = tags.seen().acked as u64;
        assert!(acked <= handled() + monitor.status().delayed, "{acked} acks, {:?}", monitor.status());
        assert_eq!(handled(), before, "nothing counts as handled while the store is away");
        assert_eq!(monitor.status().state, ConsumerState::StoreAway);
        assert_eq!(client.ready(&format!("{queue}.parked")).await, 0, "and nothing is parked for it");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(flow.confirmed() > published + 1000, "{} under load", flow.confirmed() - published);
    server.start_again().await;
    consumer.until(ConsumerState::Consuming).await;
    let messages = flow.stop().await;
    assert_one_effect_each(messages, &table, (&client, &broker(), &queue), vec![consumer]).await;
    tags.assert_no_foreign_tag();
    delete(&queue).await;
}

/// Stops the server under the batch.
struct Stops(Server);

impl IdempotentHandler<PostgresStore> for Stops {
    async fn handle(&self, _: &IncomingMessage, tx: &mut Transaction<'static, Postgres>) -> HandlerResult {
        self.0.stop().await;
        Postgres::run(tx, "SELECT 1").await?;
        Ok(())
    }
}

/// Each claim takes seconds to fail then.
pub async fn batch_asks_a_store_that_is_away_once() {
    let server = Server::start("postgres", &[]).await;
    let table = Table::<Postgres>::create_on(server.url()).await;
    let messages: Vec<_> = (0..64).map(|n| message(&format!("m{n}"))).collect();
    let guard = table.guard();
    let outcomes = timeout(DEADLINE, guard.process_batch(&messages, &Stops(server))).await.expect("in time");
    assert!(outcomes.iter().all(|outcome| outcome.name() == "store_unavailable"), "{outcomes:?}");
    assert_eq!(outcomes.len(), messages.len());
}

pub async fn frozen_server_is_an_error_in_time<K: Kind>() {
    let server = Server::start(if K::NAME == "MySQL" { "mysql" } else { "postgres" }, &[]).await;
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

pub async fn server_that_is_not_there_is_an_error_that_says_so<K: Kind>() {
    let mut url = url::Url::parse(&K::url()).unwrap();
    url.set_port(Some(1)).unwrap();
    let error = SqlStore::<K>::connect(url.as_str()).await.map(drop).expect_err("nobody listens there");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(told(&error).contains("refused"), "{}", told(&error));
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

/// Messages wait in the queue, and are handled when the server is there.
pub async fn consumer_waits_for_a_database_that_is_not_there_yet<K: Kind>() {
    let server = Server::start(if K::NAME == "MySQL" { "mysql" } else { "postgres" }, &[]).await;
    let table = Table::<K>::create_on(server.url()).await;
    server.stop().await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("database-later").await;
    for n in 0..5 {
        client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
    }
    let lazy = SqlStore::<K>::connect_lazy_with(server.url(), |pool| pool.acquire_timeout(SOON));
    let lazy = Table { store: lazy.expect("URL").table(&table.name).expect("name"), ..table };
    let running = Running::start(consumer(&lazy, &broker(), &queue), lazy.insert());
    running.until(ConsumerState::StoreAway).await;
    let status = running.monitor.status();
    assert!(status.is_live() && !status.is_ready() && status.last_error.is_some(), "{status:?}");
    assert_eq!(client.ready(&queue).await, 5, "nothing is taken");
    server.start_again().await;
    running.until(ConsumerState::Consuming).await;
    eventually("all take effect", async || (lazy.effects().await == (5, 5)).then_some(())).await;
    running.stop().await;
    assert_eq!(client.ready(&queue).await, 0);
    delete(&queue).await;
}

/// What waiting does not mend is an error.
pub async fn consumer_does_not_start_on_a_lazy_store_without_its_table<K: Kind>() {
    let odd = format!("{}?mode=perhaps&sslmode=perhaps&ssl-mode=perhaps", K::url());
    let error = SqlStore::<K>::connect_lazy(&odd).map(drop).expect_err("no such mode");
    assert_eq!(error.kind(), StoreErrorKind::Configuration);
    let lazy = SqlStore::<K>::connect_lazy(&K::url()).expect("URL").table(&short("none")).expect("name");
    let table = Table { store: lazy, ..Table::<K>::create().await };
    // Nobody listens there: the store is looked at before the broker.
    let consumer = consumer(&table, "amqp://127.0.0.1:1", "nowhere");
    let ended = consumer.run_until(table.insert(), std::future::pending());
    let error = timeout(DEADLINE, ended).await.expect("in time").expect_err("no table");
    assert_eq!(error.kind(), ConsumeErrorKind::Store);
    assert!(told(&error).contains("missing"), "{}", told(&error));
}
