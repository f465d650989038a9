//! What was delivered and nobody is at work with.
//!
//! Every delivery is judged when it comes. It then waits for its turn, is held until it may be
//! tried again, or is published anew or parked without having had a turn.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, StreamExt};
use lapin::{Acker, BasicProperties, message::Delivery};
use tokio::time::Instant;

use super::{
    ack_tracker::AckTracker,
    backoff::moment_after,
    delivery_limit::{DeliveryLimit, Judgement},
    failure_counts::FailureCounts,
    options::Options,
    prefetch::Prefetch,
    settlement::ParkReason,
    subscription::Subscription,
    telemetry,
};
use crate::{amqp, error::Chain, message::IncomingMessage};

/// How long a suspect waits for a moment in which there is nothing else to do.
const SUSPECT_WAITS: Duration = Duration::from_secs(2);

/// How often a message is refused alone before it is held apart from those that wait.
pub(crate) const PERSISTENT: u32 = 3;

/// A message that was delivered and is not settled.
pub(crate) struct Unsettled {
    pub(crate) message: IncomingMessage,
    pub(crate) delivery: Unacked,
}

impl Unsettled {
    /// `patience`: how long it may be here.
    pub(crate) fn new(delivery: Delivery, attempts: &FailureCounts, patience: Option<Duration>) -> Self {
        let tag = delivery.delivery_tag;
        let (mut message, properties, acker) = amqp::incoming(delivery);
        attempts.recall(&mut message);
        let leaves = patience.and_then(|patience| Instant::now().checked_add(patience));
        Self {
            message,
            delivery: Unacked { tag, acker, properties, leaves, holds: 0, refusals: 0, refused: None },
        }
    }

    /// Remembers its failures while it is held, as no copy tells them.
    pub(crate) fn remember(&self, failures: &mut FailureCounts) {
        if self.message.failures() > 0 {
            failures.remember(&telemetry::name(&self.message), self.message.failures());
        }
    }

    /// Whether it was refused so often, each time alone, that others go first.
    pub(crate) fn is_held_apart(&self) -> bool {
        self.delivery.refusals >= PERSISTENT
    }

    /// It was here for long, and is published anew before what was to be done about it after
    /// `wait`.
    pub(crate) fn leaves_before(&mut self, next: &Next, wait: Duration) -> Aside {
        if let Next::Park(Parking { reason: ParkReason::AttemptsExhausted, attempts, .. }) = next {
            // The copy must know it.
            self.message.set_failures(*attempts);
        }
        Aside::Move { suspected: self.message.suspected_at().is_some(), wait }
    }
}

/// The delivery behind a message.
pub(crate) struct Unacked {
    pub(crate) tag: u64,
    pub(crate) acker: Acker,
    pub(crate) properties: BasicProperties,
    /// When it is published anew, if it is still here: before the broker's consumer timeout.
    pub(crate) leaves: Option<Instant>,
    /// How often it was held in a row.
    pub(crate) holds: u32,
    /// How often, when it was handled alone, the store could not be asked for it, or what the
    /// handler depends on was away; and when that was so last.
    pub(crate) refusals: u32,
    pub(crate) refused: Option<Instant>,
}

/// What is to be done about a message when it was held long enough.
pub(crate) enum Next {
    /// Ask the guard again.
    Handle,
    /// Try again to park it.
    Park(Parking),
}

/// How a message is to be parked.
pub(crate) struct Parking {
    pub(crate) reason: ParkReason,
    pub(crate) error: Option<String>,
    pub(crate) attempts: u32,
    /// When that was decided: since then nobody here knows whether a copy of it took effect.
    pub(crate) at: SystemTime,
}

impl Aside {
    /// Once it is parked it has an end: put back into its queue later, it has all its attempts
    /// again.
    pub(crate) fn forget_in(&self, failures: &mut FailureCounts, message: &IncomingMessage) {
        if matches!(self, Self::Park(_)) && !failures.is_empty() {
            failures.forget(&telemetry::name(message));
        }
    }
}

impl Parking {
    pub(crate) fn new(reason: ParkReason, error: Option<String>, attempts: u32, at: SystemTime) -> Self {
        Self { reason, error, attempts, at }
    }
}

/// What is done about a message that has no turn here, or not now.
pub(crate) enum Aside {
    /// Publish it anew to its queue; with a mark, if it is suspected of ending its consumers.
    Move {
        suspected: bool,
        /// How much of a delay is left to it.
        wait: Duration,
    },
    Park(Parking),
}

