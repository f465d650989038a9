//! An outbox by the command line.

use std::time::Duration;

use lapin_idempotent::{
    OutgoingMessage,
    outbox::{Failed, Lane, Next, Outbox, ReadRequest, RelayId, RowId},
    store::{SqlDatabase, SqlOutbox},
};
use sqlx::{Postgres, Transaction};
use uuid::Uuid;

use super::{
    program::{Program, short, variable},
    support::{amqp::Client, broker, eventually},
};

trials! {
    parked_messages_are_retried_in_their_order,
    a_relay_ends_when_it_is_told_to,
    the_oldest_of_all_lanes_are_listed,
}

/// An outbox that a test fills.
pub struct Filled<DB: SqlDatabase>(SqlOutbox<DB>);

impl<DB: SqlDatabase> Filled<DB> {
    pub async fn open(url: &str, table: &str) -> Self {
        Self(SqlOutbox::connect(url).await.expect("connect").table(table).expect("name"))
    }

    pub async fn enqueue(&self, key: &str, message: OutgoingMessage) {
        let mut tx: Transaction<'static, DB> = self.0.pool().begin().await.expect("begin");
        self.0.enqueue_in_order(&mut tx, key, message).await.expect("enqueue");
        tx.commit().await.expect("commit");
    }

    /// Parks what is there, as a relay does.
    pub async fn park(&self, count: usize, error: &str) {
        let (relay, lease) = (RelayId(Uuid::new_v4()), Duration::from_secs(60));
        self.0.register(relay, "cli").await.expect("register");
        let free: Vec<_> = self.0.ownership(lease).await.expect("lanes").lanes;
        let free: Vec<_> = free.into_iter().map(|(term, _)| term).collect();
        let held = self.0.take(relay, &free, lease).await.expect("take");
        let from: Vec<_> = (0..self.0.lanes()).map(|lane| RowId { lane: Lane(lane), seq: 0 }).collect();
        let request = ReadRequest {
            from: &from,
            without_rows: &[],
            without_keys: &[],
            without_routes: &[],
            rows: 1000,
            bytes: u64::MAX,
        };
        let mut rows = self.0.read(&request).await.expect("read").rows;
        rows.sort_by_key(|row| row.id.seq);
        let failed = |row: &lapin_idempotent::outbox::Row| Failed {
            row: row.id,
            message_id: row.message_id.clone(),
            counted: true,
            next: Next::Park,
            error: error.to_owned(),
        };
        let failed: Vec<_> = rows.iter().take(count).map(failed).collect();
        assert_eq!(failed.len(), count);
        assert_eq!(self.0.fail(&held, &failed).await.expect("fail"), []);
        self.0.leave(relay).await.expect("leave");
    }
}

/// Four messages wait, each with a key of its own: two are parked, one of them is discarded, and
/// the others are relayed.
pub async fn every_command<DB: SqlDatabase>(
    program: &Program,
    filled: &Filled<DB>,
    client: &Client,
    queue: &str,
) {
    let status = &program.json("outbox status").await[0];
    assert_eq!((&status["waiting"], &status["parked"]), (&4.into(), &0.into()), "{status}");
    let waiting = program.json("outbox list").await;
    assert_eq!(waiting.len(), 4);
    assert_eq!(program.json("outbox list --key key-2").await.len(), 1);
    assert_eq!(program.json("outbox list --limit 3").await.len(), 3);
    filled.park(2, "no route").await;
    let parked = program.json("outbox list --parked").await;
    assert_eq!((parked.len(), &parked[0]["error"]), (2, &"no route".into()));
    assert_eq!(program.json("outbox list --parked --key key-0").await.len(), 1);
    let status = &program.json("outbox status").await[0];
    assert_eq!(status["parked_by_error"]["no route"], 2, "{status}");
    for row in [&parked[0], &waiting[3]] {
        let shown = program.run(&format!("outbox show {} --body", row["seq"])).await.ok();
        assert!(shown.out.contains(row["id"].as_str().unwrap()), "{shown:?}");
        assert!(shown.out.lines().any(|line| line.starts_with("body:")), "{shown:?}");
    }
    let table = program.run("outbox list --parked").await.ok();
    assert!(table.out.starts_with("SEQ") && table.out.contains("no route"), "{table:?}");
    let none = program.run("outbox show 999999").await;
    assert_eq!(none.code, 1, "{none:?}");

    let dry = program.run("outbox discard --key key-0 --because test --dry-run").await.ok();
    assert!(dry.err.contains("would delete"), "{dry:?}");
    assert_eq!(program.json("outbox list --parked").await.len(), 2);
    let discarded = program.json("outbox discard --key key-0 --because test --yes").await;
    assert_eq!(discarded[0]["discarded"], 1);
    let seq = &parked[1]["seq"];
    assert_eq!(program.json(&format!("outbox retry {seq} --yes")).await[0]["put_back"], 1);
    assert_eq!(program.json("outbox retry --all --yes").await[0]["put_back"], 0);
    let relayed = program.clone().env("AMQP_URL", super::broker()).json("outbox relay --until-empty").await;
    assert_eq!(relayed[0]["relayed"], 3, "{relayed:?}");
    eventually("they are there", async || (client.ready(queue).await == 3).then_some(())).await;
    assert_eq!(program.json("outbox status").await[0]["waiting"], 0);
}

