//! Which servers, and how to keep to oneself what their URLs hold.

use std::{fs, path::Path};

use lapin_idempotent::{
    IdempotencyStore, MySqlOutbox, MySqlStore, PostgresOutbox, PostgresStore, RedisStore, SqliteOutbox,
    SqliteStore, idempotency::StoreError,
};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::{ask::Failure, options::Common};

/// Where the servers are.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    store: Option<Result<String, String>>,
    amqp: Option<Result<String, String>>,
    table: Option<String>,
    outbox_table: Option<String>,
    prefix: Option<String>,
}

/// A store, by the scheme of its URL.
#[derive(Debug)]
pub(crate) enum AnyStore {
    Postgres(PostgresStore),
    MySql(MySqlStore),
    Sqlite(SqliteStore),
    Redis(RedisStore),
}

/// An outbox, by the scheme of its URL.
#[derive(Debug)]
pub(crate) enum AnyOutbox {
    Postgres(PostgresOutbox),
    MySql(MySqlOutbox),
    Sqlite(SqliteOutbox),
}

/// The same for each kind of store.
macro_rules! with_store {
    ($store:expr, $name:ident => $body:expr) => {
        match $store {
            $crate::servers::AnyStore::Postgres($name) => $body,
            $crate::servers::AnyStore::MySql($name) => $body,
            $crate::servers::AnyStore::Sqlite($name) => $body,
            $crate::servers::AnyStore::Redis($name) => $body,
        }
    };
}

/// The same for each kind of outbox.
macro_rules! with_outbox {
    ($outbox:expr, $name:ident => $body:expr) => {
        match $outbox {
            $crate::servers::AnyOutbox::Postgres($name) => $body,
            $crate::servers::AnyOutbox::MySql($name) => $body,
            $crate::servers::AnyOutbox::Sqlite($name) => $body,
        }
    };
}

pub(crate) use {with_outbox, with_store};

/// What a URL leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    MySql,
    Sqlite,
    Redis,
}

impl Servers {
    pub(crate) fn new(common: &Common) -> Self {
        let url = |file: &Option<std::path::PathBuf>, url: &Option<String>| match file {
            Some(file) => Some(first_line(file)),
            None => url.clone().filter(|url| !url.is_empty()).map(Ok),
        };
        Self {
            store: url(&common.store_file, &common.store),
            amqp: url(&common.amqp_file, &common.amqp),
            table: common.table.clone(),
            outbox_table: common.outbox_table.clone(),
            prefix: common.prefix.clone(),
        }
    }

    pub(crate) fn has_store(&self) -> bool {
        self.store.is_some()
    }

    pub(crate) fn has_amqp(&self) -> bool {
        self.amqp.is_some()
    }

    fn store_url(&self) -> Result<&str, Failure> {
        told(self.store.as_ref(), "the store: set STORE_URL, or use --store-file or --store")
    }

    /// The broker's URL.
    pub(crate) fn amqp(&self) -> Result<&str, Failure> {
        told(self.amqp.as_ref(), "the broker: set AMQP_URL, or use --amqp-file or --amqp")
    }

    /// By the scheme.
    pub(crate) fn kind(&self) -> Result<Kind, Failure> {
        let url = self.store_url()?;
        match url.split(':').next().unwrap_or_default() {
            "postgres" | "postgresql" => Ok(Kind::Postgres),
            "mysql" | "mariadb" => Ok(Kind::MySql),
            "sqlite" => Ok(Kind::Sqlite),
            "redis" | "rediss" | "valkey" | "valkeys" => Ok(Kind::Redis),
            _ => Err(Failure::usage(
                "the store's URL must begin with postgres:, mysql:, sqlite:, redis: or rediss:",
            )),
        }
    }

