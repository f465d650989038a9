//! The bed of the test kit and a real broker: the same scenario ends the same on both.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions},
    types::FieldTable,
};
use lapin_idempotent::{
    HandlerError, HandlerResult, IdempotentHandler, IdempotentPublisher, IncomingMessage, MessageId,
    OutgoingMessage, Publish, SqliteStore, consumer::Unpark, store::SqliteTransaction, testing::TestBed,
};
use serde::{Deserialize, Serialize};

use super::support::{amqp::Client, broker, eventually, ledger::Ledger, unique};

trials! {
    bed_and_broker_agree,
}

const ATTEMPTS: u32 = 3;
const NOT_BEFORE: &str = "x-idempotency-not-before";
const DELAY: Duration = Duration::from_millis(20);

/// What a message asks of its handler.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Asks {
    /// So often it fails.
    fails: u32,
    /// With a delay of its own, in milliseconds.
    after: Option<u64>,
    rejects: bool,
    /// Fails as long as it was not put back.
    repaired_by_unparking: bool,
}

#[derive(Clone)]
enum Step {
    Publish(OutgoingMessage),
    /// Until nothing is left to be done.
    Settle,
    Unpark,
}

/// What can be seen of a delivery, but for what no two of them share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    id: Option<String>,
    route: (String, String),
    failures: u32,
    attempt: Option<u32>,
    is_replay: bool,
    is_timed: bool,
    texts: [Option<String>; 6],
    priority: Option<u8>,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Seen {
    fn of(message: &IncomingMessage) -> Self {
        let own = |text: Option<&str>| text.map(ToOwned::to_owned);
        // The last step of a long delay is an exact one on the bed.
        let volatile = ["x-first-death", "x-last-death", "x-delivery-count", "x-acquired-count", NOT_BEFORE];
        let is_volatile = |name: &str| volatile.iter().any(|prefix| name.starts_with(prefix));
        // Of these it counts that they are there.
        let timed =
            ["x-death", "x-idempotency-first-seen", "x-idempotency-parked-at", "x-idempotency-unparked"];
        let headers = message.headers().iter().filter(|(name, _)| !is_volatile(name));
        let headers = headers.map(|(name, value)| {
            let shown = if timed.contains(&name) { String::new() } else { format!("{value:?}") };
            (name.to_owned(), shown)
        });
        Self {
            id: own(message.raw_message_id()),
            route: (message.exchange().to_owned(), message.routing_key().to_owned()),
            failures: message.failures(),
            attempt: message.attempt(),
            is_replay: message.is_replay(),
            is_timed: message.timestamp().is_some(),
            texts: [
                own(message.kind()),
                own(message.content_type()),
                own(message.content_encoding()),
                own(message.correlation_id()),
                own(message.reply_to()),
                own(message.app_id()),
            ],
            priority: message.priority(),
            headers: headers.collect(),
            body: String::from_utf8_lossy(message.body()).into_owned(),
        }
    }
}

/// Does as it is asked, and notes what it sees.
#[derive(Clone, Default)]
struct Obey(Arc<Mutex<Vec<Seen>>>);

impl IdempotentHandler<SqliteStore> for Obey {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        self.0.lock().expect("seen").push(Seen::of(message));
        let asks: Asks = message.json()?;
        sqlx::query("INSERT INTO ledger (message_id, amount) VALUES (?, 1)")
            .bind(message.raw_message_id())
            .execute(&mut **tx)
            .await?;
        match asks {
            Asks { rejects: true, .. } => Err(HandlerError::reject("as it asked")),
            Asks { repaired_by_unparking: true, .. } if !message.is_replay() => {
                Err(HandlerError::retry("not repaired"))
            }
            Asks { fails, after, .. } if message.failures() < fails => Err(match after {
                Some(millis) => HandlerError::retry_after(Duration::from_millis(millis), "as it asked"),
                None => HandlerError::retry("as it asked"),
            }),
            _ => Ok(()),
        }
    }
}

