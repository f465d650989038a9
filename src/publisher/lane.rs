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
use lapin::{Channel, Confirmation, Connection, options::BasicPublishOptions};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    confirms::Window,
    connection::Link,
    error::PublishErrorKind,
    job::{Frames, Job, Next, Payload, Verdict},
    retry::RetryPolicy,
    round::Rounds,
};
use crate::{amqp::ConnectError, error::BoxError};

/// How many messages are taken over in one go, so that confirms are looked at in between.
const INTAKE: usize = 256;

/// What a lane needs to know; the same for all lanes of a publisher.
#[derive(Debug, Clone)]
pub(crate) struct LaneOptions {
    pub(crate) retry: RetryPolicy,
    pub(crate) confirm_timeout: Duration,
    pub(crate) mandatory: bool,
}

impl LaneOptions {
    /// How often deadlines are looked at: fine enough for the shortest of them, coarse enough to cost nothing.
    fn resolution(&self) -> Duration {
        let finest = self.confirm_timeout.min(self.retry.total()) / 20;
        finest.clamp(Duration::from_millis(5), Duration::from_millis(100))
    }
}

pub(crate) struct Lane {
    options: LaneOptions,
    link: Arc<Link>,
    jobs: mpsc::UnboundedReceiver<Job>,
    /// The time by which the lane must be done, once the publisher is being closed.
    closing: watch::Receiver<Option<Instant>>,
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
    /// A confirm did not come in time, or the channel cannot be trusted.
    Retired(PublishErrorKind, Option<BoxError>),
}

impl Lane {
    pub(crate) fn new(
        options: LaneOptions,
        link: Arc<Link>,
        jobs: mpsc::UnboundedReceiver<Job>,
        closing: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self {
            options,
            link,
            jobs,
            closing,
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
            let end = self.pump(&connection, &channel, &mut window).await;
            let (kind, source, discard) = match end {
                End::Closed => {
                    for job in window.into_unknown() {
                        left.push(job.payload().clone());
                        job.close_unanswered(Instant::now());
                    }
                    break;
                }
                End::Lost(error) => {
                    tracing::warn!(error = %error, "publishing channel lost; unconfirmed messages are published again");
                    (PublishErrorKind::Disconnected, Some(error), !connection.status().connected())
                }
                End::Retired(kind, source) => {
                    tracing::warn!(reason = %kind, "publishing channel given up; unconfirmed messages are published again");
                    (kind, source, true)
                }
            };
            if discard {
                self.link.discard(&connection).await;
            }
            self.resend(window, kind, source);
        }
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

    /// Puts what was in flight back in front, in the order in which it was sent.
    fn resend(&mut self, window: Window, kind: PublishErrorKind, source: Option<BoxError>) {
        let now = Instant::now();
        let source: Option<Arc<dyn std::error::Error + Send + Sync>> = source.map(Arc::from);
        let mut again: VecDeque<Job> = window
            .into_unknown()
            .filter_map(|job| {
                let source = source.clone().map(|source| Box::new(source) as BoxError);
                job.outcome_unknown(kind, source, &self.options.retry, now)
            })
            .collect();
        again.append(&mut self.ready);
        self.ready = again;
    }

    /// Opens the next generation, with backoff, while deadlines go on being kept.
    async fn reopen(&mut self) -> Option<(Arc<Connection>, Channel)> {
        let link = Arc::clone(&self.link);
        let backoff = RetryPolicy::default().max_delay(Duration::from_secs(3));
        for attempt in 1.. {
            match self.meanwhile(link.channel()).await? {
                Ok(generation) => return Some(generation),
                Err(error) => {
                    tracing::warn!(error = %error, attempt, "cannot open a publishing channel");
                    self.blame(error);
                }
            }
            self.meanwhile(tokio::time::sleep(backoff.delay(attempt))).await?;
        }
        None
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
        let mut tick = interval(self.options.resolution());
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
        let mut tick = interval(self.options.resolution());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_blocked = false;
        loop {
            // While blocked, lapin writes nothing at all: more frames would only pile up in its unbounded queue.
            if !connection.status().blocked() {
                while let Some(job) = self.ready.pop_front() {
                    if let Some((slot, frames)) = admit(job, window) {
                        publishing.push(publish(channel.clone(), slot, frames, self.options.mandatory));
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
                    if blocked || was_blocked {
                        window.restart_clocks(now);
                    } else if window.is_stuck(now, self.options.confirm_timeout) {
                        return End::Retired(PublishErrorKind::TimedOut, None);
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
        // Last first: who awaits many answers in order awaits the first of them, and is woken once for the whole round.
        while let Some((job, verdict)) = self.judged.pop() {
            if let Next::RetryAt(due, job) = job.judged(verdict, &self.options.retry, now) {
                self.delayed.push(Delayed { due, job });
            }
        }
        judged
            .map_err(|violation| End::Retired(PublishErrorKind::Disconnected, Some(Box::new(violation))))?;
        lost.map_or(Ok(()), |error| Err(End::Lost(error.into())))
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
        let limit = *self.closing.borrow_and_update();
        let idle = nothing_in_flight && self.ready.is_empty() && self.delayed.is_empty();
        match limit {
            _ if !self.open && idle => true,
            Some(limit) => (idle && self.jobs.is_empty()) || limit <= Instant::now(),
            None => false,
        }
    }
}

/// Counts an attempt, unless nobody waits for the message any more.
fn admit(mut job: Job, window: &mut Window) -> Option<(usize, Frames)> {
    let now = Instant::now();
    if job.is_abandoned() {
        return None;
    }
    if job.is_overdue(now) {
        job.fail(now);
        return None;
    }
    match job.next_attempt() {
        Ok(frames) => Some((window.insert(job, now), frames)),
        Err(error) => {
            job.fail_with(PublishErrorKind::Invalid, Some(Box::new(error)), now);
            None
        }
    }
}

/// One attempt: the frames are queued in this future's first poll, and it ends with the confirm.
async fn publish(
    channel: Channel,
    slot: usize,
    frames: Frames,
    mandatory: bool,
) -> (usize, lapin::Result<Confirmation>) {
    let options = BasicPublishOptions { mandatory, immediate: false };
    let Frames { exchange, routing_key, properties, body } = frames;
    let sent = channel.basic_publish(exchange, routing_key, options, &body, properties).await;
    match sent {
        Ok(confirm) => (slot, confirm.await),
        Err(error) => (slot, Err(error)),
    }
}

/// A job that waits for its next attempt; the heap gives the earliest first.
struct Delayed {
    due: Instant,
    job: Job,
}

impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.due.cmp(&self.due)
    }
}

impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Delayed {}
