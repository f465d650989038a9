//! What is done to a database under consumers that work on it: each message takes effect once, and
//! the consumers come back by themselves.

use std::time::Duration;

use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, Outcome, PostgresStore,
    consumer::{ConsumeErrorKind, ConsumerState},
    store::SqlStore,
};
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use tokio::time::Instant;

use super::{
    claims::request,
    consuming::{assert_one_effect_each, consumer, delete},
    database::{Insert, Kind, Table, message},
    flow::Flow,
    support::{amqp::Client, broker, consumer::Running, eventually, output::Output, server::Server},
};

trials! {
    altered_columns_under_load_one_effect_each<Postgres, MySql>,
    rewritten_tables_under_load_one_effect_each<Postgres, MySql>,
    restarted_server_under_load_one_effect_each<Postgres, MySql>,
    read_only_server_under_load_one_effect_each<Postgres, MySql>,
    read_only_server_is_left_at_once<Postgres, MySql>,
    complete_schema_is_left_alone_while_it_is_in_use<Postgres, MySql>,
    statements_are_prepared_anew_in_the_same_claim,
    dropped_claim_leaves_no_open_transaction<Postgres, MySql, Sqlite>,
    handler_whose_statement_went_stale_runs_again_at_once,
    consumer_with_more_workers_than_sessions_says_so_at_the_start<Postgres, MySql, Sqlite>,
    store_says_how_many_sessions_it_can_have<Postgres, MySql, Sqlite>,
}

/// A load on two consumers.
pub struct Scene<K: Kind> {
    table: Table<K>,
    client: Client,
    queue: String,
    consumers: Vec<Running>,
    flow: Flow,
}

impl<K: Kind> Scene<K> {
    /// Of consumers that have a pool of their own each; the table is looked at by another one.
    pub async fn start(table: Table<K>, theirs: [&Table<K>; 2]) -> Self {
        let client = Client::connect(&broker()).await;
        let queue = client.queue("changes").await;
        let consumers = theirs.map(|of| Running::start(consumer(of, &broker(), &queue), of.insert())).into();
        let flow = Flow::start(&broker(), &queue, 300).await;
        let scene = Self { table, client, queue, consumers, flow };
        scene.goes_on("it is under load").await;
        scene
    }

    pub async fn on(table: Table<K>) -> Self {
        let theirs = [&table.again().await, &table.again().await];
        Self::start(table, theirs).await
    }

    /// Waits until 100 more effects are there.
    pub async fn goes_on(&self, what: &str) {
        let since = Instant::now();
        let before = eventually("the effects can be counted", async || self.count().await.ok()).await;
        let more = async || self.count().await.is_ok_and(|count| count >= before + 100).then_some(());
        eventually(what, more).await;
        eprintln!("{what}: after {:?}", since.elapsed());
    }

    /// The server may be away.
    async fn count(&self) -> Result<i64, sqlx::Error> {
        K::number(self.table.store.pool(), &format!("SELECT count(*) FROM {}", self.table.effects)).await
    }

    pub async fn all(&self, state: ConsumerState) {
        for consumer in &self.consumers {
            consumer.until(state).await;
        }
    }

    pub async fn end(self) {
        let messages = self.flow.stop().await;
        let (url, queue) = (broker(), self.queue);
        assert_one_effect_each(messages, &self.table, (&self.client, &url, &queue), self.consumers).await;
        delete(&queue).await;
    }
}

