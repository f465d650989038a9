//! SQL databases: a table of identities beside a table of effects that has no unique key, so that a
//! second effect shows.

pub mod cutter;
pub mod frames;
pub mod wire;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use lapin_idempotent::{
    Guard, HandlerError, HandlerResult, IdempotentHandler, IncomingMessage, Outcome,
    idempotency::Scope,
    store::{SqlDatabase, SqlStore},
};
use sqlx::{AssertSqlSafe, MySql, Pool, Postgres, Sqlite, Transaction};

/// A database, as far as the tests of all of them need to know it.
pub trait Kind: SqlDatabase {
    /// Where its shared server is.
    fn url() -> String;
    /// Runs statements without values.
    fn run<'a>(connection: &'a mut Self::Connection, sql: &'a str)
    -> BoxFuture<'a, Result<u64, sqlx::Error>>;
    /// The one integer of a query.
    fn number<'a>(pool: &'a Pool<Self>, sql: &'a str) -> BoxFuture<'a, Result<i64, sqlx::Error>>;
    /// The server's number for a connection.
    fn session(connection: &mut Self::Connection) -> BoxFuture<'_, i64>;
    /// The statement by which an operator ends such a connection.
    fn kill(session: i64) -> String {
        match Self::NAME {
            "PostgreSQL" => format!("SELECT pg_terminate_backend({session})"),
            "MySQL" => format!("KILL {session}"),
            other => unreachable!("{other} has no sessions"),
        }
    }
}

macro_rules! kind {
    ($database:ty, $url:expr) => {
        impl Kind for $database {
            fn url() -> String {
                $url
            }

            fn run<'a>(
                connection: &'a mut Self::Connection,
                sql: &'a str,
            ) -> BoxFuture<'a, Result<u64, sqlx::Error>> {
                Box::pin(async move {
                    Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?.rows_affected())
                })
            }

            fn number<'a>(pool: &'a Pool<Self>, sql: &'a str) -> BoxFuture<'a, Result<i64, sqlx::Error>> {
                Box::pin(sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(pool))
            }

            fn session(connection: &mut Self::Connection) -> BoxFuture<'_, i64> {
                let sql = match <Self as sqlx::Database>::NAME {
                    "PostgreSQL" => "SELECT pg_backend_pid()::bigint",
                    _ => "SELECT CAST(connection_id() AS SIGNED)",
                };
                Box::pin(async move { sqlx::query_scalar(sql).fetch_one(connection).await.expect("session") })
            }
        }
    };
}

kind!(Postgres, variable("POSTGRES_URL"));
kind!(MySql, variable("MYSQL_URL"));
kind!(Sqlite, {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(short("db"));
    format!("sqlite:{}", file.display())
});

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

/// A name that may be a table's, and that no other test and no other run has.
pub fn short(name: &str) -> String {
    format!("{name}_{}", &uuid::Uuid::new_v4().simple().to_string()[..16])
}

/// A store on a table of its own, and the effects beside it. Dropping it leaves the tables; the
/// server is the tests' own.
pub struct Table<K: Kind> {
    pub url: String,
    pub store: SqlStore<K>,
    pub effects: String,
    pub name: String,
}

impl<K: Kind> Clone for Table<K> {
    fn clone(&self) -> Self {
        let Self { url, store, effects, name } = self;
        Self { url: url.clone(), store: store.clone(), effects: effects.clone(), name: name.clone() }
    }
}

impl<K: Kind> Table<K> {
    pub async fn create() -> Self {
        Self::create_on(&K::url()).await
    }

    pub async fn create_on(url: &str) -> Self {
        let table = Self::open(url, &short("ids"), &short("effects")).await;
        table.store.create_schema().await.expect("schema");
        // The driver of SQLite gives integers of its own type for count(*) only as i64, as the
        // others do.
        table.sql(&format!("CREATE TABLE {} (message_id VARCHAR(255) NOT NULL)", table.effects)).await;
        table
    }

    /// The same tables by another pool, as another process has it.
    pub async fn open(url: &str, name: &str, effects: &str) -> Self {
        let store = SqlStore::<K>::connect(url).await.expect("connect").table(name).expect("name");
        Self { url: url.to_owned(), store, effects: effects.to_owned(), name: name.to_owned() }
    }

    pub async fn again(&self) -> Self {
        Self::open(&self.url, &self.name, &self.effects).await
    }

    pub async fn sql(&self, sql: &str) -> u64 {
        let mut connection = self.store.pool().acquire().await.expect("connection");
        K::run(&mut connection, sql).await.expect("statement")
    }

    /// How many effects there are, and of how many messages.
    pub async fn effects(&self) -> (i64, i64) {
        let count = |what: &str| format!("SELECT count({what}) FROM {}", self.effects);
        let pool = self.store.pool();
        let all = K::number(pool, &count("*")).await.expect("count");
        (all, K::number(pool, &count("DISTINCT message_id")).await.expect("count"))
    }

    /// How many identities are remembered.
    pub async fn identities(&self) -> i64 {
        K::number(self.store.pool(), &format!("SELECT count(*) FROM {}", self.name)).await.expect("count")
    }

    pub fn insert(&self) -> Insert {
        Insert { effects: self.effects.clone(), runs: Arc::default(), dawdle: Duration::ZERO, fail_first: 0 }
    }

    pub fn guard(&self) -> Guard<SqlStore<K>> {
        self.guard_of("test")
    }

    pub fn guard_of(&self, scope: &str) -> Guard<SqlStore<K>> {
        Guard::new(self.store.clone(), Scope::new(scope).expect("scope"))
    }

    /// One delivery of a message, in a scope of its own table.
    pub async fn process(&self, id: &str) -> Outcome {
        self.guard().process(&message(id), &self.insert()).await
    }
}

/// A message whose body is its ID.
pub fn message(id: &str) -> IncomingMessage {
    IncomingMessage::new(id.to_owned()).with_message_id(id)
}

/// Writes the effect through its session: one row, with nothing that would stop a second one.
#[derive(Clone)]
pub struct Insert {
    pub effects: String,
    pub runs: Arc<AtomicU32>,
    pub dawdle: Duration,
    pub fail_first: u32,
}

impl Insert {
    pub fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }

    pub async fn write<K: Kind>(
        &self,
        id: &str,
        tx: &mut Transaction<'static, K>,
    ) -> Result<u64, sqlx::Error> {
        assert!(!id.contains('\''), "the tests' own IDs");
        K::run(tx, &format!("INSERT INTO {} VALUES ('{id}')", self.effects)).await
    }
}

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Insert {
    async fn handle(&self, message: &IncomingMessage, tx: &mut Transaction<'static, K>) -> HandlerResult {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        self.write::<K>(message.raw_message_id().unwrap_or_default(), tx).await?;
        tokio::time::sleep(self.dawdle).await;
        if run < self.fail_first { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    }
}
