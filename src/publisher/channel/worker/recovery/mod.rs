//! From one channel to the next: what becomes of what was in flight, and how the next one is
//! opened.

use std::{collections::VecDeque, future::Future, pin::pin, sync::Arc, time::Duration};

use futures_util::future::poll_fn;
use lapin::{Channel, Confirmation, types::ShortString};
use tokio::time::{Instant, interval, timeout, timeout_at};

use super::{ChannelWorker, End, INTAKE};
use crate::{
    amqp::{ConnectError, Connection},
    error::{BoxError, Chain},
    publisher::{
        RetryPolicy,
        channel::{
            attempt::show,
            confirms::Unconfirmed,
            context::WorkerContext,
            isolation::named_exchange,
            job::{Job, Next, SharedError, Verdict},
            ready_set::{PublishSet, ReadySet},
            retries::Delayed,
        },
        error::{BrokerReply, PublishErrorKind},
        payload::Payload,
    },
};

/// The reply code of a publish to an exchange that does not exist.
const NOT_FOUND: u16 = 404;

/// The longest pause between connections that end without an answer, and while many messages are
/// suspected: there is an end to that, and others wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
const ISOLATING: Duration = Duration::from_millis(500);

/// How long what is in flight on a channel that ended may take to say so.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the broker may take to close a channel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the end of a channel says of the messages that were in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Nothing: connections end.
    Unexplained,
    /// It ended over one of several: the attempts of the others were in vain.
    OverAnother,
    /// It was given up here, or another channel of its connection was: confirms were late, or
    /// could not be trusted. That says nothing of who ends channels.
    Retired,
}

impl ChannelWorker {
    /// One refused message ends the channel for all that are in flight. If it is known which it
    /// was, because it was alone or has the exchange that the broker named alone, its caller is
    /// told, and `None` says that no other was concerned.
    pub(super) fn find_culprit(
        &mut self,
        reply: BrokerReply,
        error: BoxError,
        unconfirmed: &mut Unconfirmed,
    ) -> Option<BoxError> {
        let mut named = named_exchange(&reply.text);
        let mut suspects = named.map_or(0, |name| unconfirmed.suspect(|job| job.exchange() == name));
        if suspects == 0 {
            named = None;
            suspects = unconfirmed.suspect(|_| true);
        }
        if suspects > 1 {
            self.isolation.ended(suspects);
            return Some(error);
        }
        let kind =
            if reply.code == NOT_FOUND { PublishErrorKind::Unroutable } else { PublishErrorKind::Refused };
        tracing::debug!(error = %Chain(&*error), "the broker closed the channel over one message");
        let job = unconfirmed.take(|job| named.is_none_or(|name| job.exchange() == name))?;
        self.judged.push((job, Verdict::Refused(kind, reply, Arc::from(error))));
        self.answer(Instant::now());
        (!unconfirmed.is_empty()).then(|| "the broker closed the channel over another message".into())
    }

    /// A connection that ends without an answer of the broker may have done so over one of the
    /// messages in flight: if none was confirmed on it, if it held suspects, or if it is not the
    /// first that they are lost with. Gives what that says of those in flight, and how long to
    /// pause before the next.
    pub(super) fn suspect_unanswered(&mut self, unconfirmed: &mut Unconfirmed) -> (Ended, Option<Duration>) {
        let fruitless = self.generation.lost();
        if fruitless == 0 && !unconfirmed.holds_suspects() && !unconfirmed.holds_lost_again() {
            return (Ended::Unexplained, None);
        }
        let suspects = unconfirmed.suspect(|_| true);
        self.isolation.ended(suspects);
        let longest = if suspects > 1 { ISOLATING } else { LONGEST_PAUSE };
        let pause = (fruitless > 0).then(|| RetryPolicy::default().max_delay(longest).delay(fruitless));
        (if suspects > 1 { Ended::OverAnother } else { Ended::Unexplained }, pause)
    }

    /// A channel that ends fails everything on it, not always in the order of cause and effect:
    /// waits for what the broker said, if it said something.
    pub(super) async fn find_reason<F>(
        &mut self,
        mut end: End,
        unconfirmed: &mut Unconfirmed,
        publishing: &mut PublishSet<F>,
        rounds: &ReadySet,
    ) -> End
    where
        F: Future<Output = (usize, lapin::Result<Confirmation>)>,
    {
        let until = Instant::now() + REASON_TIMEOUT;
        let mut round = Vec::new();
        while matches!(end, End::Lost(_)) && !publishing.is_empty() {
            if timeout_at(until, poll_fn(|cx| rounds.poll(publishing, &mut round, cx))).await.is_err() {
                break;
            }
            if let Err(other) = self.judge(&mut round, unconfirmed)
                && !matches!(other, End::Lost(_))
            {
                end = other;
            }
        }
        end
    }

