//! What a consumer runs: a row for each debit, in the guard's transaction; now and then a slow
//! handler, and debits that fail again and again.

use std::time::Duration;

use clap::Args;
use fastrand::Rng;
use lapin_idempotent::{
    BoxError, HandlerError, HandlerResult, IdempotentConsumer, IdempotentHandler, IncomingMessage, Outcome,
    PostgresStore,
    idempotency::{KeySource, MissingIdPolicy},
    store::PostgresTransaction,
};
use sqlx::AssertSqlSafe;
use tokio::signal::unix::{SignalKind, signal};

use super::{journal::Journal, process::Common, publisher::Debit};

#[derive(Debug, Clone, Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    #[arg(long)]
    pub postgres: String,
    /// The table of the identities
    #[arg(long)]
    pub identities: String,
    /// The table of the effects
    #[arg(long)]
    pub effects: String,
    #[arg(long)]
    pub without_guard: bool,
}

struct Book {
    insert: String,
}

impl IdempotentHandler<PostgresStore> for Book {
    async fn handle(&self, message: &IncomingMessage, tx: &mut PostgresTransaction) -> HandlerResult {
        let debit: Debit = message.json()?;
        let insert = sqlx::query(AssertSqlSafe(self.insert.as_str()));
        insert.bind(i64::try_from(debit.number)?).bind(debit.amount).execute(&mut **tx).await?;
        let mut random = Rng::new();
        let slow = (random.u8(..) < 3).then(|| Duration::from_millis(random.u64(5..100)));
        // Often enough in a row that some go through a delay queue, and not so often that any is
        // parked.
        let fails = debit.number.is_multiple_of(300) && random.bool();
        if let Some(time) = slow {
            tokio::time::sleep(time).await;
        }
        if fails { Err(HandlerError::retry("one of those that fail")) } else { Ok(()) }
    }
}

/// What a journal says of a delivery: the outcome, and the cause if it was a duplicate.
fn note(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Duplicate(duplicate) => format!("duplicate {}", duplicate.cause.name()),
        other => other.name().to_owned(),
    }
}

pub async fn run(options: &Options) -> Result<(), BoxError> {
    let journal = Journal::open(&options.common.journal)?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let store = PostgresStore::connect(&options.postgres).await?.table(&options.identities)?;
    let amqp = options.common.nodes();
    let mut consumer = IdempotentConsumer::builder_for_cluster(amqp, &options.common.queue, store)
        .scope("ledger")
        .connect_timeout(Duration::from_secs(5))
        .drain_timeout(Duration::from_secs(10))
        .retry_delays(Duration::from_millis(500), Duration::from_secs(8))
        .batch(32)
        .workers(2)
        .on_outcome(move |_, outcome| journal.note(&note(outcome)));
    if options.without_guard {
        let none = KeySource::from_fn(|_| Ok(None));
        consumer = consumer.key(none).missing_id(MissingIdPolicy::HandleUnguarded);
    }
    let insert = format!("INSERT INTO {} (number, amount) VALUES ($1, $2)", options.effects);
    consumer.run_until(Book { insert }, stopped).await?;
    Ok(())
}
