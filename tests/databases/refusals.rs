//! A message whose identity the database refuses, among others.

use lapin_idempotent::{
    IdempotencyStore, IncomingMessage, Outcome,
    consumer::ConsumerState,
    idempotency::{StoreError, StoreErrorKind},
};
use sqlx::Postgres;

use super::{
    claims::request,
    consuming::{consumer, delete},
    database::{Kind, Table, message, short},
    support::{
        amqp::{Client, header, with_id},
        broker,
        consumer::Running,
        eventually,
    },
};

trials! {
    constraint_refuses_one_and_no_neighbour<Postgres, MySql, Sqlite>,
    shorter_column_refuses_one_and_no_neighbour<Postgres, MySql, Sqlite>,
    row_level_security_refuses_one_and_no_neighbour,
    encoding_refuses_one_and_no_neighbour,
    table_that_refuses_all_is_a_store_that_is_away<Postgres, MySql, Sqlite>,
    refused_message_is_parked_and_its_neighbours_are_handled,
}

/// How many messages come together.
const BATCH: usize = 64;

/// The one in their middle, that is refused.
const BAD: usize = 37;

fn messages(bad: &str) -> Vec<IncomingMessage> {
    (0..BATCH).map(|n| if n == BAD { message(bad) } else { message(&format!("good-{n}")) }).collect()
}

/// What the guard makes of a batch with one that is refused.
async fn one_is_refused<K: Kind>(table: &Table<K>, bad: &str) {
    let (guard, insert) = (table.guard(), table.insert());
    for expected in ["processed", "duplicate"] {
        let outcomes = guard.process_batch(&messages(bad), &insert).await;
        for (n, outcome) in outcomes.iter().enumerate() {
            let expected = if n == BAD { "refused" } else { expected };
            assert_eq!(outcome.name(), expected, "{n}: {outcome:?}");
        }
        assert_eq!(insert.runs(), 63, "no handler ran twice, nor for the refused one");
    }
    let Outcome::Refused { error } = guard.process(&message(bad), &insert).await else {
        panic!("alone, too")
    };
    assert_eq!(error.kind(), StoreErrorKind::Refused);
    assert_eq!(table.effects().await, (63, 63));
    assert_eq!(table.identities().await, 63);

    // Leases that are asked for together.
    let leases = table.store.clone().leased(std::time::Duration::from_secs(60)).expect("lease");
    let asked = ["new-1", bad, "new-2", "new-3"].map(|id| request("test", id));
    let answers = leases.claim_each(&asked).await;
    let refused = |answer: &Result<_, StoreError>| {
        answer.as_ref().is_err_and(|error| error.kind() == StoreErrorKind::Refused)
    };
    assert_eq!(answers.iter().map(refused).collect::<Vec<_>>(), [false, true, false, false], "{answers:?}");
    assert!(answers.iter().filter(|answer| answer.is_ok()).count() == 3, "{answers:?}");
}

/// A constraint that a migration of one's own put there.
pub async fn constraint_refuses_one_and_no_neighbour<K: Kind>() {
    let table = Table::<K>::create().await;
    if K::NAME == "SQLite" {
        let name = &table.name;
        let trigger = format!(
            "CREATE TRIGGER {name}_t BEFORE INSERT ON {name} WHEN NEW.message_id LIKE 'bad%' BEGIN SELECT RAISE(ABORT, 'not these'); END"
        );
        table.sql(&trigger).await;
    } else {
        table
            .sql(&format!(
                "ALTER TABLE {0} ADD CONSTRAINT {0}_c CHECK (message_id NOT LIKE 'bad%')",
                table.name
            ))
            .await;
    }
    one_is_refused(&table, "bad").await;
}

pub async fn shorter_column_refuses_one_and_no_neighbour<K: Kind>() {
    let table = Table::<K>::create().await;
    let name = &table.name;
    let shorter = match K::NAME {
        "PostgreSQL" => format!("ALTER TABLE {name} ALTER COLUMN message_id TYPE varchar(36)"),
        "MySQL" => format!("ALTER TABLE {name} MODIFY message_id VARBINARY(36) NOT NULL"),
        _ => format!(
            "DROP TABLE {name}; CREATE TABLE {name} (scope TEXT NOT NULL, message_id TEXT NOT NULL CHECK (length(message_id) <= 36), \
             fingerprint BLOB NOT NULL, processed_at INTEGER NOT NULL, token INTEGER, leased_until INTEGER, PRIMARY KEY (scope, message_id))"
        ),
    };
    table.sql(&shorter).await;
    one_is_refused(&table, &"b".repeat(37)).await;
}

