//! The tables themselves.

use std::error::Error;

use lapin_idempotent::{
    IdempotencyStore, IdempotentConsumer, Outcome,
    consumer::ConsumeErrorKind,
    idempotency::{StoreError, StoreErrorKind},
    store::SchemaMismatch,
};
use sqlx::Postgres;

use super::{
    database::{Kind, Table, message, short},
    support::broker,
};

trials! {
    missing_parts_are_named_with_the_sql_to_run<Postgres, MySql, Sqlite>,
    eight_callers_create_it_at_once<Postgres, MySql, Sqlite>,
    table_of_another_schema_and_reserved_words<Postgres, MySql>,
    printed_sql_is_what_is_created<Postgres, MySql, Sqlite>,
    consumer_does_not_start_without_the_table,
}

fn mismatch(error: &StoreError) -> &SchemaMismatch {
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error:?}");
    error.source().and_then(|source| source.downcast_ref()).expect("a SchemaMismatch")
}

pub async fn missing_parts_are_named_with_the_sql_to_run<K: Kind>() {
    let table = Table::<K>::open(&K::url(), &short("ids"), &short("effects")).await;
    let error = table.store.check().await.expect_err("no table");
    assert!(mismatch(&error).missing().contains(&format!("{} is missing", table.name)), "{error:?}");
    // Without the check, the claim tells as well.
    let outcome = table.guard().process(&message("a"), &table.insert()).await;
    let Outcome::StoreUnavailable { error } = outcome else { panic!("{outcome:?}") };
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error:?}");

    let sql = mismatch(&table.store.check().await.expect_err("no table")).sql().to_owned();
    table.sql(&sql).await;
    table.store.check().await.expect("the printed SQL is what it needs");

    table.sql(&format!("ALTER TABLE {} RENAME COLUMN fingerprint TO hash", table.name)).await;
    let error = table.store.check().await.expect_err("a column lacks");
    assert!(mismatch(&error).missing().ends_with("lacks the columns fingerprint"), "{error:?}");

    // A table with the columns and another key would let a message in twice.
    table.sql(&format!("DROP TABLE {}", table.name)).await;
    let without_key =
        sql.replace("PRIMARY KEY (scope, message_id)", "PRIMARY KEY (scope, message_id, processed_at)");
    assert_ne!(without_key, sql);
    table.sql(&without_key).await;
    let error = table.store.check().await.expect_err("another key");
    assert!(mismatch(&error).missing().contains("no unique key on exactly (scope, message_id)"), "{error:?}");
    assert!(table.store.create_schema().await.is_err(), "and it is not taken for good");
}

pub async fn eight_callers_create_it_at_once<K: Kind>() {
    let url = K::url();
    let name = short("ids");
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(Table::<K>::open(&url, &name, "none").await.store);
    }
    for created in futures_util::future::join_all(callers.iter().map(|store| store.create_schema())).await {
        created.expect("create");
    }
    callers[0].create_schema().await.expect("again");
}

pub async fn table_of_another_schema_and_reserved_words<K: Kind>() {
    let schema = short("schema");
    let outside = Table::<K>::create().await;
    outside.sql(&format!("CREATE SCHEMA {schema}")).await;
    let store = outside.again().await.store.table(&format!("{schema}.order")).expect("name");
    store.create_schema().await.expect("create");
    let there = Table { store, ..outside.clone() };
    for (table, expected) in [(&outside, "processed"), (&there, "processed"), (&there, "duplicate")] {
        assert_eq!(table.process("a").await.name(), expected);
    }
    outside
        .sql(&format!("DROP SCHEMA {schema} {}", if K::NAME == "PostgreSQL" { "CASCADE" } else { "" }))
        .await;
    assert!(outside.again().await.store.table("order; DROP TABLE x").is_err());
}

pub async fn printed_sql_is_what_is_created<K: Kind>() {
    let table = Table::<K>::open(&K::url(), &short("ids"), &short("effects")).await;
    table.sql(&table.store.schema_sql()).await;
    table.store.check().await.expect("complete");
    // And it can be run again, by those who run it at every deployment.
    table.sql(&table.store.schema_sql()).await;
    table.store.create_schema().await.expect("nothing is left to do");
}

pub async fn consumer_does_not_start_without_the_table() {
    let table = Table::<Postgres>::open(&Postgres::url(), &short("ids"), &short("effects")).await;
    let consumer = IdempotentConsumer::builder(broker(), "no-such-queue", table.store.clone());
    let error = consumer.run_until(table.insert(), std::future::pending()).await.expect_err("no table");
    assert_eq!(error.kind(), ConsumeErrorKind::Store);
    let source = error.source().and_then(|source| source.downcast_ref::<StoreError>()).expect("a StoreError");
    assert!(mismatch(source).sql().contains("CREATE TABLE"));
}
