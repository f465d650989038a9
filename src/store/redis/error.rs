//! What Redis' errors mean for the caller, in words that hold no secret.

use std::{sync::Arc, time::Duration};

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::idempotency::{StoreError, StoreErrorKind};

/// Passwords of URLs: no text may hold one.
#[derive(Clone, Default)]
pub(super) struct Secrets(Arc<[String]>);

/// Why one command failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) kind: StoreErrorKind,
    /// It may have been executed all the same.
    pub(super) sent: bool,
    /// The connection is of no more use.
    pub(super) broken: bool,
    pub(super) particular: Option<Particular>,
    text: String,
}

/// A failure after which there is another way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Particular {
    UnknownScript,
    /// The key holds something else.
    WrongType,
}

impl Secrets {
    pub(super) fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        Self(secrets.into_iter().filter(|secret| !secret.is_empty()).collect())
    }

    /// Those of both.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().chain(&*other.0).cloned().collect())
    }

    /// An error's text, unless a secret is in it or may be.
    ///
    /// Servers and proxies that do not know a command quote its arguments, and `AUTH` is a command.
    /// They cut them short, too, so that the secret itself need not be found. redis' own sources
    /// are left out of the error for that reason.
    fn text(&self, error: &RedisError) -> String {
        let text = error.to_string();
        let quotes = text.contains("args beginning with");
        if quotes || self.0.iter().any(|secret| text.contains(secret.as_str())) {
            return format!("{} (the server's words are left out: they may hold a secret)", error.category());
        }
        text
    }

    /// What a failed attempt to connect means.
    pub(super) fn not_connected(&self, error: &RedisError) -> Failure {
        Failure { sent: false, broken: true, ..self.failed(error) }
    }

    /// What the failure of a command means.
    pub(super) fn failed(&self, error: &RedisError) -> Failure {
        let kind = kind(error);
        let text = match error.kind() {
            ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask) => {
                "the server is one node of a cluster: connect to the cluster".to_owned()
            }
            _ => self.text(error),
        };
        Failure {
            kind,
            sent: matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse | ErrorKind::Client),
            broken: error.is_unrecoverable_error()
                || matches!(error.kind(), ErrorKind::Io)
                || not_the_primary(error),
            particular: match error.kind() {
                ErrorKind::Server(ServerErrorKind::NoScript) => Some(Particular::UnknownScript),
                _ if error.code() == Some("WRONGTYPE") => Some(Particular::WrongType),
                _ => None,
            },
            text,
        }
    }
}

impl Failure {
    /// No answer came in time.
    pub(super) fn timed_out(limit: Duration, sent: bool) -> Self {
        let text = format!("no answer within {limit:?}");
        Self { sent, broken: true, ..Self::of(StoreErrorKind::Unavailable, text) }
    }

    /// An answer that is none of the scripts'.
    pub(super) fn unexpected() -> Self {
        Self::of(StoreErrorKind::Schema, "the server's answer has an unknown form".to_owned())
    }

    fn of(kind: StoreErrorKind, text: String) -> Self {
        Self { kind, sent: false, broken: false, particular: None, text }
    }

    /// Whether asking again may help.
    pub(super) fn may_pass(&self) -> bool {
        self.kind == StoreErrorKind::Unavailable
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, failure.text)
    }
}

fn kind(error: &RedisError) -> StoreErrorKind {
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        // A cluster that cannot be opened: what its nodes said is in the text.
        ErrorKind::Io
            if ["AuthenticationFailed", "NOAUTH", "NoPerm"].iter().any(|why| detail.contains(why)) =>
        {
            StoreErrorKind::Configuration
        }
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::RESP3NotSupported => {
            StoreErrorKind::Configuration
        }
        ErrorKind::UnexpectedReturnType | ErrorKind::Parse => StoreErrorKind::Schema,
        ErrorKind::Server(
            ServerErrorKind::NoPerm
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::CrossSlot,
        ) => StoreErrorKind::Configuration,
        ErrorKind::Server(ServerErrorKind::ResponseError) => unnamed(detail),
        ErrorKind::Extension => match error.code().unwrap_or_default() {
            "OOM" | "-OOM" => StoreErrorKind::Full,
            "WRONGTYPE" | "-WRONGTYPE" => StoreErrorKind::Schema,
            "NOAUTH" | "WRONGPASS" | "DENIED" => StoreErrorKind::Configuration,
            IN_A_SCRIPT => unnamed(detail),
            // BUSY, MISCONF, NOREPLICAS and whatever else a server says of its own state.
            _ => StoreErrorKind::Unavailable,
        },
        _ => StoreErrorKind::Unavailable,
    }
}

/// The server became a replica, or lost its primary: it is behind the same name as the one that
/// took its place.
fn not_the_primary(error: &RedisError) -> bool {
    let detail = error.detail().unwrap_or_default();
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => true,
        ErrorKind::Server(ServerErrorKind::ResponseError) | ErrorKind::Extension => {
            inside_of_a_script(detail, "READONLY") || inside_of_a_script(detail, "MASTERDOWN")
        }
        _ => false,
    }
}

/// What is there instead of a code, before Redis 7, if a script hands out the error of one of its
/// commands.
const IN_A_SCRIPT: &str = "@user_script:";

