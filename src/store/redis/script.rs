//! The scripts that Redis runs: each reads and writes one identity, and nothing comes between.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use redis::{Cmd, Value, from_redis_value};

use super::error::Failure;
use crate::{idempotency::Record, message::Fingerprint};

pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));
pub(super) static COMPLETE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("complete.lua")));
pub(super) static RENEW: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("renew.lua")));
pub(super) static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("release.lua")));
pub(super) static FIND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("find.lua")));
pub(super) static FORGET: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("forget.lua")));

pub(super) struct Script {
    text: &'static str,
    hash: String,
}

/// A script with its key and arguments.
pub(super) struct Call {
    script: &'static Script,
    key: String,
    arguments: Vec<Vec<u8>>,
}

/// What a script answered.
pub(super) enum Answer {
    Acquired { token: u64 },
    Known(Record),
    Unknown,
    Done,
    Lost,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    pub(super) fn on(&'static self, key: String) -> Call {
        Call { script: self, key, arguments: Vec::new() }
    }
}

impl Call {
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.arguments.push(bytes.to_vec());
        self
    }

    pub(super) fn number(self, number: u64) -> Self {
        self.bytes(number.to_string().as_bytes())
    }

    /// Checked by the settings: it fits.
    pub(super) fn millis(self, duration: Duration) -> Self {
        self.number(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    /// The short form, for a server that knows the script.
    pub(super) fn by_hash(&self) -> Cmd {
        self.command("EVALSHA", &self.script.hash)
    }

    /// The long form, which makes the script known to the one server that has the key, wherever it
    /// has moved.
    pub(super) fn by_text(&self) -> Cmd {
        self.command("EVAL", self.script.text)
    }

    fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = redis::cmd(name);
        command.arg(script).arg(1).arg(&self.key).arg(&self.arguments);
        command
    }
}

impl Answer {
    pub(super) fn parse(value: Value) -> Result<Self, Failure> {
        let parts: Vec<Vec<u8>> = from_redis_value(value).map_err(|_| Failure::unexpected())?;
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let answer = match parts.as_slice() {
            [b"acquired", token] => number(token).map(|token| Self::Acquired { token }),
            [b"leased", remaining] => number(remaining)
                .map(|millis| Self::Known(Record::InProgress { remaining: Duration::from_millis(millis) })),
            [b"completed", at, fingerprint] => completed(at, fingerprint).map(Self::Known),
            [b"unknown"] => Some(Self::Unknown),
            [b"done"] => Some(Self::Done),
            [b"lost"] => Some(Self::Lost),
            _ => None,
        };
        answer.ok_or_else(Failure::unexpected)
    }
}

fn completed(at: &[u8], fingerprint: &[u8]) -> Option<Record> {
    let fingerprint = Fingerprint::from_bytes(fingerprint.try_into().ok()?);
    let processed_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number(at)?))?;
    Some(Record::Completed { fingerprint, processed_at })
}

fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}
