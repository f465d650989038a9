//! The common recipe of an outbox, by hand: lock some rows, publish them, mark them, commit.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use sqlx::{AssertSqlSafe, MySqlPool, PgPool, SqlitePool};

use super::table;

/// How many rows go into one transaction of the relay, and into one of the producer.
pub(crate) const BATCH: usize = 256;

pub(crate) struct Publisher {
    channel: Channel,
    queue: String,
    _connection: Connection,
}

impl Publisher {
    pub(crate) async fn connect(amqp: &str, queue: &str) -> Self {
        let connection = Connection::connect(amqp, ConnectionProperties::default()).await.expect("connect");
        let channel = connection.create_channel().await.expect("channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirm");
        Self { channel, queue: queue.to_owned(), _connection: connection }
    }

    async fn publish(&self, rows: &[(i64, String, Vec<u8>)]) {
        let mut publishing = FuturesUnordered::new();
        for (_, id, body) in rows {
            let properties = BasicProperties::default()
                .with_message_id(id.as_str().into())
                .with_content_type("application/json".into())
                .with_delivery_mode(2);
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let queue = self.queue.as_str().into();
            publishing.push(async move {
                let confirm = self.channel.basic_publish("".into(), queue, options, body, properties);
                confirm.await.expect("publish").await.expect("confirm")
            });
        }
        while let Some(confirm) = publishing.next().await {
            assert_eq!(confirm, Confirmation::Ack(None));
        }
    }
}

/// One database: what it says differently. Fills a table, and gives how long its relay takes.
macro_rules! recipe {
    ($name:ident, $pool:ty, $number:literal, $bytes:literal, $lock:literal, |$n:ident| $value:expr) => {
        pub(crate) async fn $name(pool: &$pool, publisher: &Publisher, body: &[u8], messages: usize) -> Duration {
            let table = table("by_hand");
            let create = format!(
                "CREATE TABLE {table} (id {}, message_id varchar(36) NOT NULL, body {} NOT NULL, sent_at bigint)",
                $number, $bytes
            );
            sqlx::raw_sql(AssertSqlSafe(create)).execute(pool).await.expect("table");
            // As is usual: what is to be found is indexed, or each look reads all that was sent.
            let index = format!("CREATE INDEX {table}_unsent ON {table} (sent_at, id)");
            sqlx::raw_sql(AssertSqlSafe(index)).execute(pool).await.expect("index");
            let value = |$n: usize| $value;
            let insert = format!("INSERT INTO {table} (message_id, body) VALUES ({}, {})", value(1), value(2));
            for start in (0..messages).step_by(BATCH) {
                let mut tx = pool.begin().await.expect("begin");
                for n in start..messages.min(start + BATCH) {
                    let id = format!("00000000-0000-7000-8000-{n:012}");
                    sqlx::query(AssertSqlSafe(insert.as_str())).bind(id).bind(body).execute(&mut *tx).await.expect("row");
                }
                tx.commit().await.expect("commit");
            }
            let select = format!(
                "SELECT id, message_id, body FROM {table} WHERE sent_at IS NULL ORDER BY id LIMIT {BATCH} {}",
                $lock
            );
            let started = Instant::now();
            loop {
                let mut tx = pool.begin().await.expect("begin");
                let rows: Vec<(i64, String, Vec<u8>)> =
                    sqlx::query_as(AssertSqlSafe(select.as_str())).fetch_all(&mut *tx).await.expect("rows");
                if rows.is_empty() {
                    return started.elapsed();
                }
                publisher.publish(&rows).await;
                let ids: Vec<String> = rows.iter().map(|(id, ..)| id.to_string()).collect();
                let mark = format!("UPDATE {table} SET sent_at = 1 WHERE id IN ({})", ids.join(", "));
                sqlx::raw_sql(AssertSqlSafe(mark)).execute(&mut *tx).await.expect("mark");
                tx.commit().await.expect("commit");
            }
        }
    };
}

recipe!(
    postgres,
    PgPool,
    "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
    "bytea",
    "FOR UPDATE SKIP LOCKED",
    |n| { format!("${n}") }
);
recipe!(mysql, MySqlPool, "bigint AUTO_INCREMENT PRIMARY KEY", "longblob", "FOR UPDATE SKIP LOCKED", |_n| {
    "?".to_owned()
});
recipe!(sqlite, SqlitePool, "integer PRIMARY KEY", "blob", "", |_n| "?".to_owned());

/// A database file that goes with the run.
pub(crate) struct File(std::path::PathBuf);

impl File {
    pub(crate) fn new() -> Self {
        Self(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(table("outbox")))
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite:{}", self.0.display())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        for behind in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{behind}", self.0.display()));
        }
    }
}
