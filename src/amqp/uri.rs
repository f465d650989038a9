//! AMQP URIs, parsed with more checks than lapin makes.
//!
//! lapin's parser takes an IPv6 host for `localhost`, ignores query keys that it does not know, and
//! prints the password in some errors. A setting that looks as if it worked is worse than an error,
//! so whatever would be ignored is refused here, and no error, `Debug` or `Display` shows a secret.

use std::{fmt, net::IpAddr};

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// Why a connection URI was refused.
///
/// The text never holds the URI itself: it may carry a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUri {
    /// It is not a URI at all.
    #[error("not a URI: {0}")]
    Syntax(&'static str),
    /// The scheme is neither `amqp` nor `amqps`.
    #[error("the scheme must be amqp or amqps")]
    Scheme,
    /// `amqps` needs the crate's feature `tls`.
    #[error("amqps needs the crate feature `tls`")]
    TlsNotCompiled,
    /// There is no host.
    #[error("the host is missing")]
    MissingHost,
    /// A part is not percent-encoded UTF-8.
    #[error("the {0} is not percent-encoded UTF-8")]
    Encoding(&'static str),
    /// The virtual host has more than one path segment; a slash inside its name is written `%2f`.
    #[error("the virtual host holds an unescaped `/`: write it as %2f")]
    VirtualHost,
    /// The virtual host has more than 255 bytes, which is as long as AMQP can say it.
    #[error("the virtual host has {bytes} bytes; AMQP allows 255")]
    VirtualHostTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// There is an `@` behind the host. Most likely the password holds a `/` or `?`, which ends the
    /// host: what is taken for a virtual host or a query is then a part of the password.
    #[error(
        "an `@` behind the host: write `/`, `?` and `#` in user name and password as %2f, %3f and %23, and `@` elsewhere as %40"
    )]
    MisplacedAt,
    /// A query parameter that this crate does not act on.
    #[error("query parameter `{0}` is not supported and would be ignored")]
    UnknownParameter(String),
    /// A query parameter whose value does not fit.
    #[error("query parameter `{0}` has an unusable value")]
    ParameterValue(&'static str),
    /// A fragment (`#...`) has no meaning in an AMQP URI; a `#` in a password is written `%23`.
    #[error("a fragment has no meaning here: write `#` as %23")]
    Fragment,
    /// Credentials were set, and the URI holds some, too.
    #[error("the URI holds credentials, and others were set")]
    CredentialsTwice,
    /// TLS options were set for a connection without TLS.
    #[error("TLS options were set, but the scheme is amqp: use amqps")]
    TlsNotUsed,
    /// The URIs of one cluster differ in what must be the same.
    #[error("the URIs of one cluster name different {0}")]
    Mixed(&'static str),
    /// No URI was given.
    #[error("no URI was given")]
    Missing,
}

/// One broker address with its credentials; prints without them.
#[derive(Clone)]
pub(crate) struct Endpoint {
    uri: AMQPUri,
    pub(super) has_credentials: bool,
}

impl Endpoint {
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidUri> {
        let url = Url::parse(text).map_err(|error| InvalidUri::Syntax(syntax(error)))?;
        let scheme = match url.scheme() {
            "amqp" => AMQPScheme::AMQP,
            "amqps" if cfg!(feature = "tls") => AMQPScheme::AMQPS,
            "amqps" => return Err(InvalidUri::TlsNotCompiled),
            _ => return Err(InvalidUri::Scheme),
        };
        if url.fragment().is_some() {
            return Err(InvalidUri::Fragment);
        }
        if url.path().contains('@') || url.query().is_some_and(|query| query.contains('@')) {
            return Err(InvalidUri::MisplacedAt);
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => decode(name, "host")?,
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err(InvalidUri::MissingHost),
        };
        let username = match url.username() {
            "" => "guest".to_owned(),
            name => decode(name, "user name")?,
        };
        let password = match url.password() {
            None => "guest".to_owned(),
            Some(password) => decode(password, "password")?,
        };
        let port = url.port().unwrap_or_else(|| scheme.default_port());
        let uri = AMQPUri {
            scheme,
            authority: AMQPAuthority { userinfo: AMQPUserInfo { username, password }, host, port },
            vhost: virtual_host(url.path())?,
            query: query(&url)?,
        };
        let has_credentials = !url.username().is_empty() || url.password().is_some();
        Ok(Self { uri, has_credentials })
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.uri.scheme, AMQPScheme::AMQPS)
    }

    /// Whether it is this machine itself, by name or address.
    pub(super) fn is_loopback(&self) -> bool {
        let host = self.uri.authority.host.as_str();
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// What lapin connects with.
    pub(crate) fn amqp_uri(&self) -> &AMQPUri {
        &self.uri
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AMQPAuthority { userinfo, host, port } = &self.uri.authority;
        let user = userinfo.username.escape_debug();
        let host = host.escape_debug().to_string();
        let vhost = self.uri.vhost.escape_debug();
        if host.contains(':') {
            write!(f, "{}://{user}:***@[{host}]:{port} (virtual host {vhost})", self.uri.scheme)
        } else {
            write!(f, "{}://{user}:***@{host}:{port} (virtual host {vhost})", self.uri.scheme)
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// `url`'s own messages never hold the input, but a fixed text is easier to promise.
fn syntax(error: url::ParseError) -> &'static str {
    match error {
        url::ParseError::EmptyHost => "the host is empty",
        url::ParseError::InvalidPort => "the port is not a number up to 65535",
        url::ParseError::InvalidIpv4Address => "the IPv4 address is malformed",
        url::ParseError::InvalidIpv6Address => "the IPv6 address is malformed",
        url::ParseError::RelativeUrlWithoutBase => "it does not start with amqp:// or amqps://",
        _ => "it is malformed",
    }
}

fn decode(text: &str, part: &'static str) -> Result<String, InvalidUri> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(InvalidUri::Encoding(part)),
    }
}

/// AMQP sends it as a short string, which lapin panics on if it is longer.
const VIRTUAL_HOST_BYTES: usize = 255;

/// No path means the default virtual host `/`. The AMQP URI specification lets a lone `/` mean the
/// virtual host whose name is empty, which no broker has by default and hardly anybody means: both
/// forms are the default here.
fn virtual_host(path: &str) -> Result<String, InvalidUri> {
    match path.strip_prefix('/').unwrap_or(path) {
        "" => Ok("/".to_owned()),
        name if name.contains('/') => Err(InvalidUri::VirtualHost),
        name => match decode(name, "virtual host")? {
            name if name.len() > VIRTUAL_HOST_BYTES => {
                Err(InvalidUri::VirtualHostTooLong { bytes: name.len() })
            }
            name => Ok(name),
        },
    }
}

fn query(url: &Url) -> Result<AMQPQueryString, InvalidUri> {
    let mut query = AMQPQueryString::default();
    for (key, value) in url.query_pairs() {
        match key.as_ref() {
            // Zero would switch heartbeats off, and a dead peer would never be noticed.
            "heartbeat" => match value.parse() {
                Ok(seconds @ 1..) => query.heartbeat = Some(seconds),
                _ => return Err(InvalidUri::ParameterValue("heartbeat")),
            },
            // AMQP 0-9-1 allows 4096, but RabbitMQ 4.1 and later refuse a connection with less than
            // this.
            "frame_max" => match value.parse() {
                Ok(bytes @ 8192..) => query.frame_max = Some(bytes),
                _ => return Err(InvalidUri::ParameterValue("frame_max")),
            },
            "channel_max" => match value.parse() {
                Ok(channels @ 1..) => query.channel_max = Some(channels),
                _ => return Err(InvalidUri::ParameterValue("channel_max")),
            },
            "auth_mechanism" => match value.parse() {
                Ok(mechanism) => query.auth_mechanism = Some(mechanism),
                Err(_) => return Err(InvalidUri::ParameterValue("auth_mechanism")),
            },
            _ => {
                let shown = key.chars().take(64).flat_map(char::escape_debug).collect();
                return Err(InvalidUri::UnknownParameter(shown));
            }
        }
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> AMQPUri {
        Endpoint::parse(text).unwrap().uri
    }

    #[test]
    fn parts_are_percent_decoded() {
        let uri = parsed("amqp://us%40er:p%2fw%23@broker.example:5673/my%2fhost?heartbeat=7");
        assert_eq!(uri.authority.userinfo.username, "us@er");
        assert_eq!(uri.authority.userinfo.password, "p/w#");
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("broker.example", 5673));
        assert_eq!(uri.vhost, "my/host");
        assert_eq!(uri.query.heartbeat, Some(7));
    }

    #[test]
    fn the_smallest_frame_that_every_broker_takes_is_taken() {
        assert_eq!(parsed("amqp://h?frame_max=8192").query.frame_max, Some(8192));
    }

    #[test]
    fn a_missing_or_empty_path_is_the_default_virtual_host() {
        for text in ["amqp://localhost", "amqp://localhost/", "amqp://localhost/%2f"] {
            assert_eq!(parsed(text).vhost, "/", "{text}");
        }
    }

    #[test]
    fn an_ipv6_host_stays_what_it_is() {
        assert_eq!(parsed("amqp://[2001:db8::1]:5673").authority.host, "2001:db8::1");
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let refused = [
            ("amqp://h?verify=verify_none", InvalidUri::UnknownParameter("verify".into())),
            ("amqp://h?cacertfile=x", InvalidUri::UnknownParameter("cacertfile".into())),
            ("amqp://h?connection_timeout=5", InvalidUri::UnknownParameter("connection_timeout".into())),
            ("amqp://h?heartbeat=0", InvalidUri::ParameterValue("heartbeat")),
            ("amqp://h?heartbeat=soon", InvalidUri::ParameterValue("heartbeat")),
            ("amqp://h?frame_max=8191", InvalidUri::ParameterValue("frame_max")),
            ("amqp://h/a/b", InvalidUri::VirtualHost),
            ("amqp://h/#x", InvalidUri::Fragment),
            ("amqp://h/a@b", InvalidUri::MisplacedAt),
            ("amqp:///x", InvalidUri::MissingHost),
            ("http://h", InvalidUri::Scheme),
            ("localhost", InvalidUri::Syntax("it does not start with amqp:// or amqps://")),
            ("amqp://u:%ff@h", InvalidUri::Encoding("password")),
        ];
        for (text, expected) in refused {
            assert_eq!(Endpoint::parse(text).unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn loopback_is_told_from_other_hosts() {
        for (text, expected) in [
            ("amqp://localhost", true),
            ("amqp://127.8.9.1", true),
            ("amqp://[::1]", true),
            ("amqp://10.0.0.1", false),
            ("amqp://broker.example", false),
            ("amqp://[2001:db8::1]", false),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().is_loopback(), expected, "{text}");
        }
    }

    #[test]
    fn a_virtual_host_fits_into_a_short_string() {
        let uri = |bytes: usize| format!("amqp://h/{}", "%41".repeat(bytes));
        assert_eq!(parsed(&uri(255)).vhost, "A".repeat(255));
        let refused = Endpoint::parse(&uri(256)).unwrap_err();
        assert_eq!(refused, InvalidUri::VirtualHostTooLong { bytes: 256 });
    }

    #[test]
    fn a_password_that_is_not_percent_encoded_is_neither_shown_nor_taken_for_something_else() {
        for text in [
            "amqp://user:12?canary@host",
            "amqp://user:12/canary@host",
            "amqp://us/er:canary@host/v",
            "amqp://us?er:canary@host",
        ] {
            assert_eq!(Endpoint::parse(text).unwrap_err(), InvalidUri::MisplacedAt, "{text}");
        }
        assert!(!InvalidUri::MisplacedAt.to_string().contains("canary"));
        assert_eq!(parsed("amqp://user:12%3fcanary@host").authority.userinfo.password, "12?canary");
        assert_eq!(parsed("amqp://host/a%40b").vhost, "a@b");
    }

    #[test]
    fn no_rendering_breaks_the_line() {
        let endpoint = Endpoint::parse("amqp://a%0ab@h%0a%1bx/v%0a").unwrap();
        assert!(!endpoint.to_string().chars().any(char::is_control), "{endpoint}");
    }

    #[test]
    fn no_rendering_shows_the_password() {
        let endpoint = Endpoint::parse("amqp://user:canary@host").unwrap();
        assert!(!format!("{endpoint} {endpoint:?} {endpoint:#?}").contains("canary"));
        for text in ["amqp://user:canary@:99999", "amqp://user:canary@h?x=y", "amqp://user:canary%ff@h"] {
            let error = Endpoint::parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("canary"), "{text}");
        }
    }
}
