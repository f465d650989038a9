//! Verdicts under every order of returns and acks that lapin can make of what a broker may send.

use std::{collections::VecDeque, sync::Arc};

use lapin::message::Delivery;

use super::*;
use crate::{
    amqp,
    message::{MessageId, OutgoingMessage, Stamped},
    publisher::{channel::HandedOver, payload::Payload, permits::InFlightPermits},
};

const LOST: &str = "nowhere";

/// A set with messages in it, and lapin's end of the channel.
struct Channel {
    unconfirmed: Unconfirmed,
    stamped: Vec<Arc<Stamped>>,
    slots: Vec<usize>,
    permits: Arc<InFlightPermits>,
    /// lapin's queue of returned messages that no confirm has taken yet.
    waiting: VecDeque<BasicReturnMessage>,
    /// Confirms that lapin has completed and no round has seen, in order.
    completed: Vec<(usize, Confirmation)>,
    confirmed: Vec<String>,
    returned: Vec<String>,
}

impl Channel {
    fn new() -> Self {
        Self {
            unconfirmed: Unconfirmed::default(),
            stamped: Vec::new(),
            slots: Vec::new(),
            permits: Arc::new(InFlightPermits::new(100_000, 1_000_000)),
            waiting: VecDeque::new(),
            completed: Vec::new(),
            confirmed: Vec::new(),
            returned: Vec::new(),
        }
    }

    fn publish(&mut self, id: &str, routing_key: &str) {
        let message = OutgoingMessage::to("", routing_key).body("x");
        let id = MessageId::new(id).unwrap();
        let stamped = Arc::new(Stamped::new(message, id, None, None));
        let permit = self.permits.try_enter(1).unwrap();
        let now = Instant::now();
        let deadline = now + Duration::from_secs(60);
        let payload = Payload::Stamped(Arc::clone(&stamped));
        let mut job = Job::new(payload, HandedOver::default().answer().0, permit, now, deadline);
        job.next_attempt().unwrap();
        self.slots.push(self.unconfirmed.insert(job));
        self.stamped.push(stamped);
    }

    /// The broker's `basic.return` of message number `n`.
    fn return_(&mut self, n: usize) {
        let stamped = &self.stamped[n];
        let (exchange, key) = (stamped.message.exchange().into(), stamped.message.routing_key().into());
        let mut delivery = Delivery::mock(0, exchange, key, false, Vec::new());
        delivery.properties = amqp::properties(stamped, 1).unwrap();
        self.waiting.push_back(BasicReturnMessage {
            delivery,
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
        });
    }

    /// lapin completes a confirm: it takes whatever return is the oldest.
    fn ack(&mut self, n: usize) {
        self.completed.push((self.slots[n], Confirmation::Ack(self.waiting.pop_front())));
    }

    /// One round of the first `count` completed confirms, in any order.
    fn round(&mut self, count: usize) {
        let mut round: Vec<_> = self.completed.drain(..count).collect();
        fastrand::shuffle(&mut round);
        let (confirmed, returned) = (&mut self.confirmed, &mut self.returned);
        self.unconfirmed
            .judge(round, &mut |job, verdict| {
                let Payload::Stamped(stamped) = job.payload() else { panic!("not forwarded") };
                match verdict {
                    Verdict::Confirmed => confirmed.push(stamped.id().to_string()),
                    Verdict::Returned(_) => returned.push(stamped.id().to_string()),
                    Verdict::Nacked | Verdict::Refused(..) | Verdict::Fatal(_) => {
                        panic!("nothing was refused")
                    }
                }
            })
            .unwrap();
    }

    fn all(&mut self) {
        self.round(self.completed.len());
    }
}

#[test]
fn return_2_ack_1_ack_2() {
    for rounds in [1, 2] {
        let mut channel = Channel::new();
        channel.publish("one", "queue");
        channel.publish("two", LOST);
        channel.return_(1);
        channel.ack(0);
        if rounds == 2 {
            channel.all();
        }
        channel.ack(1);
        channel.all();
        assert_eq!((channel.confirmed, channel.returned), (vec!["one".into()], vec!["two".into()]));
    }
}

#[test]
fn return_2_ack_up_to_2_in_either_order() {
    for order in [[0, 1], [1, 0]] {
        let mut channel = Channel::new();
        channel.publish("one", "queue");
        channel.publish("two", LOST);
        channel.return_(1);
        for n in order {
            channel.ack(n);
        }
        channel.all();
        assert_eq!((channel.confirmed, channel.returned), (vec!["one".into()], vec!["two".into()]));
    }
}