    /// `SQLite` makes a file that is not there, which a misspelt name should not.
    fn there(url: &str) -> Result<(), Failure> {
        let path = url.trim_start_matches("sqlite:").trim_start_matches("//");
        let path = path.split('?').next().unwrap_or_default();
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        if path == ":memory:" || Path::new(&path).exists() {
            return Ok(());
        }
        Err(Failure::Failed(format!("there is no file {path}; `schema apply` makes it")))
    }

    /// The store, connected when it is asked something.
    pub(crate) fn store(&self) -> Result<AnyStore, Failure> {
        let url = self.store_url()?;
        let store = match self.kind()? {
            Kind::Sqlite => {
                Self::there(url)?;
                self.store_that_may_be_made()?
            }
            Kind::Redis => {
                let urls: Vec<&str> = url.split(',').collect();
                let store = match urls.as_slice() {
                    [url] => RedisStore::connect_lazy(url)?,
                    urls => RedisStore::connect_cluster_lazy(urls)?,
                };
                AnyStore::Redis(match &self.prefix {
                    Some(prefix) => store.prefix(prefix),
                    None => store,
                })
            }
            Kind::Postgres | Kind::MySql => self.store_that_may_be_made()?,
        };
        Ok(store)
    }

    /// The same for a SQL store whose file or tables need not be there.
    pub(crate) fn store_that_may_be_made(&self) -> Result<AnyStore, Failure> {
        let url = self.store_url()?;
        let store = match self.kind()? {
            Kind::Postgres => {
                AnyStore::Postgres(named(PostgresStore::connect_lazy(url)?, self.table.as_ref())?)
            }
            Kind::MySql => {
                AnyStore::MySql(named(MySqlStore::connect_lazy(&mysql(url))?, self.table.as_ref())?)
            }
            Kind::Sqlite => AnyStore::Sqlite(named(SqliteStore::connect_lazy(url)?, self.table.as_ref())?),
            Kind::Redis => return Err(Failure::usage("Redis has no tables")),
        };
        Ok(store)
    }

    /// The outbox, connected when it is asked something.
    pub(crate) fn outbox(&self) -> Result<AnyOutbox, Failure> {
        if self.kind()? == Kind::Sqlite {
            Self::there(self.store_url()?)?;
        }
        self.outbox_that_may_be_made()
    }

    pub(crate) fn outbox_that_may_be_made(&self) -> Result<AnyOutbox, Failure> {
        let url = self.store_url()?;
        let mut outbox = match self.kind()? {
            Kind::Postgres => AnyOutbox::Postgres(PostgresOutbox::connect_lazy(url)?),
            Kind::MySql => AnyOutbox::MySql(MySqlOutbox::connect_lazy(&mysql(url))?),
            Kind::Sqlite => AnyOutbox::Sqlite(SqliteOutbox::connect_lazy(url)?),
            Kind::Redis => return Err(Failure::usage("there is no outbox on Redis")),
        };
        if let Some(table) = &self.outbox_table {
            outbox = match outbox {
                AnyOutbox::Postgres(outbox) => AnyOutbox::Postgres(outbox.table(table)?),
                AnyOutbox::MySql(outbox) => AnyOutbox::MySql(outbox.table(table)?),
                AnyOutbox::Sqlite(outbox) => AnyOutbox::Sqlite(outbox.table(table)?),
            };
        }
        Ok(outbox)
    }

    /// The same tables on another server, for SQL that is only printed.
    pub(crate) fn with_store_url(&self, url: &str) -> Self {
        Self {
            store: Some(Ok(url.to_owned())),
            amqp: None,
            table: self.table.clone(),
            outbox_table: self.outbox_table.clone(),
            prefix: None,
        }
    }

