//! The processes that tests start and kill: a consumer with any store, one row for each effect; and
//! the relay of an outbox. One JSON line for each outcome.
//!
//! ```text
//! cargo run --all-features --example worker -- --help
//! cargo run --all-features --example worker -- --queue debits --store sqlite:worker.db
//! cargo run --all-features --example worker -- --queue debits --store sqlite:worker.db --abort-at commit
//! cargo run --all-features --example worker -- relay --outbox postgres://.. --abort-at confirm
//! ```

mod aborting;
mod dying;
mod effects;
mod handler;
mod options;
mod relay;

use std::{future::Future, io::Write};

use clap::Parser;
use lapin_idempotent::{
    BoxError, IdempotencyStore, IdempotentConsumer, IdempotentHandler, IncomingMessage, MemoryStore, Outcome,
    RedisStore,
    idempotency::{KeySource, Lease, MissingIdPolicy, Sweeper},
    store::SqlStore,
};
use sqlx::{MySql, Postgres, Sqlite};
use tracing_subscriber::EnvFilter;

use aborting::{AbortAt, Aborting};
use effects::Effects;
use handler::{Beside, InSession, Work};
use options::{Options, scheme};

/// More messages than anybody tries out by hand.
const MEMORY: usize = 1_000_000;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // lapin calls it an error that the parking queue is not there yet.
    let quiet = || EnvFilter::new("off,lapin_idempotent=warn");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| quiet());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if std::env::args_os().nth(1).is_some_and(|first| first == "relay") {
        return relay::run(&relay::Options::parse_from(std::env::args_os().skip(1))).await;
    }
    let options = Options::parse();
    match scheme(&options.store) {
        "memory" => {
            let store = MemoryStore::new(MEMORY);
            leases(&options, options.leased.into_iter().fold(store, MemoryStore::lease)).await
        }
        "redis" | "rediss" => {
            let mut store = RedisStore::connect_lazy(&options.store)?.prefix(&options.table);
            if let Some(lease) = options.leased {
                store = store.lease(lease);
            }
            if let Some(retention) = options.retention {
                store = store.retention(retention);
            }
            leases(&options, store).await
        }
        "sqlite" => sql::<Sqlite>(&options).await,
        "postgres" | "postgresql" => sql::<Postgres>(&options).await,
        "mysql" | "mariadb" => sql::<MySql>(&options).await,
        other => Err(format!("no store of this kind: {other}").into()),
    }
}

/// Transactions, or leases on the same table.
async fn sql<DB: Effects>(options: &Options) -> Result<(), BoxError> {
    let store = SqlStore::<DB>::connect(&options.store).await?.table(&options.table)?;
    store.create_schema().await?;
    if let Some(lease) = options.leased {
        return leases(options, store.leased(lease)?).await;
    }
    if options.effects.as_ref().is_some_and(|url| *url != options.store) {
        return Err("the effects of a transaction are in the store's own database".into());
    }
    effects::create(store.pool(), &options.effects_table).await?;
    let handler = InSession::new::<DB>(Work::new(options), &options.effects_table);
    consume(options, store, handler).await
}

/// Effects by a pool of their own, under leases.
async fn leases<S>(options: &Options, store: S) -> Result<(), BoxError>
where
    S: IdempotencyStore<Session = Lease> + Clone,
{
    let url = options.effects.as_ref().unwrap_or(&options.store);
    let effects = effects::open(url, &options.effects_table).await?;
    consume(options, store, Beside::new(Work::new(options), effects)).await
}

async fn consume<S, H>(options: &Options, store: S, handler: H) -> Result<(), BoxError>
where
    S: IdempotencyStore + Clone,
    H: IdempotentHandler<Aborting<S>> + 'static,
{
    let stopped = asked_to_stop()?;
    let sweeper =
        options.retention.map(|retention| Sweeper::new(store.clone(), retention).every(retention).spawn());
    let store = Aborting::new(store, options.abort_at);
    let mut consumer = IdempotentConsumer::builder(&options.amqp, &options.queue, store)
        .missing_id(options.missing_id.policy())
        .on_outcome(report);
    if options.without_guard {
        let none = KeySource::from_fn(|_| Ok(None));
        consumer = consumer.key(none).missing_id(MissingIdPolicy::HandleUnguarded);
    }
    if let Some(scope) = &options.scope {
        consumer = consumer.scope(scope);
    }
    if let Some(messages) = options.batch {
        consumer = consumer.batch(messages);
    }
    if let Some(workers) = options.workers {
        consumer = consumer.workers(workers);
    }
    if let Some(messages) = options.prefetch {
        consumer = consumer.prefetch(messages);
    }
    if let Some(attempts) = options.max_attempts {
        consumer = consumer.max_attempts(attempts);
    }
    if let Some(limit) = options.delivery_limit {
        consumer = consumer.delivery_limit(limit);
    }
    if options.abort_at == Some(AbortAt::Ack) {
        // Then the next message comes only after the broker has read the ack.
        consumer = consumer.prefetch(1).workers(1);
    }
    consumer.run_until(handler, stopped).await?;
    if let Some(sweeper) = sweeper {
        sweeper.stop().await;
    }
    Ok(())
}

fn report(message: &IncomingMessage, outcome: &Outcome) {
    say(message.raw_message_id(), outcome.name());
}

/// One line, whole and at once: whoever reads it may have this process killed next.
fn say(message_id: Option<&str>, outcome: &str) {
    let line = serde_json::json!({
        "message_id": message_id,
        "outcome": outcome,
        "pid": std::process::id(),
    });
    let mut stdout = std::io::stdout().lock();
    // Whoever has stopped to read does not want the rest.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Ctrl-C, and SIGTERM where there is one.
#[cfg(unix)]
fn asked_to_stop() -> Result<impl Future<Output = ()> + Send, BoxError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn asked_to_stop() -> Result<impl Future<Output = ()> + Send, BoxError> {
    Ok(async { tokio::signal::ctrl_c().await.unwrap_or_default() })
}
