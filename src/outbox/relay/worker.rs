//! What the loop does next. Waits for nothing, and knows no future.

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    holding::{Emptied, Holding},
    memory::{Memory, Outgoing, Sent},
    pace::{Cause, Pace, Room},
    requests::{Done, Failure, Request},
    settings::Settings,
    verdicts::Refusal,
};
use crate::{
    error::Chain,
    idempotency::StoreError,
    outbox::{
        contract::{Lane, Next},
        status::{RelayMonitor, RelayState},
        telemetry::Relayed,
        verdict::{Verdict, growing},
    },
    publisher::PublishErrorKind,
};

/// So often each lane is read from its start: for rows that were put in by hand.
const READ_ALL: Duration = Duration::from_secs(60);

/// Something that does not answer: after how many failures, and when it is tried again.
#[derive(Debug, Default)]
struct Away {
    failures: u32,
    until: Option<Instant>,
}

impl Away {
    /// The pause after one more failure.
    fn failed(&mut self, first: Duration) -> Duration {
        let pause = growing(first, Duration::from_secs(5), self.failures);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// What was counted since the last report.
#[derive(Debug, Default)]
struct Counted {
    relayed: u64,
    failed: BTreeMap<&'static str, u64>,
    parked: u64,
}

pub(super) struct Worker<'a> {
    settings: &'a Settings,
    monitor: &'a RelayMonitor,
    memory: Memory,
    pace: Pace,
    /// Of the lanes that are held, and until when they are.
    version: u64,
    until: Option<Instant>,
    /// Of the read that is under way.
    reading: Option<(Cause, Room)>,
    table: Away,
    broker: Away,
    /// How long to wait before the broker is tried again, if it is away.
    broker_pause: Option<Duration>,
    is_closed: bool,
    next_read_all: Instant,
    /// When to end at the latest, once it is to stop.
    stops_at: Option<Instant>,
    counted: Counted,
    reported: Option<(RelayState, usize, usize)>,
    /// The transaction that the floors wait for, and since when.
    #[cfg(feature = "metrics")]
    horizon: Option<(u64, Instant)>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(settings: &'a Settings, monitor: &'a RelayMonitor) -> Self {
        let now = Instant::now();
        Self {
            settings,
            monitor,
            memory: Memory::new(settings.patience, settings.on_poison),
            pace: Pace::new(settings.poll, now),
            version: 0,
            until: None,
            reading: None,
            table: Away::default(),
            broker: Away::default(),
            broker_pause: None,
            is_closed: false,
            next_read_all: now + READ_ALL,
            stops_at: None,
            counted: Counted::default(),
            reported: None,
            #[cfg(feature = "metrics")]
            horizon: None,
        }
    }

    pub(super) fn wake(&mut self) {
        self.pace.wake();
    }

    pub(super) fn hears(&mut self, hears: bool) {
        self.pace.hears(hears);
        // What was committed in between is found at once.
        self.pace.wake();
        self.monitor.change(|status| status.listening = hears);
    }

    /// An operator has put rows back.
    pub(super) fn refresh(&mut self) {
        self.memory.read_all();
    }

    pub(super) fn hold(&mut self, holding: &Holding, now: Instant) {
        if holding.version != self.version {
            self.pace.poll_now(now);
        }
        (self.version, self.until) = (holding.version, holding.until);
        self.memory.hold(holding);
        if self.stops_at.is_some() {
            self.memory.forget_all();
        }
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        self.memory.tick(now);
        if self.next_read_all <= now {
            self.next_read_all = now + READ_ALL;
            self.memory.read_all();
        }
    }

    /// Ends when what is in flight has its verdict, and that is written.
    pub(super) fn stop(&mut self, now: Instant) {
        self.stops_at = Some(now + self.settings.drain_timeout);
        self.memory.forget_all();
    }

    pub(super) fn is_done(&self, now: Instant, is_idle: bool) -> bool {
        let Some(stops_at) = self.stops_at else { return false };
        let is_empty = self.memory.under_way == 0 && self.memory.settling.is_empty() && is_idle;
        is_empty || stops_at <= now
    }

    /// Whether the lanes are this relay's for certain.
    fn is_valid(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// The next message to be sent, if there is one and it may be.
    pub(super) fn next(&mut self, now: Instant) -> Option<Outgoing> {
        let may_send = self.stops_at.is_none() && self.broker_pause.is_none() && self.is_valid(now);
        if may_send { self.memory.next(now) } else { None }
    }

    pub(super) fn verdict(&mut self, sent: &Sent, result: Result<(), Refusal>, now: Instant) {
        let age = sent.age + now.saturating_duration_since(sent.read);
        let of = result.as_ref().map(|_| ()).map_err(|refusal| refusal.kind);
        let reason = result.as_ref().err().map(|refusal| refusal.reason.clone());
        let verdict = self.memory.verdict(sent, result, now);
        match of {
            Ok(()) => {
                self.counted.relayed += 1;
                (self.broker, self.is_closed) = (Away::default(), false);
                #[cfg(feature = "metrics")]
                crate::outbox::metrics::relayed(age);
            }
            Err(kind) => *self.counted.failed.entry(kind.name()).or_default() += 1,
        }
        let is_parked = verdict == Verdict::Fault(Next::Park);
        if let Some(reason) = reason {
            self.refused(sent, verdict, of == Err(PublishErrorKind::Closed), &reason);
        }
        self.settings.hook.call(&Relayed {
            message_id: &sent.message_id,
            exchange: &sent.route.exchange,
            routing_key: &sent.route.routing_key,
            order_key: sent.key.as_deref(),
            age,
            attempts: sent.attempts,
            result: of,
            is_parked,
        });
    }

    fn refused(&mut self, sent: &Sent, verdict: Verdict, is_closed: bool, reason: &str) {
        let (lane, seq) = (sent.id.lane.0, sent.id.seq);
        match verdict {
            Verdict::Fault(Next::Park) => {
                tracing::error!(message_id = %sent.message_id, lane, seq, reason, "a message of the outbox is parked");
            }
            Verdict::BrokerAway => {
                self.is_closed |= is_closed;
                if self.broker_pause.is_none() {
                    self.broker_pause = Some(self.broker.failed(Duration::from_millis(100)));
                    tracing::warn!(reason, "the outbox waits for the broker");
                }
            }
            _ => {
                tracing::warn!(message_id = %sent.message_id, lane, seq, reason, "a message of the outbox was not published")
            }
        }
        self.monitor.failed(reason);
    }

    /// How long to wait before the broker is tried again, if it is away.
    pub(super) fn broker_pause(&self) -> Option<Duration> {
        self.broker_pause
    }

    /// It is tried again.
    pub(super) fn broker_back(&mut self) {
        self.broker_pause = None;
    }

    /// What to ask the table next, of which one thing is asked at a time.
    pub(super) fn next_request(&mut self, now: Instant) -> Option<Request> {
        if self.table.until.is_some_and(|until| now < until) {
            return None;
        }
        let is_stopping = self.stops_at.is_some();
        if let Some(failures) = self.memory.settling.next_failures(now, is_stopping) {
            return Some(Request::Fail(self.memory.terms(), failures));
        }
        if let Some(rows) = self.memory.settling.next_removals(now, is_stopping) {
            return Some(Request::Remove(rows));
        }
        if is_stopping || self.broker_pause.is_some() || !self.is_valid(now) {
            return None;
        }
        if let Some(lanes) = self.memory.to_be_loaded() {
            return Some(Request::ParkedKeys(lanes));
        }
        let room = self.room()?;
        let lanes: Vec<Lane> = self.memory.readable().map(|(lane, _)| lane).collect();
        for (lane, own) in self.memory.readable() {
            if own.floor.is_lowered() {
                self.pace.more(lane);
            }
        }
        if self.pace.due() > now || lanes.is_empty() {
            return None;
        }
        if let Some(rows) = self.memory.settling.removals_before_read(now) {
            return Some(Request::Remove(rows));
        }
        let (cause, lanes) = self.pace.next(&lanes, now)?;
        let limits = self.pace.limits(lanes.len(), room, self.memory.most_known(&lanes));
        self.reading = Some((cause, room));
        #[cfg(feature = "metrics")]
        crate::outbox::metrics::read(cause.name());
        Some(Request::Read(self.memory.begin_read(&lanes, limits)))
    }

    /// How much may be read, if it is worth a read.
    fn room(&self) -> Option<Room> {
        let (rows, bytes) = self.memory.in_memory();
        let free = self.settings.window.saturating_sub(rows);
        let free_bytes = self.settings.window_bytes.saturating_sub(bytes);
        let is_half =
            free >= self.settings.window.div_ceil(2) && free_bytes >= self.settings.window_bytes / 2;
        let room = Room { rows: free, bytes: free_bytes, is_all: rows == 0 };
        (self.memory.may_read() && (is_half || rows == 0)).then_some(room)
    }

    /// The table has answered.
    pub(super) fn done(&mut self, done: Done, now: Instant) {
        let failed = match done {
            Done::Read(reading, Ok(batch)) => {
                if let Some((cause, room)) = self.reading.take() {
                    #[cfg(feature = "metrics")]
                    let ended_below = batch.ended_below;
                    let took = self.memory.end_read(&reading, batch, room, now);
                    self.pace.read(cause, &took, room, now);
                    #[cfg(feature = "metrics")]
                    self.see_horizon(ended_below, now);
                }
                None
            }
            Done::Read(_, Err(error)) => {
                self.reading = None;
                self.memory.read_failed();
                self.pace.poll_now(now);
                Some(error)
            }
            Done::Removed(rows, Ok(removed)) => {
                #[cfg(feature = "metrics")]
                crate::outbox::metrics::removed(rows.len());
                self.memory.removed(&rows, removed.transaction);
                None
            }
            Done::Removed(rows, Err(error)) => {
                self.memory.settling.remove_again(rows, now);
                Some(error)
            }
            Done::Failed(failures, Ok(lost)) => {
                let is_parked = |Failure { failed, .. }: &&Failure| {
                    failed.next == Next::Park && !lost.contains(&failed.row.lane)
                };
                self.counted.parked += failures.iter().filter(is_parked).count() as u64;
                self.memory.failed(failures, &lost, now);
                None
            }
            Done::Failed(failures, Err(error)) => {
                self.memory.fail_again(failures, now);
                Some(error)
            }
            Done::ParkedKeys(lanes, Ok(keys)) => {
                self.memory.loaded(&lanes, keys, now);
                None
            }
            Done::ParkedKeys(_, Err(error)) => Some(error),
        };
        match failed {
            None => self.table = Away::default(),
            Some(error) => self.table_failed(&error, now),
        }
    }

    fn table_failed(&mut self, error: &StoreError, now: Instant) {
        let told = Chain(error).to_string();
        tracing::warn!(error = told, "the outbox does not answer; it is asked again");
        self.monitor.failed(&told);
        self.table.until = Some(now + self.table.failed(Duration::from_millis(200)));
    }

    /// When the loop has something to do, if nothing happens until then.
    pub(super) fn due(&self, now: Instant, is_idle: bool) -> Option<Instant> {
        let asks = if is_idle { self.asks_at(now) } else { None };
        [asks, self.memory.next_tick(), self.stops_at].into_iter().flatten().min()
    }

    /// When the table has to be asked for something.
    fn asks_at(&self, now: Instant) -> Option<Instant> {
        let may_read = self.stops_at.is_none()
            && self.broker_pause.is_none()
            && self.is_valid(now)
            && self.memory.readable().next().is_some()
            && self.room().is_some();
        let reads = may_read.then(|| self.pace.due().min(self.next_read_all));
        let asks = [self.memory.settling.due(), reads].into_iter().flatten().min()?;
        Some(self.table.until.map_or(asks, |until| until.max(asks)))
    }

    /// Tells how it is doing, and which lanes can be given back.
    pub(super) fn report(&mut self, empty: &watch::Sender<Emptied>) {
        let emptied = self.memory.emptied(self.version);
        if !emptied.lanes.is_empty() || !empty.borrow().lanes.is_empty() {
            empty.send_if_modified(|known| {
                *known != emptied && {
                    *known = emptied;
                    true
                }
            });
        }
        let held = self.memory.routes.held();
        let now = (self.state(), self.memory.under_way, held);
        let Counted { relayed, failed, parked } = std::mem::take(&mut self.counted);
        if self.reported == Some(now) && relayed == 0 && failed.is_empty() && parked == 0 {
            return;
        }
        self.reported = Some(now);
        self.monitor.change(|status| {
            (status.state, status.in_flight, status.held_routes) = now;
            status.relayed += relayed;
            status.parked += parked;
            for (kind, count) in failed {
                *status.failed.entry(kind).or_default() += count;
            }
        });
    }

    fn state(&self) -> RelayState {
        match () {
            () if self.stops_at.is_some() => RelayState::Draining,
            () if self.is_closed => RelayState::PublisherClosed,
            () if self.broker_pause.is_some() => RelayState::BrokerAway,
            () if self.until.is_none() && self.version == 0 => RelayState::Starting,
            () if self.table.failures > 0 || !self.is_valid(Instant::now()) => RelayState::TableAway,
            () if self.memory.lanes.is_empty() => RelayState::Standby,
            () => RelayState::Relaying,
        }
    }

    #[cfg(feature = "metrics")]
    fn see_horizon(&mut self, ended_below: Option<u64>, now: Instant) {
        let waited_for = self.memory.lanes.values().filter_map(|own| own.floor.waits_for()).min();
        let waited_for = waited_for.filter(|_| ended_below.is_some());
        self.horizon = waited_for.map(|transaction| match self.horizon {
            Some((known, since)) if known == transaction => (known, since),
            _ => (transaction, now),
        });
        let held = self.horizon.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
        crate::outbox::metrics::horizon_held(held);
    }
}