pub async fn altered_columns_under_load_one_effect_each<K: Kind>() {
    let scene = Scene::on(Table::<K>::create().await).await;
    let ids = &scene.table.name;
    let changes = if K::NAME == "PostgreSQL" {
        [
            format!("ALTER TABLE {ids} ALTER COLUMN message_id TYPE varchar(300) COLLATE \"C\""),
            format!("ALTER TABLE {ids} ALTER COLUMN scope TYPE varchar(300) COLLATE \"C\""),
            format!("ALTER TABLE {ids} ADD COLUMN note text"),
            format!("ALTER TABLE {ids} DROP COLUMN note"),
            format!("ALTER TABLE {ids} ALTER COLUMN message_id TYPE text COLLATE \"C\""),
        ]
    } else {
        [
            format!("ALTER TABLE {ids} MODIFY message_id VARBINARY(300) NOT NULL"),
            format!("ALTER TABLE {ids} MODIFY scope VARBINARY(300) NOT NULL"),
            format!("ALTER TABLE {ids} ADD COLUMN note TEXT"),
            format!("ALTER TABLE {ids} DROP COLUMN note"),
            format!("ALTER TABLE {ids} MODIFY message_id VARBINARY(255) NOT NULL"),
        ]
    };
    for change in changes {
        scene.table.sql(&change).await;
        scene.goes_on(&change).await;
    }
    scene.end().await;
}

pub async fn rewritten_tables_under_load_one_effect_each<K: Kind>() {
    let scene = Scene::on(Table::<K>::create().await).await;
    let (ids, effects) = (&scene.table.name, &scene.table.effects);
    let changes = if K::NAME == "PostgreSQL" {
        [
            format!("REINDEX TABLE {ids}"),
            format!("REINDEX TABLE CONCURRENTLY {ids}"),
            format!("VACUUM FULL {ids}"),
            format!("VACUUM FULL ANALYZE {effects}"),
        ]
    } else {
        [
            format!("OPTIMIZE TABLE {ids}"),
            format!("ALTER TABLE {ids} ENGINE = InnoDB, ALGORITHM = COPY"),
            format!("ANALYZE TABLE {ids}, {effects}"),
            format!("OPTIMIZE TABLE {effects}"),
        ]
    };
    for change in changes {
        scene.table.sql(&change).await;
        scene.goes_on(&change).await;
    }
    scene.end().await;
}

fn server_of<K: Kind>() -> &'static str {
    if K::NAME == "PostgreSQL" { "postgres" } else { "mysql" }
}

pub async fn restarted_server_under_load_one_effect_each<K: Kind>() {
    let server = Server::start(server_of::<K>(), &[]).await;
    let scene = Scene::on(Table::<K>::create_on(server.url()).await).await;
    for _ in 0..2 {
        server.stop().await;
        server.start_again().await;
        scene.goes_on("restarted").await;
    }
    server.kill().await;
    scene.all(ConsumerState::StoreAway).await;
    server.start_again().await;
    scene.goes_on("killed, and started again").await;
    scene.end().await;
}

/// A server that takes no writes for a while, as an old primary after a failover.
pub async fn read_only_server_under_load_one_effect_each<K: Kind>() {
    let server = Server::start(server_of::<K>(), &[]).await;
    let table = Table::<K>::create_on(server.url()).await;
    let (url, on, off) = if K::NAME == "PostgreSQL" {
        let set = |to: &str| {
            [
                format!("ALTER SYSTEM SET default_transaction_read_only = {to}"),
                "SELECT pg_reload_conf()".to_owned(),
            ]
        };
        (server.url().to_owned(), set("on"), set("off"))
    } else {
        // Who has all rights may write all the same.
        let user = "CREATE USER app@'%' IDENTIFIED BY 'app'; GRANT SELECT, INSERT, UPDATE, DELETE ON test.* TO app@'%'";
        table.sql(user).await;
        let set = |to: &str| [format!("SET GLOBAL read_only = {to}"), "SELECT 1".to_owned()];
        (server.url().replace("test:test@", "app:app@"), set("ON"), set("OFF"))
    };
    let theirs = [
        Table::<K>::open(&url, &table.name, &table.effects).await,
        Table::<K>::open(&url, &table.name, &table.effects).await,
    ];
    let scene = Scene::start(table, theirs.each_ref()).await;
    for _ in 0..2 {
        for sql in &on {
            scene.table.sql(sql).await;
        }
        scene.all(ConsumerState::StoreAway).await;
        for sql in &off {
            scene.table.sql(sql).await;
        }
        scene.goes_on("writes are taken again").await;
    }
    scene.end().await;
}

