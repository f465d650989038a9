//! Partitions by the time inside the ID, at every time of a day and where calendars jump: the tests
//! say what time it is.

use std::{num::NonZero, time::Duration};

use futures_util::future::join_all;
use lapin_idempotent::{
    Guard, IdempotencyStore, Outcome, PostgresStore, idempotency::Scope, message::MessageId,
};
use sqlx::{AssertSqlSafe, Postgres};
use ulid::Ulid;
use uuid::Uuid;

use super::{
    claims::request,
    database::{Kind, Table, message, short},
    retention::age,
    support::eventually,
};

trials! {
    made_ahead_and_dropped_when_all_is_old,
    identity_is_unique_everywhere,
    the_present_has_one_whatever_the_width_was,
    slow_handler_stops_neither_claims_nor_the_purge,
}

const HOUR: u64 = 3_600_000;
const RETENTION: Duration = Duration::from_secs(3 * 3600);

/// Where a day, a month, a year or a number ends, and where a time zone leaves an hour out or has
/// it twice.
const EDGES: [(&str, &str); 14] = [
    ("2026-11-25 21:09:00Z", "UTC"),
    ("2024-02-28 23:59:59.999Z", "UTC"),
    ("2024-02-29 23:59:59.999Z", "Asia/Tokyo"),
    ("2026-01-31 23:59:59.5Z", "UTC"),
    ("2026-04-30 23:30:00Z", "Asia/Kolkata"),
    ("2026-12-31 23:59:59.999Z", "UTC"),
    ("2027-01-01 00:00:00Z", "Pacific/Kiritimati"),
    ("2026-03-29 01:00:00Z", "Europe/Berlin"),
    ("2026-10-25 00:30:00Z", "Europe/Berlin"),
    ("2026-03-08 06:59:59.9Z", "America/New_York"),
    ("2026-11-01 05:30:00Z", "America/New_York"),
    ("2026-04-04 14:59:59Z", "Australia/Lord_Howe"),
    ("2016-12-31 23:59:59.999Z", "UTC"),
    ("2038-01-19 03:14:07.5Z", "UTC"),
];

/// What a connection takes for the present, by functions that go before the server's.
#[derive(Clone)]
struct Moment {
    schema: String,
    zone: &'static str,
    /// Milliseconds since 1970.
    now: u64,
}

impl Moment {
    fn after(&self, hours: u64) -> Self {
        Self { now: self.now + hours * HOUR, ..self.clone() }
    }

    fn url(&self) -> String {
        let mut url = url::Url::parse(&Postgres::url()).expect("url");
        url.query_pairs_mut()
            .append_pair("options[search_path]", &format!("{},pg_catalog", self.schema))
            .append_pair("options[TimeZone]", self.zone)
            .append_pair("options[moment.now]", &self.now.to_string());
        url.into()
    }

    /// The same table in another process, whose partitions may have another width.
    async fn open(&self, table: &Table<Postgres>, hours: u16) -> PostgresStore {
        let opened = Table::<Postgres>::open(&self.url(), &table.name, &table.effects).await;
        opened.store.partitioned(NonZero::new(hours).unwrap())
    }
}

/// A UUIDv7 of a time.
fn uuid_of(millis: u64) -> MessageId {
    let random = Uuid::new_v4().into_bytes();
    let random = random[..10].try_into().expect("ten bytes");
    uuid::Builder::from_unix_timestamp_millis(millis, random).into_uuid().into()
}

/// Says on a panic at which time it was.
struct At(String);

impl Drop for At {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at {}", self.0);
        }
    }
}

/// Runs a test on a table of its own at each half hour of a day, and at the edges.
async fn at_all_times(test: impl AsyncFn(Table<Postgres>, Moment)) {
    let schema = short("clock");
    let plain = Table::<Postgres>::open(&Postgres::url(), "none", "none").await;
    let clocks = ["now", "clock_timestamp"].map(|name| {
        format!(
            "CREATE FUNCTION {schema}.{name}() RETURNS timestamptz LANGUAGE sql STABLE AS $$ SELECT timestamptz 'epoch' + \
             current_setting('moment.now')::bigint * interval '1 millisecond' $$"
        )
    });
    plain.sql(&format!("CREATE SCHEMA {schema}; {}", clocks.join("; "))).await;
    let halves = (0..48).map(|half| (format!("2026-11-25 {:02}:{:02}:00Z", half / 2, half % 2 * 30), "UTC"));
    for (time, zone) in halves.chain(EDGES.map(|(time, zone)| (time.to_owned(), zone))) {
        let _at = At(format!("{time} in {zone}"));
        let millis = format!("SELECT (extract(epoch FROM timestamptz '{time}') * 1000)::bigint");
        let now = Postgres::number(plain.store.pool(), &millis).await.expect("time");
        let moment = Moment { schema: schema.clone(), zone, now: now.try_into().expect("after 1970") };
        let table = partitioned(&moment.url()).await;
        let there = "SELECT (extract(epoch FROM now()) * 1000)::bigint";
        assert_eq!(Postgres::number(table.store.pool(), there).await.expect("time"), now);
        test(table.clone(), moment).await;
        table.sql(&format!("DROP TABLE {}, {}", table.name, table.effects)).await;
        table.store.pool().close().await;
    }
    plain.sql(&format!("DROP SCHEMA {schema} CASCADE")).await;
}

