//! Redis servers: the shared ones, and private ones that a test may kill and freeze.

use std::{
    ops::Deref,
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

use super::support::server as database_server;

/// A private server, or a private cluster.
pub(crate) struct Server(database_server::Server);

impl Deref for Server {
    type Target = database_server::Server;

    fn deref(&self) -> &database_server::Server {
        &self.0
    }
}

impl Server {
    /// `redis` or `redis-cluster`, with arguments for the server.
    pub(crate) async fn start(kind: &'static str, arguments: &[&str]) -> Self {
        Self(database_server::Server::start(kind, arguments).await)
    }

    /// The URLs of a cluster.
    pub(crate) fn urls(&self) -> Vec<&str> {
        self.url().split(',').collect()
    }

    /// Its URL with a password.
    pub(crate) fn with_password(&self, password: &str) -> String {
        self.url().replace("redis://", &format!("redis://:{password}@"))
    }

    /// Runs a command on it.
    pub(crate) async fn command(&self, words: &[&str]) {
        for url in self.urls() {
            super::ask::<redis::Value>(url, words).await;
        }
    }
}

/// A way to a server that loses an answer: when it is armed, the next script is run and the
/// connection cut before its answer.
pub(crate) struct Lossy {
    pub(crate) url: String,
    armed: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Lossy {
    pub(crate) async fn to(server: &Server) -> Self {
        let address = server.url().trim_start_matches("redis://").trim_end_matches("/0").to_owned();
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
