//! A proxy between a client and its database that cuts the connection around the first COMMIT.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// On which side of the commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// The server never sees it.
    Before,
    /// The server has done it, and the client never hears of it.
    After,
}

pub struct Wire {
    pub port: u16,
    fired: Arc<AtomicU32>,
    accepting: JoinHandle<()>,
}

impl Wire {
    /// To the server of `url`; cuts one connection, the first that commits while `armed` is set.
    pub async fn start(url: &str, cut: Cut, armed: Arc<AtomicBool>) -> Self {
        let url = url::Url::parse(url).expect("url");
        let server = format!("{}:{}", url.host_str().expect("host"), url.port().expect("port"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let fired = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&fired);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (server, counter, armed) = (server.clone(), Arc::clone(&counter), Arc::clone(&armed));
                tokio::spawn(async move {
                    let server = TcpStream::connect(server).await.expect("server");
                    pipe(client, server, cut, &counter, &armed).await;
                });
            }
        });
        Self { port, fired, accepting }
    }

    /// The same URL, through the proxy.
    pub fn through(&self, url: &str) -> String {
        through(url, self.port)
    }

    pub fn fired(&self) -> u32 {
        self.fired.load(Ordering::SeqCst)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The same URL, through a proxy at `port`, and without TLS, which newer servers of MySQL's kind
/// offer unasked. MySQL then wants to have seen the user's password before: connect without the
/// proxy first.
pub fn through(url: &str, port: u16) -> String {
    let mut url = url::Url::parse(url).expect("url");
    url.set_port(Some(port)).expect("port");
    let postgres = url.scheme().starts_with("postgres");
    let plain = if postgres { ("sslmode", "disable") } else { ("ssl-mode", "disabled") };
    url.query_pairs_mut().append_pair(plain.0, plain.1);
    url.to_string()
}

/// Both protocols send a statement as plain text in one packet, and nothing else in these tests
/// says COMMIT.
async fn pipe(mut client: TcpStream, mut server: TcpStream, cut: Cut, fired: &AtomicU32, armed: &AtomicBool) {
    let (mut up, mut down) = (vec![0; 65536], vec![0; 65536]);
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let Ok(count @ 1..) = read else { return };
                let commits = up[..count].windows(6).any(|word| word == b"COMMIT");
                let here = commits && armed.swap(false, Ordering::SeqCst);
                if here {
                    fired.fetch_add(1, Ordering::SeqCst);
                    if cut == Cut::Before {
                        return;
                    }
                }
                if server.write_all(&up[..count]).await.is_err() {
                    return;
                }
                if here {
                    // Its answer is there, so it is done.
                    let _ = server.read(&mut down).await;
                    return;
                }
            }
            read = server.read(&mut down) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&down[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
