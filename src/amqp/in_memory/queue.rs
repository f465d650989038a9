//! A queue of the broker in memory.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use lapin::{
    message::Delivery,
    types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString},
};

use super::Kept;
use crate::message::seconds_since_1970;

#[derive(Debug, Default)]
pub(super) struct Queue {
    ready: VecDeque<Place>,
    /// By their tags.
    unacked: BTreeMap<u64, Place>,
    /// How many have come.
    come: u64,
    delay: Option<Delay>,
}

/// A message, where it is in the order of the queue, and since when.
#[derive(Debug)]
struct Place {
    message: Kept,
    number: u64,
    since: SystemTime,
}

/// How long messages stay in a delay queue, and where they go then.
#[derive(Debug)]
struct Delay {
    ttl: Duration,
    exchange: String,
    routing_key: String,
}

impl Queue {
    pub(super) fn new(arguments: &FieldTable) -> Self {
        let text = |name: &str| match arguments.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        };
        let delay = match arguments.inner().get("x-message-ttl") {
            Some(AMQPValue::LongLongInt(ttl)) => Some(Delay {
                ttl: Duration::from_millis(u64::try_from(*ttl).unwrap_or_default()),
                exchange: text("x-dead-letter-exchange").unwrap_or_default(),
                routing_key: text("x-dead-letter-routing-key").unwrap_or_default(),
            }),
            _ => None,
        };
        Self { delay, ..Self::default() }
    }

    pub(super) fn push(&mut self, message: Kept, now: SystemTime) {
        self.come += 1;
        self.ready.push_back(Place { message, number: self.come, since: now });
    }

    pub(super) fn deliver(&mut self, tag: u64) -> Option<Kept> {
        let place = self.ready.pop_front()?;
        let message = place.message.clone();
        self.unacked.insert(tag, place);
        Some(message)
    }

    pub(super) fn settle(&mut self, tag: u64, comes_again: bool) {
        let settled = self.unacked.remove(&tag);
        if let Some(place) = settled.filter(|_| comes_again) {
            self.put_back(place);
        }
    }

    pub(super) fn take_back(&mut self, held: impl Fn(u64) -> bool) {
        let (held, lost): (BTreeMap<_, _>, BTreeMap<_, _>) =
            std::mem::take(&mut self.unacked).into_iter().partition(|(tag, _)| held(*tag));
        self.unacked = held;
        for place in lost.into_values() {
            self.put_back(place);
        }
    }

    /// To where it was.
    fn put_back(&mut self, mut place: Place) {
        place.message.redelivered = true;
        let at = self.ready.partition_point(|other| other.number < place.number);
        self.ready.insert(at, place);
    }

    /// Takes out what has been here long enough.
    pub(super) fn expired(&mut self, name: &str, now: SystemTime) -> Vec<Kept> {
        let Some(Delay { ttl, exchange, routing_key }) = &self.delay else { return Vec::new() };
        let mut expired = Vec::new();
        while let Some(Place { mut message, .. }) = self.ready.pop_front_if(|place| place.since + *ttl <= now)
        {
            note_death(&mut message, name, now);
            (message.exchange, message.routing_key) = (exchange.clone(), routing_key.clone());
            message.redelivered = false;
            expired.push(message);
        }
        expired
    }

    pub(super) fn next_expiry(&self) -> Option<SystemTime> {
        let delay = self.delay.as_ref()?;
        self.ready.front().map(|place| place.since + delay.ttl)
    }

    pub(super) fn ready(&self) -> Vec<Kept> {
        self.ready.iter().map(|place| place.message.clone()).collect()
    }

    pub(super) fn take(&mut self) -> Vec<Kept> {
        self.ready.drain(..).map(|place| place.message).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.unacked.is_empty()
    }
}

/// As a broker records where a message expired (RabbitMQ's documentation, "Dead Letter Exchanges").
fn note_death(message: &mut Kept, queue: &str, now: SystemTime) {
    let text = |text: &str| AMQPValue::LongString(LongString::from(text));
    let mut death = FieldTable::default();
    let mut set = |name: &'static str, value| {
        death.insert(ShortString::from(name), value);
    };
    set("count", AMQPValue::LongLongInt(1));
    set("reason", text("expired"));
    set("queue", text(queue));
    set("time", AMQPValue::Timestamp(seconds_since_1970(now)));
    set("exchange", text(&message.exchange));
    set("routing-keys", AMQPValue::FieldArray(FieldArray::from(vec![text(&message.routing_key)])));
    let mut headers = message.properties.headers().clone().unwrap_or_default();
    let mut deaths = vec![AMQPValue::FieldTable(death)];
    if let Some(AMQPValue::FieldArray(earlier)) = headers.inner().get("x-death") {
        deaths.extend(earlier.as_slice().iter().cloned());
    }
    headers.insert("x-death".into(), AMQPValue::FieldArray(FieldArray::from(deaths)));
    message.properties = std::mem::take(&mut message.properties).with_headers(headers);
}

/// A delivery whose ack goes nowhere.
pub(super) fn delivery(tag: u64, message: Kept) -> Delivery {
    // Names that were too long never got here.
    let name = |name: String| ShortString::try_new(name).unwrap_or_default();
    let Kept { exchange, routing_key, properties, body, redelivered } = message;
    let mut delivery = Delivery::mock(tag, name(exchange), name(routing_key), redelivered, body.into());
    delivery.properties = properties;
    delivery
}