/// How a scenario ended.
#[derive(Debug, PartialEq, Eq)]
struct End {
    /// The verdict of each publish, with how often it was sent.
    published: Vec<String>,
    outcomes: Vec<&'static str>,
    seen: Vec<Seen>,
    parked: Vec<Seen>,
    rows: (i64, i64),
}

fn scenarios(exchange: &str) -> Vec<(&'static str, Vec<Step>)> {
    let message = |id: &str, asks: &Asks| {
        let id = MessageId::new(id).expect("ID");
        OutgoingMessage::to(exchange, "debit").message_id(id).json(asks).expect("JSON")
    };
    let publish = |id: &str, asks: Asks| Step::Publish(message(id, &asks));
    let plain = Asks::default;
    let full = message("full", &plain())
        .kind("debit")
        .correlation_id("c-1")
        .reply_to("answers")
        .priority(3)
        .header("tenant", "t-1")
        .header("CC-like", 7);
    let text =
        OutgoingMessage::to(exchange, "debit").message_id(MessageId::new("bad").expect("ID")).text("{");
    vec![
        ("a message with all there is", vec![Step::Publish(full), Step::Settle]),
        ("one that fails twice", vec![publish("m", Asks { fails: 2, ..plain() }), Step::Settle]),
        ("one that always fails", vec![publish("m", Asks { fails: 99, ..plain() }), Step::Settle]),
        ("one that is rejected", vec![publish("m", Asks { rejects: true, ..plain() }), Step::Settle]),
        ("one that is no JSON", vec![Step::Publish(text), Step::Settle]),
        (
            "one with a delay of its own",
            vec![publish("m", Asks { fails: 1, after: Some(120), ..plain() }), Step::Settle],
        ),
        (
            "one that is published twice",
            vec![publish("m", plain()), Step::Settle, publish("m", plain()), Step::Settle],
        ),
        (
            "another body under its ID",
            vec![
                publish("m", plain()),
                Step::Settle,
                publish("m", Asks { fails: 1, ..plain() }),
                Step::Settle,
            ],
        ),
        (
            "one that is put back",
            vec![
                publish("m", Asks { repaired_by_unparking: true, ..plain() }),
                Step::Settle,
                Step::Unpark,
                Step::Settle,
            ],
        ),
        (
            "one that goes nowhere, and one that may",
            vec![
                Step::Publish(OutgoingMessage::to(exchange, "elsewhere").text("")),
                Step::Publish(OutgoingMessage::to(exchange, "elsewhere").mandatory(false).text("")),
                Step::Publish(OutgoingMessage::to("no-such-exchange", "debit").text("")),
            ],
        ),
        (
            "a good one among bad ones",
            vec![
                publish("bad", Asks { rejects: true, ..plain() }),
                publish("good", plain()),
                publish("flaky", Asks { fails: 1, ..plain() }),
                Step::Settle,
            ],
        ),
    ]
}

async fn verdict(publisher: &impl Publish, message: OutgoingMessage) -> String {
    match publisher.publish(message).await {
        Ok(receipt) => format!("confirmed after {}", receipt.attempts()),
        Err(error) => format!("{:?} after {}", error.kind(), error.attempts()),
    }
}

async fn on_the_bed(exchange: &str, queue: &str, steps: &[Step]) -> End {
    let (ledger, handler) = (Ledger::create().await, Obey::default());
    let bed = TestBed::builder(ledger.store.clone()).scope("ledger").queue(queue).bind(exchange, "debit");
    let bed = bed.batch(1).immediate_retries(0).max_attempts(ATTEMPTS).retry_delays(DELAY, DELAY);
    let bed = bed.handler(handler.clone());
    let mut published = Vec::new();
    for step in steps {
        match step {
            Step::Publish(message) => published.push(verdict(&bed.publisher(), message.clone()).await),
            Step::Settle => bed.drain().await,
            Step::Unpark => assert!(bed.unpark().await > 0),
        }
    }
    let outcomes = in_time(bed.outcomes().iter().map(|decided| decided.outcome).collect());
    let parked = bed.parked().iter().map(Seen::of).collect();
    End { published, outcomes, seen: taken(&handler), parked, rows: ledger.rows().await }.sorted()
}