    /// A text without what the URLs hold, should a server or a driver repeat it.
    pub(crate) fn without_secrets(&self, text: &str) -> String {
        let mut text = without_passwords(text);
        for url in [&self.store, &self.amqp].into_iter().flatten().flatten() {
            for url in url.split(',') {
                text = text.replace(url, "<URL>");
                let Ok(url) = Url::parse(url) else { continue };
                let password = url.password().map(str::to_owned).into_iter();
                let named = url.query_pairs().filter(|(name, _)| is_secret(name));
                for secret in password.chain(named.map(|(_, value)| value.into_owned())) {
                    let decoded = percent_decode_str(&secret).decode_utf8_lossy().into_owned();
                    for secret in [secret, decoded].into_iter().filter(|secret| secret.len() > 2) {
                        text = text.replace(&secret, "***");
                    }
                }
            }
        }
        text
    }
}

impl AnyStore {
    /// Whether it can work.
    pub(crate) async fn check(&self) -> Result<(), StoreError> {
        with_store!(self, store => store.check().await)
    }
}

/// What has a table that can have another name.
trait Named: Sized {
    fn named(self, table: &str) -> Result<Self, Failure>;
}

macro_rules! named {
    ($($store:ty),+) => {$(
        impl Named for $store {
            fn named(self, table: &str) -> Result<Self, Failure> {
                self.table(table).map_err(|error| Failure::usage(error.to_string()))
            }
        }
    )+};
}

named!(PostgresStore, MySqlStore, SqliteStore);

fn named<S: Named>(store: S, table: Option<&String>) -> Result<S, Failure> {
    match table {
        Some(table) => store.named(table),
        None => Ok(store),
    }
}

/// sqlx knows `mysql:` only.
fn mysql(url: &str) -> String {
    url.strip_prefix("mariadb:").map_or_else(|| url.to_owned(), |rest| format!("mysql:{rest}"))
}

fn told<'a>(url: Option<&'a Result<String, String>>, what: &str) -> Result<&'a str, Failure> {
    match url {
        Some(Ok(url)) => Ok(url),
        Some(Err(error)) => Err(Failure::Failed(error.clone())),
        None => Err(Failure::usage(format!("no URL of {what}"))),
    }
}

pub(crate) fn first_line(file: &Path) -> Result<String, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let line = text.lines().next().unwrap_or_default().trim().to_owned();
    if line.is_empty() { Err(format!("{}: nothing is in its first line", file.display())) } else { Ok(line) }
}

/// Whether `ps` shows a password.
pub(crate) fn is_secret_told() -> bool {
    std::env::args().any(|argument| without_passwords(&argument) != argument)
}

/// Whether a parameter of a URL is nobody's business.
fn is_secret(name: &str) -> bool {
    ["pass", "secret", "token", "key"].iter().any(|word| name.to_ascii_lowercase().contains(word))
}

/// A text without what stands between `://` and `@`, and behind the `?`, of its URLs.
pub(crate) fn without_passwords(text: &str) -> String {
    let mut clean = String::new();
    let mut rest = text;
    while let Some((before, behind)) = rest.split_once("://") {
        clean.push_str(before);
        clean.push_str("://");
        // A password may hold anything but blanks; the last `@` before them ends it.
        let end = behind.find(char::is_whitespace).unwrap_or(behind.len());
        let (mut url, after) = behind.split_at(end);
        if let Some(at) = url.rfind('@').filter(|at| url[..*at].contains(':')) {
            clean.push_str("***");
            url = &url[at..];
        }
        match url.split_once('?') {
            Some((path, _)) => {
                clean.push_str(path);
                clean.push_str("?***");
            }
            None => clean.push_str(url),
        }
        rest = after;
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_left_out_wherever_a_url_stands() {
        for (text, clean) in [
            ("--store=postgres://u:canary@h/db", "--store=postgres://***@h/db"),
            ("at 'redis://:can@ary@h' and amqp://u:canary@h", "at 'redis://***@h' and amqp://***@h"),
            ("postgres://h/db?password=canary", "postgres://h/db?***"),
            ("sqlite://a.db", "sqlite://a.db"),
            ("amqp://user@host no: more", "amqp://user@host no: more"),
        ] {
            assert_eq!(without_passwords(text), clean);
        }
    }
}
