//! The task that owns a channel: it sends every message, owns every confirm and answers every caller.
//!
//! One task a channel is a condition of correctness, not a choice: lapin takes the delivery tag and queues the frames
//! under two different locks, so two tasks on one channel can get each other's confirms.

use std::{
    collections::{BinaryHeap, VecDeque},
    future::Future,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{future::poll_fn, stream::FuturesUnordered};
use lapin::{Channel, Confirmation, Connection};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    attempt::{admit, publish, show},
    confirms::Window,
    connection::Link,
    delayed::Delayed,
    error::PublishErrorKind,
    job::{Job, Next, Payload, Verdict},
    lanes::Surroundings,
    places::Released,
    retry::RetryPolicy,
    round::Rounds,
    status::LaneState,
};
use crate::{
    amqp::{self, ConnectError},
    error::BoxError,
};

/// The reply code of a publish to an exchange that does not exist.
const NOT_FOUND: u16 = 404;

/// How many messages are taken over in one go, so that confirms are looked at in between.
const INTAKE: usize = 256;

pub(crate) struct Lane {
    around: Surroundings,
    number: usize,
    link: Arc<Link>,
    jobs: mpsc::UnboundedReceiver<Job>,
    /// To be sent as soon as there is a channel, oldest first.
    ready: VecDeque<Job>,
    /// Waiting for their next attempt.
    delayed: BinaryHeap<Delayed>,
    intake: Vec<Job>,
    judged: Vec<(Job, Verdict)>,
    open: bool,
}

/// Why a generation ended.
enum End {
    /// The publisher is closing and everything is answered, or its time is up.
    Closed,
    /// The channel or the connection failed.
    Lost(BoxError),
    /// The broker closed the channel over something that was published on it, with this reply code.
    Refused(u16, BoxError),
    /// A confirm did not come in time, or the channel cannot be trusted.
    Retired(BoxError),
}

/// The broker is alive, or seems so, and does not confirm.
#[derive(Debug, thiserror::Error)]
#[error("a confirm did not come within {0:?}")]
struct ConfirmTimeout(Duration);

impl Lane {
    pub(crate) fn new(
        around: Surroundings,
        number: usize,
        link: Arc<Link>,
        jobs: mpsc::UnboundedReceiver<Job>,
    ) -> Self {
        Self {
            around,
            number,
            link,
            jobs,
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            intake: Vec::with_capacity(INTAKE),
            judged: Vec::new(),
            open: true,
        }
    }

