//! The program `tests/support/bin/worker`: a consumer, or a relay, as a process of its own.
//!
//! For cargo it is an example: `cargo test` and `cargo nextest run` build it first; with `--test
//! databases` they do not.

use std::{
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use super::support::DEADLINE;

/// A process that consumes or relays.
pub struct Worker {
    process: Child,
    outcomes: Arc<Mutex<Vec<(String, String)>>>,
    reading: JoinHandle<()>,
}

impl Worker {
    pub fn start(arguments: &[String]) -> Self {
        let tests = std::env::current_exe().expect("exe");
        let target = tests.parent().and_then(|deps| deps.parent()).expect("target");
        let built: PathBuf = target.join("examples").join("worker");
        let mut process = Command::new(built)
            .args(arguments)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`cargo build --all-features --example worker` was run");
        let mut lines = BufReader::new(process.stdout.take().expect("stdout")).lines();
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let (saying, pid) = (Arc::clone(&outcomes), process.id());
        let reading = tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.expect("text") {
                let line: serde_json::Value = serde_json::from_str(&line).expect("an object a line");
                assert_eq!(line["pid"].as_u64(), pid.map(u64::from));
                let text = |name: &str| line[name].as_str().expect("text").to_owned();
                saying.lock().unwrap().push((text("message_id"), text("outcome")));
            }
        });
        Self { process, outcomes, reading }
    }

    /// The outcomes so far: message IDs and names.
    pub fn said(&self) -> Vec<(String, String)> {
        self.outcomes.lock().unwrap().clone()
    }

    /// How many deliveries are decided.
    pub fn decided(&self) -> usize {
        self.outcomes.lock().unwrap().len()
    }

    /// How many deliveries had this outcome.
    pub fn count(&self, outcome: &str) -> i64 {
        let outcomes = self.outcomes.lock().unwrap();
        outcomes.iter().filter(|(_, name)| name == outcome).count().try_into().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.process.id().expect("it runs")
    }

    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    pub fn signal(&self, signal: &str) {
        let sent = std::process::Command::new("kill").args([signal, &self.pid().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.process.start_kill().expect("kill");
        self.ends().await;
    }

    /// Whether it was stopped, by SIGSTOP, and not yet told to go on.
    pub fn is_frozen(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
        // The state is behind the name, which is in parentheses.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.try_wait().expect("wait").is_some()
    }

    /// Waits for its end, and for all that it said.
    pub async fn ends(&mut self) -> ExitStatus {
        let status = timeout(DEADLINE, self.process.wait()).await.expect("in time").expect("wait");
        (&mut self.reading).await.expect("outcomes");
        status
    }

    pub async fn stop(&mut self) {
        self.terminate();
        assert_eq!(self.ends().await.code(), Some(0));
    }
}
