//! Many publishes through something that breaks, and the count of what arrived.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    options::BasicConsumeOptions,
    types::{AMQPValue, FieldTable},
};
use lapin_idempotent::{IdempotentPublisher, MessageId, OutgoingMessage, PublishError, Receipt};
use tokio::{task::JoinHandle, time::timeout};

use super::{amqp::Client, eventually};

/// Numbered messages on their way to one queue: message `n` has the ID `m-n` and the body `n`.
pub struct Load {
    taken: Arc<AtomicUsize>,
    /// How many there are to be.
    count: Arc<AtomicUsize>,
    publishing: JoinHandle<Verdicts>,
}

pub struct Verdicts(pub Vec<Result<Receipt, PublishError>>);

/// What is in a queue: by ID, the attempts that the copies were sent in.
pub type Copies = HashMap<String, Vec<i64>>;

pub fn id(n: usize) -> String {
    format!("m-{n}")
}

pub fn message(queue: &str, n: usize) -> OutgoingMessage {
    let id = MessageId::new(id(n)).expect("id");
    OutgoingMessage::to("", queue).message_id(id).body(n.to_string())
}

impl Load {
    pub fn start(publisher: &IdempotentPublisher, queue: &str, count: usize) -> Self {
        let taken = Arc::new(AtomicUsize::new(0));
        let count = Arc::new(AtomicUsize::new(count));
        let (publisher, queue, counter, end) =
            (publisher.clone(), queue.to_owned(), Arc::clone(&taken), Arc::clone(&count));
        let publishing = tokio::spawn(async move {
            let messages = (0..).take_while(move |n| *n < end.load(Ordering::SeqCst)).map(move |n| {
                counter.fetch_add(1, Ordering::SeqCst);
                message(&queue, n)
            });
            Verdicts(publisher.publish_all(messages).collect().await)
        });
        Self { taken, count, publishing }
    }

    /// Goes on until it is ended, however fast the broker is.
    pub fn endless(publisher: &IdempotentPublisher, queue: &str) -> Self {
        Self::start(publisher, queue, usize::MAX)
    }

    /// No more messages than those that are under way.
    pub fn end(&self) {
        self.count.store(0, Ordering::SeqCst);
    }

    /// Waits until so many messages were handed to the publisher.
    pub async fn reaches(&self, count: usize) {
        let reached = async || (self.taken.load(Ordering::SeqCst) >= count).then_some(());
        eventually("the load is under way", reached).await;
    }

    /// Every call's answer; a call that has none by then hangs.
    pub async fn verdicts(self, limit: Duration) -> Verdicts {
        timeout(limit, self.publishing).await.expect("no call hangs").expect("join")
    }
}

impl Verdicts {
    pub fn assert_all_published(&self) {
        for (n, verdict) in self.0.iter().enumerate() {
            assert!(verdict.is_ok(), "message {n}: {:?}", verdict.as_ref().err());
        }
    }

    /// The most attempts that a published message took.
    pub fn most_attempts(&self) -> u32 {
        self.0.iter().flatten().map(Receipt::attempts).max().unwrap_or_default()
    }

    /// How many were published again.
    pub fn retried(&self) -> usize {
        self.0.iter().flatten().filter(|receipt| receipt.attempts() > 1).count()
    }

    /// Everything that was confirmed is there; nothing was sent more often than its receipt says,
    /// nor twice in one attempt; what was refused for certain is not there.
    pub fn assert_kept(&self, copies: &Copies) {
        for (n, verdict) in self.0.iter().enumerate() {
            let attempts = copies.get(&id(n)).map(Vec::as_slice).unwrap_or_default();
            match verdict {
                Ok(receipt) => {
                    assert!(!attempts.is_empty(), "message {n} was confirmed and is lost");
                    let most = i64::from(receipt.attempts());
                    assert!(attempts.iter().all(|attempt| *attempt <= most), "message {n}: {attempts:?}");
                }
                Err(error) if !error.may_have_been_published() => {
                    assert!(attempts.is_empty(), "message {n} was refused and is there: {error}");
                }
                Err(_) => {}
            }
            let mut once = attempts.to_vec();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), attempts.len(), "message {n} was sent twice in one attempt: {attempts:?}");
        }
    }
}

/// Takes everything out of a queue.
pub async fn drain(client: &Client, queue: &str) -> Copies {
    let mut copies = Copies::new();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let consuming = client.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let mut deliveries = consuming.await.expect("consume");
    loop {
        match timeout(Duration::from_millis(500), deliveries.next()).await {
            Ok(delivery) => {
                let delivery = delivery.expect("delivery").expect("delivery");
                let id = delivery.properties.message_id().as_ref().expect("ID").to_string();
                let body = String::from_utf8(delivery.data.clone()).expect("body");
                assert_eq!(id, format!("m-{body}"), "one ID, one body");
                let headers = delivery.properties.headers().as_ref();
                let attempt = match headers.and_then(|headers| headers.inner().get("x-idempotency-attempt")) {
                    Some(AMQPValue::LongLongInt(attempt)) => *attempt,
                    _ => 1,
                };
                copies.entry(id).or_default().push(attempt);
            }
            Err(_) if client.ready(queue).await == 0 => return copies,
            Err(_) => {}
        }
    }
}
