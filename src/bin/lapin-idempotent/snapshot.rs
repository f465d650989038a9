//! What a parking queue holds at one time, for those who look at it longer than the queue may be
//! kept from others, and what they do then about some of it.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    sync::Arc,
    time::SystemTime,
};

use lapin_idempotent::{
    IncomingMessage,
    consumer::{ConsumeError, LookedAt, Parked, ParkedChoice, Unpark, Unparked},
    message::HeaderValue,
};
use serde_json::to_value;
use sha2::{Digest, Sha256};

/// As many bytes of bodies as are kept.
const BYTES: usize = 64 << 20;

/// A parking queue, and how it is read.
#[derive(Debug, Clone)]
pub(crate) struct ParkingQueue {
    pub(crate) amqp: String,
    pub(crate) name: String,
    pub(crate) delivery_limit: Option<u32>,
}

/// Headers that change while a message stays parked: by being looked at, or as it is published anew
/// to the end of its queue.
const PASSING: [&str; 8] = [
    "CC",
    "BCC",
    "x-death",
    "x-delivery-count",
    "x-acquired-count",
    "x-idempotency-original-cc",
    "x-idempotency-original-expiration",
    "x-idempotency-original-user-id",
];

/// What was there.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) rows: Vec<Row>,
    /// Messages that were in the queue, of which not all need be among the rows.
    pub(crate) there: u64,
    /// Messages that went to the end of the queue, lest the broker count them out.
    pub(crate) renewed: u64,
    pub(crate) at: SystemTime,
}

/// A message that was there.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) key: Key,
    pub(crate) message: IncomingMessage,
}

/// Tells a parked message from the others, also where they share an ID or have none: by all that
/// it has and keeps. Two that are the same in all of it are copies. In hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key(String);

impl Key {
    fn of(message: &IncomingMessage) -> Self {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        };
        for part in [
            message.raw_message_id(),
            message.kind(),
            message.app_id(),
            message.content_type(),
            message.content_encoding(),
            message.correlation_id(),
            message.reply_to(),
        ] {
            add(part.unwrap_or_default().as_bytes());
        }
        let at = message.timestamp().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        add(&at.map_or(0, |at| at.as_secs()).to_be_bytes());
        add(&[message.priority().unwrap_or_default()]);
        let kept = message.headers().iter().filter(|(name, _)| !PASSING.contains(name));
        let kept: BTreeMap<&str, &HeaderValue> = kept.collect();
        for (name, value) in kept {
            add(name.as_bytes());
            add(to_value(value).unwrap_or_default().to_string().as_bytes());
        }
        add(message.body());
        let mut text = String::new();
        for byte in &hash.finalize()[..16] {
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl ParkingQueue {
    /// Looks at the queue, and keeps what it holds: `most` messages, and 64 MiB of bodies.
    pub(crate) async fn snapshot(&self, most: u64) -> Result<Snapshot, ConsumeError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let looked = self.look(|message| {
            bytes += message.body().len();
            rows.push(Row { key: Key::of(message), message: message.clone() });
            if rows.len() as u64 >= most || bytes >= BYTES {
                ParkedChoice::LeaveAndStop
            } else {
                ParkedChoice::Leave
            }
        });
        let LookedAt { there, renewed, .. } = looked.await?;
        Ok(Snapshot { rows, there, renewed, at: SystemTime::now() })
    }

    /// Puts those back that are still there.
    pub(crate) async fn unpark(&self, keys: HashSet<Key>) -> Result<Unparked, ConsumeError> {
        let keys = Arc::new(keys);
        let unpark = Unpark::new(&self.amqp, &self.name).delivery_limit(self.delivery_limit);
        unpark.only(move |message| keys.contains(&Key::of(message))).run().await
    }

    /// Deletes those that are still there, for good.
    pub(crate) async fn discard(&self, keys: &HashSet<Key>, because: &str) -> Result<LookedAt, ConsumeError> {
        let looked =
            self.look(|message| {
                if keys.contains(&Key::of(message)) { ParkedChoice::Discard } else { ParkedChoice::Leave }
            })
            .await?;
        tracing::warn!(because, discarded = looked.discarded, queue = %self.name, "asked for by an operator");
        Ok(looked)
    }

    async fn look(
        &self,
        choose: impl FnMut(&IncomingMessage) -> ParkedChoice + Send,
    ) -> Result<LookedAt, ConsumeError> {
        Parked::new(&self.amqp, &self.name).delivery_limit(self.delivery_limit).each(choose).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_copies_share_a_key() {
        let message = || IncomingMessage::new(b"same".to_vec()).with_header("tenant", "a");
        let key = Key::of(&message());
        for other in [
            message().with_header("tenant", "b"),
            message().with_header("x-idempotency-original-queue", "another"),
            message().with_kind("refund"),
            message().with_reply_to("answers"),
            message().with_message_id("id"),
        ] {
            assert_ne!(Key::of(&other), key, "{other:?}");
        }
        for name in PASSING {
            assert_eq!(
                Key::of(&message().with_header(name, 7_i64)),
                key,
                "it changes while it is parked: {name}"
            );
        }
    }
}
