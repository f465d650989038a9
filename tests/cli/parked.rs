//! A parking queue by the command line.

use lapin::types::{AMQPValue, FieldTable};
use serde_json::Value;

use super::{
    program::{Program, short},
    support::{
        amqp::{Client, with_id},
        broker, eventually,
    },
    terminal::Terminal,
};

trials! {
    looking_never_uses_messages_up,
    an_export_has_everything_and_takes_nothing,
    what_cannot_be_put_back_stays_and_is_a_failure,
    long_work_has_a_bar,
}

pub const MESSAGES: usize = 4;

/// A parking queue with messages `m0` to `m3`, of two reasons in turn.
pub struct Filled {
    pub queue: String,
    pub from: String,
}

impl Filled {
    pub async fn create(client: &Client) -> Self {
        let filled = Self { from: client.queue("cli").await, queue: client.quorum_queue("cli-parked").await };
        filled.fill(client).await;
        filled
    }

    async fn fill(&self, client: &Client) {
        for n in 0..MESSAGES {
            let text = |text: &str| AMQPValue::LongString(text.into());
            let mut headers = FieldTable::default();
            let reason = if n % 2 == 0 { "rejected" } else { "attempts-exhausted" };
            headers.insert("x-idempotency-parked-reason".into(), text(reason));
            headers.insert("x-idempotency-parked-error".into(), text("no such account"));
            headers.insert("x-idempotency-original-queue".into(), text(&self.from));
            let properties = with_id(&format!("m{n}")).with_headers(headers);
            client.publish(&self.queue, format!("body {n}").as_bytes(), properties).await;
        }
    }

    pub async fn delete(&self, client: &Client) {
        for queue in [&self.queue, &self.from] {
            client.delete(queue).await;
        }
    }

    pub async fn has(&self, client: &Client, messages: u32) {
        let is_there = async || (client.ready(&self.queue).await == messages).then_some(());
        eventually("what was looked at is back", is_there).await;
    }
}

fn program() -> Program {
    Program::new().env("AMQP_URL", broker())
}

fn ids(rows: &[Value]) -> Vec<&str> {
    let mut ids: Vec<_> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    ids.sort_unstable();
    ids
}

pub async fn every_command(client: &Client, filled: &Filled) {
    let (program, queue) = (program(), &filled.queue);
    let rows = program.json(&format!("parked list {queue}")).await;
    assert_eq!(ids(&rows), ["m0", "m1", "m2", "m3"]);
    filled.has(client, 4).await;
    let rejected = program.json(&format!("parked list {queue} --reason rejected")).await;
    assert_eq!(ids(&rejected), ["m0", "m2"]);
    assert_eq!(rejected[0]["error"], "no such account");
    let table = program.run(&format!("parked list {queue}")).await.ok();
    assert!(table.out.starts_with("ID") && table.out.contains("4 of 4 looked at"), "{table:?}");
    filled.has(client, 4).await;
    let shown = program.run(&format!("parked show {queue} m1 --body")).await.ok();
    assert!(shown.out.contains("body 1") && shown.out.contains("x-idempotency-parked-reason"), "{shown:?}");
    assert_eq!(program.run(&format!("parked show {queue} m9")).await.code, 1);

    let mistyped = program.run(&format!("parked unpark {queue} --id m9 --yes")).await;
    assert!(mistyped.code == 1 && mistyped.err.contains("no message"), "{mistyped:?}");
    filled.has(client, 4).await;
    let refused = program.run(&format!("parked unpark {queue} --yes")).await;
    assert_eq!(refused.code, 2, "which ones must be said: {refused:?}");
    let dry = program.json(&format!("parked unpark {queue} --reason rejected --dry-run")).await;
    assert_eq!(dry[0]["would_move"], 2);
    filled.has(client, 4).await;
    let moved = program.json(&format!("parked unpark {queue} --reason rejected --limit 1 --yes")).await;
    assert_eq!(moved[0]["moved"], 1);
    let moved = program.json(&format!("parked unpark {queue} --id m1 --yes")).await;
    assert_eq!(moved[0]["moved"], 1);
    eventually("they are back", async || (client.ready(&filled.from).await == 2).then_some(())).await;
    filled.has(client, 2).await;
    let discarded = program.json(&format!("parked discard {queue} --id m3 --because test --yes")).await;
    assert_eq!((&discarded[0]["discarded"], &discarded[0]["left"]), (&1.into(), &1.into()));
    filled.has(client, 1).await;
    let left = program.json(&format!("parked list {queue}")).await;
    // A quorum queue gives back in another order: either of the two was the first.
    assert!(ids(&left) == ["m0"] || ids(&left) == ["m2"], "{left:?}");
}

