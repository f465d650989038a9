//! What a producer with an outbox runs: orders, each written down and announced in one transaction,
//! some of which are rolled back; and a relay, which publishes what any of them has committed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use clap::Args;
use fastrand::Rng;
use futures_util::{StreamExt, stream};
use lapin_idempotent::{
    BoxError, IdempotentPublisher, MessageId, OutgoingMessage, PostgresOutbox, Relay, RetryPolicy,
    outbox::Outbox as _,
};
use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;
use tokio::time::sleep;

use super::{
    journal::Journal,
    publisher::{self, due},
};

/// Orders of an account are announced in their order.
pub const ACCOUNTS: u64 = 50;

#[derive(Debug, Clone, Args)]
#[group(id = "producer")]
pub struct Options {
    #[command(flatten)]
    pub orders: publisher::Options,
    #[arg(long)]
    pub postgres: String,
    /// What its tables end with
    #[arg(long)]
    pub tables: String,
}

/// What is announced. To a consumer it is a debit.
#[derive(Debug, Serialize, Deserialize)]
pub struct Placed {
    pub number: i64,
    pub amount: i64,
    pub account: u64,
    /// Which order of its account.
    pub seq: i64,
}

/// The tables of an act, apart from those of the outbox.
pub fn schema(tables: &str) -> String {
    format!(
        "CREATE TABLE placed_{tables} (number bigint PRIMARY KEY, account bigint NOT NULL, seq bigint NOT NULL); \
         CREATE TABLE account_{tables} (id bigint PRIMARY KEY, seq bigint NOT NULL); \
         INSERT INTO account_{tables} SELECT id, 0 FROM generate_series(0, {}) id",
        ACCOUNTS - 1
    )
}

pub fn outbox_table(tables: &str) -> String {
    format!("outbox_{tables}")
}

struct Shop<'a> {
    outbox: PostgresOutbox,
    options: &'a Options,
    journal: Arc<Journal>,
}

pub async fn run(options: &Options) -> Result<(), BoxError> {
    let common = &options.orders.common;
    let journal = Arc::new(Journal::open(&common.journal)?);
    let outbox = PostgresOutbox::connect_lazy(&options.postgres)?.table(&outbox_table(&options.tables))?;
    let publisher = IdempotentPublisher::builder_for_cluster(common.nodes())
        .app_id("chaos")
        .connect_timeout(Duration::from_secs(5))
        .retry(RetryPolicy::default().max_attempts(3))
        .connect()
        .await?;
    let noted = Arc::clone(&journal);
    let relay = Relay::new(outbox.clone(), publisher).lease(Duration::from_secs(5)).on_outcome(
        move |relayed| match (relayed.result, number(relayed.message_id)) {
            (Ok(()), Some(number)) => noted.note(&format!("confirmed {number} {}", relayed.attempts + 1)),
            (Ok(()), None) => {}
            (Err(kind), _) => noted.note(&format!("failed {kind:?}")),
        },
    );
    let relay = relay.spawn();
    let shop = Shop { outbox, options, journal };
    // One that is started again is not to walk through all orders of its predecessor.
    let placed = loop {
        match shop.placed().await {
            Ok(placed) => break placed,
            Err(error) => {
                tracing::warn!(%error, "what is placed is not known");
                sleep(Duration::from_millis(300)).await;
            }
        }
    };
    let numbers = options.orders.first..options.orders.first + options.orders.count;
    stream::iter(numbers.filter(|number| !placed.contains(number)))
        .for_each_concurrent(16, |number| shop.place(number))
        .await;
    // What is left is published by whoever has its lane; somebody must be there for that.
    while shop.outbox.status().await.map_or(true, |status| status.backlog > 0) {
        sleep(Duration::from_millis(200)).await;
    }
    relay.stop().await;
    Ok(())
}

/// Of what was committed; what was rolled back has none.
fn number(id: &MessageId) -> Option<u64> {
    id.as_str().rsplit_once('/')?.1.parse().ok()
}

impl Shop<'_> {
    /// The orders that are placed already.
    async fn placed(&self) -> Result<BTreeSet<u64>, BoxError> {
        let sql = format!("SELECT number FROM placed_{}", self.options.tables);
        let placed: Vec<i64> = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(self.outbox.pool()).await?;
        Ok(placed.into_iter().filter_map(|number| u64::try_from(number).ok()).collect())
    }

    /// Until it is known to be committed.
    async fn place(&self, number: u64) {
        due(&self.options.orders, number).await;
        while let Err(error) = self.try_place(number).await {
            self.journal.note("failed Database");
            tracing::warn!(%error, number, "not placed");
            sleep(Duration::from_millis(300)).await;
        }
    }

    fn message(&self, id: &str, placed: &Placed) -> Result<OutgoingMessage, BoxError> {
        let queue = &self.options.orders.common.queue;
        Ok(OutgoingMessage::to(queue, "placed")
            .message_id(MessageId::new(format!("{queue}/{id}"))?)
            .json(placed)?)
    }

    async fn try_place(&self, number: u64) -> Result<(), BoxError> {
        let (tables, account) = (&self.options.tables, number % ACCOUNTS);
        let (id, key) = (i64::try_from(number)?, format!("account-{account}"));
        let mut tx = self.outbox.pool().begin().await?;
        let next = format!("UPDATE account_{tables} SET seq = seq + 1 WHERE id = $1 RETURNING seq");
        let (seq,): (i64,) =
            sqlx::query_as(AssertSqlSafe(next)).bind(i64::try_from(account)?).fetch_one(&mut *tx).await?;
        let mut placed = Placed { number: id, amount: 500, account, seq };
        let mut random = Rng::new();
        if random.u8(..) < 26 {
            placed.number = -1 - id;
            let message = self.message(&format!("rolled back {number}"), &placed)?;
            self.outbox.enqueue_in_order(&mut tx, &key, message).await?;
            tx.rollback().await?;
            return Err("rolled back on purpose".into());
        }
        let insert = format!("INSERT INTO placed_{tables} VALUES ($1, $2, $3) ON CONFLICT DO NOTHING");
        let insert = sqlx::query(AssertSqlSafe(insert)).bind(id).bind(i64::try_from(account)?).bind(seq);
        if insert.execute(&mut *tx).await?.rows_affected() == 0 {
            // An earlier try was committed after all, or that of another process.
            tx.rollback().await?;
            return Ok(());
        }
        self.outbox.enqueue_in_order(&mut tx, &key, self.message(&number.to_string(), &placed)?).await?;
        tx.commit().await?;
        self.outbox.wake();
        Ok(())
    }
}
