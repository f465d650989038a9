//! One message on its way from the caller to its final verdict.

use std::{sync::Arc, time::Duration};

use lapin::{message::BasicReturnMessage, types::ShortStringError};
use tokio::time::Instant;

use super::replies::{Answer, Confirmed, Reply};
use crate::{
    error::BoxError,
    publisher::{
        error::{BrokerReply, Failure, PublishErrorKind},
        payload::{Frames, Payload},
        permits::{Permit, Released},
        retry::RetryPolicy,
    },
};

/// How often a message is lost before it, or one beside it, is suspected to be the reason.
const OFTEN: u32 = 2;

/// How often a connection must end while one message is in flight alone before that is taken for
/// its doing.
const FATAL: u32 = 3;

/// Why no further attempt is made with a message.
#[derive(Debug, thiserror::Error)]
#[error(
    "the connection ended each of {FATAL} times that this message was sent alone, while others were confirmed"
)]
struct FatalMessage(#[source] SharedError);

/// A message that the publisher has taken and not yet answered for.
pub(crate) struct Job {
    payload: Payload,
    reply: Option<Answer>,
    /// Held until the verdict.
    permit: Permit,
    started: Instant,
    deadline: Instant,
    attempts: u32,
    /// How many of them were in vain because of another message.
    excused: u32,
    /// How many of them ended with their channel or connection, which nobody here had given up.
    lost: u32,
    uncertain: bool,
    /// It was in flight when a channel ended over one message.
    suspect: bool,
    /// How often a connection ended while it was in flight alone, and how much the worker had heard
    /// when that was so first.
    alone: (u32, u64),
    /// How often it was nacked, in which generation of its worker.
    nacks: (u64, u32),
    last: Option<(PublishErrorKind, Option<BoxError>)>,
    /// What the broker said of the last attempt.
    said: Option<BrokerReply>,
}

/// An error that several messages share.
pub(crate) type SharedError = Arc<dyn std::error::Error + Send + Sync>;

/// What the broker said of one attempt.
#[derive(Debug)]
pub(crate) enum Verdict {
    Confirmed,
    Nacked,
    Returned(BrokerReply),
    /// The broker closed the channel over this very message.
    Refused(PublishErrorKind, BrokerReply, SharedError),
    /// Connections end over this very message.
    Fatal(SharedError),
}

impl Verdict {
    /// Whether the broker spoke of this message, and not of the channel.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Confirmed | Self::Nacked | Self::Returned(_))
    }

    pub(crate) fn result(&self) -> Result<(), PublishErrorKind> {
        match self {
            Self::Confirmed => Ok(()),
            Self::Nacked => Err(PublishErrorKind::Nacked),
            Self::Returned(_) => Err(PublishErrorKind::Unroutable),
            Self::Refused(kind, ..) => Err(*kind),
            Self::Fatal(_) => Err(PublishErrorKind::Refused),
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
        reply: Answer,
        permit: Permit,
        started: Instant,
        deadline: Instant,
    ) -> Self {
        Self {
            payload,
            reply: Some(reply),
            permit,
            started,
            deadline,
            attempts: 0,
            excused: 0,
            lost: 0,
            uncertain: false,
            suspect: false,
            alone: (0, 0),
            nacks: (0, 0),
            last: None,
            said: None,
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

    /// Suspects it no more.
    pub(crate) fn trust(&mut self) {
        self.suspect = false;
    }

    /// Its channel or connection ended before it was answered.
    pub(crate) fn lose(&mut self) {
        self.lost += 1;
    }

    /// A connection ended while it was in flight alone, when its worker had `heard` so many
    /// answers. Whether that is its doing: it happened three times, while others were answered.
    pub(crate) fn ended_alone(&mut self, heard: u64) -> bool {
        if self.alone.0 == 0 {
            self.alone.1 = heard;
        }
        self.alone.0 += 1;
        self.alone.0 >= FATAL && heard > self.alone.1
    }

    /// How often connections ended while it was in flight alone.
    pub(crate) fn times_alone(&self) -> u32 {
        self.alone.0
    }

    /// Whether it was lost with a channel or connection so often that this is unlikely to have been
    /// by chance.
    pub(crate) fn is_lost_again(&self) -> bool {
        self.lost >= OFTEN
    }

    /// Its last attempt was in vain because of another message.
    pub(crate) fn excuse(&mut self) {
        self.excused += 1;
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

    /// Frees its permit together with those of others.
    pub(crate) fn release_permit(&mut self, released: &mut Released) {
        self.permit.release_into(released);
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_none_or(Answer::is_closed)
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
        self.payload.message_id()
    }

    pub(crate) fn was_returned(&self, returned: &BasicReturnMessage) -> bool {
        self.payload.was_returned_as(self.attempts, returned)
    }

    /// How many headers it has, if a returned copy has all of them.
    pub(crate) fn headers_in(&self, returned: &BasicReturnMessage) -> Option<usize> {
        self.payload.headers_in(self.attempts, returned)
    }

    pub(crate) fn exchange(&self) -> &str {
        self.payload.exchange()
    }

    /// Whether the policy allows another attempt. Those that were in vain because of another
    /// message do not count, unless only one is wanted.
    fn may_retry(&self, kind: PublishErrorKind, policy: &RetryPolicy) -> bool {
        let counted =
            if policy.is_single() { self.attempts } else { self.attempts.saturating_sub(self.excused) };
        policy.retries(kind, counted)
    }

    /// Answers or schedules another attempt, after the broker's word on this one.
    pub(crate) fn judged(mut self, verdict: Verdict, policy: &RetryPolicy, now: Instant) -> Next {
        self.said = None;
        // It was answered, and the channel lives: it is not the one.
        self.suspect = false;
        let (kind, source) = match verdict {
            Verdict::Confirmed => {
                let confirmed = Confirmed { attempts: self.attempts, elapsed: now - self.started };
                self.answer(Ok(confirmed));
                return Next::Done;
            }
            Verdict::Nacked => {
                // Other queues may have it: one that is full nacks what a fanout has brought to the
                // rest.
                self.uncertain = true;
                (PublishErrorKind::Nacked, None)
            }
            Verdict::Returned(returned) => {
                self.uncertain |= self.payload.is_delayed_by_broker();
                self.said = Some(returned.clone());
                (PublishErrorKind::Unroutable, Some(returned.into()))
            }
            Verdict::Refused(kind, reply, error) => {
                self.said = Some(reply);
                (kind, Some(Box::new(error).into()))
            }
            Verdict::Fatal(error) => {
                self.uncertain = true;
                (PublishErrorKind::Refused, Some(Box::new(FatalMessage(error)).into()))
            }
        };
        self.last = Some((kind, source));
        if !self.may_retry(kind, policy) || self.is_abandoned() {
            self.fail(now);
            return Next::Done;
        }
        let delay = policy.delay(self.attempts);
        self.retry_after(delay, now)
    }

    /// An attempt that could only begin after the deadline is none: waiting for it would help
    /// nobody.
    pub(crate) fn retry_after(self, delay: Duration, now: Instant) -> Next {
        if let Some(due) = now.checked_add(delay).filter(|due| *due < self.deadline) {
            Next::RetryAt(due, self)
        } else {
            self.fail(now);
            Next::Done
        }
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
        self.said = None;
        self.last = Some((kind, source));
        if !self.may_retry(kind, policy) || self.is_overdue(now) || self.is_abandoned() {
            self.fail(now);
            return None;
        }
        Some(self)
    }

    /// The deadline came while an attempt is unanswered. The attempt stays in flight, its confirm
    /// is still owned.
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
        let reply = self.said.take();
        self.answer(Err(Failure { kind, attempts, elapsed, uncertain, source, reply }));
    }

    fn answer(&mut self, reply: Reply) {
        if let Some(answer) = self.reply.take() {
            answer.send(reply);
        }
    }
}

impl Drop for Job {
    /// A task that drops a message without a verdict has panicked, or has gone with its runtime.
    fn drop(&mut self) {
        if self.reply.is_some() && !self.is_abandoned() {
            self.uncertain |= self.attempts > 0;
            let panicked = std::thread::panicking();
            let kind = if panicked { PublishErrorKind::Disconnected } else { PublishErrorKind::Closed };
            let source = panicked.then(|| "a publishing task panicked".into());
            self.last = Some((kind, source));
            self.answer_failure(Instant::now());
        }
    }
}
