//! The stream that lapin reads from, on which no message can end its thread or its connection.

mod frames;
mod shrink;

use std::{
    future::Future,
    io::{self, Read, Write},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use async_rs::{
    Runtime, TokioRuntime,
    traits::Reactor,
    util::{DummyIO, RuntimeParts},
};
use futures_util::{
    Stream,
    io::{AsyncRead, AsyncWrite},
};
use lapin::tcp::AsyncTcpStream;

use frames::Changed;
use shrink::shrink;

const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;

/// Type, channel and length of a frame.
const HEAD: usize = 7;
/// With the octet that ends it.
const AROUND: usize = HEAD + 1;

/// How much is read in one go, at the least.
const READ: usize = 64 * 1024;

/// Methods and content headers are held until they are complete. None that is legitimate comes near
/// this.
const LONGEST: usize = 64 * 1024 * 1024;

/// tokio, but for the type of the stream.
pub(super) type Kit = RuntimeParts<TokioRuntime, Screening>;

/// The stream as lapin and tokio open it.
pub(super) type Opened = AsyncTcpStream<<TokioRuntime as Reactor>::TcpStream>;

/// The runtime for a connection whose stream is [`screened`].
pub(super) fn screening(runtime: &TokioRuntime) -> Runtime<Kit> {
    RuntimeParts::new(runtime.clone(), Screening(runtime.clone())).into()
}

/// The same stream, below which TLS has been dealt with.
///
/// `frame_max`: the largest frame that is asked for; 0 for the broker's.
pub(super) fn screened(stream: Opened, frame_max: u32) -> AsyncTcpStream<Screened<Opened>> {
    AsyncTcpStream::Plain(Screened::new(stream, frame_max))
}

#[derive(Debug, Clone)]
pub(super) struct Screening(TokioRuntime);

impl Reactor for Screening {
    type TcpStream = Screened<Opened>;
    type Sleep = <TokioRuntime as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // lapin asks for no other stream than its connection's.
        Err::<DummyIO, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Screened::new(AsyncTcpStream::Plain(connecting.await?), 0)) }
    }
}

/// Passes frames on: methods and content headers when they are complete and readable, all others as
/// they come.
#[derive(Debug)]
pub(super) struct Screened<S> {
    inner: S,
    buffer: Vec<u8>,
    /// Of the buffer: what is given out, what may be, and what was read.
    given: usize,
    cleared: usize,
    read: usize,
    /// What is still to come of a frame that is passed on as it is.
    passing: usize,
    /// The largest frame that was agreed upon; 0 for any.
    frame_max: u32,
}

impl<S> Screened<S> {
    fn new(inner: S, frame_max: u32) -> Self {
        Self { inner, buffer: Vec::new(), given: 0, cleared: 0, read: 0, passing: 0, frame_max }
    }

    /// As lapin agrees upon it: the smaller one of two, where 0 is none (AMQP 0-9-1,
    /// connection.tune).
    fn tuned(&mut self, broker: u32) {
        self.frame_max = match (self.frame_max, broker) {
            (0, limit) | (limit, 0) => limit,
            (own, theirs) => own.min(theirs),
        };
    }

