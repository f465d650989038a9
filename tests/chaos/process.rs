//! A process of this program, to be signalled.

use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use clap::Args;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::support::eventually;

/// What each of them is told.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The nodes
    #[arg(long)]
    amqp: Vec<String>,
    #[arg(long)]
    pub queue: String,
    /// What the process notes
    #[arg(long)]
    pub journal: PathBuf,
}

impl Common {
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.amqp.iter().map(String::as_str)
    }
}

pub struct Process(Child);

impl Process {
    /// Starts this program with arguments; what it logs is added to a file.
    pub fn start(arguments: &[String], log: &Path) -> Self {
        let log: File = OpenOptions::new().create(true).append(true).open(log).expect("log");
        let mut command = Command::new(std::env::current_exe().expect("exe"));
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(true);
        // A Ctrl-C ends the run, which ends them.
        command.process_group(0);
        Self(command.spawn().expect("spawn"))
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("wait")
    }

    pub async fn kill(&mut self) -> ExitStatus {
        self.0.start_kill().expect("kill");
        self.0.wait().await.expect("wait")
    }

    /// SIGSTOP; whether it is stopped.
    pub async fn freeze(&mut self) -> bool {
        if !self.signal("STOP") {
            return false;
        }
        let stopped = eventually("it is stopped or gone", async || match self.state() {
            Some('T') => Some(true),
            Some('Z') | None => Some(false),
            Some(_) => None,
        });
        stopped.await
    }

    pub fn thaw(&mut self) {
        self.signal("CONT");
    }

    /// SIGTERM, and SIGKILL if it takes longer than it may: whether it stopped when asked.
    pub async fn stop(&mut self, limit: Duration) -> bool {
        self.signal("TERM");
        let stopped = timeout(limit, self.0.wait()).await.is_ok();
        if !stopped {
            self.kill().await;
        }
        stopped
    }

    fn signal(&self, name: &str) -> bool {
        let Some(pid) = self.0.id() else { return false };
        let sent = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
        sent.expect("kill").success()
    }

    /// proc(5): the state comes after the name, which is in parentheses.
    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()?)).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }
}
