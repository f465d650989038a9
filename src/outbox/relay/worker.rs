//! What the loop does next. Waits for nothing, and knows no future.

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    holding::{Emptied, Holding},
    memory::{Memory, Outgoing, Sent},
    pace::{Cause, Pace, Room},
    settings::Settings,
    verdicts::Refusal,
};
use crate::{
    outbox::{
        contract::Next,
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
pub(super) struct Away {
    pub(super) failures: u32,
    pub(super) until: Option<Instant>,
}

impl Away {
    /// The pause after one more failure.
    pub(super) fn failed(&mut self, first: Duration) -> Duration {
        let pause = growing(first, Duration::from_secs(5), self.failures);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// What was counted since the last report.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) relayed: u64,
    pub(super) failed: BTreeMap<&'static str, u64>,
    pub(super) parked: u64,
}

pub(super) struct Worker<'a> {
    pub(super) settings: &'a Settings,
    pub(super) monitor: &'a RelayMonitor,
    pub(super) memory: Memory,
    pub(super) pace: Pace,
    /// Of the lanes that are held, and until when they are.
    pub(super) version: u64,
    pub(super) until: Option<Instant>,
    /// Of the read that is under way.
    pub(super) reading: Option<(Cause, Room)>,
    pub(super) table: Away,
    pub(super) broker: Away,
    /// How long to wait before the broker is tried again, if it is away.
    pub(super) broker_pause: Option<Duration>,
    pub(super) is_closed: bool,
    pub(super) next_read_all: Instant,
    /// When the table last told of a transaction of this relay, if it does.
    pub(super) marked: Option<Instant>,
    /// When to end at the latest, once it is to stop.
    pub(super) stops_at: Option<Instant>,
    pub(super) counted: Counted,
    pub(super) reported: Option<(RelayState, usize, usize)>,
    /// The transaction that the floors wait for, and since when.
    #[cfg(feature = "metrics")]
    pub(super) horizon: Option<(u64, Instant)>,
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
            marked: None,
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
    pub(super) fn is_valid(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// The next message to be sent, if there is one and it may be.
    pub(super) fn next(&mut self, now: Instant) -> Option<Outgoing> {
        let may_send = self.stops_at.is_none() && self.broker_pause.is_none() && self.is_valid(now);
        let has_room = self.memory.under_way < self.settings.window;
        if may_send && has_room { self.memory.next(now) } else { None }
    }

    pub(super) fn verdict(&mut self, sent: &Sent, result: Result<(), Refusal>, now: Instant) {
        let age = sent.age + now.saturating_duration_since(sent.read);
        let of = result.as_ref().copied().map_err(|refusal| refusal.kind);
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
                tracing::warn!(message_id = %sent.message_id, lane, seq, reason, "a message of the outbox was not published");
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
}
