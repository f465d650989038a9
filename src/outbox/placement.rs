//! What a message gets when it is enqueued: its ID, once and for all, and its lane.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::{
    contract::{Lane, NewRow},
    encode,
    error::EnqueueError,
};
use crate::{
    message::{IdStrategy, InvalidMessage, OutgoingMessage, TraceContext},
    publisher::{ContextSource, FRAME_MAX, Limits, MAX_BODY, Stamper},
};

/// No order key is longer, as no column for it is.
const ORDER_KEY_BYTES: usize = 255;

/// Turns messages into rows of an outbox: checks them, gives them their ID, and says which lane
/// they go to. For those who write an [`Outbox`](super::Outbox); the others have it inside theirs.
///
/// An ID is given once, here, and what a relay publishes is published under it, however often.
/// Clones spread messages together.
///
/// ```
/// use lapin_idempotent::{OutgoingMessage, outbox::Placement};
///
/// # fn main() -> Result<(), lapin_idempotent::BoxError> {
/// let placement = Placement::new(16);
/// let row = placement.place_in_order("order-42", OutgoingMessage::to("orders", "placed"))?;
/// assert_eq!(row.lane, placement.lane_of("order-42"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Placement {
    lanes: u16,
    stamper: Stamper,
    next: Arc<AtomicUsize>,
}

impl Placement {
    /// For a table of so many lanes, at least one. The number must stay the same for as long as the
    /// table lives, as it decides about the lane of an order key.
    pub fn new(lanes: u16) -> Self {
        let limits = Limits::new(MAX_BODY, FRAME_MAX as usize);
        Self {
            lanes: lanes.max(1),
            stamper: Stamper::unnamed(limits),
            // So that several processes do not all begin with the same lane.
            next: Arc::new(AtomicUsize::new(fastrand::usize(..1 << 16))),
        }
    }

    /// Sets how messages get their ID that have neither one nor an idempotency key. Default:
    /// [`IdStrategy::uuid_v7`].
    #[must_use]
    pub fn id_strategy(mut self, strategy: IdStrategy) -> Self {
        self.stamper = self.stamper.with_strategy(strategy);
        self
    }

    /// Sets where messages without a trace context get theirs from: it is asked when they are
    /// enqueued, and their publish belongs to that trace. Default: none.
    #[must_use]
    pub fn trace_context(
        mut self,
        current: impl Fn() -> Option<TraceContext> + Send + Sync + 'static,
    ) -> Self {
        self.stamper = self.stamper.with_trace(ContextSource::new(current));
        self
    }

    /// Sets the largest body that is taken; no larger than what the relay's publisher sends.
    ///
    /// Default: 16 MiB, as a publisher's.
    #[must_use]
    pub fn max_message_bytes(mut self, bytes: usize) -> Self {
        self.stamper = self.stamper.with_limits(Limits::new(bytes, FRAME_MAX as usize));
        self
    }

    /// A message as a row that is in order with nothing.
    ///
    /// Its lane is the next one, in turn: a lane says nothing of such a row.
    ///
    /// # Errors
    ///
    /// [`EnqueueError::Invalid`], with the message, if it could not be published: as
    /// [`OutgoingMessage::validate`] says, if its body is too large, or if it has no ID and none
    /// can be made.
    pub fn place(&self, message: OutgoingMessage) -> Result<NewRow, EnqueueError> {
        let turn = self.next.fetch_add(1, Relaxed) % usize::from(self.lanes);
        self.row(Lane(u16::try_from(turn).unwrap_or_default()), None, message)
    }

    /// A message as a row that is in order with all others of its key: 1 to 255 bytes, compared
    /// byte by byte.
    ///
    /// # Errors
    ///
    /// As [`place`](Self::place), and if that is no key.
    pub fn place_in_order(
        &self,
        order_key: impl Into<String>,
        message: OutgoingMessage,
    ) -> Result<NewRow, EnqueueError> {
        let key = order_key.into();
        if key.is_empty() || key.len() > ORDER_KEY_BYTES || key.contains('\0') {
            let source = InvalidMessage::OrderKey { bytes: key.len() };
            return Err(EnqueueError::Invalid { message: Box::new(message), source });
        }
        self.row(self.lane_of(&key), Some(key), message)
    }

    /// The lane of an order key: its FNV-1a hash of 64 bits, modulo the number of lanes. It never
    /// changes, as rows of one key in two lanes could be sent in any order.
    pub fn lane_of(&self, order_key: &str) -> Lane {
        let hash = order_key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Lane(u16::try_from(hash % u64::from(self.lanes)).unwrap_or_default())
    }

