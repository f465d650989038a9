//! One message on its way from the caller to its final verdict.

use std::sync::Arc;

use bytes::Bytes;
use lapin::{
    BasicProperties,
    message::BasicReturnMessage,
    types::{ShortString, ShortStringError},
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    error::{Failure, PublishErrorKind, ReturnedByBroker},
    places::{Place, Released},
    retry::RetryPolicy,
};
use crate::{amqp, error::BoxError, message::Stamped};

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
}

impl Payload {
    /// The frames of attempt number `attempt`. Only the attempt header differs between attempts (I6).
    fn frames(&self, attempt: u32) -> Result<Frames, ShortStringError> {
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
                mandatory: None,
            },
        })
    }

    /// Whether `returned` is attempt number `attempt` of this message.
    ///
    /// Two identical copies in flight to one destination cannot be told apart; both count as returned, which never
    /// claims too much: the broker routes both the same way, and an `Unroutable` can be published again.
    fn was_returned_as(&self, attempt: u32, returned: &BasicReturnMessage) -> bool {
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
}

/// What a confirmed publish reports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Confirmed {
    pub(crate) attempts: u32,
    pub(crate) elapsed: std::time::Duration,
}

pub(crate) type Reply = Result<Confirmed, Failure>;

/// A message that the publisher has taken and not yet answered for.
pub(crate) struct Job {
    payload: Payload,
    reply: Option<oneshot::Sender<Reply>>,
    /// Held until the verdict.
    place: Place,
    started: Instant,
    deadline: Instant,
    attempts: u32,
    uncertain: bool,
    /// It was in flight when the broker closed a channel over one message.
    suspect: bool,
    /// How often it was nacked, in which generation of its lane.
    nacks: (u64, u32),
    last: Option<(PublishErrorKind, Option<BoxError>)>,
}

/// What the broker said of one attempt.
#[derive(Debug)]
pub(crate) enum Verdict {
    Confirmed,
    Nacked,
    Returned(ReturnedByBroker),
    /// The broker closed the channel over this very message.
    Refused(PublishErrorKind, Arc<dyn std::error::Error + Send + Sync>),
}

impl Verdict {
    pub(crate) fn result(&self) -> Result<(), PublishErrorKind> {
        match self {
            Self::Confirmed => Ok(()),
            Self::Nacked => Err(PublishErrorKind::Nacked),
            Self::Returned(_) => Err(PublishErrorKind::Unroutable),
            Self::Refused(kind, _) => Err(*kind),
        }
    }
}

/// What is to be done with a job after an attempt.
pub(crate) enum Next {
    Done,
    RetryAt(Instant, Job),
}

impl Job {
    pub(crate) fn new(
        payload: Payload,
        reply: oneshot::Sender<Reply>,
        place: Place,
        started: Instant,
        deadline: Instant,
    ) -> Self {
        Self {
            payload,
            reply: Some(reply),
            place,
            started,
            deadline,
            attempts: 0,
            uncertain: false,
            suspect: false,
            nacks: (0, 0),
            last: None,
        }
    }

    pub(crate) fn payload(&self) -> &Payload {
        &self.payload
    }

