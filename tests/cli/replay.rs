//! Replays by the command line: what was exported, or is parked, takes effect once more.

use std::{fs, path::PathBuf};

use lapin_idempotent::{
    Guard, HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, Outcome,
    idempotency::{ReplayPolicy, Scope},
    store::{SqlDatabase, SqlStore},
};
use serde_json::Value;
use sqlx::Transaction;

use super::{
    Program, on,
    parked::{Filled, MESSAGES},
    program::short,
    support::{amqp::Client, broker, consumer::Running, eventually},
};

trials! {
    replay_by_the_command_line<Postgres, MySql, Sqlite>,
    bad_line_is_named_and_nothing_is_sent<Postgres, MySql, Sqlite>,
}

const EPOCH: &str = "2026-11-fix";

struct Nothing;

impl<DB: SqlDatabase> IdempotentHandler<SqlStore<DB>> for Nothing {
    async fn handle(&self, message: &IncomingMessage, _: &mut Transaction<'static, DB>) -> HandlerResult {
        assert_eq!(message.replay_epoch(), Some(EPOCH));
        assert_eq!(message.header("x-idempotency-parked-reason"), None);
        Ok(())
    }
}

struct First;

impl<DB: SqlDatabase> IdempotentHandler<SqlStore<DB>> for First {
    async fn handle(&self, _: &IncomingMessage, _: &mut Transaction<'static, DB>) -> HandlerResult {
        Ok(())
    }
}

async fn store<DB: SqlDatabase>(url: &str, table: &str) -> SqlStore<DB> {
    SqlStore::connect(url).await.expect("connect").table(table).expect("name")
}

fn file(text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("replay"));
    fs::write(&path, text).expect("file");
    path
}

/// The first and the last of the messages took effect, the others never did.
pub async fn replay_by_the_command_line<DB: SqlDatabase>() {
    let (program, url, table) = on::<DB>();
    let program: Program = program.env("AMQP_URL", broker());
    let printed = program.run("schema print --replays").await.ok();
    assert!(printed.out.contains(&format!("{table}_replayed")), "{printed:?}");
    program.run("schema apply --identities --yes").await.ok();
    let checked = program.run("schema check --replays").await;
    assert!(checked.code == 3 && checked.out.contains(&format!("{table}_replays is missing")), "{checked:?}");
    assert_eq!(program.json("schema apply --replays --yes").await[0]["tables"], "replays");
    program.run("schema check --identities --replays").await.ok();

    let store = store::<DB>(&url, &table).await;
    let client = Client::connect(&broker()).await;
    let parked = Filled::create(&client).await;
    let guard = Guard::new(store.clone(), Scope::new("ledger").unwrap());
    for n in [0, MESSAGES - 1] {
        let message = IncomingMessage::new(format!("body {n}")).with_message_id(format!("m{n}"));
        assert!(matches!(guard.process(&message, &First).await, Outcome::Processed));
    }
    let export = file("");
    fs::remove_file(&export).unwrap();
    program.json(&format!("parked export {} --out {}", parked.queue, export.display())).await;

    let send = format!("replay send --scope ledger --epoch {EPOCH} --from-file {}", export.display());
    let refused = program.run(&format!("{send} --yes")).await;
    assert!(refused.code == 1 && refused.err.contains("is not open"), "{refused:?}");
    let open = format!("replay open ledger {EPOCH} --by ops --because wrong");
    let unasked = program.run(&open).await;
    assert!(unasked.code == 2 && unasked.err.contains("--yes"), "{unasked:?}");
    program.run(&format!("{open} --dry-run")).await.ok();
    assert_eq!(program.json("replay list").await.len(), 0);
    for opened in [true, false] {
        assert_eq!(program.json(&format!("{open} --yes")).await[0]["opened"], opened);
    }
    let outlook = |told: &Value| {
        let of = |name: &str| told[name].as_u64().expect("a count");
        (of("would_run"), of("known_in_this_epoch"), of("never_ran"))
    };
    assert_eq!(outlook(&program.json(&format!("{send} --dry-run")).await[0]), (2, 0, 2));
    let one = program.json(&format!("{send} --id m0 --dry-run")).await;
    assert_eq!(outlook(&one[0]), (1, 0, 0));
    let queued = format!("replay send --scope ledger --epoch {EPOCH} --from-queue {}", parked.queue);
    assert_eq!(outlook(&program.json(&format!("{queued} --dry-run")).await[0]), (2, 0, 2));
    eventually("what was looked at is back", async || (client.ready(&parked.queue).await == 4).then_some(()))
        .await;
    assert_eq!(client.ready(&parked.from).await, 0, "a dry run sends nothing");

    // Twice, and once more out of the queue.
    for _ in 0..2 {
        assert_eq!(program.json(&format!("{send} --yes")).await[0]["sent"], MESSAGES);
    }
    let moved = program.json(&format!("{queued} --reason rejected --limit 1 --yes")).await;
    assert_eq!((&moved[0]["sent"], &moved[0]["failed"]), (&1.into(), &0.into()));
    let consumer = IdempotentConsumer::builder(broker(), &parked.from, store.clone())
        .scope("ledger")
        .replays(ReplayPolicy::Opened);
    let running = Running::start(consumer, Nothing);
    let outcomes = running.decided(2 * MESSAGES + 1).await;
    running.stop().await;
    let count = |name: &str| outcomes.iter().filter(|outcome| **outcome == name).count();
    assert_eq!((count("processed"), count("duplicate")), (MESSAGES, MESSAGES + 1), "{outcomes:?}");
    assert_eq!(outlook(&program.json(&format!("{send} --dry-run")).await[0]), (0, 4, 0));

    let listed = &program.json("replay list ledger").await[0];
    assert_eq!((&listed["by"], &listed["because"]), (&"ops".into(), &"wrong".into()));
    assert_eq!((&listed["open"], &listed["replayed"]), (&true.into(), &4.into()));
    for closed in [true, false] {
        let close = format!("replay close ledger {EPOCH} --yes");
        assert_eq!(program.json(&close).await[0]["closed"], closed);
    }
    let table = program.run("replay list").await.ok();
    assert!(table.out.starts_with("SCOPE") && table.out.contains("false"), "{table:?}");
    let refused = program.run(&format!("{queued} --yes")).await;
    assert!(refused.code == 1 && refused.err.contains("is not open"), "{refused:?}");
    fs::remove_file(export).unwrap();
    parked.delete(&client).await;
    client.delete(&format!("{}.parked", parked.from)).await;
}

