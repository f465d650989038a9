//! What is forgotten, and when.

use std::{
    num::NonZero,
    time::{Duration, SystemTime},
};

use lapin_idempotent::{
    IdempotencyStore, IdempotentConsumer, Outcome,
    consumer::ConsumeErrorKind,
    idempotency::{Scope, StalePolicy, Sweeper},
    message::MessageId,
};
use sqlx::Postgres;
use ulid::Ulid;
use uuid::Uuid;

use super::{
    claims::request,
    database::{Kind, Table, message, short},
    support::{broker, eventually},
};

const HOUR: Duration = Duration::from_secs(3600);

/// Makes all identities of a table older, as if time had passed.
async fn age<K: Kind>(table: &Table<K>, hours: u32, only: &str) {
    let column = match K::NAME {
        "PostgreSQL" => format!("processed_at - interval '{hours} hours'"),
        "MySQL" => format!("processed_at - INTERVAL {hours} HOUR"),
        _ => format!("processed_at - {hours} * 3600000"),
    };
    table.sql(&format!("UPDATE {} SET processed_at = {column} WHERE {only}", table.name)).await;
}

pub async fn late_duplicate_is_handled_once_more_only_after_the_purge<K: Kind>() {
    let table = Table::<K>::create().await;
    assert!(matches!(table.process("late").await, Outcome::Processed));
    age(&table, 2, "1 = 1").await;
    assert!(matches!(table.process("young").await, Outcome::Processed));
    // I7, and what is only old is still remembered.
    assert_eq!(table.store.purge(3 * HOUR, 100).await.expect("purge"), 0);
    assert!(matches!(table.process("late").await, Outcome::Duplicate(_)));
    assert_eq!(table.store.purge(HOUR, 100).await.expect("purge"), 1);
    assert!(matches!(table.process("young").await, Outcome::Duplicate(_)));
    // Here the guarantee ends, as documented.
    assert!(matches!(table.process("late").await, Outcome::Processed));
    assert_eq!(table.effects().await, (3, 2));
}

pub async fn purge_skips_what_others_hold<K: Kind>() {
    let table = Table::<K>::create().await;
    for id in ["a", "b", "c"] {
        assert!(matches!(table.process(id).await, Outcome::Processed));
    }
    age(&table, 2, "1 = 1").await;
    let mut holder = table.store.pool().begin().await.expect("begin");
    let id = if K::NAME == "MySQL" { "x'62'" } else { "'b'" };
    let lock = format!("SELECT * FROM {} WHERE scope = 'test' AND message_id = {id} FOR UPDATE", table.name);
    K::run(&mut holder, &lock).await.expect("lock");
    let purging = table.store.purge(HOUR, 100);
    let purged =
        tokio::time::timeout(Duration::from_secs(4), purging).await.expect("does not wait").expect("purge");
    assert_eq!(purged, 2);
    holder.rollback().await.expect("rollback");
    assert_eq!(table.store.purge(HOUR, 100).await.expect("purge"), 1);
}

pub async fn sweeper_keeps_the_young_and_stops_on_request<K: Kind>() {
    let table = Table::<K>::create().await;
    let requests: Vec<_> = (0..500).map(|n| request("test", &format!("m{n}"))).collect();
    let session = table.store.claim(&requests).await.expect("claim").session.expect("acquired");
    table.store.complete(session).await.expect("complete");
    let old = if K::NAME == "MySQL" { "LENGTH(message_id) < 4" } else { "length(message_id) < 4" };
    age(&table, 2, old).await;
    let sweeper = Sweeper::new(table.store.clone(), HOUR).every(Duration::from_millis(50)).batch(7);
    let handle = sweeper.clone().spawn();
    eventually("the old ones are gone", async || (table.identities().await == 400).then_some(())).await;
    handle.stop().await;
    age(&table, 2, "1 = 1").await;
    assert_eq!(table.identities().await, 400, "stopped is stopped");
    assert_eq!(sweeper.sweep().await.expect("sweep"), 400);
    assert_eq!(table.identities().await, 0);
}

/// A UUIDv7 of some time ago.
fn uuid_of(age: Duration) -> MessageId {
    let since = (SystemTime::now() - age).duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let timestamp = uuid::Timestamp::from_unix(uuid::NoContext, since.as_secs(), since.subsec_nanos());
    MessageId::from(Uuid::new_v7(timestamp))
}

