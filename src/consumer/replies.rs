//! Answering a delivery whose request has taken effect.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    forwarder::{ForwardError, ForwardedCopy, Forwarder},
    settlement::ParkReason,
};
use crate::{
    amqp,
    error::Chain,
    idempotency::{Identity, ReplyStore, StoreError, answered_as},
    message::{IncomingMessage, Reply, Stamped},
    publisher::PublishErrorKind,
};

/// What the broker calls the direct reply-to of a requester. It is no queue: RabbitMQ up to 4.1
/// returns what is mandatory, also when it has passed it on ("Direct Reply-to").
const DIRECT: &str = "amq.rabbitmq.reply-to.";

/// What the ID of a reply is made of, beside the identity of its request.
const STEP: &str = "reply";

/// What happens to a request whose reply no queue takes: whoever asked is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum UnclaimedReply {
    /// It is acked, and counted as `unclaimed` in
    /// [`ConsumerStatus::replies`](super::ConsumerStatus::replies).
    #[default]
    Drop,
    /// It is parked ([`ParkReason::ReplyUnclaimed`]); put back, it is answered again. So is in any
    /// case a request whose reply a queue nacks for as long as it is tried, because it is full.
    Park,
}

/// What happens to a request that took effect, and whose reply is not there: it was handled before
/// the store kept replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum LostReply {
    /// It is parked ([`ParkReason::ReplyLost`]).
    #[default]
    Park,
    /// It is acked, logged as a warning, and counted as `lost` in
    /// [`ConsumerStatus::replies`](super::ConsumerStatus::replies).
    Ack,
}

/// How a consumer answers.
#[derive(Clone)]
pub(crate) struct Answers {
    kept: Arc<dyn FindReply>,
    unclaimed: UnclaimedReply,
    lost: LostReply,
}

/// A store of replies, whatever its type.
trait FindReply: Send + Sync {
    fn find<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Option<Reply>, StoreError>>;
}

impl<S: ReplyStore> FindReply for S {
    fn find<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Option<Reply>, StoreError>> {
        Box::pin(self.reply_of(identity))
    }
}

/// How an answer ended.
pub(crate) enum Answered {
    /// The delivery may be acked; what is counted.
    Ack(&'static str),
    /// And what the broker or the frame said against the reply.
    Park(ParkReason, Option<String>),
}

/// A delivery was not answered; it is held, and comes to it again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAnswered {
    #[error("the reply cannot be read")]
    Store(#[from] StoreError),
    #[error("the reply cannot be sent")]
    Forward(#[from] ForwardError),
}

impl Answers {
    pub(crate) fn new(kept: impl ReplyStore, unclaimed: UnclaimedReply, lost: LostReply) -> Self {
        Self { kept: Arc::new(kept), unclaimed, lost }
    }

    /// Sends the reply of a request that has taken effect to where this delivery says, and returns
    /// when the broker has confirmed it; `at_hand`, if it was committed just now.
    pub(crate) async fn answer(
        &self,
        forwarder: &Forwarder,
        request: &IncomingMessage,
        reply_to: &str,
        at_hand: Option<Reply>,
    ) -> Result<Answered, NotAnswered> {
        // Every message that has taken effect has one.
        let Some(identity) = answered_as(request) else { return Ok(self.lost()) };
        let reply = match at_hand {
            Some(reply) => reply,
            None => match self.kept.find(&identity).await? {
                Some(reply) => reply,
                None => return Ok(self.lost()),
            },
        };
        let asked = request.raw_message_id().filter(|id| !id.is_empty());
        // A client that sends none goes by the ID of its message.
        let correlation = request.correlation_id().or(asked).unwrap_or(identity.message_id().as_str());
        let message = reply.correlated(correlation);
        let body = message.payload().clone();
        let stamped = Stamped::new(message, identity.effect_key(STEP), None, None);
        let properties = amqp::properties(&stamped, 1).map_err(ForwardError::from)?;
        let mandatory = if reply_to.starts_with(DIRECT) { Some(false) } else { None };
        let copied = ForwardedCopy { growth: 0, mandatory, ..ForwardedCopy::new(properties, body) };
        match forwarder.publish("", reply_to, &copied).await {
            Ok(()) => Ok(Answered::Ack("sent")),
            // A full mailbox, for as long as the publisher tries: others are to be answered.
            Err(ForwardError::Unconfirmed(failure)) if failure.kind == PublishErrorKind::Nacked => {
                Ok(Answered::Park(ParkReason::ReplyUnclaimed, Some("its queue nacks the reply".to_owned())))
            }
            Err(ForwardError::Unconfirmed(failure)) if failure.kind == PublishErrorKind::Unroutable => {
                Ok(match self.unclaimed {
                    UnclaimedReply::Drop => Answered::Ack("unclaimed"),
                    UnclaimedReply::Park => Answered::Park(ParkReason::ReplyUnclaimed, None),
                })
            }
            // It would be refused each time.
            Err(error) if error.is_refusal() => {
                Ok(Answered::Park(ParkReason::ReplyRefused, Some(Chain(&error).to_string())))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn lost(&self) -> Answered {
        match self.lost {
            LostReply::Park => Answered::Park(ParkReason::ReplyLost, None),
            LostReply::Ack => Answered::Ack("lost"),
        }
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { unclaimed, lost, .. } = self;
        f.debug_struct("Answers").field("unclaimed", unclaimed).field("lost", lost).finish_non_exhaustive()
    }
}
