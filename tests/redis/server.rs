//! Redis servers: the shared ones, and private ones that a test may kill and freeze.

use std::{
    path::PathBuf,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// The value of a variable; `None`, and a word about it, if the test is to be left out.
pub(crate) fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    if value.is_none() {
        left_out(&format!("{name} is not set"));
    }
    value
}

fn left_out(reason: &str) {
    assert!(std::env::var_os("REQUIRE_SERVICES").is_none(), "{reason}, and REQUIRE_SERVICES is");
    eprintln!("left out: {reason}");
}

pub(crate) struct Server {
    kind: &'static str,
    dir: PathBuf,
    url: String,
}

impl Server {
    /// `redis` or `redis-cluster`, with arguments for the server.
    pub(crate) async fn start(kind: &'static str, arguments: &[&str]) -> Option<Self> {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(crate::unique(kind));
        if !command(kind, "bin", None).output().expect("run").status.success() {
            left_out("redis-server is not installed");
            return None;
        }
        let url = run(kind, "start", &dir, arguments).await;
        Some(Self { kind, dir, url })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The URLs of a cluster.
    pub(crate) fn urls(&self) -> Vec<&str> {
        self.url.split(',').collect()
    }

    /// Its URL with a password.
    pub(crate) fn with_password(&self, password: &str) -> String {
        self.url.replace("redis://", &format!("redis://:{password}@"))
    }

    pub(crate) async fn kill(&self) {
        run(self.kind, "kill", &self.dir, &[]).await;
    }

    /// SIGSTOP: alive, connected, and silent.
    pub(crate) async fn pause(&self) {
        run(self.kind, "pause", &self.dir, &[]).await;
    }

    pub(crate) async fn resume(&self) {
        run(self.kind, "resume", &self.dir, &[]).await;
    }

    pub(crate) async fn start_again(&self) {
        assert_eq!(run(self.kind, "start", &self.dir, &[]).await, self.url);
    }

    /// Runs a command on it.
    pub(crate) async fn command(&self, words: &[&str]) {
        for url in self.urls() {
            crate::ask::<redis::Value>(url, words).await;
        }
    }
}

/// A way to a server that loses an answer: when it is armed, the next script is run and the connection cut before its answer.
pub(crate) struct Lossy {
    pub(crate) url: String,
    armed: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Lossy {
    pub(crate) async fn to(server: &Server) -> Self {
        let address = server.url.trim_start_matches("redis://").trim_end_matches("/0").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("redis://{}", listener.local_addr().expect("address"));
        let armed = Arc::new(AtomicBool::new(false));
        let trigger = Arc::clone(&armed);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&address).await.expect("server");
                tokio::spawn(pipe(client, server, Arc::clone(&trigger)));
            }
        });
        Self { url, armed, accepting }
    }

    pub(crate) fn lose_next(&self) {
        assert!(!self.armed.swap(true, Ordering::SeqCst), "the last one was lost");
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        assert!(!self.armed.load(Ordering::SeqCst) || std::thread::panicking(), "the last one was lost");
        self.accepting.abort();
    }
}

async fn pipe(mut client: TcpStream, mut server: TcpStream, armed: Arc<AtomicBool>) {
    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                let script = up[..count].windows(7).any(|word| word == b"EVALSHA");
                if server.write_all(&up[..count]).await.is_err() { return }
                if script && armed.swap(false, Ordering::SeqCst) {
                    // Its answer is there, so it was run.
                    let _ = server.read(&mut down).await;
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&down[..count]).await.is_err() { return }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = command(self.kind, "remove", Some(&self.dir)).status();
    }
}

fn command(kind: &str, verb: &str, dir: Option<&PathBuf>) -> Command {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/database-node"));
    command.arg(kind).arg(verb).args(dir);
    command
}

async fn run(kind: &str, verb: &str, dir: &PathBuf, arguments: &[&str]) -> String {
    let mut command = command(kind, verb, Some(dir));
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output().expect("run")).await.expect("join");
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert!(output.status.success(), "{kind} {verb}: {text} {}", String::from_utf8_lossy(&output.stderr));
    text
}