    /// How often it was sent.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(crate) fn suspect(&mut self) {
        self.suspect = true;
    }

    /// Counts a nack, and gives how many there were in this generation.
    pub(crate) fn count_nack(&mut self, generation: u64) -> u32 {
        let before = if self.nacks.0 == generation { self.nacks.1 } else { 0 };
        self.nacks = (generation, before + 1);
        before + 1
    }

    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Frees its place in the window together with those of others.
    pub(crate) fn release_place(&mut self, released: &mut Released) {
        self.place.release_into(released);
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline <= now
    }

    /// Counts an attempt and gives its frames.
    pub(crate) fn next_attempt(&mut self) -> Result<Frames, ShortStringError> {
        let frames = self.payload.frames(self.attempts + 1)?;
        self.attempts += 1;
        Ok(frames)
    }

    /// The ID that it is sent under.
    pub(crate) fn message_id(&self) -> Option<&str> {
        match &self.payload {
            Payload::Stamped(stamped) => Some(stamped.id().as_str()),
            Payload::Forwarded(forwarded) => {
                forwarded.properties.message_id().as_ref().map(ShortString::as_str)
            }
        }
    }

    pub(crate) fn was_returned(&self, returned: &BasicReturnMessage) -> bool {
        self.payload.was_returned_as(self.attempts, returned)
    }

    /// Answers or schedules another attempt, after the broker's word on this one.
    pub(crate) fn judged(mut self, verdict: Verdict, policy: &RetryPolicy, now: Instant) -> Next {
        // It was sent alone, and the channel lives: it is not the one.
        self.suspect &= matches!(verdict, Verdict::Refused(..));
        let (kind, source) = match verdict {
            Verdict::Confirmed => {
                let confirmed = Confirmed { attempts: self.attempts, elapsed: now - self.started };
                self.answer(Ok(confirmed));
                return Next::Done;
            }
            Verdict::Nacked => (PublishErrorKind::Nacked, None),
            Verdict::Returned(returned) => (PublishErrorKind::Unroutable, Some(returned.into())),
            Verdict::Refused(kind, error) => (kind, Some(Box::new(error).into())),
        };
        self.last = Some((kind, source));
        let due = now + policy.delay(self.attempts);
        // An attempt that could only begin after the deadline is none: waiting for it would help nobody.
        if !policy.retries(kind, self.attempts) || due >= self.deadline || self.is_abandoned() {
            self.fail(now);
            return Next::Done;
        }
        Next::RetryAt(due, self)
    }

    /// The connection ended, or the confirm never came: the outcome of this attempt is unknown.
    pub(crate) fn outcome_unknown(
        mut self,
        kind: PublishErrorKind,
        source: Option<BoxError>,
        policy: &RetryPolicy,
        now: Instant,
    ) -> Option<Self> {
        self.uncertain = true;
        self.last = Some((kind, source));
        if !policy.retries(kind, self.attempts) || self.is_overdue(now) || self.is_abandoned() {
            self.fail(now);
            return None;
        }
        Some(self)
    }

    /// The deadline came while an attempt is unanswered. The attempt stays in flight, its confirm is still owned.
    pub(crate) fn give_up_waiting(&mut self, now: Instant) {
        self.uncertain = true;
        self.last = Some((PublishErrorKind::TimedOut, None));
        self.answer_failure(now);
    }

    /// Fails an attempt that is unanswered because the publisher closes.
    pub(crate) fn close_unanswered(mut self, now: Instant) {
        self.uncertain = true;
        self.fail_with(PublishErrorKind::Closed, None, now);
    }

    /// Notes why the message could not even be sent, for the error that its deadline may bring.
    pub(crate) fn note(&mut self, kind: PublishErrorKind, source: Option<BoxError>) {
        self.last = Some((kind, source));
    }

    /// Fails with the kind of the last failure; with `TimedOut` if there was none.
    pub(crate) fn fail(mut self, now: Instant) {
        self.answer_failure(now);
    }

    pub(crate) fn fail_with(mut self, kind: PublishErrorKind, source: Option<BoxError>, now: Instant) {
        self.last = Some((kind, source));
        self.answer_failure(now);
    }

    fn answer_failure(&mut self, now: Instant) {
        let (kind, source) = self.last.take().unwrap_or((PublishErrorKind::TimedOut, None));
        let (attempts, elapsed, uncertain) = (self.attempts, now - self.started, self.uncertain);
        self.answer(Err(Failure { kind, attempts, elapsed, uncertain, source }));
    }

    fn answer(&mut self, reply: Reply) {
        if let Some(sender) = self.reply.take() {
            // The caller may be gone; the verdict then has no reader.
            let _ = sender.send(reply);
        }
    }
}
