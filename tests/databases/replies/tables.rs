//! The tables themselves.

use std::{error::Error, time::Duration};

use lapin_idempotent::{
    IdempotencyStore, IdempotentConsumer,
    consumer::ConsumeErrorKind,
    idempotency::{StoreError, StoreErrorKind, Sweeper},
    store::{Replies, SchemaMismatch},
};
use sqlx::Postgres;

use super::{Desk, Kind, Quote, Table};
use crate::databases::{database::short, support::broker};

trials! {
    reply_and_identity_purged_together<Postgres, MySql, Sqlite>,
    replies_of_a_partitioned_store_go_after_their_partition,
    both_tables_are_printed_created_and_checked<Postgres, MySql, Sqlite>,
    default_name_follows_the_table_of_the_identities,
    store_without_replies_refuses_to_start,
}

const HOUR: Duration = Duration::from_secs(3600);

/// Makes rows of a table of the store two hours older.
async fn age<K: Kind>(table: &Table<K>, suffix: &str, time: &str, which: &str) -> u64 {
    let earlier = match K::NAME {
        "PostgreSQL" => format!("{time} - interval '2 hours'"),
        "MySQL" => format!("{time} - INTERVAL 2 HOUR"),
        _ => format!("{time} - 7200000"),
    };
    table.sql(&format!("UPDATE {}{suffix} SET {time} = {earlier} WHERE {which}", table.name)).await
}

/// How many identities have no reply.
async fn bare<K: Kind>(table: &Table<K>) -> i64 {
    let bare = format!(
        "SELECT count(*) FROM {0} AS i WHERE NOT EXISTS (SELECT 1 FROM {0}_replies AS r \
         WHERE r.scope = i.scope AND r.message_id = i.message_id)",
        table.name
    );
    K::number(table.store.pool(), &bare).await.expect("count")
}

async fn asked<K: Kind>(requests: u32) -> Desk<K> {
    let desk = Desk::<K>::open().await;
    for n in 0..requests {
        desk.ask(&format!("order-{n}"), "q", lapin::BasicProperties::default()).await;
    }
    let (serving, _) = desk.serve();
    crate::databases::support::eventually("all take effect", async || {
        (desk.kept().await == i64::from(requests)).then_some(())
    })
    .await;
    serving.stop().await;
    desk
}

pub async fn reply_and_identity_purged_together<K: Kind>() {
    let desk = asked::<K>(9).await;
    let table = &desk.table;
    // Old replies of identities that are young stay, whatever their own age is.
    assert_eq!(age(table, "_replies", "replied_at", "1 = 1").await, 9);
    assert_eq!(table.store.purge(HOUR, 100).await.expect("purge"), 0);
    assert_eq!((desk.kept().await, bare(table).await), (9, 0));

    let first = "scope = 'test' AND message_id < 'order-5'";
    assert_eq!(age(table, "", "processed_at", first).await, 5);
    let mut forgotten = 0;
    loop {
        let batch = table.store.purge(HOUR, 2).await.expect("purge");
        assert!(batch <= 2, "it counts identities: {batch}");
        assert_eq!(bare(table).await, 0, "no identity is without its reply");
        forgotten += batch;
        if batch == 0 {
            break;
        }
    }
    assert_eq!((forgotten, table.identities().await, desk.kept().await), (5, 4, 4));

    // Replies that are left without their identities go by themselves, in bounded batches.
    table.sql(&format!("DELETE FROM {}", table.name)).await;
    let sweeper = Sweeper::new(table.store.clone(), HOUR).batch(1);
    assert_eq!((sweeper.sweep().await.expect("sweep"), desk.kept().await), (0, 0));
}

