//! The broker's rule for settling, kept beside it: a delivery is settled once, and on the channel
//! that delivered it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
};

use futures_util::StreamExt;
use lapin::{
    options::{BasicAckOptions, BasicConsumeOptions},
    types::FieldTable,
};

use super::support::{
    amqp::{Client, with_id},
    broker, eventually,
    proxy::{Action, Frame, From, Proxy},
};

trials! {
    foreign_tag_would_be_seen,
}

const CONNECTION_CLOSE: (u16, u16) = (10, 50);
const CHANNEL_CLOSE: (u16, u16) = (20, 40);
const DELIVER: (u16, u16) = (60, 60);
const ACK: (u16, u16) = (60, 80);
const REJECT: (u16, u16) = (60, 90);
const NACK: (u16, u16) = (60, 120);

/// What was seen of a consumer's deliveries.
#[derive(Default, Clone)]
pub struct Seen {
    /// By connection and channel, what is not settled.
    open: HashMap<(usize, u16), BTreeSet<u64>>,
    /// How many deliveries were acked.
    pub acked: usize,
    /// Connection and tag of each ack.
    pub acks: Vec<(usize, u64)>,
    /// Whatever the broker would, or did, object to.
    wrong: Vec<String>,
}

/// Follows the deliveries of the consumers that connect through a proxy.
#[derive(Default, Clone)]
pub struct Tags(Arc<Mutex<Seen>>);

impl Tags {
    /// Watches all that goes through the proxy, in place of its rule.
    pub fn watch(proxy: &Proxy) -> Self {
        let tags = Self::default();
        let watching = tags.clone();
        proxy.rule(move |frame| {
            watching.0.lock().unwrap().see(frame);
            Action::Pass
        });
        tags
    }

    pub fn seen(&self) -> Seen {
        self.0.lock().unwrap().clone()
    }

    pub fn assert_no_foreign_tag(&self) {
        let seen = self.seen();
        assert!(seen.acked > 0, "there is something to judge");
        assert!(seen.wrong.is_empty(), "{:?}", seen.wrong);
    }
}

/// What the other tests rely on.
pub async fn foreign_tag_would_be_seen() {
    let client = Client::connect(&broker()).await;
    let queue = client.queue("foreign-tag").await;
    client.publish(&queue, b"x", with_id("order-42")).await;
    let proxy = Proxy::start(&broker()).await;
    let tags = Tags::watch(&proxy);
    let consumer = Client::connect(proxy.url()).await;
    let options = BasicConsumeOptions::default();
    let consuming =
        consumer.channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
    let mut deliveries = consuming.await.expect("consume");
    let delivery = deliveries.next().await.expect("delivery").expect("delivery");
    delivery.ack(BasicAckOptions::default()).await.expect("ack");
    eventually("it is acked", async || (tags.seen().acks == [(0, 1)]).then_some(())).await;
    tags.assert_no_foreign_tag();
    let _ = consumer.channel.basic_ack(5, BasicAckOptions::default()).await;
    let wrong = eventually("the broker objects", async || {
        let wrong = tags.seen().wrong;
        (wrong.len() >= 2).then_some(wrong)
    })
    .await;
    assert!(wrong[0].contains("has no delivery 5"), "{wrong:?}");
    assert!(wrong[1].contains("406 PRECONDITION_FAILED - unknown delivery tag 5"), "{wrong:?}");
    client.delete(&queue).await;
}

impl Seen {
    fn see(&mut self, frame: Frame<'_>) {
        let (Some(method), arguments) = (frame.method, frame.arguments) else { return };
        let number = |at: usize| u64::from_be_bytes(arguments[at..at + 8].try_into().expect("eight bytes"));
        let place = (frame.connection, frame.channel);
        match (frame.from, method) {
            // After the consumer's tag, which has its length before it.
            (From::Broker, DELIVER) => {
                let tag = number(1 + usize::from(arguments[0]));
                self.open.entry(place).or_default().insert(tag);
            }
            (From::Client, ACK | NACK | REJECT) => {
                // A reject has another bit there, and is always of one.
                let multiple = method != REJECT && arguments[8] & 1 == 1;
                self.settle(place, number(0), multiple, method == ACK);
            }
            (From::Broker, CHANNEL_CLOSE | CONNECTION_CLOSE) => {
                let code = u16::from_be_bytes([arguments[0], arguments[1]]);
                let text = String::from_utf8_lossy(&arguments[3..3 + usize::from(arguments[2])]);
                // The parking queue is looked for before it is declared: 404.
                if code != 404 {
                    self.wrong.push(format!("{place:?} was closed: {code} {text}"));
                }
            }
            _ => {}
        }
    }

    fn settle(&mut self, place: (usize, u16), tag: u64, multiple: bool, ack: bool) {
        let open = self.open.entry(place).or_default();
        // With `multiple`, all that are outstanding (AMQP 0-9-1, basic.nack); to give them back,
        // and never to ack them.
        if (tag, multiple, ack) == (0, true, false) {
            open.clear();
            return;
        }
        if !open.contains(&tag) {
            self.wrong.push(format!("{place:?} has no delivery {tag}"));
            return;
        }
        let settled: Vec<u64> = if multiple { open.range(..=tag).copied().collect() } else { vec![tag] };
        for tag in &settled {
            open.remove(tag);
        }
        if ack {
            self.acked += settled.len();
            self.acks.push((place.0, tag));
        }
    }
}
