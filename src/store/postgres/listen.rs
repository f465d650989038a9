//! LISTEN, with a connection of its own, and a probe of whether anything is heard at all.

use std::{convert::Infallible, time::Duration};

use sqlx::{
    AssertSqlSafe, Postgres, Row,
    postgres::{PgListener, PgPool, PgPoolOptions},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use crate::{
    error::Chain,
    store::sql::{Ear, OutboxStatements},
};

/// How often it is tried whether notifications arrive.
const PROBE_EVERY: Duration = Duration::from_secs(30);

/// How soon one has to arrive.
const ECHO: Duration = Duration::from_secs(2);

/// For the server's answers.
const ANSWER: Duration = Duration::from_secs(10);

/// The shortest and the longest pause before another connection is tried.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A query for the name of the channel: a hash of the names of database, schema and table, so that
/// no other table's relays are woken.
pub(super) fn channel(quoted: &str) -> String {
    format!(
        "SELECT 'lapin_outbox_' || to_hex(hashtextextended(current_database() || '/' || nspname || '/' || relname, 0)) \
         AS channel FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace \
         WHERE pg_class.oid = to_regclass('{quoted}')"
    )
}

/// What is told when something was committed.
pub(super) fn wake_from(outbox: Uuid) -> String {
    format!("wake {outbox}")
}

pub(super) async fn notify(
    pool: &PgPool,
    statements: &OutboxStatements,
    text: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(statements.notify.as_str())).bind(text).execute(pool).await.map(|_| ())
}

/// Why nothing is heard.
#[derive(Debug, thiserror::Error)]
enum Deaf {
    #[error("the table is missing")]
    NoTable,
    #[error("no notification came back within {} s: is there a pooler in transaction mode, or a replica?", ECHO.as_secs())]
    NoEcho,
    #[error("the connection was lost")]
    Lost,
    #[error("the database did not answer")]
    NoAnswer(#[from] tokio::time::error::Elapsed),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
}

pub(super) async fn listen(ear: Ear<Postgres>) {
    let (mut pause, mut warned) = (PAUSES.0, false);
    loop {
        let Err(error) = hear(&ear).await;
        // Whether it had heard, since it was connected.
        if ear.hears.send_replace(false) {
            (pause, warned) = (PAUSES.0, false);
        }
        if !std::mem::replace(&mut warned, true) {
            let table = &ear.statements.table;
            tracing::warn!(%table, error = %Chain(&error), "the outbox hears no notifications: messages of other processes are found by looking");
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Hears until something is wrong.
async fn hear(ear: &Ear<Postgres>) -> Result<Infallible, Deaf> {
    let own = PgPoolOptions::new().max_connections(1).acquire_timeout(ANSWER);
    let own = own.connect_lazy_with((*ear.pool.connect_options()).clone());
    let mut listener = timeout(ANSWER, PgListener::connect_with(&own)).await??;
    listener.eager_reconnect(false);
    let named = channel(&ear.statements.quoted);
    // By the simple protocol: a pooler cannot lose what is not prepared.
    let channel = sqlx::raw_sql(AssertSqlSafe(named)).fetch_optional(&mut listener);
    let channel = timeout(ANSWER, channel).await??.ok_or(Deaf::NoTable)?;
    timeout(ANSWER, listener.listen(channel.try_get(0)?)).await??;
    let mine = wake_from(ear.me);
    loop {
        // By a connection of the pool: a pooler that gave this one's session away would still hand
        // it what it had sent itself.
        let probe = format!("probe {}", Uuid::new_v4());
        timeout(ANSWER, notify(&ear.pool, &ear.statements, &probe)).await??;
        let sent = Instant::now();
        let (mut end, mut echoed) = (sent + ECHO, false);
        loop {
            match timeout_at(end, listener.try_recv()).await {
                Ok(Ok(Some(heard))) if heard.payload() == probe => {
                    (end, echoed) = (sent + PROBE_EVERY, true);
                    if !ear.hears.send_replace(true) {
                        // What was committed before is not told any more.
                        ear.wake.wake();
                    }
                }
                Ok(Ok(Some(heard))) if heard.payload() == mine || heard.payload().starts_with("probe ") => {}
                Ok(Ok(Some(_))) => ear.wake.wake(),
                Ok(Ok(None)) => return Err(Deaf::Lost),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) if echoed => break,
                Err(_) => return Err(Deaf::NoEcho),
            }
        }
    }
}