/// A table whose partitions span an hour.
pub async fn partitioned(url: &str) -> Table<Postgres> {
    let plain = Table::<Postgres>::open(url, &short("ids"), &short("effects")).await;
    let store = plain.store.clone().partitioned(NonZero::new(1).unwrap());
    let table = Table { store, ..plain };
    table.store.create_schema().await.expect("schema");
    table.sql(&format!("CREATE TABLE {} (message_id text NOT NULL)", table.effects)).await;
    table
}

async fn partitions(table: &Table<Postgres>) -> Vec<String> {
    let children =
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass ORDER BY 1";
    sqlx::query_scalar(children).bind(&table.name).fetch_all(table.store.pool()).await.expect("children")
}

/// The partition that an ID is in.
async fn partition_of(table: &Table<Postgres>, id: &MessageId) -> String {
    let place = format!("SELECT tableoid::regclass::text FROM {} WHERE message_id = $1", table.name);
    let place = sqlx::query_scalar(AssertSqlSafe(place)).bind(id.as_str());
    place.fetch_one(table.store.pool()).await.expect("it is in one")
}

async fn rows(table: &Table<Postgres>, partition: &str) -> i64 {
    Postgres::number(table.store.pool(), &format!("SELECT count(*) FROM {partition}")).await.expect("count")
}

pub async fn made_ahead_and_dropped_when_all_is_old() {
    at_all_times(async |table, moment| {
        let default = format!("{}_default", table.name);
        let first = partitions(&table).await;
        assert_eq!(first.len(), 5, "one before, the present, two ahead, and the default: {first:?}");
        let now = MessageId::from(Ulid::from_parts(moment.now, 42));
        let (late, odd) = (uuid_of(moment.now - 5 * HOUR), MessageId::new("order-42").unwrap());
        for id in [&now, &late, &odd] {
            assert!(matches!(table.process(id.as_str()).await, Outcome::Processed));
        }
        assert_eq!(rows(&table, &default).await, 2, "what no partition covers is in the default one");

        // An old span with one row that was processed just now: a late message keeps its partition.
        let (start, end) = (moment.now / HOUR - 5, moment.now / HOUR - 4);
        let old = format!("{}_{}_{}", table.name, start * 3600, end * 3600);
        table
            .sql(&format!(
                "BEGIN; CREATE TABLE {old} (LIKE {0} INCLUDING CONSTRAINTS INCLUDING INDEXES); \
                 WITH moved AS (DELETE FROM {default} WHERE id_time > 0 RETURNING *) INSERT INTO {old} SELECT * FROM moved; \
                 ALTER TABLE {0} ATTACH PARTITION {old} FOR VALUES FROM ({1}) TO ({2}); COMMIT",
                table.name,
                start * HOUR,
                end * HOUR
            ))
            .await;
        assert!(matches!(table.process(late.as_str()).await, Outcome::Duplicate(_)));
        assert_eq!(table.store.purge(RETENTION, 100).await.expect("purge"), 0);
        assert!(partitions(&table).await.contains(&old), "I7");
        assert!(matches!(table.process(late.as_str()).await, Outcome::Duplicate(_)));

        age(&table, 4, "1 = 1").await;
        let mut purged = 0;
        loop {
            match table.store.purge(RETENTION, 100).await.expect("purge") {
                0 => break,
                count => purged += count,
            }
        }
        assert!(
            purged >= 1,
            "the row in the default partition, and those of the old one as far as statistics know them"
        );
        assert!(!partitions(&table).await.contains(&old));
        assert_eq!(rows(&table, &default).await, 0);
        let outcome = table.process(now.as_str()).await;
        assert!(matches!(outcome, Outcome::Duplicate(_)), "its partition is not over");
        assert!(matches!(table.process(late.as_str()).await, Outcome::Processed), "forgotten");
    })
    .await;
}

