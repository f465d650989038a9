//! Which RabbitMQ it is.
//!
//! A broker says so in the first frame of a connection, which lapin keeps to itself. So that frame
//! is read on a stream of its own, which is opened as lapin opens its streams, and goes no further:
//! nobody logs in there.

use std::{cmp::Ordering, fmt, io};

use futures_util::{AsyncReadExt, AsyncWriteExt};
use lapin::{
    protocol::{self, AMQPClass, constants},
    runtime::default_runtime,
    tcp::AMQPUriTcpExt,
    types::{AMQPValue, FieldTable},
};

use super::{
    connect::ConnectOptions,
    error::{ConnectError, ConnectErrorKind, classify_io},
    uri::Endpoint,
};
use crate::error::BoxError;

/// What a client begins with: AMQP 0.9.1.
const PROTOCOL_HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";

/// Type, channel and size of a frame.
const FRAME_HEADER: usize = 7;

/// `connection.start` has about 500 bytes. What claims to be much larger is none.
const LONGEST_START: usize = 64 * 1024;

/// The version of a RabbitMQ node. It compares with another one, and as major and minor with a
/// pair: `version >= (4, 3)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct ServerVersion {
    /// The 4 of 4.3.6.
    pub major: u16,
    /// The 3 of 4.3.6.
    pub minor: u16,
    /// The 6 of 4.3.6.
    pub patch: u16,
}

impl ServerVersion {
    /// Asks a broker for its version, which needs no credentials. The broker logs one connection
    /// that its client closed unexpectedly.
    ///
    /// # Errors
    ///
    /// A [`ConnectError`] if no broker answers at this URI.
    pub async fn ask(uri: impl AsRef<str>) -> Result<Self, ConnectError> {
        let connect = ConnectOptions::new([uri])?;
        connect.check()?;
        server_version(&connect).await
    }

    /// As brokers write it: `4.3.6`, `4.1.0-rc.1`, `3.13.7+build.1`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let major = parts.next()?.parse().ok()?;
        let (minor, patch) = (leading_number(parts.next()?)?, parts.next());
        Some(Self { major, minor, patch: patch.and_then(leading_number).unwrap_or_default() })
    }

    /// From the server properties of `connection.start`.
    fn of(properties: &FieldTable) -> Result<Self, String> {
        let text = |name: &str| match properties.inner().get(name) {
            Some(AMQPValue::LongString(text)) => text.to_string(),
            _ => String::new(),
        };
        let (product, version) = (text("product"), text("version"));
        if product != "RabbitMQ" {
            return Err(format!("this is no RabbitMQ, but says to be {product:?} {version:?}"));
        }
        Self::parse(&version).ok_or_else(|| format!("the broker gives its version as {version:?}"))
    }
}

fn leading_number(text: &str) -> Option<u16> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl PartialEq<(u16, u16)> for ServerVersion {
    fn eq(&self, other: &(u16, u16)) -> bool {
        (self.major, self.minor) == *other
    }
}

impl PartialOrd<(u16, u16)> for ServerVersion {
    fn partial_cmp(&self, other: &(u16, u16)) -> Option<Ordering> {
        (self.major, self.minor).partial_cmp(other)
    }
}

/// Asks the nodes in random order, and takes the first answer. In a cluster that is being upgraded
/// others may be older, or newer.
///
/// Needs no credentials. RabbitMQ logs that a client closed its connection unexpectedly: it has no
/// way to be told that this was all.
pub(crate) async fn server_version(connect: &ConnectOptions) -> Result<ServerVersion, ConnectError> {
    connect.first(|endpoint| ask(connect, endpoint)).await
}

async fn ask(connect: &ConnectOptions, endpoint: &Endpoint) -> Result<ServerVersion, ConnectError> {
    let broken = |error: io::Error| ConnectError::new(classify_io(&error), endpoint, error.into());
    let strange = |error: BoxError| ConnectError::new(ConnectErrorKind::Protocol, endpoint, error);
    let tls = connect.tls_config().await?;
    let runtime = default_runtime().map_err(ConnectError::from_lapin)?;
    let connecting = endpoint.amqp_uri().connect_with_config_async(tls.as_ref(), &runtime);
    let mut stream = connecting.await.map_err(broken)?;
    stream.write_all(PROTOCOL_HEADER).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header).await.map_err(broken)?;
    let size = method_size(header).ok_or_else(|| strange("no AMQP 0.9.1 frame came".into()))?;
    let mut frame = vec![0; size + 1];
    stream.read_exact(&mut frame).await.map_err(broken)?;
    let version = version_in(&frame).map_err(|error| strange(error.into()))?;
    let _ = stream.close().await;
    Ok(version)
}

/// How many bytes follow the header of a method of the connection itself.
fn method_size(header: [u8; FRAME_HEADER]) -> Option<usize> {
    let [kind, channel @ .., s3, s2, s1, s0] = header;
    let size = usize::try_from(u32::from_be_bytes([s3, s2, s1, s0])).ok()?;
    let fits = kind == constants::FRAME_METHOD && channel == [0, 0] && size <= LONGEST_START;
    fits.then_some(size)
}

