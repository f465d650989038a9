//! Starting a relay, and what runs side by side in it.

use std::{
    future::{Future, pending},
    time::Duration,
};

use tokio::{sync::watch, time::sleep};

use super::{
    handle::RelayHandle,
    holding::{Emptied, Holding},
    keeper::Keeper,
    requests::within,
    settings::{Listen, Relay, Settings},
    work,
};
use crate::{
    error::Chain,
    idempotency::StoreError,
    outbox::{
        contract::Outbox,
        status::{RelayMonitor, StoppedOnDrop},
    },
    publisher::Publish,
};

/// How often the table is asked what it holds.
const CENSUS: Duration = Duration::from_secs(5);

impl<O: Outbox, P: Publish> Relay<O, P> {
    /// A relay from a table to a publisher, which others may use as well.
    pub fn new(outbox: O, publisher: P) -> Self {
        Self { outbox, publisher, monitor: RelayMonitor::new(), settings: Settings::default() }
    }

    /// Whether the tables are there, as a relay needs them. Ask before it runs: one that runs does
    /// not end over an error, but tries again.
    ///
    /// # Errors
    ///
    /// Any [`StoreError`], saying what is missing and what to do about it.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.outbox.check().await
    }

    /// Looks at the relay from outside, also before it runs.
    pub fn monitor(&self) -> RelayMonitor {
        self.monitor.clone()
    }

    /// Relays until `shutdown` is ready. It then publishes nothing new, waits for what is in
    /// flight, removes what was confirmed, and gives its lanes to the others.
    ///
    /// # Cancellation
    ///
    /// Dropping the future is as killing the process: nothing is lost, but what is in flight may be
    /// published once more, and its lanes are without an owner until the lease has run out.
    pub async fn run_until(self, shutdown: impl Future<Output = ()> + Send) {
        #[cfg(feature = "metrics")]
        crate::outbox::metrics::starts();
        let _stopped = StoppedOnDrop(self.monitor.clone());
        let Self { outbox, publisher, monitor, settings } = &self;
        let (hold, holding) = watch::channel(Holding::default());
        let (empty, emptied) = watch::channel(Emptied::default());
        let (refresh, refreshed) = watch::channel(());
        let (hears, heard) = watch::channel(false);
        let (end, ended) = watch::channel(());
        let sending = async {
            // Its end is the keeper's.
            let _end = end;
            let told = work::Told { holding, refreshed, heard };
            work::work(outbox, publisher, settings, monitor, told, empty, shutdown).await;
        };
        let keeping = Keeper::new(outbox, settings, monitor, hold, emptied).keep(ended);
        let listening = async {
            match settings.listen {
                Listen::Auto => outbox.listen(hears).await,
                Listen::Off => {
                    let _hears = hears;
                    pending::<()>().await;
                }
            }
        };
        let relaying = async { tokio::join!(sending, keeping) };
        tokio::select! {
            _ = relaying => {}
            () = async { tokio::join!(listening, census(outbox, monitor, refresh)); } => {}
        }
    }

    /// Relays in a task of its own, until the handle is stopped or dropped.
    pub fn spawn(self) -> RelayHandle {
        let (stop, mut stopped) = watch::channel(());
        let monitor = self.monitor();
        let task = tokio::spawn(self.run_until(async move {
            // Ends with the sender.
            let _ = stopped.changed().await;
        }));
        RelayHandle::new(stop, task, monitor)
    }
}

/// Asks from time to time what the table holds. Fewer parked rows than there would be: an operator
/// has put some back, behind the relay.
async fn census<O: Outbox>(outbox: &O, monitor: &RelayMonitor, refresh: watch::Sender<()>) {
    // The rows that were parked then, and how many of all times are this relay's.
    let mut known: Option<(u64, u64)> = None;
    loop {
        // Before the table is asked: what is counted here was parked there.
        let own = monitor.status().parked;
        match within(CENSUS, outbox.status()).await {
            Ok(table) => {
                if known.is_some_and(|(parked, before)| table.parked < parked + (own - before)) {
                    refresh.send_replace(());
                }
                known = Some((table.parked, own));
                monitor.change(|status| status.table = Some(table));
            }
            Err(error) => tracing::debug!(error = %Chain(&error), "the outbox does not say what it holds"),
        }
        sleep(CENSUS).await;
    }
}
