//! Behind PgBouncer, which gives a client another session of the server for each transaction.

use std::{error::Error, process::Command, sync::Mutex, time::Duration};

use lapin_idempotent::{
    HandlerResult, IdempotencyStore, IdempotentHandler, IncomingMessage, Outcome, PostgresOutbox,
    PostgresStore, consumer::ConsumerState, idempotency::StoreErrorKind, outbox::Outbox,
};
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use tokio::{sync::watch, time::timeout};

use super::{
    changes::Scene,
    database::{Insert, Kind, Table, message, short},
    support::server::Server,
};

trials! {
    handler_ends_the_transaction_itself_nothing_is_acked,
    lost_prepared_statements_are_told_at_the_start,
    pooler_in_between_under_load_one_effect_each,
    outbox_notices_that_it_hears_nothing,
}

/// From this version on it keeps track of prepared statements.
const TRACKING: (u32, u32) = (1, 21);

/// The version of the one that is installed here.
pub fn version() -> Option<(u32, u32)> {
    let node = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/database-node");
    let found =
        Command::new(node).args(["pgbouncer", "bin"]).output().ok().filter(|found| found.status.success())?;
    let found = String::from_utf8(found.stdout).ok()?;
    let (program, place) = found.trim().split_once(' ')?;
    let told = Command::new(format!("{place}/{program}")).arg("--version").output().ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    let mut numbers = told.lines().next()?.strip_prefix("PgBouncer ")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

async fn pooler_of(settings: &[&str]) -> Server {
    let url = Postgres::url();
    let mut arguments = vec![url.as_str()];
    arguments.extend(settings);
    Server::start("pgbouncer", &arguments).await
}

/// Ends its transaction, so that the pooler gives the session to somebody else, and goes on.
struct EndsItsTransaction {
    insert: Insert,
    url: String,
    others: Mutex<Vec<PgConnection>>,
}

impl IdempotentHandler<PostgresStore> for EndsItsTransaction {
    async fn handle(&self, _: &IncomingMessage, tx: &mut Transaction<'static, Postgres>) -> HandlerResult {
        sqlx::raw_sql("ROLLBACK").execute(&mut **tx).await?;
        // Somebody else gets the session that was held.
        let mut other = PgConnection::connect(&self.url).await?;
        sqlx::raw_sql("BEGIN; SELECT 1").execute(&mut other).await?;
        // On a session that never had the transaction's mark, and committed at once.
        self.insert.write::<Postgres>("stray", tx).await?;
        self.others.lock().expect("others").push(other);
        Ok(())
    }
}

pub async fn handler_ends_the_transaction_itself_nothing_is_acked() {
    let pooler = pooler_of(&[]).await;
    let direct = Table::<Postgres>::create().await;
    let table = Table::<Postgres>::open(pooler.url(), &direct.name, &direct.effects).await;
    let handler =
        EndsItsTransaction { insert: table.insert(), url: pooler.url().to_owned(), others: Mutex::default() };
    for _ in 0..3 {
        let outcome = table.guard().process(&message("a"), &handler).await;
        assert!(matches!(outcome, Outcome::Retry { .. }), "{outcome:?}");
        assert_eq!(direct.identities().await, 0);
    }
}

/// The check says what is wrong and what to set.
pub async fn lost_prepared_statements_are_told_at_the_start() {
    let tracks = version() >= Some(TRACKING);
    let pooler = pooler_of(if tracks { &["max_prepared_statements = 0"] } else { &[] }).await;
    let direct = Table::<Postgres>::create().await;
    let table = Table::<Postgres>::open(pooler.url(), &direct.name, &direct.effects).await;
    let error = table.store.check().await.expect_err("statements get lost");
    assert_eq!(error.kind(), StoreErrorKind::Configuration, "{error:?}");
    assert!(error.source().expect("a reason").to_string().contains("max_prepared_statements"), "{error:?}");
    direct.store.check().await.expect("without a pooler");
    if tracks {
        let tracking = pooler_of(&["max_prepared_statements = 100"]).await;
        let table = Table::<Postgres>::open(tracking.url(), &direct.name, &direct.effects).await;
        table.store.check().await.expect("it keeps track of them");
    }
}

/// With a restart of the pooler.
pub async fn pooler_in_between_under_load_one_effect_each() {
    let mode =
        if version() >= Some(TRACKING) { "max_prepared_statements = 100" } else { "pool_mode = session" };
    let pooler = pooler_of(&[mode]).await;
    let table = Table::<Postgres>::create().await;
    let mut theirs = Vec::new();
    for _ in 0..2 {
        theirs.push(Table::<Postgres>::open(pooler.url(), &table.name, &table.effects).await);
    }
    let scene = Scene::start(table, [&theirs[0], &theirs[1]]).await;
    pooler.kill().await;
    scene.all(ConsumerState::StoreAway).await;
    pooler.start_again().await;
    scene.goes_on("the pooler is back").await;
    scene.end().await;
}

/// It listens on a session that the pooler gives to others.
pub async fn outbox_notices_that_it_hears_nothing() {
    let tracks = version() >= Some(TRACKING);
    let mode = if tracks { &["max_prepared_statements = 100"] as &[&str] } else { &[] };
    let name = short("ob");
    let direct =
        PostgresOutbox::connect(&Postgres::url()).await.expect("connect").table(&name).expect("name");
    direct.create_schema().await.expect("schema");
    for (settings, expected) in [(mode, false), (&["pool_mode = session"], true)] {
        let pooler = pooler_of(settings).await;
        let pooled =
            PostgresOutbox::connect(pooler.url()).await.expect("connect").table(&name).expect("name");
        let (sender, hears) = watch::channel(false);
        // Long enough for a probe and its echo.
        assert!(timeout(Duration::from_secs(6), pooled.listen(sender)).await.is_err(), "it never ends");
        assert_eq!(*hears.borrow(), expected, "{settings:?}");
    }
}
