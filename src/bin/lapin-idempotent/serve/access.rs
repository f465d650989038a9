//! Who may read, who may change, and which requests come from elsewhere.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::pages::refusal;
use crate::{ask::Failure, options::Serve, servers::first_line};

/// The shortest token that may be given.
const SHORTEST: usize = 16;
/// A login is forgotten after this.
const SESSION: Duration = Duration::from_secs(8 * 3600);
/// As many logins as are remembered.
const SESSIONS: usize = 64;
/// Everything else takes less, or has hung.
const REQUEST: Duration = Duration::from_secs(90);

/// What requests are held against.
#[derive(Debug)]
pub(crate) struct Access {
    token: [u8; 32],
    sessions: Mutex<VecDeque<([u8; 32], Instant)>>,
    hosts: Vec<String>,
    /// Whether reading needs the token, too.
    is_closed: bool,
    cookie: String,
}

/// The address that a request came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Remote(pub(crate) SocketAddr);

/// Whether whoever asks may change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MayChange(pub(crate) bool);

/// What a request proves that it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proof {
    Nothing,
    Session,
    Token,
}

/// The token that was given, or a new one, and whether that has to be told.
pub(crate) fn token(command: &Serve) -> Result<(String, bool), Failure> {
    let given = match (&command.token_file, std::env::var("SERVE_TOKEN")) {
        (Some(file), _) => first_line(file).map_err(Failure::Failed)?,
        (None, Ok(token)) if !token.is_empty() => token,
        (None, _) => return Ok((secret(), true)),
    };
    if given.len() < SHORTEST || !given.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::usage(format!(
            "the token must have {SHORTEST} characters or more, and no blank: `openssl rand -hex 32` makes one"
        )));
    }
    Ok((given, false))
}

/// 244 bits from the generator that UUIDs of version 4 come from, which is a cryptographic one.
fn secret() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

fn digest(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Takes the same time for any two. What is compared are digests, so that the length is no hint.
fn is_same(a: [u8; 32], b: [u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(&b).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

impl Access {
    pub(crate) fn new(token: &str, listen: SocketAddr, hosts: &[String]) -> Self {
        let own = ["localhost".to_owned(), "127.0.0.1".to_owned(), "[::1]".to_owned(), literal(listen.ip())];
        Self {
            token: digest(token),
            sessions: Mutex::default(),
            hosts: own.into_iter().chain(hosts.iter().map(|host| host.to_ascii_lowercase())).collect(),
            is_closed: !listen.ip().is_loopback(),
            // Cookies do not know ports.
            cookie: format!("lapin-idempotent-{}", listen.port()),
        }
    }

    /// A new login, if it is the token: what the browser is told to keep.
    pub(crate) fn log_in(&self, token: &str) -> Option<HeaderValue> {
        if !is_same(digest(token), self.token) {
            return None;
        }
        let session = secret();
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.truncate(SESSIONS - 1);
        sessions.push_front((digest(&session), Instant::now()));
        self.set_cookie(&session, SESSION)
    }

    /// Forgets a login.
    pub(crate) fn log_out(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if let Some(session) = self.session(headers) {
            let session = digest(session);
            let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            sessions.retain(|(known, _)| !is_same(*known, session));
        }
        self.set_cookie("", Duration::ZERO)
    }

    fn set_cookie(&self, value: &str, age: Duration) -> Option<HeaderValue> {
        let (name, age) = (&self.cookie, age.as_secs());
        format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}").parse().ok()
    }

    fn session<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(name, _)| *name == self.cookie).map(|(_, value)| value)
    }

    fn proof(&self, headers: &HeaderMap, remote: SocketAddr) -> Proof {
        if let Some(authorization) = headers.get(header::AUTHORIZATION) {
            let token = authorization.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
            if token.is_some_and(|token| is_same(digest(token.trim()), self.token)) {
                return Proof::Token;
            }
            tracing::warn!(by = %remote, "refused: a wrong token");
            return Proof::Nothing;
        }
        let Some(session) = self.session(headers).map(digest) else { return Proof::Nothing };
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = sessions
            .iter()
            .fold(false, |found, (known, at)| found | (is_same(*known, session) && at.elapsed() < SESSION));
        if is_known { Proof::Session } else { Proof::Nothing }
    }

    /// Whether it was asked for by a name that is this program's: a page whose own name was pointed
    /// to this address would else be of the same origin.
    fn is_host(&self, request: &Request) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).into_iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let is_own = |host: &str| self.hosts.contains(&without_port(host).to_ascii_lowercase());
        host.to_str().is_ok_and(is_own) && request.uri().authority().is_none_or(|at| is_own(at.as_str()))
    }
}

