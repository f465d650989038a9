//! A relay as a process, which may die or freeze at a chosen point.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use lapin_idempotent::{
    BoxError, IdempotentPublisher, Relay,
    outbox::Relayed,
    store::{SqlDatabase, SqlOutbox},
};
use sqlx::{MySql, Postgres, Sqlite};

use crate::{
    asked_to_stop,
    dying::Dying,
    options::{scheme, seconds},
    say,
};

/// After a failure that is the message's own.
const RETRY: Duration = Duration::from_millis(50);

/// Relays an outbox, whose tables must exist
///
/// Every outcome of a publish is a JSON line on the standard output: `{"message_id": "..",
/// "outcome": "confirmed", "pid": ..}`, or the kind of the error. SIGTERM and Ctrl-C stop the
/// process once what is in flight has its verdict.
#[derive(Debug, Parser)]
#[command(name = "worker relay")]
pub(crate) struct Options {
    /// The broker
    #[arg(long, value_name = "URI", env = "AMQP_URL", hide_env_values = true)]
    amqp: String,
    /// The database of the outbox: sqlite:FILE, postgres://.. or mysql://..
    #[arg(long, value_name = "DB-URL")]
    outbox: String,
    /// The table of the outbox
    #[arg(long, value_name = "NAME", default_value = "outbox")]
    table: String,
    /// For how long the lanes are its own after its last sign of life
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "15")]
    lease: Duration,
    /// After how many failed attempts a message is parked
    #[arg(long, value_name = "ATTEMPTS", default_value_t = 20)]
    max_attempts: u32,
    /// Where the process aborts
    #[arg(long, value_name = "POINT")]
    abort_at: Option<AbortAt>,
    /// Where the process stops by SIGSTOP, once
    #[arg(long, value_name = "POINT")]
    freeze_at: Option<AbortAt>,
}

/// A point in the life of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AbortAt {
    /// It is known, and has no lanes.
    Register,
    /// It has lanes, and has read nothing.
    Take,
    /// It has shown that it is alive once more.
    Beat,
    /// It knows what is parked, and has read no message.
    ParkedKeys,
    /// It has read messages, and sent none.
    Read,
    /// It is about to send the first one.
    Send,
    /// The first one is confirmed.
    Confirm,
    /// It is about to delete what was confirmed.
    BeforeRemove,
    /// That is deleted.
    Remove,
    /// It is about to count an attempt that failed.
    BeforeFail,
    /// That is written.
    Fail,
    /// It is about to park a message.
    BeforePark,
    /// That is written.
    Park,
    /// It was told to stop, and is about to give its lanes back.
    BeforeRelease,
    /// They are free, and it is known yet.
    Release,
    /// It is forgotten.
    Leave,
}

pub(crate) async fn run(options: &Options) -> Result<(), BoxError> {
    match scheme(&options.outbox) {
        "sqlite" => relay::<Sqlite>(options).await,
        "postgres" | "postgresql" => relay::<Postgres>(options).await,
        "mysql" | "mariadb" => relay::<MySql>(options).await,
        other => Err(format!("no database of this kind: {other}").into()),
    }
}

async fn relay<DB: SqlDatabase>(options: &Options) -> Result<(), BoxError> {
    let stopped = asked_to_stop()?;
    let outbox = SqlOutbox::<DB>::connect(&options.outbox).await?.table(&options.table)?;
    let publisher = IdempotentPublisher::builder(&options.amqp).connect().await?;
    let (aborts, freezes) = (options.abort_at, options.freeze_at);
    let relay = Relay::new(Dying::new(outbox, aborts, freezes), Dying::new(publisher, aborts, freezes))
        .lease(options.lease)
        .max_attempts(options.max_attempts)
        .retry_delays(RETRY, RETRY)
        .on_outcome(report);
    relay.check().await?;
    relay.run_until(stopped).await;
    Ok(())
}

fn report(relayed: &Relayed<'_>) {
    let outcome = relayed.result.map_or_else(|kind| kind.name(), |()| "confirmed");
    say(Some(relayed.message_id.as_str()), outcome);
}
