//! What is sent for one message, in each of its attempts.

use std::sync::Arc;

use bytes::Bytes;
use lapin::{
    BasicProperties,
    message::BasicReturnMessage,
    types::{FieldTable, ShortString, ShortStringError},
};

use crate::{
    amqp,
    message::{Headers, Stamped},
};

/// The header by which RabbitMQ's delayed message exchange knows how long to hold a message.
const DELAY: &str = "x-delay";

/// What one attempt puts on the wire.
pub(crate) struct Frames {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    /// The message's own choice.
    pub(crate) mandatory: Option<bool>,
}

/// What is to be sent, kept in a form that every attempt can be made from.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    /// A message of the application, stamped.
    Stamped(Arc<Stamped>),
    /// A delivery that is passed on with its own properties: a parked message.
    Forwarded(Arc<Forwarded>),
}

/// A received message and where it goes next.
#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    pub(crate) mandatory: Option<bool>,
}

impl Payload {
    /// The frames of attempt number `attempt`. Only the attempt header differs between attempts
    /// (I6).
    pub(super) fn frames(&self, attempt: u32) -> Result<Frames, ShortStringError> {
        Ok(match self {
            Self::Stamped(stamped) => Frames {
                exchange: ShortString::try_new(stamped.message.exchange())?,
                routing_key: ShortString::try_new(stamped.message.routing_key())?,
                properties: amqp::properties(stamped, attempt)?,
                body: stamped.message.payload().clone(),
                mandatory: stamped.message.extra().and_then(|extra| extra.mandatory),
            },
            Self::Forwarded(forwarded) => Frames {
                exchange: forwarded.exchange.clone(),
                routing_key: forwarded.routing_key.clone(),
                properties: forwarded.properties.clone(),
                body: forwarded.body.clone(),
                mandatory: forwarded.mandatory,
            },
        })
    }

    /// Whether `returned` is attempt number `attempt` of this message.
    ///
    /// Two copies in flight to one destination are told apart by their headers alone, see
    /// [`headers_in`](Self::headers_in). Identical ones both count as returned: the broker routes
    /// both the same way.
    pub(super) fn was_returned_as(&self, attempt: u32, returned: &BasicReturnMessage) -> bool {
        let delivery = &returned.delivery;
        let id = delivery.properties.message_id().as_ref().map(ShortString::as_str);
        match self {
            Self::Stamped(stamped) => {
                id == Some(stamped.id().as_str())
                    && amqp::attempt(&delivery.properties) == attempt
                    && delivery.routing_key.as_str() == stamped.message.routing_key()
                    && delivery.exchange.as_str() == stamped.message.exchange()
            }
            Self::Forwarded(forwarded) => {
                id == forwarded.properties.message_id().as_ref().map(ShortString::as_str)
                    && delivery.routing_key == forwarded.routing_key
                    && delivery.exchange == forwarded.exchange
            }
        }
    }

    /// How many headers attempt number `attempt` has, if a returned copy has all of them.
    pub(super) fn headers_in(&self, attempt: u32, returned: &BasicReturnMessage) -> Option<usize> {
        match self {
            Self::Stamped(stamped) => {
                let properties = amqp::properties(stamped, attempt).ok()?;
                count_in(properties.headers().as_ref(), returned)
            }
            Self::Forwarded(forwarded) => count_in(forwarded.properties.headers().as_ref(), returned),
        }
    }

    /// The ID that it is sent under.
    pub(super) fn message_id(&self) -> Option<&str> {
        match self {
            Self::Stamped(stamped) => Some(stamped.id().as_str()),
            Self::Forwarded(forwarded) => forwarded.properties.message_id().as_ref().map(ShortString::as_str),
        }
    }

    pub(super) fn exchange(&self) -> &str {
        match self {
            Self::Stamped(stamped) => stamped.message.exchange(),
            Self::Forwarded(forwarded) => forwarded.exchange.as_str(),
        }
    }

    /// Bytes of headers of a message of the application.
    pub(super) fn headers_len(&self) -> usize {
        match self {
            Self::Stamped(stamped) => stamped.message.headers().map_or(0, Headers::encoded_len),
            Self::Forwarded(_) => 0,
        }
    }

    /// Whether the broker's delayed message exchange is to hold it, which returns what it delivers
    /// later.
    pub(super) fn is_delayed_by_broker(&self) -> bool {
        match self {
            Self::Stamped(stamped) => {
                stamped.message.headers().is_some_and(|headers| headers.get(DELAY).is_some())
            }
            Self::Forwarded(forwarded) => {
                forwarded.properties.headers().as_ref().is_some_and(|headers| headers.contains_key(DELAY))
            }
        }
    }
}

/// How many `headers` are, if all are in a returned copy. The broker takes `BCC` out, and its
/// interceptors may add some.
fn count_in(headers: Option<&FieldTable>, returned: &BasicReturnMessage) -> Option<usize> {
    let theirs = returned.delivery.properties.headers().as_ref();
    let ours =
        headers.into_iter().flat_map(|headers| headers.inner()).filter(|(name, _)| name.as_str() != "BCC");
    ours.map(|(name, value)| theirs.is_some_and(|theirs| theirs.inner().get(name) == Some(value)))
        .try_fold(0, |count, is_there| is_there.then_some(count + 1))
}
