//! Keeping lanes: signs of life, taking what is free, giving back what is another's.
//!
//! It waits for nothing but its own short questions, so that no removal, however slow, costs the
//! lease.

use std::time::Duration;

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use uuid::Uuid;

use super::{
    holding::{Emptied, Giving, Holding},
    requests::within,
    settings::Settings,
};
use crate::{
    error::Chain,
    idempotency::StoreError,
    outbox::{
        contract::{Lane, Outbox, RelayId, Term},
        lanes::plan,
        status::RelayMonitor,
        verdict::growing,
    },
};

/// While a live relay has a lane that should be this one's, it is asked for so often.
const IMPATIENT: Duration = Duration::from_secs(1);

/// For how long lanes are tried to be given back at the end, and the pause after the first failure.
const FAREWELL: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(50);

pub(super) struct Keeper<'a, O> {
    outbox: &'a O,
    settings: &'a Settings,
    monitor: &'a RelayMonitor,
    hold: watch::Sender<Holding>,
    emptied: watch::Receiver<Emptied>,
    relay: RelayId,
    is_registered: bool,
    held: Vec<Term>,
    giving: Giving,
    version: u64,
    until: Option<Instant>,
}

impl<'a, O: Outbox> Keeper<'a, O> {
    pub(super) fn new(
        outbox: &'a O,
        settings: &'a Settings,
        monitor: &'a RelayMonitor,
        hold: watch::Sender<Holding>,
        emptied: watch::Receiver<Emptied>,
    ) -> Self {
        Self {
            outbox,
            settings,
            monitor,
            hold,
            emptied,
            relay: RelayId(Uuid::new_v4()),
            is_registered: false,
            held: Vec::new(),
            giving: Giving::default(),
            version: 0,
            until: None,
        }
    }

    /// Keeps lanes until nothing is sent from them any more; then gives them back.
    pub(super) async fn keep(mut self, mut ended: watch::Receiver<()>) {
        loop {
            let pause = match self.round().await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "the lanes of the outbox could not be seen to");
                    self.monitor.failed(&Chain(&error).to_string());
                    self.settings.lease / 10
                }
            };
            tokio::select! {
                // Ends with the sender.
                _ = ended.changed() => break,
                Ok(()) = self.emptied.changed() => {}
                () = sleep(pause) => {}
            }
        }
        self.leave().await;
    }

    /// One look at the lanes; gives the pause until the next.
    async fn round(&mut self) -> Result<Duration, StoreError> {
        self.show_life().await?;
        let seen = self.asked(self.outbox.ownership(self.settings.lease)).await?;
        let plan = plan(self.relay, &self.held, &seen);
        for term in &plan.lost {
            tracing::warn!(lane = term.lane.0, "a lane of the outbox was lost to another relay");
        }
        self.held.retain(|term| !plan.lost.contains(term));
        self.held.extend(&plan.found);
        if !plan.take.is_empty() {
            let take = self.outbox.take(self.relay, &plan.take, self.settings.lease);
            match self.asked(take).await {
                Ok(taken) => {
                    tracing::info!(lanes = ?numbers(taken.iter().map(|term| term.lane)), "lanes of the outbox taken");
                    self.held.extend(taken);
                }
                Err(error) => {
                    self.tell(&plan.give);
                    return Err(error);
                }
            }
        }
        self.tell(&plan.give);
        self.give_back().await?;
        let beat = self.settings.lease / 3;
        Ok(if plan.waits { beat.min(IMPATIENT) } else { beat })
    }

    /// Beats, or registers. The lease runs from before the beat was sent.
    async fn show_life(&mut self) -> Result<(), StoreError> {
        let lease = self.settings.lease;
        let before = Instant::now();
        if self.is_registered && !self.asked(self.outbox.beat(self.relay, lease)).await? {
            tracing::warn!("the lease of the outbox's lanes has run out; the relay starts anew");
            self.relay = RelayId(Uuid::new_v4());
            self.is_registered = false;
            self.held.clear();
            self.until = None;
            self.tell(&[]);
        }
        if !self.is_registered {
            self.asked(self.outbox.register(self.relay, &self.settings.name)).await?;
            self.is_registered = true;
        }
        // Clocks may run apart by a little.
        self.until = Some(before + lease - lease / 10);
        let until = self.until;
        self.hold.send_modify(|holding| holding.until = until);
        Ok(())
    }

    /// Tells which lanes are held, and which of them are to be given back.
    fn tell(&mut self, give: &[Lane]) {
        let (version, until) = (self.version + 1, self.until);
        self.giving.want(give, version);
        let giving = self.giving.lanes();
        let terms = &self.held;
        let is_new = self.hold.send_if_modified(|holding| {
            if holding.terms == *terms && holding.giving == giving && holding.until == until {
                return false;
            }
            *holding = Holding { version, terms: terms.clone(), giving, until };
            true
        });
        if is_new {
            self.version = version;
            let lanes = self.held.len();
            self.monitor.change(|status| status.lanes = lanes);
        }
    }

    /// Gives back what is empty (O5).
    async fn give_back(&mut self) -> Result<(), StoreError> {
        let empty = self.giving.empty(&self.emptied.borrow_and_update());
        let back: Vec<Term> = self.held.iter().filter(|term| empty.contains(&term.lane)).copied().collect();
        if back.is_empty() {
            return Ok(());
        }
        // Whatever comes of it: if they are this relay's yet, the table says so.
        self.held.retain(|term| !back.contains(term));
        let rest: Vec<Lane> = self.giving.lanes().into_iter().filter(|lane| !empty.contains(lane)).collect();
        self.tell(&rest);
        self.asked(self.outbox.release(&back)).await?;
        tracing::info!(lanes = ?numbers(back.iter().map(|term| term.lane)), "lanes of the outbox given back");
        Ok(())
    }

    /// Gives everything back, and tries again while the table may come back. If that fails, it is
    /// free when the lease has run out.
    async fn leave(&self) {
        if !self.is_registered {
            return;
        }
        let deadline = Instant::now() + FAREWELL;
        let mut failures = 0;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Err(error) = within(left, self.farewell()).await else { return };
            let pause = growing(AGAIN, FAREWELL, failures);
            if !error.kind().may_pass() || deadline <= Instant::now() + pause {
                tracing::warn!(error = %Chain(&error), "the lanes of the outbox were not given back; they are free later");
                return;
            }
            failures += 1;
            sleep(pause).await;
        }
    }

    /// Said twice it does what was not done, and undoes nothing of those who came after.
    async fn farewell(&self) -> Result<(), StoreError> {
        if !self.held.is_empty() {
            self.outbox.release(&self.held).await?;
        }
        self.outbox.leave(self.relay).await
    }

    /// An answer that comes too late is none: the next beat must not wait for it.
    async fn asked<T>(&self, question: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        within(self.settings.lease / 6, question).await
    }
}

fn numbers(lanes: impl Iterator<Item = Lane>) -> Vec<u16> {
    lanes.map(|lane| lane.0).collect()
}
