//! The examples, run as a user runs them.

use std::{
    io::Write,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use lapin::BasicProperties;

use super::support::{
    amqp::Client,
    broker, eventually,
    node::Node,
    proxy::{Action, From, Proxy, method},
    unique,
};

trials! {
    loop_of_ones_own_holds_what_it_cannot_park,
    payments_are_right_with_the_guard_and_wrong_without,
    jsonl_lines_are_published_and_bad_ones_reported,
    jsonl_unroutable_lines_come_back,
    jsonl_never_truncates_what_it_reads,
    jsonl_that_is_killed_leaves_what_was_there_and_what_failed,
    jsonl_is_utf_8_and_keys_are_not_empty,
}

fn example(name: &str, arguments: &[&str], input: &str) -> Output {
    example_bytes(name, arguments, input.as_bytes())
}

fn example_bytes(name: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = started(name, &broker(), arguments);
    // Whoever refuses its input does not read it.
    child.stdin.take().expect("stdin").write_all(input).unwrap_or_default();
    child.wait_with_output().expect("output")
}

/// Cargo builds the examples beside the tests.
fn started(name: &str, url: &str, arguments: &[&str]) -> Child {
    let tests = std::env::current_exe().expect("exe");
    let built = tests.parent().and_then(|deps| deps.parent()).expect("target").join("examples").join(name);
    Command::new(built)
        .args(arguments)
        .env("AMQP_URL", url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the example was built")
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique(name))
}

/// The scenario of the README: right with the guard, and wrong without it, or it would prove
/// nothing.
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

/// The run that the example itself asks for: what failed, again, from the file that what fails is
/// written to.
pub async fn jsonl_never_truncates_what_it_reads() {
    let folder = scratch("again");
    std::fs::create_dir_all(&folder).expect("folder");
    let lines = (0..3_000).map(|n| format!("{{\"id\":{n}}}\n")).collect::<Vec<_>>().concat();
    let (file, hard, soft) = (folder.join("failed.jsonl"), folder.join("hard"), folder.join("soft"));
    let roundabout = folder.join(".").join("failed.jsonl");
    std::fs::write(&file, &lines).expect("input");
    std::fs::hard_link(&file, &hard).expect("link");
    std::os::unix::fs::symlink(&file, &soft).expect("link");
    let target = unique("no-such-queue");
    for (input, failed) in
        [(&file, &file), (&file, &hard), (&file, &soft), (&soft, &file), (&file, &roundabout)]
    {
        let paths = [input, failed].map(|path| path.to_str().expect("path"));
        let arguments = [paths[0], "--routing-key", &target, "--id-pointer", "/id", "--failed", paths[1]];
        let output = example("publish_jsonl", &arguments, "");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("0 confirmed (0 retried), 3000 unroutable, 0 invalid"), "{text}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("run the whole input again"));
        for path in [input, failed] {
            assert_eq!(std::fs::read_to_string(path).expect("kept"), lines, "{}", failed.display());
        }
    }
    // The report, too, and not both into one file.
    let path = file.to_str().expect("path");
    let both = ["--routing-key", &target, "--failed", path, "--report", path];
    assert!(!example("publish_jsonl", &both, "{}\n").status.success());
    let other = folder.join("other");
    let report = [path, "--routing-key", &target, "--id-pointer", "/id", "--report", path, "--failed"];
    let report = [report.as_slice(), &[other.to_str().expect("path")]].concat();
    example("publish_jsonl", &report, "");
    assert_eq!(std::fs::read_to_string(&file).expect("report").lines().count(), 3_000);
    assert_eq!(std::fs::read_to_string(&other).expect("failed"), lines);
    let left: Vec<_> =
        std::fs::read_dir(&folder).expect("folder").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 4, "no partial file is left: {left:?}");
    std::fs::remove_dir_all(&folder).expect("clean");
}

pub async fn jsonl_that_is_killed_leaves_what_was_there_and_what_failed() {
    let folder = scratch("killed");
    std::fs::create_dir_all(&folder).expect("folder");
    let failed = folder.join("failed.jsonl");
    std::fs::write(&failed, "before\n").expect("written");
    let target = unique("no-such-queue");
    let arguments = ["--routing-key", &target, "--failed", failed.to_str().expect("path")];
    let mut child = started("publish_jsonl", &broker(), &arguments);
    let input = "not json\n{\"a\":1}\n";
    child.stdin.as_mut().expect("stdin").write_all(input.as_bytes()).expect("input");
    let partial = folder.join(format!("failed.jsonl.{}.partial", child.id()));
    eventually("both lines are kept", async || {
        std::fs::read_to_string(&partial).is_ok_and(|text| text == input).then_some(())
    })
    .await;
    child.kill().expect("killed");
    let told = child.wait_with_output().expect("output").stderr;
    assert!(String::from_utf8_lossy(&told).contains(partial.to_str().expect("path")));
    assert_eq!(std::fs::read_to_string(&failed).expect("as it was"), "before\n");
    assert_eq!(std::fs::read_to_string(&partial).expect("kept"), input);
    std::fs::remove_dir_all(&folder).expect("clean");
}