/// Where the broker counts what is looked at, up to a limit of three.
pub async fn looking_never_uses_messages_up() {
    let client = Client::connect(&broker()).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(3));
    let queue = client.queue_with("cli-limited", arguments).await;
    let filled = Filled { from: client.queue("cli").await, queue };
    filled.fill(&client).await;
    let queue = &filled.queue;
    for turn in 0..3 {
        for command in ["list", "export"] {
            let rows = program().json(&format!("parked {command} {queue} --delivery-limit 3")).await;
            assert_eq!(ids(&rows), ["m0", "m1", "m2", "m3"], "turn {turn}");
            filled.has(&client, 4).await;
        }
        let one = program().json(&format!("parked show {queue} m2 --delivery-limit 3")).await;
        assert_eq!(one[0]["reason"], "rejected");
        filled.has(&client, 4).await;
        let dry = format!("parked discard {queue} --all --because test --dry-run --delivery-limit 3");
        assert_eq!(program().json(&dry).await[0]["would_discard"], 4);
        filled.has(&client, 4).await;
    }
    filled.delete(&client).await;
}

pub async fn an_export_has_everything_and_takes_nothing() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let file = std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("export"));
    let binary: Vec<u8> = (0..=255).collect();
    client.publish(&filled.queue, &binary, with_id("binary").with_correlation_id("c".into())).await;
    let export = format!("parked export {} --out {}", filled.queue, file.display());
    assert_eq!(program().json(&export).await[0]["exported"], 5);
    filled.has(&client, 5).await;
    let written = std::fs::read_to_string(&file).expect("file");
    let rows: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let binary_row = rows.iter().find(|row| row["id"] == "binary").expect("it");
    assert_eq!(binary_row["correlation_id"], "c");
    let coded = binary_row["body_base64"].as_str().expect("text");
    assert!(coded.starts_with("AAECAwQF") && coded.ends_with("+fr7/P3+/w=="), "{coded}");
    let again = program().run(&export).await;
    assert!(again.code == 1, "a file that is there is not written over: {again:?}");
    filled.delete(&client).await;
}

pub async fn what_cannot_be_put_back_stays_and_is_a_failure() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let ran = program().run(&format!("parked unpark {} --all --to no.such.queue --yes", filled.queue)).await;
    assert!(ran.code == 1 && ran.out.contains("failed") && ran.err.contains("they stay parked"), "{ran:?}");
    filled.has(&client, 4).await;
    let none = program().run("parked list no.such.queue").await;
    super::assert_failed(&none);
    filled.delete(&client).await;
}

/// On a terminal, for people, and gone when it is done.
pub async fn long_work_has_a_bar() {
    let client = Client::connect(&broker()).await;
    let filled = Filled::create(&client).await;
    let words = ["parked", "discard", &filled.queue, "--id", "m9", "--because", "test", "--yes"];
    for (json, bars) in [(false, true), (true, false)] {
        let words: Vec<&str> = words.into_iter().chain(json.then_some("--json")).collect();
        let terminal = Terminal::start(&program(), (24, 80), &words);
        let screen = terminal.shows("the same terminal, code 0").await;
        assert!(screen.contains("discarded") && !screen.contains("deleting"), "{screen}");
        let seen = String::from_utf8_lossy(&terminal.bytes()).into_owned();
        assert_eq!(seen.contains("deleting"), bars, "{seen:?}");
        filled.has(&client, 4).await;
    }
    let ran = program().run_with(&words).await.ok();
    assert!(!ran.err.contains("deleting"), "{ran:?}");
    filled.delete(&client).await;
}
