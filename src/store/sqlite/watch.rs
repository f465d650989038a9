//! Commits of other connections, which SQLite counts for each that asks.

use std::{convert::Infallible, time::Duration};

use sqlx::{ConnectOptions, Connection, Sqlite};
use tokio::time::sleep;

use crate::{error::Chain, store::sql::Ear};

/// How often it looks.
const EVERY: Duration = Duration::from_millis(20);

/// Before it opens the file again.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) async fn listen(ear: Ear<Sqlite>) {
    loop {
        match watch(&ear).await {
            // A database in memory has no other connections.
            Ok(()) => return std::future::pending().await,
            Err(error) => {
                if ear.hears.send_replace(false) {
                    let table = &ear.statements.table;
                    tracing::warn!(%table, error = %Chain(&error), "the outbox cannot see commits of others: they are found by looking");
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// Looks until something is wrong; `Ok` if there is no file to look at.
async fn watch(ear: &Ear<Sqlite>) -> Result<(), sqlx::Error> {
    let schema = ear.statements.table.schema().unwrap_or("main");
    let file = "SELECT file FROM pragma_database_list WHERE name = ?";
    let file: Option<String> = sqlx::query_scalar(file).bind(schema).fetch_optional(&ear.pool).await?;
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(()) };
    let options = (*ear.pool.connect_options()).clone().filename(file).create_if_missing(false);
    // Fifty times a second is not worth a line each.
    let mut own = options.disable_statement_logging().connect().await?;
    match look(ear, &mut own).await {
        Ok(never) => match never {},
        Err(error) => {
            let _ = own.close().await;
            Err(error)
        }
    }
}

async fn look(ear: &Ear<Sqlite>, own: &mut sqlx::SqliteConnection) -> Result<Infallible, sqlx::Error> {
    let mut last: Option<i64> = None;
    loop {
        let version = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut *own).await?;
        if last.replace(version) != Some(version) {
            // Once at first, for what was committed before.
            ear.wake.wake();
        }
        ear.hears.send_replace(true);
        sleep(EVERY).await;
    }
}
