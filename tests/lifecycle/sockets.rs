//! What is given up is gone: no thread and no descriptor waits for a peer that says nothing.

use std::{process::Command, time::Duration};

use futures_util::future::join_all;
use lapin_idempotent::{IdempotentPublisher, amqp::ConnectErrorKind};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{DEADLINE, connected, eventually};

const CONNECTS: usize = 30;

/// Reads until the client has gone.
async fn end_of(mut stream: TcpStream) {
    let mut bytes = [0; 1024];
    let reading = async { while !matches!(stream.read(&mut bytes).await, Ok(0) | Err(_)) {} };
    timeout(DEADLINE, reading).await.expect("the client ends its connection");
}

/// Connects to a peer that accepts, and says nothing, and stays.
async fn silent_peer_ends_all() {
    let schemes: &[&str] = if cfg!(feature = "tls") { &["amqp", "amqps"] } else { &["amqp"] };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let port = listener.local_addr().expect("address").port();
    let connects = (0..CONNECTS).map(|n| {
        let scheme = schemes[n % schemes.len()];
        let builder = IdempotentPublisher::builder(format!("{scheme}://127.0.0.1:{port}"));
        builder.connect_timeout(Duration::from_millis(500)).connect()
    });
    let accept = async {
        let mut accepted = Vec::new();
        while accepted.len() < CONNECTS {
            accepted.push(listener.accept().await.expect("accept").0);
        }
        accepted
    };
    let (connected, accepted) =
        timeout(DEADLINE, async { tokio::join!(join_all(connects), accept) }).await.expect("in time");
    for connected in connected {
        assert_eq!(connected.expect_err("silence").kind(), ConnectErrorKind::TimedOut);
    }
    join_all(accepted.into_iter().map(end_of)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_that_times_out_ends_its_connection() {
    silent_peer_ends_all().await;
}

#[cfg(target_os = "linux")]
pub(super) fn threads_and_descriptors() -> (usize, usize) {
    let count = |of: &str| std::fs::read_dir(format!("/proc/self/{of}")).expect("proc").count();
    (count("task"), count("fd"))
}

/// Run by the one below: others would count, too.
#[cfg(target_os = "linux")]
#[tokio::test]
#[ignore = "run in a process of its own, by connects_that_time_out_leave_no_thread_and_no_descriptor"]
async fn counted() {
    // What the first connect makes once and for all.
    silent_peer_ends_all().await;
    let (threads, descriptors) = threads_and_descriptors();
    silent_peer_ends_all().await;
    eventually("as many as before", async || {
        let now = threads_and_descriptors();
        (now.0 <= threads && now.1 <= descriptors).then_some(())
    })
    .await;
}

/// Runs a test of this program in a process of its own.
#[cfg(target_os = "linux")]
pub(super) fn run_alone(test: &str) {
    let binary = std::env::current_exe().expect("this binary");
    let run = Command::new(binary).args(["--exact", test, "--ignored"]).output().expect("run");
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success() && said.contains("1 passed"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
fn connects_that_time_out_leave_no_thread_and_no_descriptor() {
    run_alone("sockets::counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_of_a_frozen_peer_ends_the_connection() {
    let (publisher, mut peer) = connected(|builder| builder).await;
    // Reads nothing and answers nothing, so there is no answer to the goodbye.
    timeout(DEADLINE, publisher.close(Duration::ZERO))
        .await
        .expect("in time")
        .expect("nothing was in flight");
    peer.end_of_silence().await;
}
