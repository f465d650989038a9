//! A small service with its tests, none of which needs a broker: `tests.rs`. Debits are accepted
//! (`accept.rs`), booked and announced (`ledger.rs`); and there is one handler that does it wrong,
//! so that a test can show how that is found (`wrong.rs`).
//!
//! ```sh
//! cargo test --example tested_service --features sqlite,testing
//! cargo run --example tested_service --features sqlite,testing -- order-42 A 500
//! ```

mod accept;
mod ledger;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wrong;

use clap::Parser;
use lapin_idempotent::{
    BoxError, IdempotentConsumer, IdempotentPublisher, Relay, SqliteOutbox, consumer::WorkQueue,
};

use accept::{DEBITS, accept};
use ledger::{BOOKED, Book, Debit, open};

#[derive(Parser)]
struct Options {
    order: String,
    account: String,
    amount: i64,
    #[arg(long, env = "AMQP_URL", default_value = "amqp://localhost", hide_env_values = true)]
    amqp: String,
    #[arg(long, default_value = "sqlite:tested_service.db")]
    database: String,
}

/// Accepts one debit, and books and announces what there is until Ctrl-C.
#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_env_filter("info,lapin=off").init();
    let Options { order, account, amount, amqp, database } = Options::parse();
    for queue in [DEBITS, BOOKED] {
        WorkQueue::new(&amqp, queue).declare().await?;
    }
    let store = open(&database).await?;
    let outbox = SqliteOutbox::new(store.pool().clone());
    let publisher = IdempotentPublisher::builder(&amqp).app_id("tested service").connect().await?;
    accept(&publisher, &Debit { order, account, amount }).await?;

    let relay = Relay::new(outbox.clone(), publisher).spawn();
    let woken = outbox.clone();
    IdempotentConsumer::builder(&amqp, DEBITS, store)
        .scope("ledger")
        .on_outcome(move |_, outcome| {
            if outcome.is_handled() {
                woken.wake();
            }
        })
        .run_until(Book { outbox }, async { tokio::signal::ctrl_c().await.unwrap_or_default() })
        .await?;
    relay.stop().await;
    Ok(())
}
