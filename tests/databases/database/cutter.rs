//! A proxy between a client and its database that counts what goes either way, over all connections
//! in the order in which it goes, and cuts the connection on which a chosen message goes.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

use super::{
    super::support::proxy::at_once,
    frames::{Behind, Protocol},
    wire::through,
};

pub struct Cutter {
    url: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    server: String,
    protocol: Protocol,
    behind: Behind,
    counts: [AtomicUsize; 2],
    cuts: AtomicUsize,
}

impl Cutter {
    /// To the server of `url`, which must have seen the user before (see [`through`]).
    pub async fn start(url: &str, behind: Behind) -> Self {
        let parsed = url::Url::parse(url).expect("url");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let is_postgres = parsed.scheme().starts_with("postgres");
        let shared = Arc::new(Shared {
            server: format!("{}:{}", parsed.host_str().expect("host"), parsed.port().expect("port")),
            protocol: if is_postgres { Protocol::Postgres } else { Protocol::MySql },
            behind,
            counts: Default::default(),
            cuts: AtomicUsize::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { url: through(url, port), shared, accepting }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many messages went, by the client and by the server.
    pub fn counts(&self) -> [usize; 2] {
        [0, 1].map(|way: usize| self.shared.counts[way].load(Ordering::SeqCst))
    }

    /// How many cuts were made: none, if less went than was thought.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let server = TcpStream::connect(&shared.server).await.expect("server");
            at_once(&client, &server);
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            // Whichever ends first ends both: dropping the halves closes the sockets.
            tokio::select! {
                _ = pump(from_client, to_server, false, &shared) => {}
                _ = pump(from_server, to_client, true, &shared) => {}
            }
        });
    }
}

async fn pump(
    mut source: OwnedReadHalf,
    mut sink: OwnedWriteHalf,
    servers: bool,
    shared: &Shared,
) -> io::Result<()> {
    let mut is_first = !servers;
    loop {
        let message = shared.protocol.message(&mut source, is_first).await?;
        is_first = false;
        let number = shared.counts[usize::from(servers)].fetch_add(1, Ordering::SeqCst);
        sink.write_all(&message).await?;
        if shared.behind == Some((servers, number)) {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            // A socket that is closed with something unread in it sends a reset, which would
            // overtake the message.
            sink.shutdown().await?;
            return Ok(());
        }
    }
}