    /// Clears what can be given out.
    fn screen(&mut self) -> io::Result<()> {
        while self.cleared < self.read {
            let rest = &mut self.buffer[self.cleared..self.read];
            if self.passing > 0 {
                let passed = self.passing.min(rest.len());
                self.cleared += passed;
                self.passing -= passed;
                continue;
            }
            let &mut [kind, _, _, s3, s2, s1, s0, ..] = rest else { break };
            let size = usize::try_from(u32::from_be_bytes([s3, s2, s1, s0])).map_err(io::Error::other)?;
            let screen = match kind {
                METHOD => frames::method,
                CONTENT_HEADER => frames::content_header,
                // The answer of a server of another version.
                b'A' => {
                    self.passing = AROUND;
                    continue;
                }
                _ => {
                    self.passing = size.saturating_add(AROUND);
                    continue;
                }
            };
            if size > LONGEST {
                return Err(io::Error::other(format!("a header of {size} bytes came")));
            }
            let Some(payload) = rest.get_mut(HEAD..HEAD + size) else { break };
            let changed = screen(payload);
            let limit = self.frame_max as usize;
            let over = (size + AROUND).saturating_sub(limit);
            let mut size = size;
            if kind == METHOD {
                if let Some(frame_max) = frames::tuned(payload) {
                    self.tuned(frame_max);
                }
            } else if limit > 0 && over > 0 {
                let taken = shrink(payload, over);
                let end = self.cleared + HEAD + size;
                self.buffer.copy_within(end..self.read, end - taken);
                self.read -= taken;
                size -= taken;
                let length = u32::try_from(size).map_err(io::Error::other)?;
                self.buffer[self.cleared + 3..self.cleared + HEAD].copy_from_slice(&length.to_be_bytes());
            }
            if changed != Changed::default() {
                let Changed { tables, texts } = changed;
                tracing::warn!(
                    tables,
                    texts,
                    "what lapin cannot read was changed in what the broker sent: tables nested too deep, or texts that are not UTF-8"
                );
            }
            self.passing = size + AROUND;
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Screened<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        loop {
            if this.given < this.cleared || out.is_empty() {
                let count = out.len().min(this.cleared - this.given);
                out[..count].copy_from_slice(&this.buffer[this.given..this.given + count]);
                this.given += count;
                return Poll::Ready(Ok(count));
            }
            this.buffer.copy_within(this.given..this.read, 0);
            this.read -= this.given;
            (this.given, this.cleared) = (0, 0);
            if this.read == 0 && this.passing > 0 {
                let most = out.len().min(this.passing);
                let count = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut out[..most]))?;
                this.passing -= count;
                return Poll::Ready(Ok(count));
            }
            if this.buffer.len() - this.read < READ {
                let doubled = this.buffer.len() * 2;
                this.buffer.resize(doubled.max(2 * READ), 0);
            }
            let count = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut this.buffer[this.read..]))?;
            this.read += count;
            if count == 0 {
                // The end: what is incomplete is of no use to anybody.
                return Poll::Ready(Ok(0));
            }
            this.screen()?;
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Screened<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::AsyncReadExt;

    use super::*;

    /// Gives its bytes in pieces of random length.
    struct Pieces(Vec<u8>, fastrand::Rng);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let most = self.0.len().min(out.len());
            let most = if self.1.bool() { most.min(9) } else { most };
            let count = if most == 0 { 0 } else { self.1.usize(1..=most) };
            out[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Poll::Ready(Ok(count))
        }
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![kind, 0, 1];
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    #[tokio::test]
    async fn frames_come_through_whole_in_whatever_pieces() {
        // A text of a content header that is not UTF-8; the same bytes in a body are left alone.
        let header = |id: &[u8]| {
            let id = [b"\0\x3c\0\0\0\0\0\0\0\0\0\0\0\x80".as_slice(), &[u8::try_from(id.len()).unwrap()], id];
            frame(CONTENT_HEADER, &id.concat())
        };
        let body = frame(3, &vec![0xff; 150_000]);
        let sent = [b"AMQP\0\0\x09\x01".to_vec(), header(b"\xff"), body.clone(), frame(8, b""), header(b"a")];
        let expected =
            [b"AMQP\0\0\x09\x01".to_vec(), header(b"\x1a"), body, frame(8, b""), header(b"a")].concat();
        for seed in 0..200 {
            let mut screened = Screened::new(Pieces(sent.concat(), fastrand::Rng::with_seed(seed)), 0);
            let mut read = Vec::new();
            screened.read_to_end(&mut read).await.unwrap();
            assert!(read == expected, "seed {seed}: {} of {} bytes", read.len(), expected.len());
        }
    }
}
