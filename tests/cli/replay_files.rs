//! Files that are sent as a replay, as exports and people leave them.

use std::{fs, path::PathBuf};

use sqlx::Sqlite;

use super::{
    Program, on,
    program::short,
    support::{
        amqp::{Client, with_id},
        broker,
    },
};

trials! {
    what_is_sent_behind_a_line_that_failed_is_counted,
    exported_message_of_any_timestamp_is_sent,
    one_message_of_a_file_with_others_that_have_no_id,
    empty_line_at_the_end_is_no_message,
}

const EPOCH: &str = "2026-11-fix";

struct Desk {
    program: Program,
    client: Client,
    parked: String,
    queue: String,
    export: PathBuf,
}

impl Desk {
    async fn open() -> Self {
        let (program, ..) = on::<Sqlite>();
        let program = program.env("AMQP_URL", broker());
        program.run("schema apply --identities --replays --yes").await.ok();
        program.run(&format!("replay open ledger {EPOCH} --by ops --because wrong --yes")).await.ok();
        let client = Client::connect(&broker()).await;
        let (parked, queue) =
            (client.quorum_queue("cli-files-parked").await, client.queue("cli-files").await);
        let export = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(short("export"));
        Self { program, client, parked, queue, export }
    }

    async fn export(&self) {
        self.program.json(&format!("parked export {} --out {}", self.parked, self.export.display())).await;
    }

    async fn send(&self, more: &str) -> super::program::Ran {
        let (export, queue) = (self.export.display(), &self.queue);
        let more = if more.is_empty() { format!("--to {queue}") } else { more.to_owned() };
        self.program
            .run(&format!("replay send --scope ledger --epoch {EPOCH} --from-file {export} --yes {more}"))
            .await
    }

    async fn end(self) {
        let _ = fs::remove_file(&self.export);
        for queue in [&self.parked, &self.queue] {
            self.client.delete(queue).await;
        }
    }
}

/// And soon nothing is sent any more.
pub async fn what_is_sent_behind_a_line_that_failed_is_counted() {
    const LINES: u32 = 500;
    let desk = Desk::open().await;
    let line = |id: &str, queue: &str| {
        format!(
            r#"{{"id":"{id}","headers":{{"x-idempotency-original-queue":{{"string":"{queue}"}}}},"body_base64":"NTAw"}}"#
        )
    };
    let mut lines = vec![line("a", &desk.queue), line("b", "no.such.queue")];
    lines.extend((0..LINES).map(|n| line(&format!("c{n}"), &desk.queue)));
    fs::write(&desk.export, lines.join("\n")).unwrap();
    let ran = desk.send("--json").await;
    assert!(ran.code == 1 && ran.err.contains("line 2: "), "{ran:?}");
    let ready = desk.client.ready(&desk.queue).await;
    assert_eq!(ran.objects()[0]["sent"], ready);
    assert!((1..LINES).contains(&ready), "{ready} are in the queue");
    desk.end().await;
}

/// Such as one in milliseconds.
pub async fn exported_message_of_any_timestamp_is_sent() {
    let desk = Desk::open().await;
    let properties = with_id("order-42").with_timestamp(1_700_000_000_000);
    desk.client.publish(&desk.parked, b"500", properties).await;
    desk.export().await;
    let ran = desk.send("").await;
    desk.end().await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

pub async fn one_message_of_a_file_with_others_that_have_no_id() {
    let desk = Desk::open().await;
    desk.client.publish(&desk.parked, b"1", lapin::BasicProperties::default()).await;
    desk.client.publish(&desk.parked, b"500", with_id("order-42")).await;
    desk.export().await;
    let ran = desk.send(&format!("--to {} --id order-42", desk.queue)).await;
    desk.end().await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

pub async fn empty_line_at_the_end_is_no_message() {
    let desk = Desk::open().await;
    desk.client.publish(&desk.parked, b"500", with_id("order-42")).await;
    desk.export().await;
    let mut text = fs::read_to_string(&desk.export).unwrap();
    text.push('\n');
    fs::write(&desk.export, text).unwrap();
    let ran = desk.send("").await;
    desk.end().await;
    assert_eq!(ran.code, 0, "{ran:?}");
}