/// Before Redis 7 the error of a command inside of a script has no code of its own: `Error running
/// script (..): @user_script:1: -OOM ..`, or `@user_script: 1: -OOM ..`.
fn inside_of_a_script(detail: &str, code: &str) -> bool {
    detail.contains(&format!("-{code} "))
}

/// States of a server or a cluster that pass.
const STATES: [&str; 8] =
    ["READONLY", "MASTERDOWN", "MISCONF", "NOREPLICAS", "LOADING", "CLUSTERDOWN", "TRYAGAIN", "BUSY"];

/// An error without a code of its own. Before Redis 7, whatever happens inside of a script is one.
fn unnamed(detail: &str) -> StoreErrorKind {
    if detail.contains("OOM command not allowed") {
        StoreErrorKind::Full
    } else if STATES.iter().any(|code| inside_of_a_script(detail, code))
        || detail.contains("max number of clients")
    {
        StoreErrorKind::Unavailable
    } else if ["unknown command", "NOPERM", "can't run this command", "ACL failure"]
        .iter()
        .any(|words| detail.contains(words))
    {
        StoreErrorKind::Configuration
    } else {
        StoreErrorKind::Schema
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(line: &str) -> RedisError {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap().extract_error().unwrap_err()
    }

    #[test]
    fn errors_mean_what_the_caller_can_do_about_them() {
        use StoreErrorKind::{Configuration, Full, Schema, Unavailable};
        for (line, expected) in [
            ("OOM command not allowed when used memory > 'maxmemory'.", Full),
            (
                "ERR Error running script (call to f_1): @user_script: 26: -OOM command not allowed when used memory > 'maxmemory'.",
                Full,
            ),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value script: 1, on @user_script:9.",
                Schema,
            ),
            ("ERR user_script:12: attempt to compare number with nil", Schema),
            ("LOADING Redis is loading the dataset in memory", Unavailable),
            ("CLUSTERDOWN The cluster is down", Unavailable),
            ("READONLY You can't write against a read only replica.", Unavailable),
            ("BUSY Redis is busy running a script.", Unavailable),
            ("MISCONF Redis is configured to save RDB snapshots", Unavailable),
            ("NOREPLICAS Not enough good replicas to write.", Unavailable),
            ("ERR max number of clients reached", Unavailable),
            ("NOAUTH Authentication required.", Configuration),
            ("NOPERM this user has no permissions to run the 'evalsha' command", Configuration),
            (
                "ERR The user executing the script can't run this command or subcommand script: 1, on @user_script:9.",
                Configuration,
            ),
            (
                "ERR ACL failure in script: User x has no permissions to run the 'pexpire' command",
                Configuration,
            ),
            ("MOVED 3999 127.0.0.1:6381", Configuration),
            ("ERR unknown command `EVALSHA`, with args beginning with: `x`", Configuration),
        ] {
            assert_eq!(Secrets::default().failed(&answer(line)).kind, expected, "{line}");
        }
    }

    /// What Redis 5 and 6 say of a command inside of a script.
    fn in_a_script(line: &str) -> RedisError {
        answer(&format!("ERR Error running script (call to f_1): @user_script:30: @user_script: 30: -{line}"))
    }

    /// And if the script caught it, and answers with it.
    fn handed_out(line: &str) -> RedisError {
        answer(&format!("@user_script: 30: -{line}"))
    }

    #[test]
    fn inside_of_a_script_an_error_means_the_same() {
        use StoreErrorKind::{Full, Unavailable};
        for (line, expected, broken) in [
            ("READONLY You can't write against a read only replica.", Unavailable, true),
            (
                "MASTERDOWN SharedConnection with MASTER is down and replica-serve-stale-data is set to 'no'.",
                Unavailable,
                true,
            ),
            ("LOADING Redis is loading the dataset in memory", Unavailable, false),
            ("CLUSTERDOWN The cluster is down", Unavailable, false),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Unavailable, false),
            ("NOREPLICAS Not enough good replicas to write.", Unavailable, false),
            ("MISCONF Redis is configured to save RDB snapshots", Unavailable, false),
            ("BUSY Redis is busy running a script.", Unavailable, false),
            ("OOM command not allowed when used memory > 'maxmemory'.", Full, false),
        ] {
            for error in [answer(line), in_a_script(line), handed_out(line)] {
                let failure = Secrets::default().failed(&error);
                assert_eq!((failure.kind, failure.broken), (expected, broken), "{error}");
            }
        }
    }

    #[test]
    fn words_that_may_hold_a_secret_are_left_out() {
        let secrets = Secrets::new(["canary".to_owned(), String::new()]);
        for line in [
            "ERR unknown command `AUTH`, with args beginning with: `user` `can`",
            "ERR who is canary",
            "CANARY canary",
        ] {
            let error = StoreError::from(secrets.not_connected(&answer(line)));
            let told = format!("{error} {error:?}");
            assert!(!told.contains("can`") && !told.contains("canary"), "{told}");
        }
        let error = StoreError::from(secrets.failed(&answer("LOADING Redis is loading")));
        assert!(format!("{error:?}").contains("is loading"), "what is harmless is told: {error:?}");
    }
}
