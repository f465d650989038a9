//! A TCP proxy that reads AMQP frames, and drops them, cuts or freezes the connection where a test
//! says so.

use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

/// Which way a frame travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    Client,
    Broker,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Pass,
    /// The frame vanishes.
    Drop,
    /// The connection is cut before the frame.
    CutBefore,
    /// The connection is cut once the frame has been passed on.
    CutAfter,
    /// The frame, and what follows it, comes later.
    Delay(Duration),
    /// Nothing more goes this way on this connection, which stays open, until [`Proxy::thaw`].
    Freeze,
}

/// AMQP 0-9-1 class and method IDs.
pub mod method {
    pub const BASIC_PUBLISH: (u16, u16) = (60, 40);
    #[allow(dead_code)] // not every program looks for deliveries
    pub const BASIC_DELIVER: (u16, u16) = (60, 60);
    pub const BASIC_ACK: (u16, u16) = (60, 80);
}

/// A frame as the rule sees it.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    pub from: From,
    /// The number of the connection through this proxy, from 0.
    pub connection: usize,
    /// The number of the frame on its connection, in its direction, from 0.
    pub number: usize,
    /// The channel on its connection.
    #[allow(dead_code)] // not every program that has a proxy looks so deep
    pub channel: u16,
    /// Class and method; `None` for headers, bodies and heartbeats.
    pub method: Option<(u16, u16)>,
    /// What comes after class and method.
    #[allow(dead_code)]
    pub arguments: &'a [u8],
}

impl Frame<'_> {
    pub fn is(&self, from: From, method: (u16, u16)) -> bool {
        self.from == from && self.method == Some(method)
    }
}

/// A rule that does something to the n-th frame of one kind, from 0, whatever its connection, and
/// passes all others.
pub fn nth(
    n: usize,
    from: From,
    method: (u16, u16),
    action: Action,
) -> impl FnMut(Frame<'_>) -> Action + Send + 'static {
    let mut seen = 0;
    move |frame| {
        if !frame.is(from, method) {
            return Action::Pass;
        }
        seen += 1;
        if seen == n + 1 { action } else { Action::Pass }
    }
}

type Rule = dyn FnMut(Frame<'_>) -> Action + Send;

pub struct Proxy {
    url: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    upstream: String,
    rule: Mutex<Box<Rule>>,
    connections: AtomicUsize,
    /// Counts up to cut everything that is connected.
    cut: watch::Sender<u64>,
    /// Counts up to let everything flow that is frozen.
    thaw: watch::Sender<u64>,
}

impl Proxy {
    /// A proxy in front of the broker at `url`, which passes everything until a rule is set.
    pub async fn start(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let (credentials, rest) = url.split_once('@').unwrap_or(("amqp://guest:guest", url));
        let (upstream, path) = rest.split_once('/').unwrap_or((rest, "%2f"));
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            rule: Mutex::new(Box::new(|_| Action::Pass)),
            connections: AtomicUsize::new(0),
            cut: watch::channel(0).0,
            thaw: watch::channel(0).0,
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { url: format!("{credentials}@127.0.0.1:{port}/{path}"), shared, accepting }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Decides over every frame from now on.
    pub fn rule(&self, rule: impl FnMut(Frame<'_>) -> Action + Send + 'static) {
        *self.shared.rule.lock().expect("rule") = Box::new(rule);
    }

    /// Lets go on what a rule has frozen.
    pub fn thaw(&self) {
        self.shared.thaw.send_modify(|count| *count += 1);
    }

    /// How many connections were made through this proxy.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many connections are open now.
    #[allow(dead_code)] // not every program asks
    pub fn open(&self) -> usize {
        self.shared.cut.receiver_count()
    }

    /// Cuts every connection that is open now.
    pub fn cut_all(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut_all();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let Ok(broker) = TcpStream::connect(&shared.upstream).await else { return };
            let mut cut = shared.cut.subscribe();
            cut.mark_unchanged();
            at_once(&client, &broker);
            let (from_client, to_client) = client.into_split();
            let (from_broker, to_broker) = broker.into_split();
            // Whichever ends first ends both: dropping the halves closes the sockets.
            tokio::select! {
                _ = pump(From::Client, number, from_client, to_broker, &shared) => {}
                _ = pump(From::Broker, number, from_broker, to_client, &shared) => {}
                _ = cut.changed() => {}
            }
        });
    }
}

/// What is sent in parts goes on at once, and not when the part before is acknowledged, which may
/// take 40 milliseconds.
pub fn at_once(client: &TcpStream, server: &TcpStream) {
    for stream in [client, server] {
        let _ = stream.set_nodelay(true);
    }
}

async fn pump(
    from: From,
    connection: usize,
    mut source: OwnedReadHalf,
    mut sink: OwnedWriteHalf,
    shared: &Shared,
) -> io::Result<()> {
    if from == From::Client {
        // The protocol header is no frame.
        let mut header = [0; 8];
        source.read_exact(&mut header).await?;
        sink.write_all(&header).await?;
    }
    let mut thaw = shared.thaw.subscribe();
    for number in 0.. {
        // AMQP 0-9-1, section 4.2.3: type, channel, size, payload, end.
        let mut frame = vec![0; 7];
        source.read_exact(&mut frame).await?;
        let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
        frame.resize(7 + size + 1, 0);
        source.read_exact(&mut frame[7..]).await?;
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let method = (frame[0] == 1 && size >= 4).then(|| (word(7), word(9)));
        let arguments = if method.is_some() { &frame[11..7 + size] } else { &[] };
        let seen = Frame { from, connection, number, channel: word(1), method, arguments };
        let action = (shared.rule.lock().expect("rule"))(seen);
        match action {
            Action::Drop => continue,
            Action::CutBefore => return Ok(()),
            Action::Pass | Action::CutAfter => {}
            Action::Delay(time) => sleep(time).await,
            Action::Freeze => {
                thaw.mark_unchanged();
                let _ = thaw.changed().await;
            }
        }
        sink.write_all(&frame).await?;
        if action == Action::CutAfter {
            // A socket that is closed with something unread in it sends a reset, which would
            // overtake the frame.
            sink.shutdown().await?;
            return Ok(());
        }
    }
    Ok(())
}
