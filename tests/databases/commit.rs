//! The commit: what the driver calls Ok and is not, and connections that end around it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use lapin_idempotent::{
    Guard, HandlerResult, IdempotentHandler, IncomingMessage, MySqlStore, Outcome, PostgresStore,
    consumer::{Settlement, settle},
    idempotency::Scope,
    store::{MySqlTransaction, PostgresTransaction, SqlStore},
};
use sqlx::{AssertSqlSafe, MySql, Postgres, Transaction};

use super::database::{
    Insert, Kind, Table, message, short,
    wire::{Cut, Wire},
};

trials! {
    handler_swallows_an_error_nothing_is_acked,
    handler_swallows_a_deadlock_nothing_is_acked,
    handler_ends_the_transaction_itself_nothing_is_acked<Postgres, MySql, Sqlite>,
    backend_terminated_in_the_handler_one_effect<Postgres, MySql>,
    connection_cut_before_commit_one_effect<Postgres, MySql>,
    connection_cut_after_commit_one_effect<Postgres, MySql>,
}

/// Violates a unique key and goes on as if nothing had happened.
struct Swallower(Insert);

impl IdempotentHandler<PostgresStore> for Swallower {
    async fn handle(&self, message: &IncomingMessage, tx: &mut PostgresTransaction) -> HandlerResult {
        self.0.write::<Postgres>(message.raw_message_id().unwrap_or_default(), tx).await?;
        let twice = format!(
            "CREATE UNIQUE INDEX ON {0} (message_id); INSERT INTO {0} SELECT * FROM {0}",
            self.0.effects
        );
        let swallowed = sqlx::raw_sql(AssertSqlSafe(twice)).execute(&mut **tx).await;
        assert_eq!(
            swallowed.expect_err("violated").as_database_error().unwrap().code().as_deref(),
            Some("23505")
        );
        Ok(())
    }
}

pub async fn handler_swallows_an_error_nothing_is_acked() {
    let table = Table::<Postgres>::create().await;
    let outcome = table.guard().process(&message("order-42"), &Swallower(table.insert())).await;
    assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
    assert_ne!(settle(&outcome), Settlement::Ack);
    assert_eq!((table.effects().await.0, table.identities().await), (0, 0));
    // The next delivery, with a handler that is right, takes effect.
    assert!(matches!(table.process("order-42").await, Outcome::Processed));
    assert_eq!(table.effects().await, (1, 1));
}

/// Runs into a deadlock, for which the server rolls its transaction back, and goes on as if nothing
/// had happened.
struct DeadlockSwallower {
    insert: Insert,
    rows: String,
    rival: sqlx::MySqlPool,
    fell: AtomicBool,
}