/// The deliveries of one session, apart from those at work.
pub(crate) struct DeliveryBuffer {
    waiting: VecDeque<Unsettled>,
    /// Were refused again and again, each alone.
    apart: VecDeque<Unsettled>,
    /// When one of them may be taken although others wait.
    apart_at: Option<Instant>,
    /// May end this process: each is handled with nothing else in hand.
    suspects: VecDeque<Unsettled>,
    /// Since when one of them waits.
    suspects_since: Option<Instant>,
    /// By when they are due.
    held: BTreeMap<(Instant, u64), (Unsettled, Next)>,
    aside: Vec<(Unsettled, Aside)>,
    pub(crate) acks: AckTracker,
    limit: DeliveryLimit,
    /// How many lost connections this process has survived.
    survived: u32,
    /// How long a delivery may be here.
    patience: Option<Duration>,
}

/// What the subscription gives next; `None` if it has ended.
pub(crate) type Received = Option<lapin::Result<Delivery>>;

/// Why a subscription is lost.
pub(crate) type Lost = String;

impl DeliveryBuffer {
    pub(crate) fn new(limit: DeliveryLimit, survived: u32, patience: Option<Duration>) -> Self {
        Self {
            waiting: VecDeque::new(),
            apart: VecDeque::new(),
            apart_at: None,
            suspects: VecDeque::new(),
            suspects_since: None,
            held: BTreeMap::new(),
            aside: Vec::new(),
            acks: AckTracker::new(),
            limit,
            survived,
            patience,
        }
    }

