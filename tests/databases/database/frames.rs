//! A proxy between a client and PostgreSQL that cuts the first connection behind a chosen message,
//! and then the next one.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

use super::{super::support::proxy::at_once, wire::through};

pub struct Frames {
    url: String,
    counts: [Arc<AtomicUsize>; 2],
    cuts: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

/// The message behind which to cut: whether the server's, and its number in that direction, from 0.
pub type Behind = Option<(bool, usize)>;

/// Behind this frame of that connection, or of those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut<W> {
    pub whose: W,
    pub servers: bool,
    pub number: usize,
}

impl<W: fmt::Debug> fmt::Display for Cut<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if self.servers { "server" } else { "client" };
        write!(f, "{:?}-{by}-{}", self.whose, self.number)
    }
}

/// What went through a proxy, by the client and by the server, and how many cuts were made.
#[derive(Debug, Default, Clone, Copy)]
pub struct Passed {
    pub counts: [usize; 2],
    pub cuts: usize,
}

impl Frames {
    /// To the server of `url`, which must not speak TLS: its answer to that question is no message.
    ///
    /// The second cut is for the first connection that is made after the first cut.
    pub async fn start(url: &str, cuts: [Behind; 2]) -> Self {
        let parsed = url::Url::parse(url).expect("url");
        let server = format!("{}:{}", parsed.host_str().expect("host"), parsed.port().expect("port"));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = through(url, listener.local_addr().expect("address").port());
        let counts = [Arc::default(), Arc::default()];
        let counters = counts.clone();
        let made = Arc::new(AtomicUsize::new(0));
        let made_so_far = Arc::clone(&made);
        let accepting = tokio::spawn(async move {
            let [mut first, mut second] = cuts.map(Some);
            let mut counters = Some(counters);
            while let Ok((client, _)) = listener.accept().await {
                let planned = first
                    .take()
                    .or_else(|| if made_so_far.load(Ordering::SeqCst) == 1 { second.take() } else { None });
                let (server, cut, made) = (server.clone(), planned.flatten(), Arc::clone(&made_so_far));
                let [up, down] = counters.take().unwrap_or_default();
                tokio::spawn(async move {
                    let server = TcpStream::connect(server).await.expect("server");
                    at_once(&client, &server);
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    let behind =
                        |servers: bool| cut.and_then(|(of, number)| (of == servers).then_some(number));
                    // Whichever ends first ends both: dropping the halves closes the sockets.
                    tokio::select! {
                        _ = pump(from_client, to_server, true, behind(false), &up, &made) => {}
                        _ = pump(from_server, to_client, false, behind(true), &down, &made) => {}
                    }
                });
            }
        });
        Self { url, counts, cuts: made, accepting }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// How many messages went over the first connection, by the client and by the server.
    pub fn counts(&self) -> [usize; 2] {
        [0, 1].map(|way: usize| self.counts[way].load(Ordering::SeqCst))
    }

    /// How many cuts were made.
    pub fn cuts(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pump(
    mut source: OwnedReadHalf,
    mut sink: OwnedWriteHalf,
    client: bool,
    cut_behind: Option<usize>,
    count: &AtomicUsize,
    cuts: &AtomicUsize,
) -> io::Result<()> {
    for number in 0.. {
        let message = Protocol::Postgres.message(&mut source, client && number == 0).await?;
        sink.write_all(&message).await?;
        count.fetch_add(1, Ordering::SeqCst);
        if cut_behind == Some(number) {
            // Noted first: once it is cut, the client may connect again at once.
            cuts.fetch_add(1, Ordering::SeqCst);
            // A socket that is closed with something unread in it sends a reset, which would
            // overtake the message.
            sink.shutdown().await?;
            return Ok(());
        }
    }
    Ok(())
}

/// What a client and its database say to each other with.
#[derive(Debug, Clone, Copy)]
pub enum Protocol {
    Postgres,
    MySql,
}

impl Protocol {
    /// Reads one message; of PostgreSQL's whether it is the first that a client says.
    pub async fn message(self, source: &mut OwnedReadHalf, is_first: bool) -> io::Result<Vec<u8>> {
        // PostgreSQL's documentation, "Message Formats": a type, except for the client's first
        // message, then a length that counts itself. MySQL's, "MySQL Packets": a length of three
        // bytes, lowest first, and a number.
        let start = usize::from(matches!(self, Self::Postgres) && !is_first);
        let mut message = vec![0; start + 4];
        source.read_exact(&mut message).await?;
        let head = message.len();
        let size = match self {
            Self::Postgres => {
                message[start..].iter().fold(0, |size, byte| size << 8 | usize::from(*byte)) - 4
            }
            Self::MySql => message[..3].iter().rev().fold(0, |size, byte| size << 8 | usize::from(*byte)),
        };
        message.resize(head + size, 0);
        source.read_exact(&mut message[head..]).await?;
        Ok(message)
    }
}