pub async fn replies_of_a_partitioned_store_go_after_their_partition() {
    let mut desk = Desk::<Postgres>::open().await;
    let hours = std::num::NonZero::new(1).expect("one");
    let name = short("ids");
    let store = desk.table.again().await.store.table(&name).expect("name").partitioned(hours);
    desk.table.store = store.with_replies(Replies::new()).expect("name");
    desk.table.store.create_schema().await.expect("schema");
    desk.table.name = name;
    let mailbox = desk.mailbox().await;
    let id = uuid::Uuid::now_v7().to_string();
    let (serving, _) = desk.serve();
    desk.ask(&id, "q", super::to(&mailbox)).await;
    assert_eq!(desk.answer(&mailbox).await.body, "run 0");
    serving.stop().await;
    desk.table.sql(&format!("DELETE FROM {}", desk.table.name)).await;
    // Older than the retention, and not by a partition.
    age(&desk.table, "_replies", "replied_at", "1 = 1").await;
    desk.table.store.purge(HOUR + HOUR / 2, 10).await.expect("purge");
    assert_eq!(desk.kept().await, 1);
    desk.table.store.purge(HOUR / 2, 10).await.expect("purge");
    assert_eq!(desk.kept().await, 0);
}

fn mismatch(error: &StoreError) -> &SchemaMismatch {
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error:?}");
    error.source().and_then(|source| source.downcast_ref()).expect("a SchemaMismatch")
}

pub async fn both_tables_are_printed_created_and_checked<K: Kind>() {
    let replies = short("answers");
    let table = Table::<K>::create().await;
    let store = table.store.clone().with_replies(Replies::table(&replies)).expect("name");
    let error = store.check().await.expect_err("no replies");
    assert!(mismatch(&error).missing().contains(&format!("{replies} is missing")), "{error:?}");
    table.sql(mismatch(&error).sql()).await;
    store.check().await.expect("the printed SQL is what it needs");
    table.sql(&store.schema_sql()).await;
    store.create_schema().await.expect("nothing is left to do");
    table.sql(&format!("ALTER TABLE {replies} RENAME COLUMN body TO content")).await;
    let error = store.check().await.expect_err("a column lacks");
    assert!(mismatch(&error).missing().ends_with("lacks the columns body"), "{error:?}");
    table.sql(&format!("DROP TABLE {replies}")).await;
    let created = (0..8).map(|_| store.create_schema());
    for created in futures_util::future::join_all(created).await {
        created.expect("created at once by many");
    }
    assert!(table.store.clone().with_replies(Replies::table("a; DROP TABLE x")).is_err());
    table.store.check().await.expect("without replies it is as it was");
    assert!(!table.store.schema_sql().contains("replied_at"));
}

pub async fn default_name_follows_the_table_of_the_identities() {
    let table = Table::<Postgres>::create().await;
    let name = short("later");
    let store = table.store.clone().with_replies(Replies::new()).expect("name").table(&name).expect("name");
    assert!(store.schema_sql().contains(&format!("\"{name}_replies\"")), "{}", store.schema_sql());
    let store =
        table.store.clone().with_replies(Replies::table("mine")).expect("name").table(&name).expect("name");
    assert!(store.schema_sql().contains("EXISTS \"mine\""), "{}", store.schema_sql());
}

pub async fn store_without_replies_refuses_to_start() {
    let table = Table::<Postgres>::create().await;
    let start = async |store| {
        let consumer = IdempotentConsumer::builder(broker(), "no-such-queue", store).scope("test");
        let error = consumer.run_rpc_until(Quote::new(&table), std::future::pending()).await;
        let error = error.expect_err("it cannot start");
        assert_eq!(error.kind(), ConsumeErrorKind::Store, "{error:?}");
        error.source().and_then(|source| source.downcast_ref::<StoreError>()).expect("a StoreError").kind()
    };
    assert_eq!(start(table.store.clone()).await, StoreErrorKind::Configuration);
    let without_table = table.store.clone().with_replies(Replies::new()).expect("name");
    assert_eq!(start(without_table).await, StoreErrorKind::Schema);
}