pub async fn row_level_security_refuses_one_and_no_neighbour() {
    let table = Table::<Postgres>::create().await;
    let (name, role) = (&table.name, short("role"));
    table
        .sql(&format!(
            "CREATE ROLE {role} LOGIN; GRANT ALL ON {name}, {} TO {role}; ALTER TABLE {name} ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY p ON {name} USING (true) WITH CHECK (message_id NOT LIKE 'bad%')",
            table.effects
        ))
        .await;
    let mut url = url::Url::parse(&table.url).expect("url");
    url.set_username(&role).expect("user");
    let theirs = Table::<Postgres>::open(url.as_str(), name, &table.effects).await;
    one_is_refused(&theirs, "bad").await;
    theirs.store.pool().close().await;
    table.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// A database whose encoding lacks a character of the ID.
pub async fn encoding_refuses_one_and_no_neighbour() {
    let outside = Table::<Postgres>::create().await;
    let database = short("latin");
    outside
        .sql(&format!(
            "CREATE DATABASE {database} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        ))
        .await;
    let mut url = url::Url::parse(&Postgres::url()).expect("url");
    url.set_path(&database);
    let table = Table::<Postgres>::create_on(url.as_str()).await;
    one_is_refused(&table, "za\u{17c}").await;
    table.store.pool().close().await;
    outside.sql(&format!("DROP DATABASE {database} WITH (FORCE)")).await;
}

/// A table that refuses everything is a store that is away: nothing is told of a message then.
pub async fn table_that_refuses_all_is_a_store_that_is_away<K: Kind>() {
    let table = Table::<K>::create().await;
    let name = &table.name;
    let (refuse, allow) = match K::NAME {
        "SQLite" => (
            format!("CREATE TRIGGER {name}_t BEFORE INSERT ON {name} BEGIN SELECT RAISE(ABORT, 'none'); END"),
            format!("DROP TRIGGER {name}_t"),
        ),
        "MySQL" => (
            format!("CREATE TRIGGER {name}_t BEFORE INSERT ON {name} FOR EACH ROW SIGNAL SQLSTATE '45000'"),
            format!("DROP TRIGGER {name}_t"),
        ),
        _ => (
            format!("ALTER TABLE {name} ADD CONSTRAINT c CHECK (scope = '') NOT VALID"),
            format!("ALTER TABLE {name} DROP CONSTRAINT c"),
        ),
    };
    table.sql(&refuse).await;
    let guard = table.guard();
    for outcome in guard.process_batch(&messages("m"), &table.insert()).await {
        assert!(matches!(outcome, Outcome::StoreUnavailable { .. }), "{outcome:?}");
    }
    table.sql(&allow).await;
    for outcome in guard.process_batch(&messages("m"), &table.insert()).await {
        assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
    }
}

/// Through a consumer: the one is parked, with the reason, and the others are handled.
pub async fn refused_message_is_parked_and_its_neighbours_are_handled() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("refused").await;
    let table = Table::<Postgres>::create().await;
    table.sql(&format!("ALTER TABLE {} ADD CHECK (message_id <> 'bad')", table.name)).await;
    for n in 0..BATCH {
        let id = if n == BAD { "bad".to_owned() } else { format!("good-{n}") };
        client.publish(&queue, b"500", with_id(&id)).await;
    }
    let running = Running::start(consumer(&table, &broker(), &queue).batch(64).workers(1), table.insert());
    eventually("all others take effect", async || (table.effects().await == (63, 63)).then_some(())).await;
    let parking = format!("{queue}.parked");
    eventually("it is parked", async || (client.ready(&parking).await == 1).then_some(())).await;
    assert_eq!(running.monitor.status().state, ConsumerState::Consuming);
    running.stop().await;
    let parked = client.get(&parking).await.expect("parked");
    assert_eq!(parked.properties.message_id().as_ref().map(|id| id.as_str()), Some("bad"));
    assert_eq!(header(&parked, "x-idempotency-parked-reason").as_deref(), Some("refused-by-store"));
    let error = header(&parked, "x-idempotency-parked-error").expect("an error");
    assert!(error.contains("violates check constraint"), "{error}");
    assert_eq!(client.ready(&queue).await, 0);
    delete(&queue).await;
}
