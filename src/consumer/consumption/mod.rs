//! The loop over one subscription: deliveries in, settlements out.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Fuse},
    stream::FuturesUnordered,
};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};

mod drain;
mod health;

use super::{
    backoff::{Health, moment_after},
    batch_size::BatchSize,
    buffer::{DeliveryBuffer, Lost, Next, PERSISTENT, Unsettled},
    context::{CLOSING, ConsumerContext, Done},
    dependency::DependencyHealth,
    failure_counts::FailureCounts,
    pending::{PendingSettlements, Settled},
    prefetch::Prefetch,
    settler::Decision,
    subscription::Subscription,
};
use crate::idempotency::{IdempotencyStore, IdempotentHandler, StoreError};

/// How often the subscription is looked at while all workers are busy.
const LOOK: Duration = Duration::from_millis(200);

/// What outlives a session.
pub(crate) struct Carried {
    pub(super) attempts: FailureCounts,
    pub(super) prefetch: Prefetch,
    /// How many subscriptions were lost that this process survived: the broker has counted each of
    /// them against all that it had delivered.
    pub(super) survived: u32,
}

/// Why a session ended.
pub(super) enum End {
    Shutdown,
    Lost(Lost),
}

/// One subscription, and all that is done about what it delivers. Settles only on the channel that
/// delivered.
pub(super) struct Consumption<'a, S: IdempotencyStore, H> {
    context: &'a Arc<ConsumerContext<S, H>>,
    carried: &'a mut Carried,
    session: Subscription,
    buffer: DeliveryBuffer,
    working: FuturesUnordered<BoxFuture<'a, Done>>,
    settling: PendingSettlements<'a>,
    size: BatchSize,
    store: Health,
    dependency: DependencyHealth,
    probe: Option<BoxFuture<'a, Result<(), StoreError>>>,
    /// How many messages are in the hands of handlers.
    in_hand: usize,
    /// How many are held, as the monitor knows it.
    held: usize,
    /// Whether one of them may end this process.
    suspect_in_hand: bool,
    /// When a handler last ran and did not say that something is away.
    worked: Option<Instant>,
    /// Whether nothing is to be taken, because somebody said so.
    paused: bool,
    /// Whether the subscription has ended, and what is in hand is let finish.
    draining: bool,
    decided: u64,
}

async fn answer_of(probe: &mut Option<BoxFuture<'_, Result<(), StoreError>>>) -> Result<(), StoreError> {
    match probe {
        Some(probe) => probe.await,
        None => std::future::pending().await,
    }
}

fn ticking(period: Duration) -> Interval {
    let mut ticking = interval(period);
    ticking.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticking
}