fn literal(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether a browser says that a page of this program sent it; nothing, if it says neither.
fn is_of_own_page(headers: &HeaderMap) -> Option<bool> {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST).unwrap_or_default();
    let site = text(HeaderName::from_static("sec-fetch-site")).map(|site| site == "same-origin");
    let origin = text(header::ORIGIN).map(|origin| {
        let name = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        name.is_some_and(|name| name.eq_ignore_ascii_case(host))
    });
    [site, origin].into_iter().flatten().reduce(|a, b| a && b)
}

/// Every request passes here, and every answer.
pub(crate) async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let mut response = match admitted(&access, request) {
        Ok(request) => match tokio::time::timeout(REQUEST, next.run(request)).await {
            Ok(response) => response,
            Err(_) => refusal(StatusCode::GATEWAY_TIMEOUT, "The broker or the store took too long."),
        },
        Err(refused) => *refused,
    };
    for (name, value) in [
        (
            "content-security-policy",
            "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
        ),
        ("x-content-type-options", "nosniff"),
        // Nothing to anyone else. With `no-referrer`, browsers send `Origin: null` with forms of
        // the page itself.
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

fn admitted(access: &Access, mut request: Request) -> Result<Request, Box<Response>> {
    let refused = |status, text| Err(Box::new(refusal(status, text)));
    if !access.is_host(&request) {
        return refused(
            StatusCode::MISDIRECTED_REQUEST,
            "This is not served under that name. `serve --host NAME` allows one.",
        );
    }
    let remote =
        request.extensions().get::<Remote>().map_or(SocketAddr::from(([0; 4], 0)), |remote| remote.0);
    let proof = access.proof(request.headers(), remote);
    let needs_token = || refused(StatusCode::UNAUTHORIZED, "This needs the token: log in.");
    if proof == Proof::Nothing && request.headers().contains_key(header::AUTHORIZATION) {
        return needs_token();
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    // A page cannot make a browser send a token, and other programs name no origin.
    if !reads && !is_of_own_page(request.headers()).unwrap_or(proof == Proof::Token) {
        tracing::warn!(by = %remote, "refused: it was sent by a page of another origin");
        return refused(StatusCode::FORBIDDEN, "This was sent by a page of another origin.");
    }
    let is_open = matches!(request.uri().path(), "/login" | "/style.css");
    if proof == Proof::Nothing && !is_open {
        if !reads {
            return needs_token();
        }
        if access.is_closed {
            return Err(Box::new(Redirect::to("/login").into_response()));
        }
    }
    request.extensions_mut().insert(MayChange(proof != Proof::Nothing));
    Ok(request)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        for (origin, site, is_own) in [
            (None, None, None),
            (Some("http://localhost:8081"), None, Some(true)),
            (Some("http://localhost:8081"), Some("same-origin"), Some(true)),
            (Some("http://localhost:8081"), Some("same-site"), Some(false)),
            (Some("http://localhost:9999"), Some("same-origin"), Some(false)),
            (Some("http://localhost:8081.evil.example"), None, Some(false)),
            (Some("null"), None, Some(false)),
            (None, Some("cross-site"), Some(false)),
            (None, Some("none"), Some(false)),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "localhost:8081".parse().unwrap());
            for (name, value) in [("origin", origin), ("sec-fetch-site", site)] {
                if let Some(value) = value {
                    headers.insert(HeaderName::from_static(name), value.parse().unwrap());
                }
            }
            assert_eq!(is_of_own_page(&headers), is_own, "{origin:?} {site:?}");
        }
    }

    #[test]
    fn secrets_are_long_and_compared_whole() {
        let (one, other) = (secret(), secret());
        assert!(one.len() == 64 && one != other);
        assert!(is_same(digest(&one), digest(&one)) && !is_same(digest(&one), digest(&other)));
        let mut almost = digest(&one);
        almost[31] ^= 1;
        assert!(!is_same(almost, digest(&one)));
    }

    #[test]
    fn hosts_without_their_ports() {
        for (host, name) in
            [("localhost:8081", "localhost"), ("[::1]:8081", "[::1]"), ("[::1]", "[::1]"), ("a.b", "a.b")]
        {
            assert_eq!(without_port(host), name);
        }
    }
}
