//! A private broker that a test may kill, freeze and start again.

use std::{path::PathBuf, process::Command};

use super::unique;

pub struct Node {
    dir: PathBuf,
    url: String,
}

impl Node {
    pub async fn start() -> Self {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique("node"));
        let url = run("start", &dir, &[]).await;
        Self { dir, url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// SIGKILL, as a power cut would end it, but for the disk's own cache.
    pub async fn kill(&self) {
        run("kill", &self.dir, &[]).await;
    }

    /// SIGSTOP: alive, connected, and silent.
    pub async fn pause(&self) {
        run("pause", &self.dir, &[]).await;
    }

    /// The same ports and data again.
    pub async fn start_again(&self) {
        assert_eq!(run("start", &self.dir, &[]).await, self.url);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = command("kill", &self.dir).status();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn command(verb: &str, dir: &PathBuf) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/rabbitmq-node"));
    command.arg(verb).arg(dir);
    command
}

async fn run(verb: &str, dir: &PathBuf, arguments: &[&str]) -> String {
    let mut command = command(verb, dir);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("join");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{verb}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}