pub async fn partitioned() -> Table<Postgres> {
    let plain = Table::<Postgres>::open(&Postgres::url(), &short("ids"), &short("effects")).await;
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

async fn rows(table: &Table<Postgres>, partition: &str) -> i64 {
    Postgres::number(table.store.pool(), &format!("SELECT count(*) FROM {partition}")).await.expect("count")
}

pub async fn partitions_are_made_ahead_and_dropped_when_all_is_old() {
    let table = partitioned().await;
    let default = format!("{}_default", table.name);
    let first = partitions(&table).await;
    assert_eq!(first.len(), 5, "one before, the present, two ahead, and the default: {first:?}");
    let now = MessageId::from(Ulid::generate());
    let (late, odd) = (uuid_of(5 * HOUR), MessageId::new("order-42").unwrap());
    for id in [&now, &late, &odd] {
        assert!(matches!(table.process(id.as_str()).await, Outcome::Processed));
    }
    assert_eq!(rows(&table, &default).await, 2, "what no partition covers is in the default one");

    // An old span with one row that was processed just now: a late message keeps its partition.
    let span = (SystemTime::now() - 5 * HOUR).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
        / 3600
        * 3600;
    let old = format!("{}_{span}_{}", table.name, span + 3600);
    table
        .sql(&format!(
            "BEGIN; CREATE TABLE {old} (LIKE {0} INCLUDING CONSTRAINTS INCLUDING INDEXES); \
             WITH moved AS (DELETE FROM {default} WHERE id_time > 0 RETURNING *) INSERT INTO {old} SELECT * FROM moved; \
             ALTER TABLE {0} ATTACH PARTITION {old} FOR VALUES FROM ({1}) TO ({2}); COMMIT",
            table.name,
            span * 1000,
            (span + 3600) * 1000
        ))
        .await;
    assert!(matches!(table.process(late.as_str()).await, Outcome::Duplicate(_)));
    assert_eq!(table.store.purge(3 * HOUR, 100).await.expect("purge"), 0);
    assert!(partitions(&table).await.contains(&old), "I7");
    assert!(matches!(table.process(late.as_str()).await, Outcome::Duplicate(_)));

    age(&table, 4, "1 = 1").await;
    let mut purged = 0;
    loop {
        match table.store.purge(3 * HOUR, 100).await.expect("purge") {
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
    assert!(matches!(table.process(now.as_str()).await, Outcome::Duplicate(_)), "its partition is not over");
    assert!(matches!(table.process(late.as_str()).await, Outcome::Processed), "forgotten");
}

pub async fn partitioned_identity_is_unique_everywhere() {
    let table = partitioned().await;
    let future = {
        let since = (SystemTime::now() + 30 * HOUR).duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let timestamp = uuid::Timestamp::from_unix(uuid::NoContext, since.as_secs(), 0);
        MessageId::from(Uuid::new_v7(timestamp))
    };
    let ids =
        [MessageId::from(Uuid::now_v7()), MessageId::from(Uuid::new_v4()), future.clone(), uuid_of(9 * HOUR)];
    for expected in ["processed", "duplicate"] {
        for id in &ids {
            assert_eq!(table.process(id.as_str()).await.name(), expected, "{id}");
        }
    }
    assert_eq!(table.effects().await, (4, 4));
    // A clock that was ahead left a row in the default partition. When its time comes, the new partition takes it over.
    let hours = 31;
    let wide = table.store.clone().partitioned(NonZero::new(hours).unwrap());
    let scope = Scope::new("test").unwrap();
    let guard = lapin_idempotent::Guard::new(wide.clone(), scope);
    let racing = (0..8).map(|_| wide.purge(100 * HOUR, 10));
    for purged in futures_util::future::join_all(racing).await {
        assert_eq!(purged.expect("eight at once make the same partitions"), 0);
    }
    let outcome = guard.process(&message(future.as_str()), &table.insert()).await;
    assert!(matches!(outcome, Outcome::Duplicate(_)), "{outcome:?}");
    assert!(rows(&table, &format!("{}_default", table.name)).await < 3, "it was moved");
    assert_eq!(table.identities().await, 4);
}

pub async fn message_older_than_the_retention_is_not_judged_by_a_missing_record<K: Kind>() {
    let table = Table::<K>::create().await;
    let guard = |policy| table.guard().retention(3 * HOUR, policy);
    let (known, unknown, young) = (uuid_of(9 * HOUR), uuid_of(8 * HOUR), uuid_of(HOUR));
    assert!(matches!(table.process(known.as_str()).await, Outcome::Processed));
    let batch = [&known, &unknown, &young].map(|id| message(id.as_str()));
    let outcomes = guard(StalePolicy::Park).process_batch(&batch, &table.insert()).await;
    let names: Vec<_> = outcomes.iter().map(Outcome::name).collect();
    assert_eq!(names, ["duplicate", "indeterminate", "processed"], "a record decides, whatever the age");
    let alone = guard(StalePolicy::Park).process(&batch[1], &table.insert()).await;
    let Outcome::Indeterminate { age } = alone else { panic!("{alone:?}") };
    assert!(age > 7 * HOUR && age < 9 * HOUR, "{age:?}");
    // Without a time in its ID, the timestamp counts; without both, nothing can be said.
    let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let stamped = message("order-42").with_timestamp(seconds - 4 * 3600);
    let outcome = guard(StalePolicy::Park).process(&stamped, &table.insert()).await;
    assert!(matches!(outcome, Outcome::Indeterminate { .. }), "{outcome:?}");
    assert_eq!(table.effects().await, (2, 2), "nothing was done about those");
    let outcome = guard(StalePolicy::Handle).process(&batch[1], &table.insert()).await;
    assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
    let outcome = guard(StalePolicy::Park).process(&message("order-43"), &table.insert()).await;
    assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
}

pub async fn consumer_does_not_start_with_a_retention_that_is_too_short() {
    let table = Table::<Postgres>::create().await;
    let consumer = IdempotentConsumer::builder(broker(), "no-such-queue", table.store.clone())
        .retention(3 * HOUR, StalePolicy::Park)
        .horizon(5 * HOUR);
    let error = consumer.run_until(table.insert(), std::future::pending()).await.expect_err("too short");
    assert_eq!(error.kind(), ConsumeErrorKind::Invalid);
    let text = std::error::Error::source(&error).expect("source").to_string();
    assert!(
        ["10800s", "18641s", "18000s", "641s", "7841s too short"].iter().all(|part| text.contains(part)),
        "{text}"
    );
}