    /// How many wait for their turn, beside suspects.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.apart.len()
    }

    /// One that is held apart took so long, in vain: while others wait, they have nine tenths of
    /// the time.
    pub(crate) fn apart_took(&mut self, took: Duration) {
        self.apart_at = Some(moment_after(took.saturating_mul(9)));
    }

    /// How many are held until they may be tried again.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes the one of those that wait which was refused least, at least so often; of several the
    /// first in the order of the queue.
    pub(crate) fn take_least_refused(&mut self, least: u32) -> Option<Unsettled> {
        let refusals = |(_, unsettled): &(usize, &Unsettled)| unsettled.delivery.refusals.max(least);
        let line = if self.waiting.is_empty() { &mut self.apart } else { &mut self.waiting };
        let (at, _) = line.iter().enumerate().min_by_key(refusals)?;
        line.remove(at)
    }

    /// Takes up to so many of those that wait, in the order of the queue. One that was refused by
    /// itself is taken alone, and after the others if it was so again and again.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Unsettled> {
        let apart = self.waiting.is_empty() || self.apart_at.is_none_or(|at| at <= Instant::now());
        if apart && let Some(unsettled) = self.apart.pop_front() {
            return vec![unsettled];
        }
        let alone = |unsettled: &Unsettled| unsettled.delivery.refusals > 0;
        let together = self.waiting.iter().take(count).take_while(|unsettled| !alone(unsettled)).count();
        self.waiting.drain(..together.max(1).min(self.waiting.len())).collect()
    }

    /// Takes one that may end this process.
    pub(crate) fn take_suspect(&mut self) -> Option<Unsettled> {
        self.suspects_since = None;
        self.suspects.pop_front()
    }

    /// Whether a suspect has waited for so long that nothing else is to be begun before it.
    pub(crate) fn suspect_is_due(&mut self) -> bool {
        if self.suspects.is_empty() {
            self.suspects_since = None;
            return false;
        }
        self.suspects_since.get_or_insert_with(Instant::now).elapsed() >= SUSPECT_WAITS
    }

    pub(crate) fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// What has no turn here: to be published anew, or parked.
    pub(crate) fn aside(&mut self) -> Vec<(Unsettled, Aside)> {
        std::mem::take(&mut self.aside)
    }

    fn put(&mut self, delivery: Delivery, prefetch: &mut Prefetch, attempts: &FailureCounts) {
        let (tag, bytes) = (delivery.delivery_tag, delivery.data.len());
        let unsettled = Unsettled::new(delivery, attempts, self.patience);
        let judgement = self.limit.judge(&unsettled.message, self.survived);
        let harmless = matches!(judgement, Judgement::Handle | Judgement::Move { suspected: false });
        // A suspect that waits for its turn gets it when nothing else is left: few others may come
        // meanwhile.
        prefetch.took(bytes, !harmless || self.has_suspects());
        self.acks.deliver(tag);
        match judgement {
            Judgement::Handle => self.waiting.push_back(unsettled),
            Judgement::HandleAlone => self.suspects.push_back(unsettled),
            Judgement::Move { suspected } => {
                self.aside.push((unsettled, Aside::Move { suspected, wait: Duration::ZERO }));
            }
            Judgement::Park => {
                let returns = unsettled.message.returns();
                let error =
                    format!("it was taken back {returns} times, the last times with nothing else in hand");
                let parking = Parking::new(ParkReason::ConsumerDied, Some(error), returns, SystemTime::now());
                self.aside.push((unsettled, Aside::Park(parking)));
            }
        }
    }

    /// Puts back what was taken, or held, or could not be published anew.
    pub(crate) fn put_back(&mut self, all: impl IntoIterator<Item = Unsettled>) {
        let before = self.waiting.len();
        for unsettled in all {
            match self.limit.judge(&unsettled.message, self.survived) {
                Judgement::Handle | Judgement::Move { suspected: false } if unsettled.is_held_apart() => {
                    self.apart.push_back(unsettled);
                }
                Judgement::Handle | Judgement::Move { suspected: false } => self.waiting.push_back(unsettled),
                _ => self.suspects.push_back(unsettled),
            }
        }
        if self.waiting.len() > before {
            // The order of the queue; nearly sorted.
            self.waiting.make_contiguous().sort_by_key(|unsettled| unsettled.delivery.tag);
        }
    }

    /// Holds a message for a while.
    pub(crate) fn hold(&mut self, unsettled: Unsettled, until: Instant, next: Next) {
        self.held.insert((until, unsettled.delivery.tag), (unsettled, next));
    }

    /// When the next of those that are held is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.held.keys().next().map(|(due, _)| *due)
    }

    /// What was held long enough: it waits for its turn again, or is set aside.
    pub(crate) fn release(&mut self, now: Instant) {
        let mut back = Vec::new();
        while let Some(entry) = self.held.first_entry().filter(|entry| entry.key().0 <= now) {
            match entry.remove() {
                (unsettled, Next::Handle) => back.push(unsettled),
                (unsettled, Next::Park(parking)) => self.aside.push((unsettled, Aside::Park(parking))),
            }
        }
        self.put_back(back);
    }

    /// Sets aside what was here for long without being settled: the broker would take it back soon,
    /// and count that.
    pub(crate) fn age(&mut self, now: Instant) {
        let old = |unsettled: &Unsettled| unsettled.delivery.leaves.is_some_and(|leaves| leaves <= now);
        let mut aged = Vec::new();
        for line in [&mut self.waiting, &mut self.apart, &mut self.suspects] {
            if line.iter().any(old) {
                let (gone, kept): (VecDeque<_>, _) = line.drain(..).partition(old);
                *line = kept;
                aged.extend(gone.into_iter().map(|unsettled| (unsettled, Next::Handle, Duration::ZERO)));
            }
        }
        let keys: Vec<_> = self.held.iter().filter(|(_, (held, _))| old(held)).map(|(key, _)| *key).collect();
        for key in keys {
            let wait = key.0.saturating_duration_since(now);
            aged.extend(self.held.remove(&key).map(|(unsettled, next)| (unsettled, next, wait)));
        }
        self.aside.extend(aged.into_iter().map(|(mut unsettled, next, wait)| {
            let aside = unsettled.leaves_before(&next, wait);
            (unsettled, aside)
        }));
    }

    /// Sets aside, when the consumer stops, what one more return would weigh on: it did nothing
    /// wrong.
    pub(crate) fn spare(&mut self, now: Instant) {
        for unsettled in self
            .waiting
            .iter_mut()
            .chain(&mut self.apart)
            .chain(&mut self.suspects)
            .chain(self.held.values_mut().map(|held| &mut held.0))
        {
            unsettled.delivery.leaves = self.limit.weighs(&unsettled.message).then_some(now);
        }
        self.age(now);
    }

    /// Puts in what the subscription gave.
    pub(crate) fn receive(
        &mut self,
        received: Received,
        prefetch: &mut Prefetch,
        attempts: &FailureCounts,
    ) -> Result<(), Lost> {
        match received {
            Some(Ok(delivery)) => {
                self.put(delivery, prefetch, attempts);
                Ok(())
            }
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the broker cancelled the consumer".to_owned()),
        }
    }

    /// Puts in all that is there: a batch is what is there, and never waits for more.
    pub(crate) fn look(
        &mut self,
        session: &mut Subscription,
        prefetch: &mut Prefetch,
        attempts: &FailureCounts,
    ) -> Result<(), Lost> {
        while let Some(received) = session.deliveries.next().now_or_never() {
            self.receive(received, prefetch, attempts)?;
        }
        Ok(())
    }

    /// Subscribes with another prefetch count, if that is called for.
    pub(crate) async fn adapt(
        &mut self,
        session: &mut Subscription,
        options: &Options,
        prefetch: &mut Prefetch,
        attempts: &FailureCounts,
    ) -> Result<(), Lost> {
        if options.single_active {
            return Ok(());
        }
        let Some(count) = prefetch.change() else { return Ok(()) };
        tracing::debug!(queue = %options.queue, count, "another prefetch count");
        let before = session.resubscribe(options, count).await.map_err(|error| Chain(&*error).to_string())?;
        for delivery in before {
            self.put(delivery, prefetch, attempts);
        }
        Ok(())
    }
}