    /// Runs until the publisher is gone or closed; gives back what was left unconfirmed.
    pub(crate) async fn run(mut self, first: Option<(Arc<Connection>, Channel)>) -> Vec<Payload> {
        let mut next = first;
        let mut left = Vec::new();
        loop {
            let Some((connection, channel)) = (match next.take() {
                Some(first) => Some(first),
                None => self.reopen().await,
            }) else {
                break;
            };
            let mut window = Window::default();
            self.around.monitor.set_lane(self.number, LaneState::Up);
            let end = self.pump(&connection, &channel, &mut window).await;
            self.around.monitor.set_lane(self.number, LaneState::Down);
            let (error, discard): (BoxError, bool) = match end {
                End::Closed => {
                    for (job, _) in window.into_unknown() {
                        left.push(job.payload().clone());
                        job.close_unanswered(Instant::now());
                    }
                    break;
                }
                End::Lost(error) => (error, !connection.status().connected()),
                End::Retired(error) => (error, true),
                End::Refused(code, error) => {
                    let Some(error) = self.find_culprit(code, error, &mut window) else { continue };
                    (error, !connection.status().connected())
                }
            };
            tracing::warn!(error = %error, unconfirmed = window.len(), "publishing channel lost; what is unconfirmed is published again");
            self.around.monitor.error(error.to_string());
            self.resend(window, error);
            if discard {
                let link = Arc::clone(&self.link);
                if self.meanwhile(link.discard(&connection)).await.is_none() {
                    break;
                }
            }
        }
        self.around.monitor.set_lane(self.number, LaneState::Down);
        let now = Instant::now();
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            self.ready.push_back(job);
        }
        for job in self.ready.drain(..).chain(self.delayed.drain().map(|delayed| delayed.job)) {
            left.push(job.payload().clone());
            job.fail_with(PublishErrorKind::Closed, None, now);
        }
        left
    }

    /// One refused message ends the channel for all that are in flight. The broker does not say which it was: if it was
    /// alone, its caller is told and the others never notice; if not, each of them is sent alone next time.
    fn find_culprit(&mut self, code: u16, error: BoxError, window: &mut Window) -> Option<BoxError> {
        if window.len() > 1 {
            window.suspect_all();
            return Some(error);
        }
        let kind = if code == NOT_FOUND { PublishErrorKind::Unroutable } else { PublishErrorKind::Refused };
        tracing::debug!(error = %error, "the broker closed the channel over one message");
        let refused: Arc<dyn std::error::Error + Send + Sync> = Arc::from(error);
        let lone = std::mem::take(window).into_unknown();
        self.judged.extend(lone.map(|(job, _)| (job, Verdict::Refused(kind, Arc::clone(&refused)))));
        self.answer(Instant::now());
        None
    }

    /// Puts what was in flight back in front, in the order in which it was sent.
    fn resend(&mut self, window: Window, source: BoxError) {
        let now = Instant::now();
        let Surroundings { options, monitor, .. } = &self.around;
        let source: Arc<dyn std::error::Error + Send + Sync> = Arc::from(source);
        let mut again = VecDeque::new();
        for (job, sent_at) in window.into_unknown() {
            // One late confirm ends the channel for all: to the others it is a lost channel.
            let late = now - sent_at > options.confirm_timeout;
            let kind = if late { PublishErrorKind::TimedOut } else { PublishErrorKind::Disconnected };
            monitor.count(kind, 1);
            show(&options.on_attempt, &job, Err(kind));
            let source = Some(Box::new(Arc::clone(&source)) as BoxError);
            again.extend(job.outcome_unknown(kind, source, &options.retry, now));
        }
        again.append(&mut self.ready);
        self.ready = again;
    }

    /// Opens the next generation, with backoff, while deadlines go on being kept.
    async fn reopen(&mut self) -> Option<(Arc<Connection>, Channel)> {
        let link = Arc::clone(&self.link);
        let backoff = RetryPolicy::default().max_delay(Duration::from_secs(3));
        for attempt in 1.. {
            match self.meanwhile(link.channel()).await? {
                Ok(generation) => {
                    tracing::info!("publishing channel open again");
                    self.around.monitor.reconnected();
                    return Some(generation);
                }
                Err(error) => {
                    tracing::warn!(error = %error, attempt, "cannot open a publishing channel");
                    self.around.monitor.error(error.to_string());
                    self.give_away();
                    self.blame(error);
                }
            }
            self.meanwhile(tokio::time::sleep(backoff.delay(attempt))).await?;
        }
        None
    }

    /// Another lane that is up may take what waits here.
    fn give_away(&mut self) {
        if let Some(lanes) = self.around.lanes.upgrade() {
            for job in std::mem::take(&mut self.ready) {
                if let Err(job) = lanes.adopt(job, self.number) {
                    self.ready.push_back(job);
                }
            }
        }
    }

    /// Messages that run out of time before there is a connection say why.
    fn blame(&mut self, error: ConnectError) {
        let error: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
        for job in &mut self.ready {
            job.note(PublishErrorKind::Disconnected, Some(Box::new(Arc::clone(&error))));
        }
    }

    /// Awaits `step` while messages are taken in and deadlines are kept; `None` if the lane is to end instead.
    async fn meanwhile<T>(&mut self, step: impl Future<Output = T>) -> Option<T> {
        let mut step = pin!(step);
        let mut tick = interval(self.around.options.resolution());
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

    /// Sends and judges until the generation ends.
    async fn pump(&mut self, connection: &Connection, channel: &Channel, window: &mut Window) -> End {
        let mut publishing = FuturesUnordered::new();
        let rounds = Rounds::new();
        let mut round = Vec::new();
        let mut tick = interval(self.around.options.resolution());
        let mandatory = self.around.options.mandatory;
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_blocked = false;
        loop {
            // While blocked, lapin writes nothing at all: more frames would only pile up in its unbounded queue.
            if !connection.status().blocked() {
                while let Some(job) = self.ready.pop_front_if(|job| window.admits(job)) {
                    if let Some((slot, frames)) = admit(job, window, &self.around.monitor) {
                        publishing.push(publish(channel.clone(), slot, frames, mandatory));
                    }
                }
            }
            if self.is_done(window.is_empty()) {
                return End::Closed;
            }
            tokio::select! {
                biased;
                () = poll_fn(|cx| rounds.poll(&mut publishing, &mut round, cx)), if !publishing.is_empty() => {
                    if let Err(end) = self.judge(&mut round, window) {
                        return end;
                    }
                }
                taken = self.jobs.recv_many(&mut self.intake, INTAKE), if self.open => self.take_in(taken),
                _ = tick.tick() => {
                    let now = Instant::now();
                    self.sweep(now);
                    window.sweep_deadlines(now);
                    let blocked = connection.status().blocked();
                    let state = if blocked { LaneState::Blocked } else { LaneState::Up };
                    self.around.monitor.set_lane(self.number, state);
                    self.around.monitor.report();
                    let limit = self.around.options.confirm_timeout;
                    if blocked || was_blocked {
                        window.restart_clocks(now);
                    } else if window.is_stuck(now, limit) {
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
        window: &mut Window,
    ) -> Result<(), End> {
        let now = Instant::now();
        let mut lost = None;
        let confirmed = round.drain(..).filter_map(|(slot, result)| match result {
            Ok(confirmation) => Some((slot, confirmation)),
            Err(error) => {
                lost.get_or_insert(error);
                None
            }
        });
        let judged = window.judge(confirmed, &mut |job, verdict| self.judged.push((job, verdict)));
        self.answer(now);
        judged.map_err(|violation| End::Retired(violation.into()))?;
        match lost {
            None => Ok(()),
            Some(error) => Err(match amqp::refusal(&error) {
                Some(code) => End::Refused(code, error.into()),
                None => End::Lost(error.into()),
            }),
        }
    }

    /// Tells the callers of a round, and plans what is to be tried again.
    fn answer(&mut self, now: Instant) {
        let Surroundings { options, monitor, places, .. } = &self.around;
        let mut confirmed = 0;
        let mut released = Released::default();
        for (job, verdict) in &mut self.judged {
            let result = verdict.result();
            match result {
                Ok(()) => {
                    confirmed += 1;
                    job.release_place(&mut released);
                }
                Err(kind) => monitor.count(kind, 1),
            }
            if options.on_attempt.is_set() {
                show(&options.on_attempt, job, result);
            }
        }
        // Places first: a caller that is answered may publish its next message at once.
        places.release(&mut released);
        monitor.confirmed(confirmed);
        // Last first: who awaits many answers in order awaits the first of them, and is woken once for the whole round.
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

    /// Moves due retries to the front door and fails what is overdue.
    fn sweep(&mut self, now: Instant) {
        while self.delayed.peek().is_some_and(|delayed| delayed.due <= now) {
            self.ready.extend(self.delayed.pop().map(|delayed| delayed.job));
        }
        if self.ready.iter().any(|job| job.is_overdue(now)) {
            for job in std::mem::take(&mut self.ready) {
                if job.is_overdue(now) { job.fail(now) } else { self.ready.push_back(job) }
            }
        }
    }

    /// Whether the lane has nothing left to do, or no time left to do it.
    fn is_done(&mut self, nothing_in_flight: bool) -> bool {
        let limit = *self.around.closing.borrow_and_update();
        let idle = nothing_in_flight && self.ready.is_empty() && self.delayed.is_empty();
        match limit {
            _ if !self.open && idle => true,
            Some(limit) => (idle && self.jobs.is_empty()) || limit <= Instant::now(),
            None => false,
        }
    }
}