pub async fn parked_messages_are_retried_in_their_order() {
    let (url, table) = (variable("POSTGRES_URL"), short("ob"));
    let program = Program::new().env("STORE_URL", &url).arg("--outbox-table").arg(&table);
    program.run("schema apply --outbox --yes").await.ok();
    let filled = Filled::<Postgres>::open(&url, &table).await;
    for n in 0..3 {
        let message = OutgoingMessage::to("", "nowhere").idempotency_key(format!("m{n}")).body("x");
        filled.enqueue("one", message).await;
    }
    let before = program.json("outbox list").await;
    filled.park(3, "first").await;
    let refused = program.run("outbox retry --yes").await;
    assert_eq!(refused.code, 2, "which ones must be said: {refused:?}");
    assert_eq!(program.json("outbox retry --key one --yes").await[0]["put_back"], 3);
    let after = program.json("outbox list").await;
    let ids = |rows: &[serde_json::Value]| rows.iter().map(|row| row["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    assert!(after.iter().all(|row| row["attempts"] == 0), "{after:?}");
}

pub async fn a_relay_ends_when_it_is_told_to() {
    let (url, table) = (variable("POSTGRES_URL"), short("ob"));
    let program = Program::new().env("STORE_URL", &url).arg("--outbox-table").arg(&table);
    program.run("schema apply --outbox --yes").await.ok();
    let filled = Filled::<Postgres>::open(&url, &table).await;
    let client = Client::connect(&broker()).await;
    let queue = client.queue("cli-relay").await;
    let program = program.env("AMQP_URL", broker());
    let relay = program.start(&["outbox", "relay", "--name", "mine", "--json"]);
    let pid = relay.id().expect("it runs").to_string();
    filled.enqueue("key", OutgoingMessage::to("", &queue).idempotency_key("m").body("x")).await;
    eventually("it is relayed", async || (client.ready(&queue).await == 1).then_some(())).await;
    assert_eq!(program.json("outbox status").await[0]["relays"], 1);
    let told = std::process::Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
    assert!(told.success());
    let ran = Program::ended(relay).await.ok();
    assert_eq!(ran.objects()[0]["relayed"], 1);
    let status = &program.json("outbox status").await[0];
    assert_eq!((&status["relays"], &status["lanes_owned"]), (&0.into(), &0.into()), "{status}");
    client.delete(&queue).await;
}

/// Whichever lanes they are in.
pub async fn the_oldest_of_all_lanes_are_listed() {
    let (url, table) = (variable("POSTGRES_URL"), short("ob"));
    let program = Program::new().env("STORE_URL", &url).arg("--outbox-table").arg(&table);
    program.run("schema apply --outbox --yes").await.ok();
    let filled = Filled::<Postgres>::open(&url, &table).await;
    for n in 0..24 {
        let message = OutgoingMessage::to("", "nowhere").idempotency_key(format!("m{n}")).body("x");
        filled.enqueue(&format!("key-{}", n % 12), message).await;
    }
    let seqs = |rows: Vec<serde_json::Value>| {
        rows.iter().map(|row| row["seq"].as_i64().expect("a number")).collect::<Vec<_>>()
    };
    let all = seqs(program.json("outbox list").await);
    assert!(all.len() == 24 && all.is_sorted(), "{all:?}");
    for most in [1, 5, 23] {
        let listed = seqs(program.json(&format!("outbox list --limit {most}")).await);
        assert_eq!(listed, all[..most]);
    }
    assert_eq!(seqs(program.json("outbox list --limit 1 --key key-3").await), [all[3]]);
}
