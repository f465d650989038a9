//! The scripts that Redis runs: each reads and writes identities, and nothing comes between.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use redis::{Cmd, Value};

use super::error::Failure;
use crate::{idempotency::Record, message::Fingerprint};

/// A script, behind what all of them know of a record.
macro_rules! script {
    ($name:literal) => {
        LazyLock::new(|| Script::new(concat!(include_str!("record.lua"), include_str!($name))))
    };
}

pub(super) static CLAIM: LazyLock<Script> = script!("claim.lua");
pub(super) static COMPLETE: LazyLock<Script> = script!("complete.lua");
pub(super) static RENEW: LazyLock<Script> = script!("renew.lua");
pub(super) static RELEASE: LazyLock<Script> = script!("release.lua");
pub(super) static FIND: LazyLock<Script> = script!("find.lua");
pub(super) static FORGET: LazyLock<Script> = script!("forget.lua");

/// How many digits a token is kept with.
const TOKEN: usize = 16;

pub(super) struct Script {
    text: &'static str,
    hash: String,
}

/// A script with the identities that it is run on, and its arguments.
pub(super) struct Call {
    script: &'static Script,
    /// For all of them.
    common: Vec<Vec<u8>>,
    each: Vec<Identity>,
}

struct Identity {
    key: String,
    argument: Option<Vec<u8>>,
}

/// What a script answered of one identity.
pub(super) enum Answer {
    Acquired {
        token: u64,
    },
    Known(Record),
    Done,
    /// It is not known, or the lease was lost.
    Not,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    pub(super) fn call(&'static self) -> Call {
        Call { script: self, common: Vec::new(), each: Vec::new() }
    }

    /// On one identity.
    pub(super) fn on(&'static self, key: String) -> Call {
        let mut call = self.call();
        call.add(key, None);
        call
    }
}

impl Call {
    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.common.push(bytes.to_vec());
        self
    }

    pub(super) fn token(self, token: u64) -> Self {
        self.bytes(digits(token).as_bytes())
    }

    /// Checked by the settings: it fits.
    pub(super) fn millis(self, duration: Duration) -> Self {
        self.bytes(duration.as_millis().to_string().as_bytes())
    }

    /// One more identity, with what is passed for it alone.
    pub(super) fn add(&mut self, key: String, argument: Option<Vec<u8>>) {
        self.each.push(Identity { key, argument });
    }

    /// On how many identities.
    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    /// The short form, for a server that knows the script.
    pub(super) fn by_hash(&self, identities: &[usize]) -> Cmd {
        self.command("EVALSHA", &self.script.hash, identities)
    }

    /// The long form, which makes the script known to the one server that has the keys, wherever
    /// they have moved.
    pub(super) fn by_text(&self, identities: &[usize]) -> Cmd {
        self.command("EVAL", self.script.text, identities)
    }

    fn command(&self, name: &str, script: &str, identities: &[usize]) -> Cmd {
        let identities = || identities.iter().filter_map(|index| self.each.get(*index));
        let mut command = redis::cmd(name);
        command.arg(script).arg(identities().count());
        for identity in identities() {
            command.arg(&identity.key);
        }
        command.arg(&self.common);
        for argument in identities().filter_map(|identity| identity.argument.as_ref()) {
            command.arg(argument);
        }
        command
    }
}

/// What is kept of an identity that is completed, except for the time.
pub(super) fn completion(token: u64, fingerprint: &Fingerprint) -> Vec<u8> {
    [digits(token).as_bytes(), b"c", fingerprint.as_bytes()].concat()
}

fn digits(token: u64) -> String {
    format!("{token:0TOKEN$}")
}

impl Answer {
    pub(super) fn parse(value: &Value) -> Result<Self, Failure> {
        let answer = match value {
            Value::Int(1) => Some(Self::Done),
            Value::Int(0) => Some(Self::Not),
            Value::BulkString(text) => match text.as_slice() {
                [b'a', token @ ..] => number(token).map(|token| Self::Acquired { token }),
                [b'l', millis @ ..] => number(millis).map(|millis| {
                    Self::Known(Record::InProgress { remaining: Duration::from_millis(millis) })
                }),
                [b'c', completed @ ..] => record(completed).map(Self::Known),
                _ => None,
            },
            _ => None,
        };
        answer.ok_or_else(Failure::unexpected)
    }
}

fn record(completed: &[u8]) -> Option<Record> {
    let (fingerprint, at) = completed.split_at_checked(32)?;
    let fingerprint = Fingerprint::from_bytes(fingerprint.try_into().ok()?);
    let processed_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number(at)?))?;
    Some(Record::Completed { fingerprint, processed_at })
}

fn number(digits: &[u8]) -> Option<u64> {
    str::from_utf8(digits).ok()?.parse().ok()
}
