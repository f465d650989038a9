//! What a publisher runs: numbered debits, each until it is confirmed. The journal is its outbox:
//! what is noted there as confirmed is not published again after a restart.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use futures_util::{StreamExt, stream};
use lapin_idempotent::{BoxError, IdempotentPublisher, OutgoingMessage, RetryPolicy};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use super::{
    journal::{Journal, Tail},
    process::Common,
};

#[derive(Debug, Clone, Args)]
pub struct Options {
    #[command(flatten)]
    pub common: Common,
    /// The first of its debits
    #[arg(long)]
    pub first: u64,
    /// How many they are
    #[arg(long)]
    pub count: u64,
    /// When the first is due: milliseconds of UNIX time
    #[arg(long)]
    pub start: u64,
    /// How many are due in a second
    #[arg(long)]
    pub per_second: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Debit {
    pub number: u64,
    pub amount: i64,
}

/// What a journal says of a message.
pub enum Note {
    Confirmed {
        number: u64,
        attempts: u64,
    },
    /// A call failed; the message is published again, under the same ID.
    Failed {
        kind: String,
    },
}

impl Note {
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["confirmed", number, attempts] => {
                Some(Self::Confirmed { number: number.parse().ok()?, attempts: attempts.parse().ok()? })
            }
            ["failed", kind] => Some(Self::Failed { kind: (*kind).to_owned() }),
            _ => None,
        }
    }
}

pub async fn run(options: &Options) -> Result<(), BoxError> {
    let before: HashSet<u64> = Tail::new(options.common.journal.clone())
        .lines()
        .iter()
        .filter_map(|line| match Note::parse(line) {
            Some(Note::Confirmed { number, .. }) => Some(number),
            _ => None,
        })
        .collect();
    let journal = Journal::open(&options.common.journal)?;
    let publisher = IdempotentPublisher::builder_for_cluster(options.common.nodes())
        .app_id("chaos")
        .connect_timeout(Duration::from_secs(5))
        .retry(RetryPolicy::default().max_attempts(100))
        .connect()
        .await?;
    let rest = (options.first..options.first + options.count).filter(|number| !before.contains(number));
    let publishing = stream::iter(rest).for_each_concurrent(256, |number| {
        let (publisher, journal) = (&publisher, &journal);
        async move {
            due(options, number).await;
            let mut message = debit(&options.common.queue, number);
            loop {
                match publisher.publish_idempotent(message).await {
                    Ok(receipt) => {
                        return journal.note(&format!("confirmed {number} {}", receipt.attempts()));
                    }
                    Err(error) => {
                        journal.note(&format!("failed {:?}", error.kind()));
                        message = error.into_message();
                        sleep(Duration::from_millis(500)).await;
                    }
                }
            }
        }
    });
    publishing.await;
    let _ = publisher.close(Duration::from_secs(5)).await;
    Ok(())
}

/// The same for every process that publishes this debit.
fn debit(queue: &str, number: u64) -> OutgoingMessage {
    OutgoingMessage::to("", queue)
        .idempotency_key(format!("{queue}/{number}"))
        .json(&Debit { number, amount: 500 })
        .expect("JSON")
}

/// Waits until the debit is due, so that debits flow as long as the faults last. They come in
/// bursts, to have many in flight when one hits.
pub async fn due(options: &Options, number: u64) {
    #[allow(clippy::cast_precision_loss)] // far below 2^52
    let after = Duration::from_secs_f64((number - options.first) as f64 / options.per_second);
    let burst = Duration::from_secs(after.as_secs());
    let due = UNIX_EPOCH + Duration::from_millis(options.start) + burst;
    if let Ok(left) = due.duration_since(SystemTime::now()) {
        sleep(left).await;
    }
}
