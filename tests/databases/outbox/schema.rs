//! The tables themselves.

use std::error::Error;

use futures_util::future::join_all;
use lapin_idempotent::{
    idempotency::{StoreError, StoreErrorKind},
    outbox::{Outbox, ReadRequest},
    store::{SchemaMismatch, SqlOutbox},
};

use super::{Boxed, Kind, row, short};

trials! {
    missing_parts_are_named_with_the_sql_to_run<Postgres, MySql, Sqlite>,
    eight_callers_create_it_at_once<Postgres, MySql, Sqlite>,
    printed_sql_is_what_is_created<Postgres, MySql, Sqlite>,
    table_that_is_no_outbox_is_told_and_left_alone<Postgres, MySql, Sqlite>,
    table_of_another_schema_and_reserved_words<Postgres, MySql>,
    url_that_cannot_be_used_is_in_no_error<Postgres, MySql>,
}

fn mismatch(error: &StoreError) -> &SchemaMismatch {
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error:?}");
    error.source().and_then(|source| source.downcast_ref()).expect("a SchemaMismatch")
}

pub async fn missing_parts_are_named_with_the_sql_to_run<K: Kind>() {
    let boxed = Boxed::<K>::open(&K::url(), &short("ob")).await;
    let name = &boxed.name;
    let missing = async || {
        let error = boxed.outbox.check().await.expect_err("something is missing");
        (mismatch(&error).missing().to_owned(), mismatch(&error).sql().to_owned())
    };
    let (what, sql) = missing().await;
    assert_eq!(what, format!("the table {name} is missing"));
    // Without the check, what is asked of it tells as well.
    let request = ReadRequest {
        from: &boxed.starts(),
        without_rows: &[],
        without_keys: &[],
        without_routes: &[],
        rows: 1,
        bytes: 1,
    };
    let error = boxed.outbox.read(&request).await.expect_err("no table");
    assert_eq!(error.kind(), StoreErrorKind::Schema);
    boxed.sql(&sql).await;
    boxed.outbox.check().await.expect("the printed SQL is what it needs");

    boxed.sql(&format!("DELETE FROM {name}_lanes WHERE lane = 0")).await;
    assert!(missing().await.0.starts_with(&format!("the table {name}_lanes has not its ")));
    boxed.outbox.create_schema().await.expect("puts it back");
    boxed.sql(&format!("ALTER TABLE {name} RENAME COLUMN parked_at TO gone_at")).await;
    assert_eq!(missing().await.0, format!("the table {name} lacks the columns parked_at"));
    assert!(boxed.outbox.create_schema().await.is_err(), "and it is not taken for good");
    boxed.sql(&format!("ALTER TABLE {name} RENAME COLUMN gone_at TO parked_at")).await;
    boxed.sql(&format!("DROP TABLE {name}_relays")).await;
    assert_eq!(missing().await.0, format!("the table {name}_relays is missing"));
    boxed.outbox.create_schema().await.expect("makes it again");
    boxed.put(&[row("a")]).await;
}

pub async fn eight_callers_create_it_at_once<K: Kind>() {
    let url = K::url();
    let name = short("ob");
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(Boxed::<K>::open(&url, &name).await);
    }
    for created in join_all(callers.iter().map(|caller| caller.outbox.create_schema())).await {
        created.expect("create");
    }
    callers[0].outbox.create_schema().await.expect("again");
    callers[0].put(&[row("a")]).await;
    assert_eq!(callers[1].ids().await, ["a"]);
}

pub async fn printed_sql_is_what_is_created<K: Kind>() {
    let boxed = Boxed::<K>::open(&K::url(), &short("ob")).await;
    boxed.sql(&boxed.outbox.schema_sql()).await;
    boxed.outbox.check().await.expect("complete");
    // And it can be run again, by those who run it at every deployment, beside transactions that
    // have the table open.
    let other = boxed.again().await;
    let mut tx = other.begin().await;
    if K::NAME != "SQLite" {
        other.outbox.put(&mut tx, &[row("a")]).await.expect("put");
    }
    boxed.sql(&boxed.outbox.schema_sql()).await;
    boxed.outbox.create_schema().await.expect("nothing is left to do");
    tx.commit().await.expect("commit");
}

pub async fn table_that_is_no_outbox_is_told_and_left_alone<K: Kind>() {
    let boxed = Boxed::<K>::open(&K::url(), &short("ob")).await;
    let name = &boxed.name;
    let bytes = if K::NAME == "PostgreSQL" { "bytea" } else { "BLOB" };
    boxed.sql(&format!("CREATE TABLE {name} (id BIGINT PRIMARY KEY, body {bytes} NOT NULL)")).await;
    for error in [boxed.outbox.check().await, boxed.outbox.create_schema().await] {
        let error = error.expect_err("it is another's");
        let missing = mismatch(&error).missing();
        assert!(
            missing.starts_with(&format!("a table {name} is there that is no outbox (it has no lane, seq, ")),
            "{missing}"
        );
        assert!(missing.ends_with("name another one with table()"), "{missing}");
    }
    assert_eq!(boxed.number(&format!("SELECT COUNT(*) FROM {name}")).await, 0);
    // Nor do the two others stand beside it.
    assert!(K::number(boxed.outbox.pool(), &format!("SELECT COUNT(*) FROM {name}_lanes")).await.is_err());
    if K::NAME == "PostgreSQL" {
        let storage = format!(
            "SELECT (attstorage = 'x')::int::bigint FROM pg_attribute WHERE attrelid = '{name}'::regclass AND attname = 'body'"
        );
        boxed.sql(&boxed.outbox.schema_sql()).await;
        assert_eq!(boxed.number(&storage).await, 1, "nor does the printed SQL change it");
    }
}

pub async fn table_of_another_schema_and_reserved_words<K: Kind>() {
    let schema = short("schema");
    let outside = Boxed::<K>::create().await;
    outside.sql(&format!("CREATE SCHEMA {schema}")).await;
    let there = Boxed::<K>::open(&outside.url, &format!("{schema}.order")).await;
    there.outbox.create_schema().await.expect("create");
    there.put(&[row("a")]).await;
    let (relay, term) = there.take(0).await;
    assert!(there.outbox.beat(relay, super::LEASE).await.expect("beat"));
    let ids = there.confirmed().await;
    assert_eq!(there.outbox.fail(&[term], &[]).await.expect("fail"), []);
    assert_eq!(there.outbox.status().await.expect("status").backlog, 1);
    assert_eq!(there.outbox.remove(&ids).await.expect("remove").rows, 1);
    assert_eq!(outside.ids().await, [""; 0]);
    outside
        .sql(&format!("DROP SCHEMA {schema} {}", if K::NAME == "PostgreSQL" { "CASCADE" } else { "" }))
        .await;
    assert!(outside.again().await.outbox.table("order; DROP TABLE x").is_err());
}

pub async fn url_that_cannot_be_used_is_in_no_error<K: Kind>() {
    let canary = "c4n4ry";
    let scheme = if K::NAME == "MySQL" { "mysql" } else { "postgres" };
    let url = format!("{scheme}://user:{canary}@127.0.0.1:1/x");
    let error = SqlOutbox::<K>::connect(&url).await.expect_err("nobody is there");
    let mut text = format!("{error:?} {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text} {cause} {cause:?}");
        source = cause.source();
    }
    assert!(!text.contains(canary), "{text}");
    let lazy = SqlOutbox::<K>::connect_lazy(&url).expect("it is asked later");
    let error = lazy.check_schema().await.expect_err("nobody is there");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error:?}");
    assert!(!format!("{error:?} {lazy:?}").contains(canary));
}
