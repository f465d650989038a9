//! One message from its publisher through the broker and a consumer into PostgreSQL, with the
//! connections cut behind every frame, in each direction: one effect, and an empty queue.
//!
//! Behind a frame is before the next one as well: what is cut off is what comes after. A cut before
//! the first frame is left out; it is a server that cannot be reached.
//!
//! Pairs of cuts are made, too. Those of two clients cut the first connection of each; those of one
//! client cut its first connection, and then the one that it makes instead. `SWEEP=pairs` makes all
//! pairs, which takes a while; otherwise some of them, the same ones each time. `SWEEP_LOG` names a
//! file for the runs that are done; what is done there is not done again. `SWEEP_AT_ONCE=12` makes
//! more at once, and `SWEEP_ONLY="Consumer-server-13 Database-client-3"` only the run of that name,
//! wherever it is in the list.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, OpenOptions},
    io::Write,
    panic::AssertUnwindSafe,
    sync::Mutex,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, stream};
use lapin_idempotent::{IdempotentConsumer, IdempotentPublisher, MessageId, OutgoingMessage, PostgresStore};
use sqlx::Postgres;
use tokio::{sync::watch, time::timeout};

use super::{
    consuming::{consumer, delete},
    database::{
        Kind, Table,
        frames::{self, Behind, Frames, Passed},
    },
    support::{
        amqp::{Client, with_id},
        broker,
        consumer::Running,
        eventually,
        proxy::{Action, From, Proxy},
    },
};

trials! {
    one_message_cut_behind_every_frame_one_effect,
}

/// Runs at once.
const AT_ONCE: usize = 6;
/// Pairs of cuts of each kind, of the three of one client and the three of two, if not all of them
/// are made.
const PAIRS: usize = 10;
/// The longest that one run may take.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Whose {
    Publisher,
    Consumer,
    Database,
}

/// Behind this frame of that client's connection: of the first one, or, if it is the client's
/// second cut, of the next one after the first cut.
type Cut = frames::Cut<Whose>;

/// What a run came upon.
struct Seen {
    /// How many frames each client and its server sent over the first connection.
    counts: [[usize; 2]; 3],
    /// How many cuts were made: a second connection is not always needed, or ends before it is cut.
    cuts: usize,
}

fn behind(cuts: &[Cut], whose: Whose) -> [Behind; 2] {
    let mut cuts = cuts.iter().filter(|cut| cut.whose == whose).map(|cut| (cut.servers, cut.number));
    [cuts.next(), cuts.next()]
}

/// Cuts the first connection, then the next one; and counts the frames of the first.
async fn broker_through(cuts: [Behind; 2]) -> (Proxy, watch::Receiver<Passed>) {
    let proxy = Proxy::start(&broker()).await;
    let (passed, seen) = watch::channel(Passed::default());
    let mut turn = 0;
    // The connections that there were before the turn; and the one whose turn it is.
    let (mut before, mut current, mut latest) = (0, None, 0);
    proxy.rule(move |frame| {
        let servers = frame.from == From::Broker;
        latest = latest.max(frame.connection);
        if frame.connection == 0 {
            passed.send_modify(|passed| passed.counts[usize::from(servers)] += 1);
        }
        if turn == cuts.len()
            || frame.connection < before
            || *current.get_or_insert(frame.connection) != frame.connection
            || cuts[turn] != Some((servers, frame.number))
        {
            return Action::Pass;
        }
        turn += 1;
        (before, current) = (latest + 1, None);
        passed.send_modify(|passed| passed.cuts += 1);
        Action::CutAfter
    });
    (proxy, seen)
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
        let store = store.table(&table.name).expect("name");
        let consumer = IdempotentConsumer::builder(url, queue, store)
            .scope("test")
            .connect_timeout(Duration::from_secs(2))
            .retry_delays(Duration::from_millis(50), Duration::from_millis(50));
        let _ = consumer.run_until(table.insert(), std::future::pending()).await;
    }
}

