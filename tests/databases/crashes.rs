//! Consumers that die at a chosen point, as processes of their own. Nothing is lost, and nothing
//! takes effect twice that the store can prevent.

use std::os::unix::process::ExitStatusExt;

use libtest_mimic::Trial;
use sqlx::{MySql, Postgres, Sqlite};

use super::{
    database::{Kind, Table, short},
    support::{
        amqp::{Client, with_id},
        broker, eventually,
        proxy::{Action, From, Proxy, method},
        trials::trial,
    },
    worker::Worker,
};

const MESSAGES: i64 = 20;
/// Seconds. Long enough to be renewed in time on a busy machine.
const LEASE: &str = "2";
const SIGABRT: i32 = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Guarding {
    /// Effect and identity in one transaction.
    Transaction,
    /// Leases in the same database; the effects are written by themselves.
    Lease,
    /// Leases in Redis; the effects are in a database.
    Redis,
}

/// A queue with messages, and a store.
struct Scene<K: Kind> {
    table: Table<K>,
    client: Client,
    queue: String,
    arguments: Vec<String>,
}

impl<K: Kind> Scene<K> {
    async fn create(guarding: Guarding) -> Self {
        // The worker creates the tables.
        let table = Table::<K>::open(&K::url(), &short("ids"), &short("eff")).await;
        let client = Client::connect(&broker()).await;
        let queue = client.queue("crashes").await;
        for n in 0..MESSAGES {
            client.publish(&queue, b"500", with_id(&format!("m{n}"))).await;
        }
        let redis = || std::env::var("REDIS_URL").expect("REDIS_URL");
        let store = if guarding == Guarding::Redis { redis() } else { table.url.clone() };
        let mut arguments =
            ["--queue", &queue, "--table", &table.name, "--effects-table", &table.effects, "--store", &store]
                .map(str::to_owned)
                .to_vec();
        if guarding != Guarding::Transaction {
            arguments.extend(["--leased", LEASE, "--effects", &table.url].map(str::to_owned));
        }
        if guarding == Guarding::Redis {
            // Nobody drops its keys as one drops a table.
            arguments.extend(["--retention", "600"].map(str::to_owned));
        }
        Self { table, client, queue, arguments }
    }

    fn worker(&self, more: &[&str]) -> Worker {
        self.worker_at(&broker(), more)
    }

    fn worker_at(&self, amqp: &str, more: &[&str]) -> Worker {
        let mut arguments = self.arguments.clone();
        arguments.extend(["--amqp", amqp].into_iter().chain(more.iter().copied()).map(str::to_owned));
        Worker::start(&arguments)
    }

    /// Of how many messages a process has written the effect.
    async fn effects_by(&self, pid: u32) -> i64 {
        let count =
            format!("SELECT count(DISTINCT message_id) FROM {} WHERE pid = {pid}", self.table.effects);
        K::number(self.table.store.pool(), &count).await.expect("count")
    }

    /// What is left in the queue, once nobody holds any of it. Deletes it.
    async fn left(self) -> i64 {
        let left = self.client.ready(&self.queue).await;
        self.client.delete(&self.queue).await;
        self.client.delete(&format!("{}.parked", self.queue)).await;
        left.into()
    }
}

/// The first worker dies at `point`; the second does the rest.
async fn dies_at<K: Kind>(guarding: Guarding, point: &'static str) {
    let scene = Scene::<K>::create(guarding).await;
    let mut first = scene.worker(&["--abort-at", point]);
    let status = first.ends().await;
    assert_eq!(status.signal(), Some(SIGABRT), "{status}");

    // It died where it was told to, or the rest would prove nothing.
    let (effects, _) = scene.table.effects().await;
    let transaction = guarding == Guarding::Transaction;
    match point {
        "before-claim" | "claim" => assert_eq!(effects, 0),
        "effect" => assert_eq!(effects, i64::from(!transaction), "the transaction went with its process"),
        // All of a batch are committed at once.
        "commit" if transaction => assert!((1..=MESSAGES).contains(&effects), "{effects}"),
        _ => assert_eq!(effects, 1),
    }
    match guarding {
        Guarding::Transaction => assert_eq!(scene.table.identities().await, effects),
        Guarding::Lease => assert_eq!(scene.table.identities().await, i64::from(point != "before-claim")),
        Guarding::Redis => {}
    }

    let mut second = scene.worker(&[]);
    let pid = second.pid();
    let (processed, duplicates) = match point {
        "commit" => (MESSAGES - effects, effects),
        "ack" => (MESSAGES - effects, 0),
        // A lease leaves an effect behind that nobody has completed: that message takes effect
        // again, and no other one.
        _ => (MESSAGES, 0),
    };
    let handled = || second.count("processed") + second.count("duplicate");
    eventually("the second handles the rest", async || (handled() >= processed + duplicates).then_some(()))
        .await;
    second.stop().await;

    assert_eq!((second.count("processed"), second.count("duplicate")), (processed, duplicates));
    assert_eq!(scene.effects_by(pid).await, processed, "each once");
    assert_eq!(scene.table.effects().await, (effects + processed, MESSAGES), "none is lost");
    assert_eq!(scene.left().await, 0, "all are acked");
}