impl IdempotentHandler<MySqlStore> for DeadlockSwallower {
    async fn handle(&self, message: &IncomingMessage, tx: &mut MySqlTransaction) -> HandlerResult {
        let update = |id: i32| format!("UPDATE {} SET n = n + 1 WHERE id = {id}", self.rows);
        MySql::run(tx, &update(1)).await?;
        // The server rolls back whoever has changed less: the rival has changed more.
        let mut rival = self.rival.begin().await?;
        for id in 2..20 {
            MySql::run(&mut rival, &update(id)).await?;
        }
        let crossing = update(1);
        let waits = tokio::spawn(async move {
            let _ = MySql::run(&mut rival, &crossing).await;
            rival.rollback().await
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        if MySql::run(tx, &update(2)).await.is_err() {
            self.fell.store(true, Ordering::SeqCst);
        }
        let _ = waits.await;
        self.insert.write::<MySql>(message.raw_message_id().unwrap_or_default(), tx).await?;
        Ok(())
    }
}

pub async fn handler_swallows_a_deadlock_nothing_is_acked() {
    let table = Table::<MySql>::create().await;
    let rows = short("rows");
    table.sql(&format!("CREATE TABLE {rows} (id INT PRIMARY KEY, n INT NOT NULL)")).await;
    let values: Vec<String> = (1..20).map(|id| format!("({id}, 0)")).collect();
    table.sql(&format!("INSERT INTO {rows} VALUES {}", values.join(", "))).await;
    let rival = sqlx::MySqlPool::connect(&table.url).await.expect("pool");
    let handler = DeadlockSwallower { insert: table.insert(), rows, rival, fell: AtomicBool::new(false) };
    let outcome = table.guard().process(&message("order-42"), &handler).await;
    assert!(handler.fell.load(Ordering::SeqCst), "the handler was the victim");
    assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
    assert_ne!(settle(&outcome), Settlement::Ack);
    assert_eq!(table.identities().await, 0, "the identity went with the transaction");
}

/// Commits or rolls back by itself.
struct Meddler {
    insert: Insert,
    statement: &'static str,
}

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Meddler {
    async fn handle(&self, message: &IncomingMessage, tx: &mut Transaction<'static, K>) -> HandlerResult {
        self.insert.write::<K>(message.raw_message_id().unwrap_or_default(), tx).await?;
        K::run(tx, self.statement).await?;
        Ok(())
    }
}

pub async fn handler_ends_the_transaction_itself_nothing_is_acked<K: Kind>() {
    let table = Table::<K>::create().await;
    for (id, statement, afterwards) in [("c", "COMMIT", "duplicate"), ("r", "ROLLBACK", "processed")] {
        let handler = Meddler { insert: table.insert(), statement };
        let outcome = table.guard().process(&message(id), &handler).await;
        assert!(matches!(outcome, Outcome::Retry { .. }), "{statement}: {outcome:?}");
        // What it committed by itself had its identity with it.
        assert_eq!(table.process(id).await.name(), afterwards, "{statement}");
    }
    assert_eq!(table.effects().await, (2, 2));
}

/// Writes its effect; on its first run its own connection is ended by an operator.
struct Terminated<K: Kind> {
    insert: Insert,
    operator: SqlStore<K>,
    runs: AtomicU32,
}

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Terminated<K> {
    async fn handle(&self, message: &IncomingMessage, tx: &mut Transaction<'static, K>) -> HandlerResult {
        self.insert.write::<K>(message.raw_message_id().unwrap_or_default(), tx).await?;
        if self.runs.fetch_add(1, Ordering::SeqCst) == 0 {
            // Told by itself, and ended by somebody else.
            let session = K::session(tx).await;
            let mut operator = self.operator.pool().acquire().await?;
            K::run(&mut operator, &K::kill(session)).await?;
        }
        Ok(())
    }
}

pub async fn backend_terminated_in_the_handler_one_effect<K: Kind>() {
    let table = Table::<K>::create().await;
    let operator = table.again().await.store;
    let handler = Terminated { insert: table.insert(), operator, runs: AtomicU32::new(0) };
    let outcome = table.guard().process(&message("order-42"), &handler).await;
    assert!(!outcome.is_handled(), "{outcome:?}");
    assert_ne!(settle(&outcome), Settlement::Ack);
    assert_eq!(table.effects().await.0, 0);
    let outcome = table.guard().process(&message("order-42"), &handler).await;
    assert!(matches!(outcome, Outcome::Processed), "{outcome:?}");
    assert_eq!(table.effects().await, (1, 1));
}

async fn cut<K: Kind>(cut: Cut) -> (Outcome, Table<K>) {
    let table = Table::<K>::create().await;
    let armed = Arc::new(AtomicBool::new(true));
    let wire = Wire::start(&table.url, cut, armed).await;
    let through = Table::<K>::open(&wire.through(&table.url), &table.name, &table.effects).await;
    let guard = Guard::new(through.store.clone(), Scope::new("test").unwrap());
    let outcome = guard.process(&message("order-42"), &through.insert()).await;
    assert_eq!(wire.fired(), 1, "{outcome:?}");
    assert!(matches!(outcome, Outcome::StoreUnavailable { .. }), "{cut:?}: {outcome:?}");
    assert_ne!(settle(&outcome), Settlement::Ack);
    // The delivery comes again, over a connection that the pool makes anew.
    (guard.process(&message("order-42"), &through.insert()).await, table)
}

pub async fn connection_cut_before_commit_one_effect<K: Kind>() {
    let (again, table) = cut::<K>(Cut::Before).await;
    assert!(matches!(again, Outcome::Processed), "{again:?}");
    assert_eq!(table.effects().await, (1, 1));
}

pub async fn connection_cut_after_commit_one_effect<K: Kind>() {
    let (again, table) = cut::<K>(Cut::After).await;
    assert!(matches!(again, Outcome::Duplicate(_)), "{again:?}");
    assert_eq!(table.effects().await, (1, 1));
}
