//! A broker that says exactly what a test tells it to, frame by frame.

use std::{collections::VecDeque, io, time::Duration};

use amq_protocol::{
    frame::{AMQPContentHeader, AMQPFrame, gen_frame, parse_frame},
    protocol::{AMQPClass, basic, channel, confirm, connection},
    types::{FieldTable, LongString, ShortString},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(30);

pub struct ScriptedBroker {
    listener: TcpListener,
    url: String,
    frame_max: u32,
}

/// A connection that was shaken hands with, with its publishing channel in confirm mode.
pub struct Peer {
    stream: TcpStream,
    channel: u16,
    tags: u64,
    /// How many channels came after the first, on this connection.
    pub channels: usize,
    /// Publishes that were read while something else was awaited.
    read: VecDeque<Published>,
}

/// A message that the client published.
#[derive(Debug, Clone)]
pub struct Published {
    pub tag: u64,
    pub publish: basic::Publish,
    pub header: AMQPContentHeader,
    pub body: Vec<u8>,
}

impl Published {
    pub fn id(&self) -> String {
        self.header.properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default()
    }
}

impl ScriptedBroker {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        Self { listener, url: format!("amqp://guest:guest@127.0.0.1:{port}"), frame_max: 131_072 }
    }

    /// Asks for smaller frames than RabbitMQ does by default.
    #[allow(dead_code)] // not every program has small frames
    pub fn frame_max(self, frame_max: u32) -> Self {
        Self { frame_max, ..self }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Accepts a client and leaves it at once, as a broker does that is not ready.
    #[allow(dead_code, reason = "not every test has a use for it")]
    pub async fn turn_away(&self) {
        timeout(PATIENCE, self.listener.accept()).await.expect("in time").expect("accept");
    }

    /// Accepts a client and goes with it up to `confirm.select`.
    pub async fn accept(&self) -> Peer {
        timeout(PATIENCE, self.shake_hands()).await.expect("in time").expect("handshake")
    }

    async fn shake_hands(&self) -> io::Result<Peer> {
        let (mut stream, _) = self.listener.accept().await?;
        let mut header = [0; 8];
        stream.read_exact(&mut header).await?;
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
        let mut peer = Peer { stream, channel: 1, tags: 0, channels: 0, read: VecDeque::new() };
        let mut capabilities = FieldTable::default();
        for name in ["publisher_confirms", "connection.blocked", "basic.nack"] {
            capabilities.insert(name.into(), amq_protocol::types::AMQPValue::Boolean(true));
        }
        let mut server_properties = FieldTable::default();
        server_properties
            .insert("capabilities".into(), amq_protocol::types::AMQPValue::FieldTable(capabilities));
        peer.method(connection::AMQPMethod::Start(connection::Start {
            version_major: 0,
            version_minor: 9,
            server_properties,
            mechanisms: LongString::from("PLAIN"),
            locales: LongString::from("en_US"),
        }))
        .await?;
        peer.expect(|method| matches!(method, AMQPClass::Connection(connection::AMQPMethod::StartOk(_))))
            .await?;
        let tune = connection::Tune { channel_max: 2_047, frame_max: self.frame_max, heartbeat: 0 };
        peer.method(connection::AMQPMethod::Tune(tune)).await?;
        peer.expect(|method| matches!(method, AMQPClass::Connection(connection::AMQPMethod::TuneOk(_))))
            .await?;
        peer.expect(|method| matches!(method, AMQPClass::Connection(connection::AMQPMethod::Open(_))))
            .await?;
        peer.method(connection::AMQPMethod::OpenOk(connection::OpenOk {})).await?;
        peer.expect(|method| matches!(method, AMQPClass::Channel(channel::AMQPMethod::Open(_)))).await?;
        peer.on_channel(AMQPClass::Channel(channel::AMQPMethod::OpenOk(channel::OpenOk {}))).await?;
        peer.expect(|method| matches!(method, AMQPClass::Confirm(confirm::AMQPMethod::Select(_)))).await?;
        peer.on_channel(AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(confirm::SelectOk {}))).await?;
        Ok(peer)
    }
}

