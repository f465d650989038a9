//! What a parking queue holds at one time, for those who look at it longer than the queue may be
//! kept from others, and what they do then about some of it.

use std::{collections::HashSet, fmt::Write as _, sync::Arc, time::SystemTime};

use lapin_idempotent::{
    IncomingMessage,
    consumer::{ConsumeError, LookedAt, Parked, ParkedChoice, Unpark, Unparked},
    message::HeaderValue,
};
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

/// Tells a parked message from the others, also where they share an ID or have none: by ID, body,
/// and when and how it was parked. Two that are the same in all of it are copies. In hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key(String);

impl Key {
    fn of(message: &IncomingMessage) -> Self {
        let mut hash = Sha256::new();
        for part in [message.raw_message_id(), message.parked_reason(), message.correlation_id()] {
            let part = part.unwrap_or_default();
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
        let at = message.parked_at().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let attempts = message.header("x-idempotency-parked-attempts").and_then(HeaderValue::as_i64);
        hash.update(at.map_or(0, |at| at.as_secs()).to_be_bytes());
        hash.update(attempts.unwrap_or(-1).to_be_bytes());
        hash.update(message.body());
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