pub async fn jsonl_is_utf_8_and_keys_are_not_empty() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("jsonl-text").await;
    let failed = scratch("failed");
    let run = |id: &[&str], input: &[u8]| {
        let common = ["--routing-key", &queue, "--failed", failed.to_str().expect("path")];
        let output = example_bytes("publish_jsonl", &[&common, id].concat(), input);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    for id in [["--id", "content"], ["--id-pointer", "/a"], ["--id", "ulid"]] {
        for bad in [b"{\"a\":\"caf\xe9\"}\n".as_slice(), b"{\"a\":\"caf\xed\xa0\x80\"}\n"] {
            let (code, counts, told) = run(&id, bad);
            assert!(
                code == Some(1) && counts.contains("0 confirmed") && counts.contains("1 invalid"),
                "{counts}"
            );
            assert!(told.contains("not UTF-8 at byte 10 of the line"), "{told}");
            assert_eq!(std::fs::read(&failed).expect("failed"), bad);
        }
        let (code, counts, told) = run(&id, b"\xef\xbb\xbf{\"a\":1}\n");
        assert!(code == Some(0) && counts.starts_with("1 confirmed"), "{counts}");
        assert!(told.contains("byte order mark"), "{told}");
    }
    for (order, mark) in
        [(u16::to_le_bytes as fn(u16) -> [u8; 2], true), (u16::to_be_bytes, true), (u16::to_le_bytes, false)]
    {
        let text = if mark { "\u{feff}{\"a\":1}\n" } else { "{\"a\":1}\n" };
        let (code, counts, told) =
            run(&["--id", "content"], &text.encode_utf16().flat_map(order).collect::<Vec<_>>());
        assert!(code == Some(1) && counts.is_empty() && told.contains("UTF-16"), "{told}");
    }
    let (_, counts, _) = run(
        &["--id-pointer", "/a"],
        b"{\"a\":\"\"}\n{\"a\":{}}\n{\"a\":[]}\n{\"a\":[1]}\n{\"a\":null}\n{\"a\":0}\n",
    );
    assert!(counts.starts_with("1 confirmed") && counts.contains("5 invalid"), "{counts}");
    client.delete(&queue).await;
}

/// What cannot be parked is held for a while each time: no hot loop, and nothing that a delivery
/// limit would count.
pub async fn loop_of_ones_own_holds_what_it_cannot_park() {
    const QUEUE: &str = "payments.debit";
    const PARKED: &str = "payments.debit.parked";
    // Those queues are others' as well.
    let node = Node::start().await;
    let full = r#"{"max-length":0,"overflow":"reject-publish"}"#;
    node.ctl(&["set_policy", "--apply-to", "queues", "full", "[.]parked$", full]).await;
    let client = Client::connect(node.url()).await;
    for queue in [QUEUE, PARKED] {
        client.declare(queue).await;
    }
    client.publish(QUEUE, b"500", BasicProperties::default()).await;
    let (proxy, tries) = (Proxy::start(node.url()).await, Arc::new(Mutex::new(Vec::new())));
    let seen = Arc::clone(&tries);
    proxy.rule(move |frame| {
        if frame.is(From::Client, method::BASIC_PUBLISH) {
            seen.lock().expect("tries").push(Instant::now());
        }
        Action::Pass
    });
    let child = started("existing_loop", proxy.url(), &[QUEUE]);
    let tried = async || Some(tries.lock().expect("tries").clone()).filter(|tries| tries.len() >= 6);
    let tries = eventually("it tries again", tried).await;
    assert!(tries[5] - tries[0] >= Duration::from_millis(500), "{:?}", tries[5] - tries[0]);
    assert_eq!(client.ready(QUEUE).await, 0, "it was given back");
    node.ctl(&["clear_policy", "full"]).await;
    eventually("it is parked", async || (client.ready(PARKED).await == 1).then_some(())).await;
    let stopped = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(stopped.expect("kill").success());
    let output =
        tokio::task::spawn_blocking(|| child.wait_with_output().expect("output")).await.expect("join");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((client.ready(QUEUE).await, client.ready(PARKED).await), (0, 1));
}