impl Peer {
    /// The next message that the client publishes.
    pub async fn next(&mut self) -> Published {
        self.next_or_end().await.expect("a publish before the end of the connection")
    }

    /// The next message, or `None` when the client has gone.
    pub async fn next_or_end(&mut self) -> Option<Published> {
        if let Some(published) = self.read.pop_front() {
            return Some(published);
        }
        timeout(PATIENCE, self.read_publish()).await.expect("in time").ok()
    }

    /// The next `count` messages.
    pub async fn take(&mut self, count: usize) -> Vec<Published> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.next().await);
        }
        taken
    }

    /// Whether the client says something more within a time.
    #[allow(dead_code)] // most programs know what comes
    pub async fn has_more(&self, within: Duration) -> bool {
        !self.read.is_empty() || timeout(within, self.stream.peek(&mut [0])).await.is_ok()
    }

    async fn read_publish(&mut self) -> io::Result<Published> {
        loop {
            let publish = match self.read_frame().await? {
                AMQPFrame::Method(_, AMQPClass::Basic(basic::AMQPMethod::Publish(publish))) => publish,
                AMQPFrame::Method(_, AMQPClass::Channel(channel::AMQPMethod::Close(_))) => {
                    let ok = channel::AMQPMethod::CloseOk(channel::CloseOk {});
                    self.on_channel(AMQPClass::Channel(ok)).await?;
                    continue;
                }
                AMQPFrame::Method(channel, AMQPClass::Channel(channel::AMQPMethod::Open(_))) => {
                    (self.channel, self.tags) = (channel, 0);
                    let ok = channel::AMQPMethod::OpenOk(channel::OpenOk {});
                    self.on_channel(AMQPClass::Channel(ok)).await?;
                    continue;
                }
                AMQPFrame::Method(_, AMQPClass::Confirm(confirm::AMQPMethod::Select(_))) => {
                    let ok = confirm::AMQPMethod::SelectOk(confirm::SelectOk {});
                    self.on_channel(AMQPClass::Confirm(ok)).await?;
                    self.channels += 1;
                    continue;
                }
                AMQPFrame::Method(0, AMQPClass::Connection(connection::AMQPMethod::Close(_))) => {
                    self.method(connection::AMQPMethod::CloseOk(connection::CloseOk {})).await?;
                    continue;
                }
                _ => continue,
            };
            let AMQPFrame::Header(_, header) = self.read_frame().await? else { panic!("no header") };
            let mut body = Vec::new();
            while (body.len() as u64) < header.body_size {
                let AMQPFrame::Body(_, part) = self.read_frame().await? else { panic!("no body") };
                body.extend(part);
            }
            self.tags += 1;
            return Ok(Published { tag: self.tags, publish, header, body });
        }
    }

    /// Reads until the client has ended its connection, and answers nothing.
    #[allow(dead_code, reason = "not every test has a use for it")]
    pub async fn end_of_silence(&mut self) {
        let reading = async { while self.read_frame().await.is_ok() {} };
        timeout(PATIENCE, reading).await.expect("the client ends its connection");
    }

    /// Confirms one message, or all up to it.
    pub async fn ack(&mut self, tag: u64, multiple: bool) {
        self.say(&[ack(tag, multiple)]).await;
    }

    /// Says something on the publishing channel, all in one segment.
    pub async fn say(&mut self, frames: &[Vec<Said>]) {
        let mut bytes = Vec::new();
        for said in frames.iter().flatten() {
            match said {
                Said::Method(method) => write(&mut bytes, &AMQPFrame::Method(self.channel, method.clone())),
                Said::Header(header) => write(&mut bytes, &AMQPFrame::Header(self.channel, header.clone())),
                Said::Body(body) => write(&mut bytes, &AMQPFrame::Body(self.channel, body.clone())),
            }
        }
        self.stream.write_all(&bytes).await.expect("write");
    }

    /// Closes the publishing channel, as a broker does over a message that it refuses.
    #[allow(dead_code)] // not every program has such messages
    pub async fn close_channel(&mut self, code: u16, text: &str) {
        let close = channel::Close {
            reply_code: code,
            reply_text: ShortString::try_new(text).expect("short"),
            class_id: 60,
            method_id: 40,
        };
        self.on_channel(AMQPClass::Channel(channel::AMQPMethod::Close(close))).await.expect("write");
    }

    /// Blocks or unblocks the connection, as a broker that is short of memory does.
    pub async fn block(&mut self, blocked: bool) {
        let method = if blocked {
            connection::AMQPMethod::Blocked(connection::Blocked {
                reason: ShortString::from("low on memory"),
            })
        } else {
            connection::AMQPMethod::Unblocked(connection::Unblocked {})
        };
        self.method(method).await.expect("write");
    }

    async fn on_channel(&mut self, method: AMQPClass) -> io::Result<()> {
        let mut bytes = Vec::new();
        write(&mut bytes, &AMQPFrame::Method(self.channel, method));
        self.stream.write_all(&bytes).await
    }

    async fn method(&mut self, method: connection::AMQPMethod) -> io::Result<()> {
        let mut bytes = Vec::new();
        write(&mut bytes, &AMQPFrame::Method(0, AMQPClass::Connection(method)));
        self.stream.write_all(&bytes).await
    }

    async fn expect(&mut self, wanted: impl Fn(&AMQPClass) -> bool) -> io::Result<()> {
        loop {
            match self.read_frame().await? {
                AMQPFrame::Method(_, method) if wanted(&method) => return Ok(()),
                AMQPFrame::Heartbeat => {}
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    async fn read_frame(&mut self) -> io::Result<AMQPFrame> {
        let mut frame = vec![0; 7];
        self.stream.read_exact(&mut frame).await?;
        let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
        frame.resize(7 + size + 1, 0);
        self.stream.read_exact(&mut frame[7..]).await?;
        Ok(parse_frame(frame.as_slice()).expect("a frame").1)
    }
}

/// A frame on the publishing channel.
#[derive(Debug, Clone)]
pub enum Said {
    Method(AMQPClass),
    Header(AMQPContentHeader),
    Body(Vec<u8>),
}

pub fn ack(tag: u64, multiple: bool) -> Vec<Said> {
    let ack = basic::Ack { delivery_tag: tag, multiple };
    vec![Said::Method(AMQPClass::Basic(basic::AMQPMethod::Ack(ack)))]
}

pub fn nack(tag: u64, multiple: bool) -> Vec<Said> {
    let nack = basic::Nack { delivery_tag: tag, multiple, requeue: false };
    vec![Said::Method(AMQPClass::Basic(basic::AMQPMethod::Nack(nack)))]
}

/// The broker's `basic.return` of a message: it could not be routed.
pub fn returned(published: &Published) -> Vec<Said> {
    let returned = basic::Return {
        reply_code: 312,
        reply_text: ShortString::from("NO_ROUTE"),
        exchange: published.publish.exchange.clone(),
        routing_key: published.publish.routing_key.clone(),
    };
    let mut frames = vec![
        Said::Method(AMQPClass::Basic(basic::AMQPMethod::Return(returned))),
        Said::Header(published.header.clone()),
    ];
    if !published.body.is_empty() {
        frames.push(Said::Body(published.body.clone()));
    }
    frames
}

fn write(bytes: &mut Vec<u8>, frame: &AMQPFrame) {
    let written = gen_frame(frame)(Vec::new().into()).expect("a frame").into_inner().0;
    bytes.extend(written);
}