impl<'a, S: IdempotencyStore, H: IdempotentHandler<S> + 'static> Consumption<'a, S, H> {
    pub(super) fn new(
        context: &'a Arc<ConsumerContext<S, H>>,
        carried: &'a mut Carried,
        session: Subscription,
    ) -> Self {
        let options = &context.options;
        Self {
            buffer: DeliveryBuffer::new(options.watched(), carried.survived, options.patience()),
            context,
            carried,
            session,
            working: FuturesUnordered::new(),
            settling: PendingSettlements::default(),
            size: BatchSize::new(if S::BATCHES { options.batch } else { 1 }),
            store: Health::default(),
            dependency: DependencyHealth::default(),
            probe: None,
            in_hand: 0,
            held: 0,
            suspect_in_hand: false,
            worked: None,
            paused: false,
            draining: false,
            decided: 0,
        }
    }

    /// Consumes until the session ends; gives why, and how many deliveries were decided.
    pub(super) async fn run<F>(mut self, mut shutdown: Pin<&mut Fuse<F>>) -> (End, u64)
    where
        F: Future<Output = ()> + Send,
    {
        let context = self.context;
        let mut driving = std::pin::pin!(context.guard.drive());
        let mut pausing = context.control.pausing();
        let mut looking = ticking(LOOK);
        self.paused = pausing.is_paused();
        self.show();
        let mut aging =
            ticking(context.options.patience().map_or(LOOK * 300, |patience| (patience / 16).max(LOOK / 10)));
        let end = loop {
            let begun = tokio::select! {
                biased;
                () = shutdown.as_mut() => break End::Shutdown,
                begun = self.begin() => begun,
            };
            if let Err(reason) = begun {
                break End::Lost(reason);
            }
            let probe_at = self.store.retry_at().filter(|_| self.probe.is_none());
            let retry_at = self.dependency.retry_at();
            let due = self.buffer.due();
            let idle = self.is_idle();
            tokio::select! {
                biased;
                () = shutdown.as_mut() => break End::Shutdown,
                Some(done) = self.working.next() => self.finished_and_all_that_is_ready(done),
                never = driving.as_mut() => match never {},
                settled = self.settling.next() => self.settled(settled),
                answer = answer_of(&mut self.probe) => self.probed(answer),
                paused = pausing.changed() => {
                    self.paused = paused;
                    self.show();
                }
                () = sleep_until(probe_at.unwrap_or_else(Instant::now)), if probe_at.is_some() => {
                    self.probe = Some(context.guard.probe().boxed());
                }
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => self.dependency.resume(),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.buffer.release(Instant::now()),
                received = self.session.deliveries.next(), if idle => {
                    if let Err(reason) = self.buffer.receive(received, &mut self.carried.prefetch, &self.carried.attempts) {
                        break End::Lost(reason);
                    }
                }
                _ = aging.tick() => self.buffer.age(Instant::now()),
                // While nobody is idle each delivery would wake it for nothing. But there is no
                // other way to learn that the subscription is lost, and what waits in lapin is not
                // judged.
                _ = looking.tick(), if !idle => {
                    if let Err(reason) = self.look() {
                        break End::Lost(reason);
                    }
                }
            }
            if self.buffer.held() != self.held {
                self.held = self.buffer.held();
                context.monitor.held(self.held);
            }
        };
        self.drain(&end, driving).await;
        context.monitor.in_hand(0);
        context.monitor.held(0);
        if matches!(end, End::Shutdown) {
            let closed = async { tokio::join!(self.session.close(), context.settler.close(Duration::ZERO)) };
            let _ = timeout(CLOSING, closed).await;
        } else {
            self.session.close().await;
        }
        (end, self.decided)
    }

    fn look(&mut self) -> Result<(), Lost> {
        self.buffer.look(&mut self.session, &mut self.carried.prefetch, &self.carried.attempts)
    }

    /// Whether somebody is free to begin with what comes.
    fn is_idle(&self) -> bool {
        !self.paused
            && !self.store.is_away()
            && self.dependency.allows()
            && !self.suspect_in_hand
            && self.working.len() < self.context.options.workers
    }

    /// Begins what can be begun.
    async fn begin(&mut self) -> Result<(), Lost> {
        let options = &self.context.options;
        // What fails alone must not be in front again and again while others are never tried.
        let doubtful = self.dependency.is_doubtful() || self.store.is_doubtful();
        let size = if doubtful { 1 } else { self.size.now() };
        if self.is_idle() && self.buffer.len() < size {
            self.look()?;
        }
        let Carried { prefetch, attempts, .. } = &mut *self.carried;
        self.buffer.adapt(&mut self.session, options, prefetch, attempts).await?;
        // In doubt, what ends this process and what does not is no matter of patience.
        let suspect_is_due = self.buffer.suspect_is_due() && !(doubtful && self.buffer.len() > 0);
        self.set_aside();
        // An idle worker takes what is there. Beside others that work, only a full batch is worth a
        // commit of its own: what comes meanwhile makes the next batch larger.
        while self.is_idle()
            && !suspect_is_due
            && self.buffer.len() > 0
            && (self.working.is_empty() || self.buffer.len() >= size)
        {
            if doubtful {
                // Behind a store the queue keeps its order, but for what was refused again and
                // again: its probe has told more than one message.
                let least = if self.dependency.is_doubtful() { 0 } else { PERSISTENT - 1 };
                let tried = self.buffer.take_least_refused(least);
                self.work(tried.into_iter().collect());
            } else {
                let batch = self.buffer.take(size);
                self.work(batch);
            }
        }
        // With nothing else in hand, and nothing on its way: whatever ends this process would take
        // it along.
        if self.buffer.has_suspects()
            && self.is_idle()
            && self.working.is_empty()
            && ((self.buffer.len() == 0 && self.settling.is_empty()) || suspect_is_due)
        {
            let suspect = self.buffer.take_suspect();
            self.suspect_in_hand = true;
            self.work(suspect.into_iter().collect());
        }
        if self.dependency.is_doubtful() {
            self.show();
        }
        Ok(())
    }

    /// Begins what is done about those that have no turn here.
    fn set_aside(&mut self) {
        for (unsettled, aside) in self.buffer.aside() {
            aside.forget_in(&mut self.carried.attempts, &unsettled.message);
            self.context.settler.set_aside(unsettled, aside, &mut self.settling);
        }
    }

    fn work(&mut self, batch: Vec<Unsettled>) {
        self.dependency.begins();
        self.in_hand += batch.len();
        self.context.monitor.in_hand(self.in_hand);
        self.working.push(self.context.work(batch));
    }

    /// With all that are ready as well: an ack costs the broker more than a delivery.
    fn finished_and_all_that_is_ready(&mut self, done: Done) {
        let (mut next, mut tags) = (Some(done), Vec::new());
        while let Some(done) = next {
            self.finished(done, &mut tags);
            next = self.working.next().now_or_never().flatten();
        }
        self.settling.ack(self.session.channel(), self.buffer.acks.handled(tags));
    }

    /// Begins to settle a batch; adds the tags of what may be acked.
    fn finished(&mut self, done: Done, tags: &mut Vec<u64>) {
        let Done { handled, begun, took, together } = done;
        let count = handled.len();
        self.in_hand -= count;
        self.suspect_in_hand = false;
        self.decided += count as u64;
        self.context.monitor.in_hand(self.in_hand);
        self.context.monitor.decided(handled.iter().map(|(_, outcome)| outcome));
        let away = self.judge(begun, &handled);
        self.size.learn(count, took, together && !away);
        if !away {
            self.carried.prefetch.measured(count, took, self.context.options.workers);
        }
        let mut back = Vec::new();
        for (unsettled, outcome) in handled {
            let away = outcome.is_unavailable();
            let decision = self.context.settler.settle(
                unsettled,
                &outcome,
                &mut self.carried.attempts,
                &mut self.settling,
            );
            match decision {
                Decision::Ack(tag) => tags.push(tag),
                Decision::Begun => {}
                Decision::Hold { unsettled, .. } if away => {
                    back.extend(self.refused(*unsettled, count, took));
                }
                Decision::Hold { unsettled, after } => self.hold(*unsettled, after, Next::Handle),
            }
        }
        self.put_back(back);
    }

    fn put_back(&mut self, all: impl IntoIterator<Item = Unsettled>) {
        self.buffer.put_back(all);
        if self.buffer.has_suspects() {
            self.carried.prefetch.beware(true);
        }
    }

    fn hold(&mut self, unsettled: Unsettled, after: Duration, next: Next) {
        // Whatever the delay, it is looked at again before the broker takes it back.
        self.buffer.hold(unsettled, moment_after(after), next);
        // What is held does not keep others from coming.
        self.carried.prefetch.beware(self.buffer.has_suspects());
    }

    fn settled(&mut self, settled: Settled) {
        match settled {
            Settled::Written => {}
            Settled::Away(tag) => {
                self.buffer.acks.settled(tag);
                self.settling.ack(self.session.channel(), self.buffer.acks.handled([]));
            }
            Settled::Stays(unsettled) => self.put_back([unsettled]),
            Settled::Held { unsettled, after, next } => {
                unsettled.remember(&mut self.carried.attempts);
                self.hold(unsettled, after, next);
            }
        }
    }
}
