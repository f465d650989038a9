//! The task that owns a channel: it sends every message, owns every confirm and answers every
//! caller.
//!
//! One task a channel is a condition of correctness, not a choice: lapin takes the delivery tag and
//! queues the frames under two different locks, so two tasks on one channel can get each other's
//! confirms.

mod recovery;

use std::{
    collections::{BinaryHeap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::future::poll_fn;
use lapin::{Channel, Confirmation};
use tokio::{
    task::yield_now,
    time::{Instant, MissedTickBehavior, interval},
};

use self::recovery::{Ended, close_channel};
use super::{
    attempt::{Written, admit, publish, show},
    confirms::Unconfirmed,
    context::WorkerContext,
    isolation::Isolation,
    job::{Job, Next, Verdict},
    nack_watch::NackWatch,
    queue::JobReceiver,
    ready_set::{PublishSet, ReadySet},
    retries::Delayed,
};
use crate::publisher::{
    connection::SharedConnection,
    error::{BrokerReply, PublishErrorKind},
    payload::Payload,
    permits::Released,
    status::WorkerState,
};
use crate::{
    amqp::{self, Connection},
    error::{BoxError, Chain},
};

/// How many messages are taken over in one go, so that confirms are looked at in between.
const INTAKE: usize = 256;

/// Taking over fewer than this suggests that more are on their way.
const GREEDY: usize = 32;

pub(crate) struct ChannelWorker {
    context: WorkerContext,
    number: usize,
    shared: Arc<SharedConnection>,
    jobs: JobReceiver,
    /// To be sent as soon as there is a channel, oldest first.
    ready: VecDeque<Job>,
    /// Waiting for their next attempt.
    delayed: BinaryHeap<Delayed>,
    intake: Vec<Job>,
    judged: Vec<(Job, Verdict)>,
    open: bool,
    generation: NackWatch,
    isolation: Isolation,
}

/// Whether a job may be sent now: suspects in groups of their own.
fn admits(unconfirmed: &Unconfirmed, isolation: &Isolation, job: &Job) -> bool {
    if unconfirmed.is_empty() {
        true
    } else if unconfirmed.holds_suspects() {
        job.is_suspect() && isolation.has_room()
    } else {
        !job.is_suspect()
    }
}

/// Why a generation ended.
enum End {
    /// The publisher is closing and everything is answered, or its time is up.
    Closed,
    /// The channel or the connection failed.
    Lost(BoxError),
    /// The broker closed the channel over something that was published on it, for this reason.
    Refused(BrokerReply, BoxError),
    /// A confirm did not come in time, or the channel cannot be trusted.
    Retired(BoxError),
    /// Nothing is in flight, and a new channel may fare better.
    Worn,
}

/// The broker is alive, or seems so, and does not confirm.
#[derive(Debug, thiserror::Error)]
#[error("a confirm did not come within {0:?}")]
struct ConfirmTimeout(Duration);

impl ChannelWorker {
    pub(crate) fn new(
        context: WorkerContext,
        number: usize,
        shared: Arc<SharedConnection>,
        jobs: JobReceiver,
    ) -> Self {
        Self {
            context,
            number,
            shared,
            jobs,
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            intake: Vec::with_capacity(INTAKE),
            judged: Vec::new(),
            open: true,
            generation: NackWatch::default(),
            isolation: Isolation::default(),
        }
    }

    /// Runs until the publisher is gone or closed; gives back what was left unconfirmed.
    pub(crate) async fn run(&mut self, first: Option<(Arc<Connection>, Channel)>) -> Vec<Payload> {
        let mut next = first;
        let mut left = Vec::new();
        loop {
            let Some((connection, channel)) = (match next.take() {
                Some(first) => Some(first),
                None => self.reopen().await,
            }) else {
                break;
            };
            let mut unconfirmed = Unconfirmed::default();
            self.context.monitor.set_worker(self.number, WorkerState::Up);
            self.generation.begin(Instant::now());
            let end = self.pump(&connection, &channel, &mut unconfirmed).await;
            self.context.monitor.set_worker(self.number, WorkerState::Down);
            let mut pause = None;
            let (error, discard, ended): (BoxError, bool, Ended) = match end {
                End::Closed => {
                    for (job, _) in unconfirmed.into_unknown() {
                        Self::leave(&job, &mut left);
                        job.close_unanswered(Instant::now());
                    }
                    break;
                }
                End::Lost(error) if self.shared.has_given_up(&connection) => (error, true, Ended::Retired),
                End::Lost(error) => {
                    let ended;
                    (ended, pause) = self.suspect_unanswered(&mut unconfirmed);
                    (error, !connection.status().connected(), ended)
                }
                End::Retired(error) => (error, true, Ended::Retired),
                End::Worn => {
                    tracing::info!("messages were nacked again and again; trying another channel");
                    if self.meanwhile(close_channel(&channel)).await.is_none() {
                        break;
                    }
                    continue;
                }
                End::Refused(reply, error) => {
                    let Some(error) = self.find_culprit(reply, error, &mut unconfirmed) else { continue };
                    (error, !connection.status().connected(), Ended::OverAnother)
                }
            };
            tracing::warn!(error = %Chain(&*error), unconfirmed = unconfirmed.len(), "publishing channel lost; what is unconfirmed is published again");
            self.context.monitor.error(Chain(&*error).to_string());
            self.resend(unconfirmed, error, ended);
            if discard {
                let shared = Arc::clone(&self.shared);
                if self.meanwhile(shared.discard(&connection)).await.is_none() {
                    break;
                }
            }
            if let Some(pause) = pause
                && self.meanwhile(tokio::time::sleep(pause)).await.is_none()
            {
                break;
            }
        }
        self.context.monitor.set_worker(self.number, WorkerState::Down);
        let now = Instant::now();
        self.jobs.close();
        while let Some(job) = self.jobs.recv().await {
            self.ready.push_back(job);
        }
        let delayed = self.delayed.drain().map(|delayed| delayed.job);
        for job in std::mem::take(&mut self.ready).into_iter().chain(delayed) {
            Self::leave(&job, &mut left);
            job.fail_with(PublishErrorKind::Closed, None, now);
        }
        left
    }

    /// Sends and judges until the generation ends.
    async fn pump(
        &mut self,
        connection: &Connection,
        channel: &Channel,
        unconfirmed: &mut Unconfirmed,
    ) -> End {
        let written = Written::default();
        let mut publishing = PublishSet::new();
        let rounds = ReadySet::new();
        let mut round = Vec::new();
        let mut tick = interval(self.context.options.resolution());
        let mandatory = self.context.options.mandatory;
        let headers = self.shared.fewer_headers(connection);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_blocked = false;
        loop {
            if self.generation.is_worn() {
                if unconfirmed.is_empty() {
                    return End::Worn;
                }
            // While blocked, lapin writes nothing at all: more frames would only pile up in its
            // unbounded queue.
            } else if !connection.status().blocked() {
                let now = Instant::now();
                while let Some(job) = self.ready.pop_front_if(|job| admits(unconfirmed, &self.isolation, job))
                {
                    let (suspect, first) = (job.is_suspect(), unconfirmed.is_empty());
                    if let Some((slot, frames)) = admit(job, unconfirmed, &self.context.monitor, headers, now)
                    {
                        if suspect {
                            self.isolation.sends(first);
                        }
                        let sent = (slot, unconfirmed.last_order());
                        publishing.push(publish(channel, sent, frames, mandatory, &written));
                    }
                }
            }
            if self.is_done(unconfirmed.is_empty()) {
                return End::Closed;
            }
            self.jobs.report(unconfirmed.len() + self.ready.len() + self.delayed.len());
            tokio::select! {
                biased;
                () = poll_fn(|cx| rounds.poll(&mut publishing, &mut round, cx)), if !publishing.is_empty() => {
                    if round.len() < GREEDY && unconfirmed.len() > 4 * GREEDY {
                        // Few of many: more confirms are on their way, and all are cheaper to
                        // answer together.
                        yield_now().await;
                        rounds.extend(&mut publishing, &mut round).await;
                    }
                    if let Err(end) = self.judge(&mut round, unconfirmed) {
                        return self.find_reason(end, unconfirmed, &mut publishing, &rounds).await;
                    }
                }
                taken = self.jobs.recv_many(&mut self.intake, INTAKE), if self.open => {
                    self.take_in(taken);
                    if taken < GREEDY && !unconfirmed.is_empty() {
                        // Callers that were answered together publish their next messages one after
                        // the other. Let them, so that one pass serves them all.
                        yield_now().await;
                        while let Some(job) = self.jobs.try_recv() {
                            self.ready.push_back(job);
                        }
                    }
                }
                _ = tick.tick() => {
                    let now = Instant::now();
                    self.sweep(now);
                    unconfirmed.sweep_deadlines(now);
                    unconfirmed.start_clocks(written.up_to(), now);
                    let blocked = connection.status().blocked();
                    let state = if blocked { WorkerState::Blocked } else { WorkerState::Up };
                    self.context.monitor.set_worker(self.number, state);
                    self.context.monitor.report();
                    let limit = self.context.options.confirm_timeout;
                    if blocked || was_blocked {
                        unconfirmed.restart_clocks(now);
                    } else if unconfirmed.is_stuck(now, limit) {
                        return End::Retired(ConfirmTimeout(limit).into());
                    }
                    was_blocked = blocked;
                    if !channel.status().connected() && publishing.is_empty() {
                        return End::Lost("the channel was closed".into());
                    }
                }
            }
        }
    }

    fn judge(
        &mut self,
        round: &mut Vec<(usize, lapin::Result<Confirmation>)>,
        unconfirmed: &mut Unconfirmed,
    ) -> Result<(), End> {
        let now = Instant::now();
        let mut lost: Option<lapin::Error> = None;
        let confirmed = round.drain(..).filter_map(|(slot, result)| match result {
            Ok(confirmation) => Some((slot, confirmation)),
            Err(error) => {
                // What the broker said tells more than that the channel is closed by now, which
                // later publishes find.
                if lost.as_ref().is_none_or(|lost| amqp::refusal(lost).is_none()) {
                    lost = Some(error);
                }
                None
            }
        });
        let judged = unconfirmed.judge(confirmed, &mut |job, verdict| self.judged.push((job, verdict)));
        self.answer(now);
        judged.map_err(|violation| End::Retired(violation.into()))?;
        match lost {
            None => Ok(()),
            Some(error) => Err(match amqp::refusal(&error) {
                Some((code, text)) => End::Refused(BrokerReply { code, text }, error.into()),
                None => End::Lost(error.into()),
            }),
        }
    }

    /// Tells the callers of a round, and plans what is to be tried again.
    fn answer(&mut self, now: Instant) {
        let WorkerContext { options, monitor, permits, .. } = &self.context;
        let answers = self.judged.iter().filter(|(_, verdict)| verdict.is_answer()).count();
        self.generation.hears(answers);
        let mut confirmed = 0;
        let mut released = Released::default();
        for (job, verdict) in &mut self.judged {
            let result = verdict.result();
            match result {
                Ok(()) => {
                    confirmed += 1;
                    job.release_permit(&mut released);
                }
                Err(kind) => {
                    monitor.count(kind, 1);
                    if kind == PublishErrorKind::Nacked {
                        self.generation.nacked(job, now);
                    }
                }
            }
            show(&options.on_attempt, job, result);
        }
        // Permits first: a caller that is answered may publish its next message at once.
        permits.release(&mut released);
        monitor.confirmed(confirmed);
        // Last first: a caller that awaits many answers in order awaits the first of them, and is
        // woken once for the whole round.
        while let Some((job, verdict)) = self.judged.pop() {
            if let Next::RetryAt(due, job) = job.judged(verdict, &options.retry, now) {
                self.delayed.push(Delayed { due, job });
            }
        }
    }

    fn take_in(&mut self, taken: usize) {
        self.open = taken > 0;
        self.ready.extend(self.intake.drain(..));
    }

    /// Moves due retries to the front and fails what is overdue.
    fn sweep(&mut self, now: Instant) {
        while self.delayed.peek().is_some_and(|delayed| delayed.due <= now) {
            self.ready.extend(self.delayed.pop().map(|delayed| delayed.job));
        }
        // A call that was given up has no claim to a permit, nor to be published.
        if self.ready.iter().any(|job| job.is_overdue(now) || job.is_abandoned()) {
            for job in std::mem::take(&mut self.ready) {
                if job.is_overdue(now) || job.is_abandoned() {
                    job.fail(now);
                } else {
                    self.ready.push_back(job);
                }
            }
        }
        if self.delayed.iter().any(|delayed| delayed.job.is_abandoned()) {
            self.delayed.retain(|delayed| !delayed.job.is_abandoned());
        }
    }

    /// Whether the worker has nothing left to do, or no time left to do it.
    fn is_done(&mut self, nothing_in_flight: bool) -> bool {
        let limit = *self.context.closing.borrow_and_update();
        let idle = nothing_in_flight && self.ready.is_empty() && self.delayed.is_empty();
        match limit {
            _ if !self.open && idle => true,
            Some(limit) => (idle && self.jobs.is_empty()) || limit <= Instant::now(),
            None => false,
        }
    }
}