/// Connections of the pool that take no writes are given up at the first claim, with those that are
/// idle: the next claim comes over another one.
pub async fn read_only_server_is_left_at_once<K: Kind>() {
    let table = Table::<K>::create().await;
    let pool = table.store.pool();
    let read_only = if K::NAME == "PostgreSQL" {
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    } else {
        "SET SESSION TRANSACTION READ ONLY"
    };
    let (mut all, mut old) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let mut connection = pool.acquire().await.expect("connection");
        K::run(&mut connection, read_only).await.expect("set");
        old.push(K::session(&mut connection).await);
        all.push(connection);
    }
    drop(all);
    eventually("they are back", async || (pool.num_idle() == 5).then_some(())).await;
    table.store.claim(&[request("test", "a")]).await.expect_err("it takes no writes");
    let claims = table.store.claim(&[request("test", "a")]).await.expect("another connection");
    let mut session = claims.session.expect("acquired");
    let new = K::session(&mut session).await;
    assert!(!old.contains(&new), "{new} is one of {old:?}");
    table.store.complete(session).await.expect("complete");
    let watch = table.again().await;
    let list = old.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let left = if K::NAME == "PostgreSQL" {
        format!("SELECT count(*) FROM pg_stat_activity WHERE pid IN ({list})")
    } else {
        format!("SELECT count(*) FROM information_schema.processlist WHERE id IN ({list})")
    };
    let gone = async || (K::number(watch.store.pool(), &left).await.expect("count") == 0).then_some(());
    eventually("all of them are closed", gone).await;
}

/// A transaction that has the table open holds up no start of another process, nor what comes
/// behind it.
pub async fn complete_schema_is_left_alone_while_it_is_in_use<K: Kind>() {
    let table = Table::<K>::create().await;
    let mut held =
        table.store.claim(&[request("test", "a")]).await.expect("claim").session.expect("acquired");
    let limit = Duration::from_secs(1);
    let other = table.again().await.store.lock_timeout(limit).statement_timeout(limit);
    other.create_schema().await.expect("nothing is to be done");
    assert_eq!(table.process("b").await.name(), "processed");
    table.insert().write::<K>("a", &mut held).await.expect("effect");
    table.store.complete(held).await.expect("complete");
    assert_eq!(table.effects().await, (2, 2));
}

/// What is prepared on a connection does not fit any more: it is prepared anew in the same claim,
/// on each connection of the pool.
pub async fn statements_are_prepared_anew_in_the_same_claim() {
    let table = Table::<Postgres>::create().await;
    let fill = async |round: &str| {
        let mut sessions = Vec::new();
        for n in 0..5 {
            let requests: Vec<_> = (0..40).map(|m| request("test", &format!("{round}-{n}-{m}"))).collect();
            // The one statement for new ones, and the other with what is known.
            let claims = table.store.claim(&requests[..20 * (1 + n % 2)]).await.expect("claim");
            sessions.push(claims.session.expect("acquired"));
        }
        for session in sessions {
            table.store.complete(session).await.expect("complete");
        }
        table.store.check().await.expect("check");
    };
    fill("before").await;
    for n in 0..3 {
        table
            .sql(&format!("ALTER TABLE {} ALTER COLUMN message_id TYPE varchar({})", table.name, 300 - n))
            .await;
        fill(&format!("after-{n}")).await;
    }
}

