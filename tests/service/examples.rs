//! The examples, run as a user runs them.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use super::support::{amqp::Client, broker, unique};

/// Cargo builds the examples beside the tests.
fn example(name: &str, arguments: &[&str], input: &str) -> Output {
    let tests = std::env::current_exe().expect("exe");
    let built = tests.parent().and_then(|deps| deps.parent()).expect("target").join("examples").join(name);
    let mut child = Command::new(built)
        .args(arguments)
        .env("AMQP_URL", broker())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example was built");
    child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("input");
    child.wait_with_output().expect("output")
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique(name))
}

/// The scenario of the README: right with the guard, and wrong without it, or it would prove nothing.
pub async fn payments_are_right_with_the_guard_and_wrong_without() {
    let guarded = example("payments", &["--count", "300"], "");
    let text = String::from_utf8_lossy(&guarded.stdout);
    assert!(guarded.status.success() && text.contains("all 20 balances are right"), "{text}");
    for cause in ["sent twice", "delivered twice"] {
        let line = text.lines().find(|line| line.contains(cause)).unwrap_or_default();
        assert!(!line.is_empty() && !line.ends_with(" 0"), "the faults made no duplicates: {text}");
    }
    let unguarded = example("payments", &["--count", "300", "--without-guard"], "");
    let text = String::from_utf8_lossy(&unguarded.stdout);
    assert!(!unguarded.status.success() && text.contains("WRONG"), "{text}");
}

pub async fn jsonl_lines_are_published_and_bad_ones_reported() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("jsonl").await;
    let (report, failed) = (scratch("report"), scratch("failed"));
    let arguments = [
        "--routing-key",
        &queue,
        "--id-pointer",
        "/order/id",
        "--in-flight",
        "2",
        "--report",
        report.to_str().expect("path"),
        "--failed",
        failed.to_str().expect("path"),
    ];
    let input =
        "{\"order\":{\"id\":1}}\n\nnot json\n{\"order\":{}}\n{\"order\":{\"id\":1}}\n{\"order\":{\"id\":2}}";
    let output = example("publish_jsonl", &arguments, input);
    assert_eq!(output.status.code(), Some(1), "some lines failed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("3 confirmed (0 retried), 0 unroutable, 2 invalid"), "{text}");

    assert_eq!(std::fs::read_to_string(&failed).expect("failed"), "not json\n{\"order\":{}}\n");
    let report = std::fs::read_to_string(&report).expect("report");
    let entries: Vec<serde_json::Value> =
        report.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    let lines: Vec<_> = entries.iter().map(|entry| entry["line"].as_u64().expect("line")).collect();
    assert_eq!(lines, [1, 3, 4, 5, 6]);
    let outcome = |entry: usize| entries[entry]["outcome"].as_str().expect("outcome");
    assert_eq!((outcome(0), outcome(3)), ("confirmed", "confirmed"));
    assert!(outcome(1).starts_with("not JSON"), "{}", outcome(1));
    assert!(outcome(2).contains("/order/id"), "{}", outcome(2));
    assert_eq!(entries[0]["message_id"], entries[3]["message_id"], "one order, one ID");
    assert_ne!(entries[0]["message_id"], entries[4]["message_id"]);
    assert_eq!(client.ready(&queue).await, 3);
    let message = client.get(&queue).await.expect("message");
    assert_eq!(
        message.properties.message_id().as_ref().map(|id| id.as_str()),
        entries[0]["message_id"].as_str()
    );
    client.delete(&queue).await;
}

pub async fn jsonl_unroutable_lines_come_back() {
    let failed = scratch("failed");
    let target = unique("no-such-queue");
    let arguments = ["--routing-key", &target, "--id", "content", "--failed", failed.to_str().expect("path")];
    let output = example("publish_jsonl", &arguments, "{\"a\":1}\n{\"a\":2}\n");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("0 confirmed (0 retried), 2 unroutable"), "{text}");
    assert_eq!(std::fs::read_to_string(&failed).expect("failed"), "{\"a\":1}\n{\"a\":2}\n");
}
