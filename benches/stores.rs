//! Stores: claims in batches, a table that grows, and two ways to forget.
//!
//! `make bench`, or `cargo bench --all-features --bench stores -- [IDs] [rounds] [rows in
//! millions]`, with the URLs of the servers as `scripts/services env` prints them. Writes
//! into `target/bench`.

#![allow(missing_docs, clippy::expect_used, clippy::cast_precision_loss)]

#[allow(dead_code, reason = "there are no queues here")]
mod support;

use std::{
    num::NonZero,
    time::{Duration, Instant, SystemTime},
};

use futures_util::future::join_all;
use lapin_idempotent::{
    IdempotencyStore, MemoryStore, MessageId, MySqlStore, PostgresStore, RedisStore, SqliteStore,
    idempotency::{ClaimRequest, Scope},
    message::Fingerprint,
};
use sqlx::AssertSqlSafe;
use support::figures::{Figures, PER_SECOND, Sample, median};
use uuid::Uuid;

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let number = |index: usize, default: usize| numbers.get(index).copied().unwrap_or(default);
    let (ids, rounds, millions) = (number(0, 20_000), number(1, 5), number(2, 1));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let mut figures = Figures::default();
    runtime.expect("runtime").block_on(async {
        claims(&mut figures, ids, rounds).await;
        growth(&mut figures, ids, rounds, millions * 1_000_000).await;
        forgetting(&mut figures, 1_000_000).await;
    });
    let numbers = [("IDs", ids), ("rounds", rounds), ("rows in millions", millions)];
    let numbers = numbers.map(|(what, number)| (what, number.to_string()));
    let setting = support::servers::servers().into_iter().chain(numbers);
    figures.setting.extend(setting.map(|(what, value)| (what.to_owned(), value)));
    support::report("stores", &figures);
}

/// One sample: IDs a second.
fn rate(figures: &mut Figures, store: &str, case: &str, per_second: f64) {
    eprintln!("{store:<20} {case:<28} {per_second:>9.0} IDs/s");
    figures.add(store, case, Sample::from([(PER_SECOND.to_owned(), per_second)]));
}

/// One figure of another kind.
fn note(figures: &mut Figures, case: &str, figure: &str, value: f64) {
    eprintln!("{case}: {figure} {value:.2}");
    figures.add("PostgreSQL", case, Sample::from([(figure.to_owned(), value)]));
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name}: run `make bench`"))
}

fn table() -> String {
    format!("bench_{}", &Uuid::new_v4().simple().to_string()[..16])
}

fn requests(count: usize, id: impl Fn() -> MessageId) -> Vec<ClaimRequest> {
    let scope = Scope::new("ledger").expect("scope");
    let request = || {
        let message_id = id();
        let fingerprint = Fingerprint::of(message_id.as_str().as_bytes());
        ClaimRequest::new(scope.clone(), message_id, fingerprint)
    };
    (0..count).map(|_| request()).collect()
}

fn v7() -> MessageId {
    Uuid::now_v7().into()
}

fn ulid() -> MessageId {
    ulid::Ulid::generate().into()
}

fn v5() -> MessageId {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, Uuid::new_v4().as_bytes()).into()
}

/// Claims and completes new IDs in batches, one batch after the other; IDs a second.
async fn batches<S: IdempotencyStore>(store: &S, requests: &[ClaimRequest], batch: usize) -> f64 {
    let started = Instant::now();
    for batch in requests.chunks(batch) {
        let session = store.claim(batch).await.expect("claim").session.expect("new");
        store.complete(session).await.expect("complete");
    }
    requests.len() as f64 / started.elapsed().as_secs_f64()
}

/// The same with a lease for each ID, a batch in two round trips.
async fn leases<S: IdempotencyStore>(store: &S, requests: &[ClaimRequest], batch: usize) -> f64 {
    let started = Instant::now();
    for batch in requests.chunks(batch) {
        let claims = store.claim_each(batch).await;
        let sessions =
            claims.into_iter().map(|claims| claims.expect("claim").session.expect("new")).collect();
        for completed in store.complete_each(sessions).await {
            completed.expect("complete");
        }
    }
    requests.len() as f64 / started.elapsed().as_secs_f64()
}

/// One ID in each transaction, so many at once.
async fn at_once<S: IdempotencyStore>(store: &S, requests: &[ClaimRequest], tasks: usize) -> f64 {
    let started = Instant::now();
    join_all(requests.chunks(requests.len().div_ceil(tasks)).map(|share| batches(store, share, 1))).await;
    requests.len() as f64 / started.elapsed().as_secs_f64()
}