/// A claim that is dropped, wherever it waits, leaves no transaction behind in the pool: what
/// others write over the same connection is there for all.
pub async fn dropped_claim_leaves_no_open_transaction<K: Kind>() {
    let table = Table::<K>::create().await;
    let store = SqlStore::<K>::connect_with(&table.url, |pool| pool.max_connections(1))
        .await
        .expect("connect")
        .table(&table.name)
        .expect("name");
    let mut written = 0;
    for round in 0..6 {
        for polls in 1..12 {
            let requests: Vec<_> =
                (0..40).map(|n| request("test", &format!("{round}-{polls}-{n}"))).collect();
            let mut left = polls;
            // Each of them is claimed in a way of its own.
            let asked = &requests[..[40, 3, 1][round % 3]];
            let mut claim = Box::pin(store.claim(asked));
            std::future::poll_fn(|context| {
                left -= 1;
                let polled = claim.as_mut().poll(context).map(|_| ());
                if left == 0 { std::task::Poll::Ready(()) } else { polled }
            })
            .await;
            drop(claim);
            // Over the pool's only connection.
            let mut connection = store.pool().acquire().await.expect("connection");
            let write = format!("INSERT INTO {} VALUES ('{round}-{polls}')", table.effects);
            K::run(&mut connection, &write).await.expect("write");
            written += 1;
            assert_eq!(table.effects().await, (written, written), "another session sees it: {polls} polls");
        }
    }
}

/// Reads, with a statement that stays prepared, what a column holds.
struct Reads(Insert);

impl IdempotentHandler<PostgresStore> for Reads {
    async fn handle(
        &self,
        message: &IncomingMessage,
        tx: &mut Transaction<'static, Postgres>,
    ) -> HandlerResult {
        self.0.handle(message, tx).await?;
        let read = format!("SELECT message_id FROM {}", self.0.effects);
        sqlx::query(AssertSqlSafe(read)).fetch_all(&mut **tx).await?;
        Ok(())
    }
}

/// What a handler had prepared does not fit any more: it is run again at once, and that is no
/// failure of its message.
pub async fn handler_whose_statement_went_stale_runs_again_at_once() {
    let table = Table::<Postgres>::create().await;
    let one = PostgresStore::connect_with(&table.url, |pool| pool.max_connections(1)).await.expect("connect");
    let table = Table { store: one.table(&table.name).expect("name"), ..table };
    let reads = Reads(table.insert());
    for (n, length) in [300, 400, 500].into_iter().enumerate() {
        let outcome = table.guard().process(&message(&format!("m{n}")), &reads).await;
        assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
        table
            .sql(&format!("ALTER TABLE {} ALTER COLUMN message_id TYPE varchar({length})", table.effects))
            .await;
    }
    assert!(reads.0.runs() > 3, "it never went stale: nothing was tested");
    assert_eq!(table.effects().await, (3, 3));
}

pub async fn store_says_how_many_sessions_it_can_have<K: Kind>() {
    let table = Table::<K>::create().await;
    assert_eq!(table.store.sessions(), Some(if K::NAME == "SQLite" { 1 } else { 10 }));
    let larger = SqlStore::<K>::connect_with(&table.url, |pool| pool.max_connections(12)).await;
    assert_eq!(larger.expect("connect").sessions(), Some(12));
    assert_eq!(table.store.clone().leased(Duration::from_secs(1)).expect("lease").sessions(), None);
}

/// Those that find no session would look like a store that is away.
pub async fn consumer_with_more_workers_than_sessions_says_so_at_the_start<K: Kind>() {
    let table = Table::<K>::create().await;
    let sessions = table.store.sessions().expect("a limit");
    // Nobody listens there: the store is looked at before the broker.
    let started = async |workers: usize| {
        let output = Output::default();
        let subscriber = tracing_subscriber::fmt().with_writer(output.clone()).with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let consumer = consumer(&table, "amqp://127.0.0.1:1", "nowhere").workers(workers);
        let ended = consumer.run_until(table.insert(), std::future::pending()).await;
        assert_eq!(ended.expect_err("no broker").kind(), ConsumeErrorKind::Connect);
        output.text()
    };
    let (enough, too_many) = (started(sessions).await, started(sessions + 1).await);
    assert!(!enough.contains("more workers than sessions"), "{enough}");
    let warning =
        too_many.lines().find(|line| line.contains("more workers than sessions")).unwrap_or_default();
    let said = [" WARN ".to_owned(), format!("workers={}", sessions + 1), format!("sessions={sessions}")];
    assert!(said.iter().all(|part| warning.contains(part)), "{too_many}");
}
