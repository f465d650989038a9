//! Private database servers that a test may stop, kill and freeze.

use std::{path::PathBuf, process::Command};

pub struct Server {
    kind: &'static str,
    dir: PathBuf,
    url: String,
}

impl Server {
    /// `postgres`, `mysql` (`MariaDB` if there is one), `redis` or `redis-cluster`, with arguments
    /// for the server.
    pub async fn start(kind: &'static str, arguments: &[&str]) -> Self {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{kind}.{}", uuid::Uuid::new_v4().simple()));
        let url = run(kind, "start", &dir, arguments).await;
        Self { kind, dir, url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Politely, as for an update.
    pub async fn stop(&self) {
        run(self.kind, "stop", &self.dir, &[]).await;
    }

    pub async fn kill(&self) {
        run(self.kind, "kill", &self.dir, &[]).await;
    }

    pub async fn pause(&self) {
        run(self.kind, "pause", &self.dir, &[]).await;
    }

    pub async fn resume(&self) {
        run(self.kind, "resume", &self.dir, &[]).await;
    }

    pub async fn start_again(&self) {
        assert_eq!(run(self.kind, "start", &self.dir, &[]).await, self.url);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = command(self.kind, "remove", &self.dir).status();
    }
}

fn command(kind: &str, verb: &str, dir: &PathBuf) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/database-node"));
    command.arg(kind).arg(verb).arg(dir);
    command
}

async fn run(kind: &str, verb: &str, dir: &PathBuf, arguments: &[&str]) -> String {
    let mut command = command(kind, verb, dir);
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("join");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{kind} {verb}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}