/// The acks of the first connection vanish, and it is cut: all messages come again.
async fn ack_swallowed_and_connection_cut_one_effect() {
    let scene = Scene::<Postgres>::create(Guarding::Transaction).await;
    let proxy = Proxy::start(&broker()).await;
    proxy.rule(|frame| {
        let lost = frame.connection == 0 && frame.is(From::Client, method::BASIC_ACK);
        if lost { Action::Drop } else { Action::Pass }
    });
    let mut worker = scene.worker_at(proxy.url(), &[]);
    eventually("all are handled", async || (worker.count("processed") == MESSAGES).then_some(())).await;
    proxy.cut_all();
    eventually("all come again", async || (worker.count("duplicate") == MESSAGES).then_some(())).await;
    worker.stop().await;
    assert_eq!(worker.count("processed"), MESSAGES);
    assert_eq!(scene.table.effects().await, (MESSAGES, MESSAGES));
    assert_eq!(scene.left().await, 0, "all are acked");
}

/// Asked to stop while its handler runs, with other messages waiting in its hands.
async fn shutdown_in_the_middle_of_a_handler_finishes_it_and_starts_nothing() {
    let scene = Scene::<Postgres>::create(Guarding::Transaction).await;
    let mut worker = scene.worker(&["--batch", "1", "--prefetch", "5", "--sleep-ms", "1500"]);
    let writing = format!(
        "SELECT count(*) FROM pg_locks WHERE relation = to_regclass('{}') AND mode = 'RowExclusiveLock'",
        scene.table.effects
    );
    eventually("its handler has written", async || {
        let writing = Postgres::number(scene.table.store.pool(), &writing).await.expect("locks");
        (writing > 0).then_some(())
    })
    .await;
    assert_eq!(scene.table.effects().await, (0, 0), "and is not done");
    worker.stop().await;
    assert_eq!(worker.said(), [("m0".to_owned(), "processed".to_owned())]);
    assert_eq!(scene.table.effects().await, (1, 1));
    assert_eq!(scene.left().await, MESSAGES - 1, "it is acked, and the others went back");
}

/// One trial for each store and each point.
pub fn trials(there: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for point in ["before-claim", "claim", "effect", "commit", "ack"] {
        let name = |store: &str| format!("{store}::crashes::dies_at_{}", point.replace('-', "_"));
        let transaction = Guarding::Transaction;
        trials.extend([
            trial(&name("postgres"), move || dies_at::<Postgres>(transaction, point), there),
            trial(&name("mysql"), move || dies_at::<MySql>(transaction, point), there),
            trial(&name("sqlite"), move || dies_at::<Sqlite>(transaction, point), there),
            trial(&name("leased_postgres"), move || dies_at::<Postgres>(Guarding::Lease, point), there),
            trial(&name("leased_mysql"), move || dies_at::<MySql>(Guarding::Lease, point), there),
            trial(&name("redis"), move || dies_at::<Postgres>(Guarding::Redis, point), there),
        ]);
    }
    trials.extend([
        trial(
            "crashes::ack_swallowed_and_connection_cut_one_effect",
            ack_swallowed_and_connection_cut_one_effect,
            there,
        ),
        trial(
            "crashes::shutdown_in_the_middle_of_a_handler_finishes_it_and_starts_nothing",
            shutdown_in_the_middle_of_a_handler_finishes_it_and_starts_nothing,
            there,
        ),
    ]);
    trials
}
