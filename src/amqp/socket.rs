//! The socket under a connection of lapin.
//!
//! lapin waits for a silent peer as long as the peer likes, with a thread and two descriptors, in a
//! handshake and when it closes: dropping its futures does not end that. So it gets its stream from
//! here, and a second handle on the socket stays here, by which it can be ended. That handle goes
//! when lapin's thread does, or the peer would not see that the connection is gone.

use std::{
    future::pending,
    io,
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

use lapin::{
    Connection, ConnectionProperties,
    runtime::default_runtime,
    tcp::{AsyncTcpStream, OwnedTLSConfig},
    uri::{AMQPScheme, AMQPUri},
};
use tokio::sync::watch;

use super::screen::{screened, screening};

/// Ends the socket when it is dropped.
pub(super) struct Socket(Arc<Shared>);

struct Shared {
    /// The second handle, while lapin has the first.
    handle: Mutex<Option<TcpStream>>,
    state: watch::Sender<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    InUse,
    Cut,
    /// lapin has let go of it.
    Ended,
}

/// What lapin's thread holds.
struct Held(Arc<Shared>);

impl Socket {
    /// Opens a connection. If the future is dropped, so is everything that it began.
    pub(super) async fn connect(
        uri: AMQPUri,
        properties: ConnectionProperties,
        tls: OwnedTLSConfig,
    ) -> (Self, lapin::Result<Connection>) {
        let state = watch::channel(State::InUse).0;
        let shared = Arc::new(Shared { handle: Mutex::new(None), state });
        let held = Held(Arc::clone(&shared));
        let socket = Self(shared);
        let plain = match default_runtime() {
            Ok(runtime) => runtime,
            Err(error) => return (socket, Err(error)),
        };
        // Connects as lapin does it by itself.
        let connecting = Connection::connector(
            uri,
            screening(&plain),
            async move |uri: AMQPUri, _| {
                let frame_max = uri.query.frame_max.unwrap_or_default();
                let connecting = async {
                    let host = uri.authority.host.clone();
                    let address = plain.to_socket_addrs((host, uri.authority.port));
                    let stream = AsyncTcpStream::connect(&plain, address).await?;
                    if let AsyncTcpStream::Plain(stream) = &stream {
                        held.0.opened(second_handle(stream.get_ref())?);
                    }
                    match uri.scheme {
                        AMQPScheme::AMQP => Ok(stream),
                        AMQPScheme::AMQPS => stream.into_tls(&uri.authority.host, tls.as_ref()).await,
                    }
                };
                tokio::select! {
                    biased;
                    () = held.0.cut() => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
                    stream = connecting => Ok(screened(stream?, frame_max)),
                }
            },
            properties,
        );
        (socket, connecting.await)
    }

    /// Whether lapin has let go of it.
    pub(super) fn has_ended(&self) -> bool {
        *self.0.state.borrow() == State::Ended
    }

    /// Pending until lapin has let go of it.
    pub(super) async fn ended(&self) {
        let _ = self.0.state.subscribe().wait_for(|state| *state == State::Ended).await;
    }

    /// Ends it: a task that reads or writes there, or still connects, has an error at once.
    pub(super) fn cut(&self) {
        self.0.state.send_if_modified(|state| match state {
            State::InUse => {
                *state = State::Cut;
                true
            }
            State::Cut | State::Ended => false,
        });
        self.0.shut_down();
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.cut();
    }
}

impl Shared {
    fn opened(&self, handle: TcpStream) {
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        if *self.state.borrow() == State::Cut {
            self.shut_down();
        }
    }

    fn shut_down(&self) {
        if let Some(handle) = self.handle.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It fails if the peer has ended it already.
            let _ = handle.shutdown(Shutdown::Both);
        }
    }

    async fn cut(&self) {
        if self.state.subscribe().wait_for(|state| *state == State::Cut).await.is_err() {
            pending::<()>().await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.handle.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.0.state.send_replace(State::Ended);
    }
}

#[cfg(unix)]
fn second_handle(stream: &impl std::os::fd::AsFd) -> io::Result<TcpStream> {
    stream.as_fd().try_clone_to_owned().map(TcpStream::from)
}

#[cfg(windows)]
fn second_handle(stream: &impl std::os::windows::io::AsSocket) -> io::Result<TcpStream> {
    stream.as_socket().try_clone_to_owned().map(TcpStream::from)
}
