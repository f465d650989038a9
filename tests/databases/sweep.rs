//! One message from its publisher through the broker and a consumer into PostgreSQL, with the connections cut behind every frame, in each
//! direction: one effect, and an empty queue.
//!
//! `SWEEP=pairs` makes all pairs of cuts as well, which takes a while; otherwise some of them, the same ones each time.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use lapin_idempotent::{IdempotentConsumer, IdempotentPublisher, MessageId, OutgoingMessage, PostgresStore};
use sqlx::Postgres;
use tokio::time::timeout;

use super::{
    consuming::{consumer, delete},
    database::{
        Kind, Table,
        frames::{Behind, Frames},
    },
    support::{
        amqp::{Client, with_id},
        broker,
        consumer::Running,
        eventually,
        proxy::{Action, From, Proxy},
    },
};

/// Runs at once.
const AT_ONCE: usize = 6;
/// Pairs of cuts, if not all of them are made.
const PAIRS: usize = 60;
/// The longest that one run may take.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Publisher,
    Consumer,
    Database,
}

/// Behind this frame of the first connection of that client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    whose: Whose,
    servers: bool,
    number: usize,
}

/// How many frames each client and its server sent.
type Counts = [[usize; 2]; 3];

fn behind(cuts: &[Cut], whose: Whose) -> Behind {
    cuts.iter().find(|cut| cut.whose == whose).map(|cut| (cut.servers, cut.number))
}

/// Cuts the first connection, and counts its frames.
async fn broker_through(cut: Behind) -> (Proxy, tokio::sync::watch::Receiver<[usize; 2]>) {
    let proxy = Proxy::start(&broker()).await;
    let (count, counted) = tokio::sync::watch::channel([0, 0]);
    proxy.rule(move |frame| {
        if frame.connection > 0 {
            return Action::Pass;
        }
        let servers = frame.from == From::Broker;
        count.send_modify(|count| count[usize::from(servers)] += 1);
        if cut == Some((servers, frame.number)) { Action::CutAfter } else { Action::Pass }
    });
    (proxy, counted)
}

async fn publish(url: &str, queue: &str, id: &str) {
    let publisher = loop {
        let builder = IdempotentPublisher::builder(url).connect_timeout(Duration::from_secs(2));
        if let Ok(publisher) = builder.confirm_timeout(Duration::from_secs(2)).connect().await {
            break publisher;
        }
    };
    let message =
        OutgoingMessage::to("", queue).message_id(MessageId::new(id).expect("id")).body(id.to_owned());
    publisher.publish_idempotent(message).await.expect("published");
    let _ = publisher.close(Duration::from_secs(2)).await;
}

/// As a service that is started again when it cannot start.
async fn consume(table: &Table<Postgres>, url: &str, database: &str, queue: &str) {
    loop {
        let Ok(store) = PostgresStore::connect(database).await else { continue };
        let store = store.with_table(&table.name).expect("name");
        let consumer = IdempotentConsumer::builder(url, queue, store)
            .scope("test")
            .connect_timeout(Duration::from_secs(2))
            .retry_delays(Duration::from_millis(50), Duration::from_millis(50));
        let _ = consumer.run_until(table.insert(), std::future::pending()).await;
    }
}

/// One run. Gives how many frames there were.
async fn run(table: &Table<Postgres>, client: &Client, cuts: &[Cut]) -> Counts {
    let queue = client.queue("sweep").await;
    let id = queue.replace('.', "-");
    let (to_publish, published) = broker_through(behind(cuts, Whose::Publisher)).await;
    let (to_consume, consumed) = broker_through(behind(cuts, Whose::Consumer)).await;
    let database = Frames::start(&Postgres::url(), behind(cuts, Whose::Database)).await;
    let effects = async || {
        let sql = format!("SELECT count(*) FROM {} WHERE message_id = '{id}'", table.effects);
        Postgres::number(table.store.pool(), &sql).await.expect("count")
    };
    let counts = {
        let mut consuming = std::pin::pin!(consume(table, to_consume.url(), database.url(), &queue));
        let published_and_handled = async {
            publish(to_publish.url(), &queue, &id).await;
            eventually("it takes effect", async || (effects().await > 0).then_some(())).await;
            // Acked as well, unless that is what the cut prevents.
            let acked = async || (client.ready(&queue).await == 0).then_some(());
            eventually("nothing is left for it", acked).await;
        };
        tokio::select! {
            () = published_and_handled => {}
            () = &mut consuming => {}
        }
        [*published.borrow(), *consumed.borrow(), database.counts()]
    };
    // What was not acked is there again, before this one.
    client.publish(&queue, b"500", with_id(&format!("last-{id}"))).await;
    let last = Running::start(consumer(table, &broker(), &queue).workers(1).batch(1), table.insert());
    let end = format!("SELECT count(*) FROM {} WHERE message_id = 'last-{id}'", table.effects);
    eventually("all copies are handled", async || {
        (Postgres::number(table.store.pool(), &end).await.expect("count") > 0).then_some(())
    })
    .await;
    last.stop().await;
    assert_eq!(effects().await, 1, "{cuts:?}");
    assert_eq!(client.ready(&queue).await, 0, "{cuts:?}");
    assert_eq!(client.ready(&format!("{queue}.parked")).await, 0, "{cuts:?}");
    delete(&queue).await;
    counts
}

async fn run_all(table: &Table<Postgres>, runs: Vec<Vec<Cut>>) {
    let running = runs.into_iter().map(|cuts| async move {
        let client = Client::connect(&broker()).await;
        let done = timeout(LIMIT, run(table, &client, &cuts)).await;
        println!("{} {cuts:?}", if done.is_ok() { "one effect" } else { "HANGS" });
        done.unwrap_or_else(|_| panic!("hangs: {cuts:?}"));
    });
    stream::iter(running).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}

pub async fn one_message_cut_behind_every_frame_one_effect() {
    let table = Table::<Postgres>::create().await;
    let client = Client::connect(&broker()).await;
    let counts = run(&table, &client, &[]).await;
    let mut cuts = Vec::new();
    for (whose, ways) in [Whose::Publisher, Whose::Consumer, Whose::Database].into_iter().zip(counts) {
        for (servers, count) in [false, true].into_iter().zip(ways) {
            assert!(count > 5, "the sweep covers the whole exchange: {counts:?}");
            cuts.extend((0..count).map(|number| Cut { whose, servers, number }));
        }
    }
    let mut pairs: Vec<Vec<Cut>> = Vec::new();
    for (at, first) in cuts.iter().enumerate() {
        let others = cuts[at + 1..].iter().filter(|second| second.whose != first.whose);
        pairs.extend(others.map(|second| vec![*first, *second]));
    }
    if std::env::var("SWEEP").is_ok_and(|which| which == "pairs") {
        println!("all {} pairs", pairs.len());
    } else {
        fastrand::Rng::with_seed(1).shuffle(&mut pairs);
        pairs.truncate(PAIRS);
    }
    run_all(&table, cuts.into_iter().map(|cut| vec![cut]).chain(pairs).collect()).await;
}