    fn row(
        &self,
        lane: Lane,
        order_key: Option<String>,
        message: OutgoingMessage,
    ) -> Result<NewRow, EnqueueError> {
        let invalid = |(message, source)| EnqueueError::Invalid { message: Box::new(message), source };
        let stamped = self.stamper.try_stamp(message).map_err(|refused| invalid(*refused))?;
        let message = &stamped.message;
        let properties = match encode::properties(message) {
            Ok(properties) => properties,
            // A message that was checked can be written.
            Err(error) => {
                let source = InvalidMessage::Unwritable(error);
                return Err(invalid((stamped.message, source)));
            }
        };
        #[cfg(feature = "metrics")]
        super::metrics::enqueued();
        Ok(NewRow {
            lane,
            message_id: stamped.id().clone(),
            exchange: message.exchange().to_owned(),
            routing_key: message.routing_key().to_owned(),
            order_key,
            properties,
            body: message.payload().clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, error::Error, time::SystemTime};

    use super::*;
    use crate::MessageId;

    fn message() -> OutgoingMessage {
        OutgoingMessage::to("orders", "placed").body("42")
    }

    /// Never change these: rows of a key would be in two lanes.
    #[test]
    fn lane_of_a_key_never_changes() {
        let placement = Placement::new(16);
        // FNV-1a, test vectors of its authors: "" and "a" and "foobar".
        let all = Placement::new(u16::MAX);
        let lane = |hash: u64| Lane(u16::try_from(hash % u64::from(u16::MAX)).unwrap());
        assert_eq!(all.lane_of(""), lane(0xcbf2_9ce4_8422_2325));
        assert_eq!(all.lane_of("a"), lane(0xaf63_dc4c_8601_ec8c));
        assert_eq!(all.lane_of("foobar"), lane(0x8594_4171_f739_67e8));
        assert_eq!(placement.lane_of("foobar"), Lane(8));
        assert_eq!(Placement::new(1).lane_of("foobar"), Lane(0));
        assert_eq!(Placement::new(0).place(message()).unwrap().lane, Lane(0));
    }

    #[test]
    fn unordered_messages_are_spread_evenly() {
        let placement = Placement::new(16);
        let mut lanes = BTreeMap::new();
        for _ in 0..160 {
            *lanes.entry(placement.clone().place(message()).unwrap().lane).or_insert(0) += 1;
        }
        assert_eq!(lanes.values().copied().collect::<Vec<i32>>(), [10; 16]);
    }

    #[test]
    fn row_has_the_id_and_what_travels() {
        let placement = Placement::new(16);
        let row = placement.place_in_order("order-42", message().idempotency_key("placed/42")).unwrap();
        let id = IdStrategy::default().message_id(&message().idempotency_key("placed/42")).unwrap();
        assert_eq!((row.message_id, row.order_key.as_deref()), (id, Some("order-42")));
        assert_eq!(
            (row.exchange.as_str(), row.routing_key.as_str(), &*row.body),
            ("orders", "placed", &b"42"[..])
        );
        assert!(row.properties.unwrap().contains("timestamp"), "the ID does not tell the time");
        let row = placement.place(message()).unwrap();
        assert!(row.message_id.time().is_some() && row.properties.is_none());
        let own = placement.place(message().message_id(MessageId::random())).unwrap();
        assert!(own.properties.unwrap().contains("timestamp"), "who has made the ID may have another time");
        let at = SystemTime::UNIX_EPOCH;
        assert!(placement.place(message().timestamp(at)).unwrap().properties.unwrap().contains(":0}"));
        let traced = placement
            .trace_context(|| "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().ok());
        assert!(traced.place(message()).unwrap().properties.unwrap().contains("traceparent"));
    }

    #[test]
    fn message_that_cannot_be_published_comes_back() {
        let placement =
            Placement::new(16).max_message_bytes(2).id_strategy(IdStrategy::uuid_v5(IdStrategy::NAMESPACE));
        let keyed = message().idempotency_key("k");
        let long = "k".repeat(256);
        for (key, message, told) in [
            (None, keyed.clone().body("500"), "3 bytes"),
            (None, message(), "no message ID"),
            (None, keyed.clone().header("x-idempotency-a", 1), "reserved"),
            (Some(""), keyed.clone(), "0 bytes"),
            (Some(long.as_str()), keyed.clone(), "256 bytes"),
            (Some("a\0"), keyed.clone(), "2 bytes"),
        ] {
            let refused = match key {
                Some(key) => placement.place_in_order(key, message.clone()),
                None => placement.place(message.clone()),
            };
            let error = refused.unwrap_err();
            assert!(error.source().unwrap().to_string().contains(told), "{error:?}");
            assert_eq!(error.into_message(), Some(message));
        }
        assert!(placement.place_in_order(&long[..255], keyed).is_ok());
    }
}