async fn claims(figures: &mut Figures, ids: usize, rounds: usize) {
    let postgres = PostgresStore::connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
    let postgres = postgres.table(&table()).expect("name");
    postgres.create_schema().await.expect("schema");
    let mysql = MySqlStore::connect(&variable("MYSQL_URL")).await.expect("MySQL");
    let mysql = mysql.table(&table()).expect("name");
    mysql.create_schema().await.expect("schema");
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(table());
    let sqlite = SqliteStore::connect(&format!("sqlite:{}", file.display())).await.expect("SQLite");
    sqlite.create_schema().await.expect("schema");
    let redis = RedisStore::connect(&variable("REDIS_URL")).await.expect("Redis");
    let memory = MemoryStore::new(usize::MAX);
    let leased = postgres.clone().leased(Duration::from_secs(30)).expect("lease");
    let few = (ids / 10).max(1000);
    for _ in 0..rounds {
        for batch in [1, 64, 256] {
            let requests = requests(if batch == 1 { few } else { ids }, v7);
            let case = format!("batches of {batch}");
            rate(figures, "PostgreSQL", &case, batches(&postgres, &requests, batch).await);
            rate(figures, "MariaDB", &case, batches(&mysql, &requests, batch).await);
            rate(figures, "SQLite", &case, batches(&sqlite, &requests, batch).await);
            rate(figures, "Redis", &case, leases(&redis, &requests, batch).await);
            rate(figures, "memory", &case, leases(&memory, &requests, batch).await);
        }
        rate(figures, "PostgreSQL, leased", "batches of 256", leases(&leased, &requests(ids, v7), 256).await);
        rate(figures, "PostgreSQL", "one each, 8 at once", at_once(&postgres, &requests(few, v7), 8).await);
        rate(figures, "MariaDB", "one each, 8 at once", at_once(&mysql, &requests(few, v7), 8).await);
        rate(figures, "Redis", "one each, 32 at once", at_once(&redis, &requests(ids, v7), 32).await);
    }
    drop(sqlite);
    let _ = std::fs::remove_file(file);
}

/// A table of its own in PostgreSQL.
struct Table {
    store: PostgresStore,
    name: String,
}

impl Table {
    async fn create(partitioned: bool) -> Self {
        let name = table();
        let store = PostgresStore::connect(&variable("POSTGRES_URL")).await.expect("PostgreSQL");
        let store = store.table(&name).expect("name");
        let store = if partitioned { store.partitioned(NonZero::new(24).expect("hours")) } else { store };
        store.create_schema().await.expect("schema");
        Self { store, name }
    }

    async fn fill(&self, rows: usize, id: impl Fn() -> MessageId) {
        for _ in 0..rows / 10_000 {
            batches(&self.store, &requests(10_000, &id), 1000).await;
        }
    }

    async fn sql(&self, sql: &str) {
        let sql = sql.replace("{table}", &self.name);
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(self.store.pool()).await.expect("statement");
    }

    async fn number(&self, sql: &str) -> f64 {
        let sql = sql.replace("{table}", &self.name);
        let number: i64 =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(self.store.pool()).await.expect("number");
        number as f64
    }
}

/// New IDs in batches of 256, on a small table and on one that has so many rows, in turn.
async fn growth(figures: &mut Figures, ids: usize, rounds: usize, rows: usize) {
    type MakeId = fn() -> MessageId;
    let kinds: [(&str, MakeId); 3] = [("UUIDv7", v7), ("ULID", ulid), ("UUIDv5", v5)];
    for (name, id) in kinds {
        let (small, large) = (Table::create(false).await, Table::create(false).await);
        large.fill(rows, id).await;
        let bytes = large.number("SELECT pg_total_relation_size('{table}')::bigint").await;
        note(figures, &format!("{name}, at {rows} rows"), "bytes_a_row", bytes / rows as f64);
        let mut costs = Vec::new();
        for _ in 0..rounds {
            let fast = batches(&small.store, &requests(ids, id), 256).await;
            let slow = batches(&large.store, &requests(ids, id), 256).await;
            rate(figures, "PostgreSQL", &format!("{name}, new table"), fast);
            rate(figures, "PostgreSQL", &format!("{name}, at {rows} rows"), slow);
            costs.push(fast / slow);
        }
        note(
            figures,
            &format!("{name}, at {rows} rows"),
            "cost_of_new",
            median(costs.into_iter()).expect("rounds"),
        );
        for table in [small, large] {
            table.sql("DROP TABLE {table}").await;
        }
    }
}

/// Forgets all rows: by deleting them in batches, and by dropping their partition.
async fn forgetting(figures: &mut Figures, rows: usize) {
    const DAY: u64 = 86_400;
    const WAL: &str = "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint";
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("time").as_secs();
    let start = now / DAY * DAY - 3 * DAY;
    for (name, partitioned) in [("rows deleted, 10,000 at a time", false), ("partition dropped", true)] {
        let table = Table::create(partitioned).await;
        if partitioned {
            let end = start + DAY;
            table
                .sql(&format!(
                    "CREATE TABLE {{table}}_{start}_{end} PARTITION OF {{table}} FOR VALUES FROM ({start}000) TO ({end}000)"
                ))
                .await;
        }
        let old = || Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, start, 0)).into();
        table.fill(rows, old).await;
        table.sql("UPDATE {table} SET processed_at = processed_at - interval '2 days'").await;
        table.sql("VACUUM FULL {table}").await;
        table.sql("CHECKPOINT").await;
        let (wal, started) = (table.number(WAL).await, Instant::now());
        while table.store.purge(Duration::from_secs(3600), 10_000).await.expect("purge") > 0 {}
        note(figures, &format!("{rows} {name}"), "seconds", started.elapsed().as_secs_f64());
        note(figures, &format!("{rows} {name}"), "wal_mb", (table.number(WAL).await - wal) / 1e6);
        assert!(table.number("SELECT count(*) FROM {table}").await < 1.0, "all are gone");
        table.sql("DROP TABLE {table}").await;
    }
}