/// `frame` is what follows its header: the method, and the octet that ends it.
fn version_in(frame: &[u8]) -> Result<ServerVersion, String> {
    let parsed = frame
        .split_last()
        .filter(|(end, _)| **end == constants::FRAME_END)
        .and_then(|(_, method)| protocol::parse_class(method).ok());
    match parsed {
        Some((_, AMQPClass::Connection(protocol::connection::AMQPMethod::Start(start)))) => {
            ServerVersion::of(&start.server_properties)
        }
        _ => Err("it does not begin with connection.start".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lapin::types::{LongString, ShortString};
    use tokio::net::TcpListener;

    use super::*;

    fn version(major: u16, minor: u16, patch: u16) -> ServerVersion {
        ServerVersion { major, minor, patch }
    }

    #[test]
    fn versions_are_read_as_brokers_write_them() {
        for (text, expected) in [
            ("4.3.6", version(4, 3, 6)),
            ("3.10.8", version(3, 10, 8)),
            ("4.1.0-rc.1", version(4, 1, 0)),
            ("3.13.7+build.1", version(3, 13, 7)),
            ("4.3-dev", version(4, 3, 0)),
        ] {
            assert_eq!(ServerVersion::parse(text), Some(expected), "{text}");
        }
        for text in ["", "4", "four.3", "4.", "99999.1.1", "4.x.1"] {
            assert_eq!(ServerVersion::parse(text), None, "{text}");
        }
        assert_eq!(version(3, 10, 8).to_string(), "3.10.8");
    }

    #[test]
    fn a_pair_is_compared_with_major_and_minor() {
        assert!(version(4, 3, 6) == (4, 3) && version(4, 3, 0) >= (4, 3) && version(4, 10, 0) > (4, 3));
        assert!(version(4, 2, 99) < (4, 3) && version(3, 13, 0) < (4, 0));
        assert!(version(4, 3, 6) > version(4, 3, 5) && version(3, 10, 0) > version(3, 9, 9));
    }

    #[test]
    fn other_brokers_are_told_apart() {
        let of = |product: &str, version: &str| {
            let mut properties = FieldTable::default();
            for (name, value) in [("product", product), ("version", version)] {
                properties.insert(ShortString::from(name), AMQPValue::LongString(LongString::from(value)));
            }
            ServerVersion::of(&properties)
        };
        assert_eq!(of("RabbitMQ", "4.0.5"), Ok(version(4, 0, 5)));
        assert!(of("LavinMQ", "4.0.5").unwrap_err().contains("LavinMQ"));
        assert!(of("RabbitMQ", "soon").unwrap_err().contains("soon"));
        assert!(ServerVersion::of(&FieldTable::default()).is_err());
    }

    #[test]
    fn what_is_no_start_is_refused() {
        assert_eq!(method_size([1, 0, 0, 0, 0, 1, 2]), Some(258));
        for header in [*b"AMQP\x00\x00\x09", *b"HTTP/1.", [1, 0, 1, 0, 0, 0, 9], [1, 0, 0, 9, 0, 0, 0]] {
            assert_eq!(method_size(header), None, "{header:?}");
        }
        let open_ok = [0, 10, 0, 41, 0, 0xce];
        assert!(version_in(&open_ok).is_err() && version_in(&[]).is_err() && version_in(&[0xce]).is_err());
        // connection.start with an empty table and no mechanisms.
        let mut start = vec![0, 10, 0, 10, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xce];
        assert!(version_in(&start).unwrap_err().contains("no RabbitMQ"));
        *start.last_mut().unwrap() = 0;
        assert!(version_in(&start).unwrap_err().contains("connection.start"));
    }

    /// A peer that answers a protocol header with `answer`, or with nothing, and keeps the
    /// connection.
    async fn peer(answer: Option<Vec<u8>>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let mut header = [0; 8];
                tokio::io::AsyncReadExt::read_exact(&mut client, &mut header).await.unwrap();
                assert_eq!(header, *PROTOCOL_HEADER);
                if let Some(answer) = &answer {
                    tokio::io::AsyncWriteExt::write_all(&mut client, answer).await.unwrap();
                }
                kept.push(client);
            }
        });
        format!("amqp://{address}")
    }

    /// The first frame of a broker.
    fn start(product: &str, version: &str) -> Vec<u8> {
        let mut table = Vec::new();
        for (name, value) in [("product", product), ("version", version)] {
            table.push(u8::try_from(name.len()).unwrap());
            table.extend(name.bytes().chain([b'S']));
            table.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            table.extend(value.bytes());
        }
        let mut method = vec![0, 10, 0, 10, 0, 9];
        method.extend(u32::try_from(table.len()).unwrap().to_be_bytes().into_iter().chain(table));
        method.extend([0; 8]);
        let size = u32::try_from(method.len()).unwrap().to_be_bytes();
        [1, 0, 0].into_iter().chain(size).chain(method).chain([0xce]).collect()
    }

    async fn asked(uris: &[String]) -> Result<ServerVersion, ConnectErrorKind> {
        let mut connect = ConnectOptions::new(uris.iter().map(String::as_str)).unwrap();
        connect.timeout = Duration::from_secs(1);
        server_version(&connect).await.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn what_does_not_answer_is_passed_over_in_time() {
        let broker = peer(Some(start("RabbitMQ", "4.3.6"))).await;
        let silent = peer(None).await;
        let web = peer(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).await;
        let other = peer(Some(start("LavinMQ", "2.4.0"))).await;
        // Nobody listens there any more.
        let gone =
            format!("amqp://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
        for (uri, expected) in [
            (&broker, Ok(version(4, 3, 6))),
            (&silent, Err(ConnectErrorKind::TimedOut)),
            (&web, Err(ConnectErrorKind::Protocol)),
            (&other, Err(ConnectErrorKind::Protocol)),
            (&gone, Err(ConnectErrorKind::Unreachable)),
        ] {
            assert_eq!(asked(std::slice::from_ref(uri)).await, expected, "{uri}");
        }
        assert_eq!(asked(&[silent, web, other, gone, broker]).await, Ok(version(4, 3, 6)));
    }
}