pub async fn identity_is_unique_everywhere() {
    at_all_times(async |table, moment| {
        let future = uuid_of(moment.now + 30 * HOUR);
        let random = MessageId::from(Uuid::new_v4());
        let ids = [uuid_of(moment.now), random, future.clone(), uuid_of(moment.now - 9 * HOUR)];
        for expected in ["processed", "duplicate"] {
            for id in &ids {
                assert_eq!(table.process(id.as_str()).await.name(), expected, "{id}");
            }
        }
        assert_eq!(table.effects().await, (4, 4));
        let default = format!("{}_default", table.name);
        assert_eq!(partition_of(&table, &future).await, default, "of a clock that was ahead");
        // The new partition takes it over, whichever process makes it: those of the new width, or
        // those that are not stopped yet.
        let wide = moment.open(&table, 31).await;
        let racing = (0..6).map(|n| if n % 2 == 0 { &wide } else { &table.store });
        for purged in join_all(racing.map(|store| store.purge(100 * RETENTION, 10))).await {
            assert_eq!(purged.expect("six at once make the same partitions"), 0);
        }
        assert_ne!(partition_of(&table, &future).await, default, "it was moved");
        let guard = Guard::new(wide.clone(), Scope::new("test").unwrap());
        for id in &ids {
            let outcome = guard.process(&message(id.as_str()), &table.insert()).await;
            assert!(matches!(outcome, Outcome::Duplicate(_)), "{outcome:?}");
        }
        assert_eq!(table.identities().await, 4);
        wide.pool().close().await;
    })
    .await;
}

/// A message of the present is never in the default partition, which is purged row by row, and none
/// is forgotten.
pub async fn the_present_has_one_whatever_the_width_was() {
    at_all_times(async |table, moment| {
        let mut known = Vec::new();
        for (later, hours) in [(0, 31), (4, 31), (5, 2), (20, 168), (300, 24)] {
            let present = moment.after(later);
            let store = present.open(&table, hours).await;
            assert_eq!(store.purge(1000 * RETENTION, 100).await.expect("purge"), 0);
            let id = uuid_of(present.now);
            let guard = Guard::new(store.clone(), Scope::new("test").unwrap());
            let process = async |id: &MessageId| guard.process(&message(id.as_str()), &table.insert()).await;
            assert!(matches!(process(&id).await, Outcome::Processed));
            let place = partition_of(&table, &id).await;
            assert_ne!(place, format!("{}_default", table.name), "{hours} hours, {later} hours later");
            known.push(id);
            for id in &known {
                assert!(
                    matches!(process(id).await, Outcome::Duplicate(_)),
                    "{hours} hours, {later} hours later"
                );
            }
            store.pool().close().await;
        }
    })
    .await;
}

/// A handler with a transaction that stays open keeps a partition from being dropped, and nothing
/// else: others claim meanwhile, and rows are purged.
pub async fn slow_handler_stops_neither_claims_nor_the_purge() {
    let table = partitioned(&Postgres::url()).await;
    let (odd, past) = (MessageId::new("order-42").unwrap(), 100_000 * HOUR);
    assert!(matches!(table.process(odd.as_str()).await, Outcome::Processed));
    let old = format!("{}_{}_{}", table.name, past / 1000, (past + HOUR) / 1000);
    table
        .sql(&format!(
            "CREATE TABLE {old} PARTITION OF {} FOR VALUES FROM ({past}) TO ({})",
            table.name,
            past + HOUR
        ))
        .await;
    age(&table, 4, "1 = 1").await;
    let slow = table.store.claim(&[request("test", "slow")]).await.expect("claim");
    let other = table.again().await.store.partitioned(NonZero::new(1).unwrap());
    let guard = Guard::new(other, Scope::new("test").unwrap());
    let purging = tokio::spawn({
        let store = table.store.clone();
        async move { store.purge(RETENTION, 100).await }
    });
    for n in 0.. {
        let outcome = guard.process(&message(&format!("m{n}")), &table.insert()).await;
        assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
        if purging.is_finished() {
            break;
        }
    }
    assert_eq!(purging.await.expect("join").expect("purge"), 1, "the row that no partition has");
    assert!(partitions(&table).await.contains(&old), "it is in use");
    table.store.release(slow.session.expect("acquired")).await.expect("release");
    eventually("it is dropped", async || {
        table.store.purge(RETENTION, 100).await.expect("purge");
        (!partitions(&table).await.contains(&old)).then_some(())
    })
    .await;
}
