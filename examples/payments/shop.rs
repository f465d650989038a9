//! A shop that writes orders down and announces each, and is killed between the two, for real: a
//! process of its own that is sent SIGKILL after the commit and before the publish.
//!
//! By hand, what it had committed then is never announced. With an outbox it is: the relay of the
//! next process finds the row.

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    process::Stdio,
};

use lapin_idempotent::{
    BoxError, IdempotentPublisher, OutgoingMessage, Relay, SqliteOutbox, outbox::Outbox as _,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::{Duration, sleep},
};

use crate::{bank::Order, faults::Queue};

/// How often it is killed.
const KILLS: usize = 10;

/// What the shop says when it has committed, and waits to be killed.
const COMMITTED: &str = "committed";

pub(crate) struct Killed {
    with_outbox: bool,
    committed: usize,
    announced: usize,
    copies: usize,
    kills: usize,
}

impl Killed {
    /// Whether every order that was committed was announced.
    pub(crate) fn all(&self) -> bool {
        self.announced == self.committed
    }
}

/// What a shop process is told.
#[derive(clap::Args)]
pub(crate) struct Shop {
    /// Run the shop itself, on this database
    #[arg(long = "shop", hide = true, requires = "queue")]
    database: Option<PathBuf>,
    #[arg(long, hide = true)]
    queue: Option<String>,
    #[arg(long, hide = true)]
    with_outbox: bool,
}

/// Runs shops until all orders are committed, and counts what was announced.
pub(crate) async fn killed(amqp: &str, orders: usize, with_outbox: bool) -> Result<Killed, BoxError> {
    let directory = std::env::temp_dir().join(format!("shop-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir(&directory)?;
    let queue = Queue::declare(amqp).await?;
    let result = shops(amqp, &directory.join("shop.db"), &queue.name, orders, with_outbox).await;
    let _ = std::fs::remove_dir_all(&directory);
    let kills = result?;
    let ids = queue.take_ids().await?;
    queue.delete().await?;
    let copies = ids.len();
    let announced = ids.into_iter().collect::<HashSet<_>>().len();
    Ok(Killed { with_outbox, committed: orders, announced, copies, kills })
}

async fn shops(
    amqp: &str,
    database: &Path,
    queue: &str,
    orders: usize,
    with_outbox: bool,
) -> Result<usize, BoxError> {
    let mut kills = 0;
    loop {
        let mut command = Command::new(std::env::current_exe()?);
        // Not in the arguments, which everybody can read.
        command.env("AMQP_URL", amqp).args(["--count", &orders.to_string(), "--queue", queue, "--shop"]);
        command.arg(database).stdout(Stdio::piped()).kill_on_drop(true);
        if with_outbox {
            command.arg("--with-outbox");
        }
        let mut child = command.spawn()?;
        let lines = child.stdout.take().map(|stdout| BufReader::new(stdout).lines());
        let said = match lines {
            Some(mut lines) => lines.next_line().await?,
            None => None,
        };
        if said.as_deref() == Some(COMMITTED) {
            child.kill().await?;
            kills += 1;
        } else {
            let status = child.wait().await?;
            return if status.success() {
                Ok(kills)
            } else {
                Err(format!("the shop failed: {status}").into())
            };
        }
    }
}

impl Shop {
    /// In a shop process: writes down and announces what is not written down yet. Gives whether
    /// this is one.
    pub(crate) async fn run(&self, amqp: &str, orders: &[Order]) -> Result<bool, BoxError> {
        let (Some(database), Some(queue)) = (&self.database, &self.queue) else { return Ok(false) };
        let outbox = SqliteOutbox::connect(&format!("sqlite:{}?mode=rwc", database.display())).await?;
        outbox.create_schema().await?;
        let create = "CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY) STRICT";
        sqlx::query(create).execute(outbox.pool()).await?;
        let publisher = IdempotentPublisher::builder(amqp).app_id("shop demo").connect().await?;
        let relay = self.with_outbox.then(|| Relay::new(outbox.clone(), publisher.clone()).spawn());
        let (written,): (i64,) =
            sqlx::query_as("SELECT count(*) FROM orders").fetch_one(outbox.pool()).await?;
        for (n, order) in orders.iter().enumerate().skip(usize::try_from(written)?) {
            let message = OutgoingMessage::to("", queue).idempotency_key(format!("placed/{}", order.id));
            let message = message.json(order)?;
            let mut tx = outbox.pool().begin().await?;
            sqlx::query("INSERT INTO orders VALUES (?)").bind(&order.id).execute(&mut *tx).await?;
            let by_hand = if self.with_outbox {
                outbox.enqueue(&mut tx, message).await?;
                None
            } else {
                Some(message)
            };
            tx.commit().await?;
            if n % (orders.len() / KILLS).max(1) == 7 {
                println!("{COMMITTED}");
                std::future::pending::<()>().await;
            }
            outbox.wake();
            if let Some(message) = by_hand {
                publisher.publish_idempotent(message).await?;
            }
        }
        if let Some(relay) = relay {
            while outbox.status().await?.backlog > 0 {
                sleep(Duration::from_millis(20)).await;
            }
            relay.stop().await;
        }
        Ok(true)
    }
}

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.with_outbox { "with an outbox" } else { "without" };
        let kills = format!("{how}: killed after the commit, times");
        writeln!(f, "  {kills:<46} {:>12}", self.kills)?;
        let announced = format!("{how}: announced, of {} orders", self.committed);
        write!(f, "  {announced:<46} {:>12}", self.announced)?;
        match self.committed - self.announced {
            0 => write!(f, "  in {} copies", self.copies),
            missing => write!(f, "  {missing} LOST"),
        }
    }
}