/// One run.
async fn run(table: &Table<Postgres>, client: &Client, cuts: &[Cut]) -> Seen {
    let queue = client.queue("sweep").await;
    let id = queue.replace('.', "-");
    let (to_publish, published) = broker_through(behind(cuts, Whose::Publisher)).await;
    let (to_consume, consumed) = broker_through(behind(cuts, Whose::Consumer)).await;
    let database = Frames::start(&Postgres::url(), behind(cuts, Whose::Database)).await;
    let effects = async || {
        let sql = format!("SELECT count(*) FROM {} WHERE message_id = '{id}'", table.effects);
        Postgres::number(table.store.pool(), &sql).await.expect("count")
    };
    let seen = {
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
        let (published, consumed) = (*published.borrow(), *consumed.borrow());
        Seen {
            counts: [published.counts, consumed.counts, database.counts()],
            cuts: published.cuts + consumed.cuts + database.cuts(),
        }
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
    seen
}

/// The runs that are done, in a file if one is named.
struct Log {
    done: HashSet<String>,
    file: Option<Mutex<fs::File>>,
}

impl Log {
    fn open() -> Self {
        let Ok(path) = std::env::var("SWEEP_LOG") else { return Self { done: HashSet::new(), file: None } };
        let earlier = fs::read_to_string(&path).unwrap_or_default();
        let done = earlier.lines().filter_map(|line| line.strip_prefix("one effect "));
        let done = done.filter_map(|line| Some(line.split_once(": ")?.1.to_owned())).collect();
        let file = OpenOptions::new().create(true).append(true).open(path).expect("the log");
        Self { done, file: Some(Mutex::new(file)) }
    }

    fn write(&self, line: &str) {
        println!("{line}");
        if let Some(file) = &self.file {
            writeln!(file.lock().expect("log"), "{line}").expect("the log is written");
        }
    }
}

fn name(cuts: &[Cut]) -> String {
    cuts.iter().map(Cut::to_string).collect::<Vec<_>>().join(" ")
}

async fn run_all(table: &Table<Postgres>, runs: Vec<Vec<Cut>>) {
    let at_once = std::env::var("SWEEP_AT_ONCE").map_or(AT_ONCE, |number| number.parse().expect("a number"));
    let log = &Log::open();
    let all = runs.len();
    let only = std::env::var("SWEEP_ONLY").ok();
    let chosen = |cuts: &Vec<Cut>| {
        !log.done.contains(&name(cuts)) && only.as_ref().is_none_or(|only| *only == name(cuts))
    };
    let running = runs.into_iter().filter(chosen).map(|cuts| async move {
        let client = Client::connect(&broker()).await;
        let done = timeout(LIMIT, AssertUnwindSafe(run(table, &client, &cuts)).catch_unwind()).await;
        let (cut, line) = match done {
            Ok(Ok(seen)) => (Some(seen.cuts), format!("one effect ({} cuts): {}", seen.cuts, name(&cuts))),
            Ok(Err(_)) => (None, format!("FAILS: {}", name(&cuts))),
            Err(_) => (None, format!("HANGS: {}", name(&cuts))),
        };
        log.write(&line);
        (cuts.len(), cut)
    });
    let done: Vec<_> = stream::iter(running).buffer_unordered(at_once).collect().await;
    let failed = done.iter().filter(|(_, cut)| cut.is_none()).count();
    let twice = done.iter().filter(|(_, cut)| *cut == Some(2)).count();
    log.write(&format!(
        "{} runs of {all}, {} with two cuts planned and {twice} with two made; {failed} failed",
        done.len(),
        done.iter().filter(|(planned, _)| *planned == 2).count(),
    ));
    assert_eq!(failed, 0, "runs failed");
}

pub async fn one_message_cut_behind_every_frame_one_effect() {
    let table = Table::<Postgres>::create().await;
    let client = Client::connect(&broker()).await;
    let Seen { counts, .. } = run(&table, &client, &[]).await;
    let mut cuts = Vec::new();
    for (whose, ways) in [Whose::Publisher, Whose::Consumer, Whose::Database].into_iter().zip(counts) {
        for (servers, count) in [false, true].into_iter().zip(ways) {
            assert!(count > 5, "the sweep covers the whole exchange: {counts:?}");
            cuts.extend((0..count).map(|number| Cut { whose, servers, number }));
        }
    }
    let mut pairs: Vec<Vec<Cut>> = Vec::new();
    for (at, first) in cuts.iter().enumerate() {
        // Of one client in either order, with itself too; of two clients there is no order.
        let others = cuts.iter().enumerate();
        let others = others.filter(|(other, second)| second.whose == first.whose || *other > at);
        pairs.extend(others.map(|(_, second)| vec![*first, *second]));
    }
    // Shuffled, so that any part of them is a fair sample.
    fastrand::Rng::with_seed(1).shuffle(&mut pairs);
    if !std::env::var("SWEEP").is_ok_and(|which| which == "pairs") {
        let mut kinds: HashMap<[Whose; 2], usize> = HashMap::new();
        pairs.retain(|pair| {
            let so_far = kinds.entry([pair[0].whose, pair[1].whose]).or_default();
            *so_far += 1;
            *so_far <= PAIRS
        });
        assert_eq!(pairs.len(), 6 * PAIRS);
    }
    println!("{counts:?} frames: {} cuts, {} pairs", cuts.len(), pairs.len());
    run_all(&table, cuts.into_iter().map(|cut| vec![cut]).chain(pairs).collect()).await;
}