#[test]
fn an_answer_with_a_foreign_return_is_held_until_it_is_proven() {
    let mut channel = Channel::new();
    for (id, key) in [("a", LOST), ("b", LOST), ("c", "queue"), ("d", "queue")] {
        channel.publish(id, key);
    }
    channel.return_(0);
    channel.return_(1);
    // b takes a's return; b's own is still waiting, so nothing can be said of b.
    channel.ack(1);
    channel.all();
    assert!(channel.confirmed.is_empty() && channel.returned.is_empty());
    // c takes b's return: now b is known, and c is not.
    channel.ack(2);
    channel.all();
    assert_eq!((channel.confirmed.len(), &*channel.returned), (0, ["b".to_owned()].as_slice()));
    // d completes clean: no return was waiting after c.
    channel.ack(3);
    channel.all();
    channel.confirmed.sort();
    assert_eq!(channel.confirmed, ["c", "d"]);
    channel.ack(0);
    channel.all();
    assert_eq!(channel.returned, ["b", "a"]);
    assert!(channel.unconfirmed.is_empty());
}

#[test]
fn one_id_to_two_places_is_told_apart() {
    let mut channel = Channel::new();
    channel.publish("same", "queue");
    channel.publish("same", LOST);
    channel.return_(1);
    channel.ack(0);
    channel.ack(1);
    channel.all();
    assert_eq!((channel.confirmed.len(), channel.returned.len()), (1, 1));
}

#[test]
fn a_return_of_nothing_in_flight_is_a_violation() {
    let mut channel = Channel::new();
    channel.publish("one", "queue");
    channel.publish("two", LOST);
    channel.return_(1);
    let stray = channel.waiting.pop_front();
    channel.ack(1);
    channel.all();
    let round = [(channel.slots[0], Confirmation::Ack(stray))];
    assert!(matches!(channel.unconfirmed.judge(round, &mut |_, _| ()), Err(Violation::UnmatchedReturn)));
}

#[test]
fn a_channel_without_confirms_is_a_violation() {
    let mut channel = Channel::new();
    channel.publish("one", "queue");
    let round = [(channel.slots[0], Confirmation::NotRequested)];
    assert!(matches!(channel.unconfirmed.judge(round, &mut |_, _| ()), Err(Violation::NotInConfirmMode)));
}

/// A broker that returns at once and acks when it likes: one by one or many at a time, in any order
/// that AMQP allows.
#[test]
fn no_order_of_returns_and_acks_is_misjudged() {
    for seed in 0..1_500 {
        fastrand::seed(seed);
        let messages = fastrand::usize(1..80);
        let unroutable = fastrand::f64();
        let lost: Vec<bool> = (0..messages).map(|_| fastrand::f64() < unroutable).collect();
        let mut channel = Channel::new();
        let (mut published, mut routed) = (0, 0);
        let mut open: Vec<usize> = Vec::new();
        while !(routed == messages && open.is_empty() && channel.completed.is_empty()) {
            match fastrand::u8(0..5) {
                0 if published < messages => {
                    channel.publish(&format!("m-{published}"), if lost[published] { LOST } else { "queue" });
                    published += 1;
                }
                // The broker takes the next message: a return goes out at once, an ack may follow.
                1 if routed < published => {
                    if lost[routed] {
                        channel.return_(routed);
                    }
                    open.push(routed);
                    routed += 1;
                }
                2 if !open.is_empty() => {
                    let n = open.swap_remove(fastrand::usize(..open.len()));
                    channel.ack(n);
                }
                // `multiple`: everything up to a tag, which lapin walks in the order of a hash map.
                3 if !open.is_empty() => {
                    let up_to = open[fastrand::usize(..open.len())];
                    let (mut acked, rest): (Vec<_>, Vec<_>) = open.iter().copied().partition(|n| *n <= up_to);
                    open = rest;
                    fastrand::shuffle(&mut acked);
                    for n in acked {
                        channel.ack(n);
                    }
                }
                _ => channel.round(fastrand::usize(..=channel.completed.len())),
            }
        }
        channel.all();
        assert!(channel.unconfirmed.is_empty(), "seed {seed}: all are judged");
        assert!(channel.held_nothing(), "seed {seed}");
        for (names, expected) in [(&channel.confirmed, false), (&channel.returned, true)] {
            for name in names {
                let n: usize = name[2..].parse().unwrap();
                assert_eq!(lost[n], expected, "seed {seed}: message {n}");
            }
        }
        assert_eq!(channel.confirmed.len() + channel.returned.len(), messages, "seed {seed}");
    }
}

impl Channel {
    fn held_nothing(&self) -> bool {
        self.unconfirmed.held.is_empty() && self.waiting.is_empty()
    }
}