async fn on_the_broker(client: &Client, queue: &str, steps: &[Step], like: &End) -> End {
    let (ledger, handler, url) = (Ledger::create().await, Obey::default(), broker());
    let publisher = IdempotentPublisher::builder(&url).connect().await.expect("connect");
    let running = ledger.consume_with(&url, queue, handler.clone(), |builder| {
        builder.batch(1).immediate_retries(0).max_attempts(ATTEMPTS).retry_delays(DELAY, DELAY)
    });
    let parking = format!("{queue}.parked");
    let decided = async |count: usize| {
        eventually("the deliveries are decided", async || {
            let outcomes = in_time(running.decided(0).await);
            (outcomes.len() >= count).then_some(outcomes)
        })
        .await
    };
    let settled = async |outcomes: usize| {
        decided(outcomes).await;
        eventually("all is acked or parked", async || {
            // What is on its way through a delay queue is in none of them.
            (client.ready(queue).await == 0).then_some(())
        })
        .await;
    };
    let mut published = Vec::new();
    let mut settles = steps.iter().filter(|step| matches!(step, Step::Settle)).count();
    for step in steps {
        match step {
            Step::Publish(message) => published.push(verdict(&publisher, message.clone()).await),
            Step::Settle => {
                settles -= 1;
                // Of the last one it is known how many there are.
                let least = published.len().max(usize::from(settles == 0) * like.outcomes.len());
                settled(least).await;
            }
            Step::Unpark => {
                eventually("it is parked", async || (client.ready(&parking).await > 0).then_some(())).await;
                let unparked = Unpark::new(&url, &parking).run().await.expect("unpark");
                assert!(unparked.moved > 0 && unparked.failed == 0, "{unparked:?}");
            }
        }
    }
    let outcomes = decided(like.outcomes.len()).await;
    running.stop().await;
    let parked = if like.parked.is_empty() { Vec::new() } else { parked(&url, &parking).await };
    let _ = publisher.close(Duration::from_secs(5)).await;
    End { published, outcomes, seen: taken(&handler), parked, rows: ledger.rows().await }.sorted()
}

/// How often a message is too early depends on how long its way takes.
fn in_time(mut outcomes: Vec<&'static str>) -> Vec<&'static str> {
    outcomes.retain(|outcome| *outcome != "too_early");
    outcomes
}

fn taken(handler: &Obey) -> Vec<Seen> {
    std::mem::take(&mut *handler.0.lock().expect("seen"))
}

impl End {
    /// Messages that are tried again overtake each other.
    fn sorted(mut self) -> Self {
        self.outcomes.sort_unstable();
        self.seen.sort();
        self.parked.sort();
        self
    }
}

async fn parked(url: &str, parking: &str) -> Vec<Seen> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&seen);
    let looking = Unpark::new(url, parking).only(move |message| {
        noting.lock().expect("seen").push(Seen::of(message));
        false
    });
    looking.run().await.expect("look");
    let mut seen = seen.lock().expect("seen");
    std::mem::take(&mut *seen)
}

pub async fn bed_and_broker_agree() {
    let client = Client::connect(&broker()).await;
    let exchange = unique("agree");
    let declared = client.channel.exchange_declare(
        exchange.as_str().into(),
        ExchangeKind::Direct,
        ExchangeDeclareOptions::default(),
        FieldTable::default(),
    );
    declared.await.expect("exchange");
    for (name, steps) in scenarios(&exchange) {
        let queue = client.queue("agree").await;
        let bound = client.channel.queue_bind(
            queue.as_str().into(),
            exchange.as_str().into(),
            "debit".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.expect("binding");
        let on_the_bed = on_the_bed(&exchange, &queue, &steps).await;
        let on_the_broker = on_the_broker(&client, &queue, &steps, &on_the_bed).await;
        assert_eq!(on_the_bed, on_the_broker, "{name}: on the bed, and on the broker");
        let delays = format!("{queue}.retry.{}", DELAY.as_millis());
        for queue in [queue.clone(), format!("{queue}.parked"), delays] {
            client.delete(&queue).await;
        }
    }
    let _ = client.channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await;
}
