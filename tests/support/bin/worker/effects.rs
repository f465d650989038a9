//! The effects: rows of (message ID, process ID), with nothing that would stop a second one.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use lapin_idempotent::{
    BoxError,
    store::{SqlDatabase, SqlStore},
};
use sqlx::{AssertSqlSafe, MySql, Pool, Postgres, Sqlite};

use crate::options::scheme;

/// A database that effects are written in.
pub(crate) trait Effects: SqlDatabase {
    /// The two values of a statement.
    const VALUES: &'static str;

    /// Runs a statement without values.
    fn run<'a>(connection: &'a mut Self::Connection, sql: &'a str) -> BoxFuture<'a, Result<(), sqlx::Error>>;

    /// Runs a statement of [`insert`].
    fn add<'a>(
        connection: &'a mut Self::Connection,
        sql: &'a str,
        message_id: &'a str,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>>;
}

macro_rules! effects {
    ($database:ty, $values:literal) => {
        impl Effects for $database {
            const VALUES: &'static str = $values;

            fn run<'a>(
                connection: &'a mut Self::Connection,
                sql: &'a str,
            ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
                Box::pin(async move { sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop) })
            }

            fn add<'a>(
                connection: &'a mut Self::Connection,
                sql: &'a str,
                message_id: &'a str,
            ) -> BoxFuture<'a, Result<(), sqlx::Error>> {
                let insert =
                    sqlx::query(AssertSqlSafe(sql)).bind(message_id).bind(i64::from(std::process::id()));
                Box::pin(async move { insert.execute(connection).await.map(drop) })
            }
        }
    };
}

effects!(Postgres, "($1, $2)");
effects!(MySql, "(?, ?)");
effects!(Sqlite, "(?, ?)");

/// The statement of one effect.
pub(crate) fn insert<DB: Effects>(table: &str) -> String {
    format!("INSERT INTO {table} (message_id, pid) VALUES {}", DB::VALUES)
}

pub(crate) async fn create<DB: Effects>(pool: &Pool<DB>, table: &str) -> Result<(), sqlx::Error> {
    let create =
        format!("CREATE TABLE IF NOT EXISTS {table} (message_id VARCHAR(255) NOT NULL, pid BIGINT NOT NULL)");
    let mut connection = pool.acquire().await?;
    match DB::run(&mut connection, &create).await {
        Ok(()) => Ok(()),
        // PostgreSQL fails one of two that create it at once; it is there the next time.
        Err(_) => DB::run(&mut connection, &create).await,
    }
}

/// Effects that are written by a pool of their own, each at once.
pub(crate) trait Pooled: Send + Sync {
    fn write<'a>(&'a self, message_id: &'a str) -> BoxFuture<'a, Result<(), sqlx::Error>>;
}

struct OfPool<DB: Effects> {
    pool: Pool<DB>,
    insert: String,
}

impl<DB: Effects> Pooled for OfPool<DB> {
    fn write<'a>(&'a self, message_id: &'a str) -> BoxFuture<'a, Result<(), sqlx::Error>> {
        Box::pin(async move {
            let mut connection = self.pool.acquire().await?;
            DB::add(&mut connection, &self.insert, message_id).await
        })
    }
}

/// Opens the database of the effects, with their table in it.
pub(crate) async fn open(url: &str, table: &str) -> Result<Arc<dyn Pooled>, BoxError> {
    match scheme(url) {
        "sqlite" => open_in::<Sqlite>(url, table).await,
        "postgres" | "postgresql" => open_in::<Postgres>(url, table).await,
        "mysql" | "mariadb" => open_in::<MySql>(url, table).await,
        other => Err(format!("effects need a database (--effects), not: {other}").into()),
    }
}

async fn open_in<DB: Effects>(url: &str, table: &str) -> Result<Arc<dyn Pooled>, BoxError> {
    // Its pools have limits, and SQLite the right settings.
    let pool = SqlStore::<DB>::connect(url).await?.pool().clone();
    create(&pool, table).await?;
    Ok(Arc::new(OfPool { pool, insert: insert::<DB>(table) }))
}