    /// Puts what was in flight back in front, in the order in which it was sent: suspects behind
    /// the others, as they are sent alone, and behind them what may again be confirmed late.
    pub(super) fn resend(&mut self, unconfirmed: Unconfirmed, source: BoxError, ended: Ended) {
        let now = Instant::now();
        let heard = self.generation.heard();
        let retired = ended == Ended::Retired;
        let lone = unconfirmed.len() == 1 && unconfirmed.holds_suspects() && !retired;
        let shared = self.shared.is_shared();
        let WorkerContext { options, monitor, .. } = &self.context;
        let source: SharedError = Arc::from(source);
        let (mut again, mut suspects, mut slow) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        for (mut job, written) in unconfirmed.into_unknown() {
            // One late confirm ends the channel for all: to the others it is a lost channel.
            let late = written.is_some_and(|written| now - written > options.confirm_timeout);
            let kind = if late { PublishErrorKind::TimedOut } else { PublishErrorKind::Disconnected };
            // A channel beside it may have ended the connection that they share.
            if lone && job.ended_alone(heard) && !shared {
                self.judged.push((job, Verdict::Fatal(Arc::clone(&source))));
                continue;
            }
            match ended {
                // A late one is not known to have been there when it ended.
                Ended::Unexplained if late => {}
                Ended::Unexplained => job.lose(),
                Ended::OverAnother => {
                    if !late {
                        job.lose();
                    }
                    job.excuse();
                }
                // Or it would keep all others waiting for as long as its confirm is late.
                Ended::Retired => job.trust(),
            }
            monitor.count(kind, 1);
            show(&options.on_attempt, &job, Err(kind));
            let source = Some(Box::new(Arc::clone(&source)) as BoxError);
            match job.outcome_unknown(kind, source, &options.retry, now) {
                Some(job) if lone && job.times_alone() > 1 => {
                    let delay = options.retry.delay(job.times_alone());
                    // Others first: if they are answered in the meantime, it is known whose doing
                    // it is.
                    if let Next::RetryAt(due, job) = job.retry_after(delay, now) {
                        self.delayed.push(Delayed { due, job });
                    }
                }
                Some(job) if retired && late => slow.push_back(job),
                Some(job) if job.is_suspect() => suspects.push_back(job),
                Some(job) => again.push_back(job),
                None => {}
            }
        }
        // Suspects of an earlier channel are in front of what waits.
        while let Some(job) = self.ready.pop_front_if(|job| job.is_suspect()) {
            suspects.push_back(job);
        }
        for mut behind in [suspects, slow, std::mem::take(&mut self.ready)] {
            again.append(&mut behind);
        }
        self.ready = again;
        self.answer(now);
    }

    /// What is handed back when the publisher closes: not what its caller called off, or was told
    /// of already.
    pub(super) fn leave(job: &Job, left: &mut Vec<Payload>) {
        if !job.is_abandoned() {
            left.push(job.payload().clone());
        }
    }

    /// Opens the next generation, with backoff, while deadlines go on being kept.
    pub(super) async fn reopen(&mut self) -> Option<(Arc<Connection>, Channel)> {
        let shared = Arc::clone(&self.shared);
        let backoff = RetryPolicy::default().max_delay(Duration::from_secs(3));
        for attempt in 1.. {
            match self.meanwhile(shared.channel()).await? {
                Ok(generation) => {
                    tracing::info!("publishing channel open");
                    self.context.monitor.reconnected(self.number);
                    return Some(generation);
                }
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), attempt, "cannot open a publishing channel");
                    self.context.monitor.error(Chain(&error).to_string());
                    self.give_away();
                    self.blame(error);
                }
            }
            self.meanwhile(tokio::time::sleep(backoff.delay(attempt))).await?;
        }
        None
    }

    /// Another worker that is up may take what waits here.
    pub(super) fn give_away(&mut self) {
        if let Some(dispatcher) = self.context.dispatcher.upgrade() {
            for job in std::mem::take(&mut self.ready) {
                self.ready.extend(dispatcher.adopt(job, self.number));
            }
        }
    }

    /// Messages that run out of time before there is a connection say why.
    pub(super) fn blame(&mut self, error: ConnectError) {
        let error: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
        for job in &mut self.ready {
            job.note(PublishErrorKind::Disconnected, Some(Box::new(Arc::clone(&error))));
        }
    }

    /// After a panic: a call that was about to be answered gets no verdict, and deadlines go on
    /// being kept.
    pub(crate) async fn rest(&mut self, pause: Duration) {
        self.judged.clear();
        self.meanwhile(tokio::time::sleep(pause)).await;
    }

    /// Awaits `step` while messages are taken in and deadlines are kept; `None` if the worker is to
    /// end instead.
    pub(super) async fn meanwhile<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = pin!(step);
        let mut tick = interval(self.context.options.resolution());
        loop {
            if self.is_done(true) {
                return None;
            }
            tokio::select! {
                output = &mut step => return Some(output),
                taken = self.jobs.recv_many(&mut self.intake, INTAKE), if self.open => self.take_in(taken),
                _ = tick.tick() => self.sweep(Instant::now()),
            }
        }
    }
}

/// Closes a channel on which nothing is in flight; lapin would never resolve what is.
pub(super) async fn close_channel(channel: &Channel) {
    let _ = timeout(CLOSE_TIMEOUT, channel.close(200, ShortString::default())).await;
}

#[cfg(test)]
mod tests;