pub async fn bad_line_is_named_and_nothing_is_sent<DB: SqlDatabase>() {
    let (program, ..) = on::<DB>();
    let program = program.env("AMQP_URL", broker());
    program.run("schema apply --identities --replays --yes").await.ok();
    program.run(&format!("replay open ledger {EPOCH} --by ops --because wrong --yes")).await.ok();
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cli-replay").await;
    let good = r#"{"id":"order-42","headers":{},"body_base64":"NTAw"}"#;
    for (bad, said) in [
        ("{", "no exported message"),
        (r#"{"id":"a\u0007","headers":{},"body_base64":""}"#, "no usable ID"),
        (r#"{"headers":{},"body_base64":""}"#, "no usable ID"),
        (r#"{"id":"a","headers":{},"body_base64":"?"}"#, "no exported message"),
        (r#"{"id":"a","headers":{"a":5},"body_base64":""}"#, "no exported message"),
        (r#"{"id":"a","timestamp":"yesterday","headers":{},"body_base64":""}"#, "timestamp"),
    ] {
        let export = file(&format!("{good}\n{bad}\n{good}\n"));
        let send = format!("replay send --scope ledger --epoch {EPOCH} --from-file {}", export.display());
        let ran = program.run(&format!("{send} --to {queue} --yes")).await;
        assert!(ran.code == 1 && ran.err.contains("line 2: ") && ran.err.contains(said), "{bad}: {ran:?}");
        assert_eq!(client.ready(&queue).await, 0, "{bad}: all of the file is read first");
        fs::remove_file(export).unwrap();
    }
    // No queue is named; a queue that is not there; no epoch.
    let export = file(&format!("{good}\n{good}\n"));
    let send = format!("replay send --scope ledger --from-file {} --yes", export.display());
    let ran = program.run(&format!("{send} --epoch {EPOCH}")).await;
    assert!(ran.code == 1 && ran.err.contains("line 1: it does not say"), "{ran:?}");
    let ran = program.run(&format!("{send} --epoch {EPOCH} --to no.such.queue --json")).await;
    assert!(ran.code == 1 && ran.err.contains("line 1: "), "{ran:?}");
    assert_eq!(ran.objects()[0]["sent"], 0);
    let ran = program.run_with(&["replay", "open", "ledger", "a\nb", "--by", "x", "--because", "y"]).await;
    assert!(ran.code == 2 && ran.err.contains("control characters"), "{ran:?}");
    fs::remove_file(export).unwrap();
    client.delete(&queue).await;
}
