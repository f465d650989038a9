//! What is forgotten, and when.

use std::time::{Duration, SystemTime};

use lapin_idempotent::{
    IdempotencyStore, IdempotentConsumer, Outcome, PostgresStore,
    consumer::ConsumeErrorKind,
    idempotency::{StalePolicy, Sweeper},
    message::MessageId,
};
use sqlx::Postgres;
use uuid::Uuid;

use super::{
    claims::request,
    database::{Kind, Table, message},
    support::{broker, eventually},
};

trials! {
    late_duplicate_is_handled_once_more_only_after_the_purge<Postgres, MySql, Sqlite>,
    purge_reads_what_it_deletes_and_no_more,
    purge_skips_what_others_hold<Postgres, MySql>,
    sweeper_keeps_the_young_and_stops_on_request<Postgres, MySql, Sqlite>,
    message_older_than_the_retention_is_not_judged_by_a_missing_record<Postgres, MySql, Sqlite>,
    consumer_does_not_start_with_a_retention_that_is_too_short,
}

const HOUR: Duration = Duration::from_secs(3600);

/// Makes all identities of a table older, as if time had passed.
pub async fn age<K: Kind>(table: &Table<K>, hours: u32, only: &str) {
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

/// One retention later, when the room of purged rows is taken by new ones, a purge reads few pages,
/// whether or not it finds something.
pub async fn purge_reads_what_it_deletes_and_no_more() {
    const ROWS: u64 = 20_000;
    const STEP: u64 = ROWS / 10;
    let table = Table::<Postgres>::create().await;
    let name = &table.name;
    // A row each minute, from so many minutes ago on.
    let insert = async |first: u64, count: u64| {
        let sql = format!(
            "INSERT INTO {name} SELECT 'test', n::text, decode(repeat('ab', 32), 'hex'), now() - ({ROWS} - n) * interval '1 minute', NULL, NULL \
             FROM generate_series({first}, {}) n",
            first + count - 1
        );
        table.sql(&sql).await;
        table.sql(&format!("VACUUM ANALYZE {name}")).await;
    };
    // Its statistics are those of the one session.
    let one = PostgresStore::connect_with(&table.url, |pool| pool.max_connections(1)).await.expect("connect");
    let store = one.table(name).expect("name").statement_timeout(HOUR);
    let purge = async |minutes: u64| {
        let blocks = format!(
            "SELECT pg_stat_force_next_flush()::text, (heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)::bigint \
             FROM pg_statio_user_tables WHERE relid = '{name}'::regclass"
        );
        let read = async || {
            sqlx::raw_sql("SELECT pg_stat_force_next_flush()").execute(store.pool()).await.expect("flush");
            let row = sqlx::raw_sql(sqlx::AssertSqlSafe(blocks.as_str())).fetch_one(store.pool()).await;
            sqlx::Row::try_get::<i64, _>(&row.expect("statistics"), 1).expect("blocks")
        };
        let before = read().await;
        let purged = store.purge(Duration::from_secs(60 * minutes), 100_000).await.expect("purge");
        (purged, read().await - before)
    };
    insert(1, ROWS).await;
    for step in 1..=10 {
        let (purged, _) = purge(ROWS - STEP * step).await;
        assert!(purged.abs_diff(STEP) < 5, "step {step}: {purged}");
        table.sql(&format!("VACUUM {name}")).await;
        insert(ROWS + STEP * (step - 1) + 1, STEP).await;
    }
    // The new rows are of the future here, and none of them is old.
    let pages = Postgres::number(store.pool(), &format!("SELECT pg_relation_size('{name}') / 8192")).await;
    let pages = pages.expect("size");
    assert!(pages > 200, "{pages} pages");
    // What was deleted is in the way as long as a transaction of another test may still see it.
    eventually("a purge that reads next to nothing", async || {
        table.sql(&format!("VACUUM {name}")).await;
        let (purged, read) = purge(1).await;
        assert!(purged <= 2, "{purged} rows");
        (read < 30).then_some(())
    })
    .await;
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
        ["10800s", "37365s", "18000s", "19365s", "26565s too short"].iter().all(|part| text.contains(part)),
        "{text}"
    );
}
