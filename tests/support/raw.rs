//! AMQP by hand: what other clients may send and lapin would not.

use std::collections::BTreeSet;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::DEADLINE;

/// The properties by their flags.
pub const HEADERS: u8 = 13;
pub const DELIVERY_MODE: u8 = 12;
pub const PRIORITY: u8 = 11;
pub const CORRELATION_ID: u8 = 10;
pub const EXPIRATION: u8 = 8;
pub const MESSAGE_ID: u8 = 7;

/// What a message carries; any bytes.
#[derive(Clone, Default)]
pub struct Message {
    pub exchange: Vec<u8>,
    pub routing_key: Vec<u8>,
    /// Encoded, with their flags.
    pub properties: Vec<(u8, Vec<u8>)>,
    pub body: Vec<u8>,
}

/// A connection with one channel, in confirm mode.
pub struct Raw {
    stream: TcpStream,
    published: u64,
    unconfirmed: BTreeSet<u64>,
}

impl Raw {
    pub async fn connect(url: &str) -> Self {
        let url = url::Url::parse(url).expect("url");
        let address = (url.host_str().expect("host"), url.port().unwrap_or(5672));
        let text =
            |part: &str| percent_encoding::percent_decode_str(part).decode_utf8().expect("text").into_owned();
        let (user, password) = (text(url.username()), text(url.password().unwrap_or_default()));
        let (user, password) =
            if user.is_empty() { ("guest".into(), "guest".into()) } else { (user, password) };
        let vhost = Some(text(url.path().trim_start_matches('/'))).filter(|vhost| !vhost.is_empty());
        let stream = TcpStream::connect(address).await.expect("connect");
        let mut raw = Self { stream, published: 0, unconfirmed: BTreeSet::new() };
        raw.stream.write_all(b"AMQP\0\0\x09\x01").await.expect("header");
        raw.method(10, 10).await;
        let login = format!("\0{user}\0{password}");
        raw.send(0, 10, 11, &[b"\0\0\0\0", &*short(b"PLAIN"), &long(login.as_bytes()), &short(b"en_US")])
            .await;
        let tune = raw.method(10, 30).await;
        // Its channels and frames, and no heartbeat.
        raw.send(0, 10, 31, &[&tune[..6], b"\0\0"]).await;
        raw.send(0, 10, 40, &[&short(vhost.as_deref().unwrap_or("/").as_bytes()), b"\0\0"]).await;
        raw.method(10, 41).await;
        raw.send(1, 20, 10, &[b"\0"]).await;
        raw.method(20, 11).await;
        raw.send(1, 85, 10, &[b"\0"]).await;
        raw.method(85, 11).await;
        raw
    }

    pub async fn publish(&mut self, message: &Message) {
        let Message { exchange, routing_key, properties, body } = message;
        self.send(1, 60, 40, &[b"\0\0", &short(exchange), &short(routing_key), b"\x01"]).await;
        let mut properties = properties.clone();
        properties.sort_by_key(|(flag, _)| std::cmp::Reverse(*flag));
        let flags = properties.iter().fold(0_u16, |flags, (flag, _)| flags | 1 << flag);
        let mut header = b"\0\x3c\0\0".to_vec();
        header.extend((body.len() as u64).to_be_bytes());
        header.extend(flags.to_be_bytes());
        header.extend(properties.into_iter().flat_map(|(_, value)| value));
        self.frame(2, 1, &header).await;
        for part in body.chunks(100_000) {
            self.frame(3, 1, part).await;
        }
        self.published += 1;
        self.unconfirmed.insert(self.published);
    }

    /// Waits until all are confirmed; none may be returned or refused.
    pub async fn confirmed(&mut self) {
        while !self.unconfirmed.is_empty() {
            let ack = self.method(60, 80).await;
            let tag = u64::from_be_bytes(ack[..8].try_into().expect("tag"));
            match ack[8] & 1 {
                1 => self.unconfirmed.retain(|unconfirmed| *unconfirmed > tag),
                _ => assert!(self.unconfirmed.remove(&tag)),
            }
        }
    }

    async fn send(&mut self, channel: u8, class: u8, method: u8, arguments: &[&[u8]]) {
        let payload = [&[0, class, 0, method], &*arguments.concat()].concat();
        self.frame(1, channel, &payload).await;
    }

    async fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) {
        let frame = [&[kind, 0, channel], &*long(payload), &[0xce]].concat();
        self.stream.write_all(&frame).await.expect("write");
    }

    /// The arguments of the next method, which has to be this one.
    async fn method(&mut self, class: u16, method: u16) -> Vec<u8> {
        let read = async {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head).await.expect("frame");
            let size = u32::from_be_bytes(head[3..].try_into().expect("size"));
            let mut payload = vec![0; size as usize + 1];
            self.stream.read_exact(&mut payload).await.expect("frame");
            (head[0], payload)
        };
        let (kind, payload) = timeout(DEADLINE, read).await.expect("an answer in time");
        let expected = [class.to_be_bytes(), method.to_be_bytes()].concat();
        assert!(kind == 1 && payload.starts_with(&expected), "{}", String::from_utf8_lossy(&payload));
        payload[4..].to_vec()
    }
}

pub fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("short")], text].concat()
}

pub fn long(content: &[u8]) -> Vec<u8> {
    [&u32::try_from(content.len()).expect("long").to_be_bytes(), content].concat()
}

/// A table of encoded members: names, types and values.
pub fn table(members: &[(&[u8], u8, Vec<u8>)]) -> Vec<u8> {
    let members: Vec<u8> = members
        .iter()
        .flat_map(|(name, kind, value)| [short(name), vec![*kind], value.clone()].concat())
        .collect();
    long(&members)
}

/// Tables (`F`) or lists (`A`), one in the other, all of them in `bytes` bytes at the most. Each
/// costs six or five.
pub fn nested(kind: u8, bytes: usize) -> Vec<u8> {
    let each = if kind == b'F' { 6 } else { 5 };
    let levels = bytes / each - 1;
    (0..=levels)
        .rev()
        .flat_map(|within| {
            let length = u32::try_from(each * within).expect("length").to_be_bytes();
            let member: &[u8] = match (within, kind) {
                (0, _) => b"",
                (_, b'F') => b"\0F",
                _ => b"A",
            };
            [&length, member].concat()
        })
        .collect()
}
