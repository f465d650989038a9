//! What anyone may have put into a message is shown harmlessly.

use lapin::types::{AMQPValue, FieldTable};
use lapin_idempotent::OutgoingMessage;
use sqlx::Postgres;

use super::{
    outbox::Filled,
    program::{Program, Ran, short, variable},
    support::{
        amqp::{Client, with_id},
        broker,
    },
};

trials! {
    a_parked_message_is_shown_harmlessly,
    a_row_of_an_outbox_is_shown_harmlessly,
    a_body_of_a_megabyte_is_bounded,
}

pub const HOSTILE: &str =
    "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{202e}<script>alert(1)</script>\r\nFAKE ok\u{0}é";

/// Nothing that a terminal acts on, and no line more than there are fields.
fn assert_harmless(ran: &Ran) {
    for c in ran.all().chars() {
        let is_plain = c == '\n' || c == 'é' || c == '…' || c.is_ascii() && !c.is_ascii_control();
        assert!(is_plain, "{c:?} in {ran:?}");
    }
    assert!(ran.out.lines().all(|line| !line.starts_with("FAKE")), "{ran:?}");
}

pub async fn a_parked_message_is_shown_harmlessly() {
    let client = Client::connect(&broker()).await;
    let parking = client.queue("cli-hostile").await;
    let text = |text: &str| AMQPValue::LongString(text.into());
    let mut headers = FieldTable::default();
    for name in ["x-idempotency-parked-reason", "x-idempotency-parked-error", "x-idempotency-original-queue"]
    {
        headers.insert(name.into(), text(HOSTILE));
    }
    headers.insert(HOSTILE.into(), text(HOSTILE));
    headers.insert("bytes".into(), AMQPValue::LongString(b"\xff\xfe\x1b[2J".to_vec().into()));
    headers.insert("long".into(), text(&"x".repeat(50_000)));
    let properties = || with_id(HOSTILE).with_headers(headers.clone()).with_content_type(HOSTILE.into());
    client.publish(&parking, HOSTILE.as_bytes(), properties()).await;
    client.publish(&parking, b"\xff\x00\x1b[2J", with_id("binary")).await;
    let program = Program::new().env("AMQP_URL", broker());
    for json in ["", "--json"] {
        for words in [
            &["parked", "list", &parking][..],
            &["parked", "show", &parking, "binary", "--body"],
            &["parked", "export", &parking],
            &["parked", "unpark", &parking, "--reason", HOSTILE.split('\0').next().unwrap(), "--dry-run"],
        ] {
            let words: Vec<&str> = words.iter().copied().chain((!json.is_empty()).then_some(json)).collect();
            let ran = program.run_with(&words).await.ok();
            assert_harmless(&ran);
            if words[1] == "export" || words[1] == "list" && !json.is_empty() {
                assert_eq!(ran.objects()[0]["id"], HOSTILE, "and nothing is lost");
            }
        }
    }
    // An ID with a zero byte cannot be an argument; the error that repeats it is harmless.
    let without_zero = HOSTILE.replace('\0', "");
    let none = program.run_with(&["parked", "show", &parking, &without_zero]).await;
    assert_eq!(none.code, 1, "{none:?}");
    assert_harmless(&none);
    let usage = program.run_with(&[&without_zero]).await;
    assert_eq!(usage.code, 2, "{usage:?}");
    assert_harmless(&usage);
    client.delete(&parking).await;
}

pub async fn a_row_of_an_outbox_is_shown_harmlessly() {
    let (url, table) = (variable("POSTGRES_URL"), short("ob"));
    let program = Program::new().env("STORE_URL", &url).arg("--outbox-table").arg(&table);
    program.run("schema apply --outbox --yes").await.ok();
    let filled = Filled::<Postgres>::open(&url, &table).await;
    // What a column takes: no zero byte, and no control character in an ID.
    let key = "\u{202e}key\u{1b}[2J";
    let hostile = HOSTILE.replace('\0', "");
    let message = OutgoingMessage::to("", "q\u{202e}<b>")
        .idempotency_key("m")
        .header("hostile", hostile.as_str())
        .body(HOSTILE);
    filled.enqueue(key, message).await;
    let seq = program.json("outbox list").await[0]["seq"].to_string();
    for command in ["outbox list".to_owned(), format!("outbox show {seq} --body")] {
        for json in ["", " --json"] {
            let ran = program.run(&format!("{command}{json}")).await.ok();
            assert_harmless(&ran);
        }
    }
    let shown = &program.json(&format!("outbox show {seq} --body")).await[0];
    assert_eq!((&shown["body"], &shown["key"]), (&HOSTILE.into(), &key.into()));
    filled.park(1, &hostile).await;
    for command in ["outbox list --parked", "outbox status", "outbox status --json"] {
        assert_harmless(&program.run(command).await.ok());
    }
    for words in [["outbox", "retry", "--key", key, "--dry-run"]] {
        assert_harmless(&program.run_with(&words).await.ok());
    }
}

pub async fn a_body_of_a_megabyte_is_bounded() {
    let client = Client::connect(&broker()).await;
    let parking = client.queue("cli-large").await;
    let body = "é".repeat(500_000);
    client.publish(&parking, body.as_bytes(), with_id("large")).await;
    client.publish(&parking, &vec![0xff; 1_000_000], with_id("binary")).await;
    let program = Program::new().env("AMQP_URL", broker());
    for id in ["large", "binary"] {
        let show = format!("parked show {parking} {id} --body");
        let shown = program.run(&show).await.ok();
        assert!(shown.out.len() < 20_000, "{} bytes", shown.out.len());
        let shown = &program.json(&show).await[0];
        assert_eq!((&shown["body_bytes"], &shown["body_is_cut"]), (&1_000_000.into(), &true.into()));
    }
    let whole = &program.json(&format!("parked show {parking} large --body --bytes 1000000")).await[0];
    assert_eq!(whole["body"], body.as_str());
    let exported = program.run(&format!("parked export {parking}")).await.ok();
    assert!(exported.out.len() > 2_600_000, "{} bytes", exported.out.len());
    client.delete(&parking).await;
}
