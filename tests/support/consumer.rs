//! A consumer that runs in the background of a test.

use std::sync::{Arc, Mutex};

use lapin_idempotent::{
    IdempotencyStore, IdempotentHandler,
    consumer::{ConsumerBuilder, ConsumerMonitor, ConsumerState},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{DEADLINE, eventually};

pub struct Running {
    pub monitor: ConsumerMonitor,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    outcomes: Arc<Mutex<Vec<&'static str>>>,
}

impl Running {
    pub fn start<S: IdempotencyStore>(
        builder: ConsumerBuilder<S>,
        handler: impl IdempotentHandler<S> + 'static,
    ) -> Self {
        let monitor = builder.monitor();
        assert_eq!(monitor.status().state, ConsumerState::Starting);
        let (stop, mut stopped) = watch::channel(false);
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&outcomes);
        let builder =
            builder.on_outcome(move |_, outcome| seen.lock().expect("outcomes").push(outcome.name()));
        let task = tokio::spawn(async move {
            let shutdown = async move { drop(stopped.wait_for(|stop| *stop).await) };
            builder.run_until(handler, shutdown).await.expect("consumer");
        });
        Self { monitor, stop, task, outcomes }
    }

    /// Waits until so many deliveries are decided, and gives their outcomes. They are acked when
    /// `stop` returns.
    pub async fn decided(&self, count: usize) -> Vec<&'static str> {
        eventually("the deliveries are decided", async || {
            let outcomes = self.outcomes.lock().expect("outcomes").clone();
            (outcomes.len() >= count).then_some(outcomes)
        })
        .await
    }

    /// Waits until it is in this state.
    pub async fn until(&self, state: ConsumerState) {
        eventually(state.name(), async || (self.monitor.status().state == state).then_some(())).await;
    }

    /// Asks it to stop, and does not wait.
    pub fn ask_to_stop(&self) {
        let _ = self.stop.send(true);
    }

    pub async fn stop(self) {
        self.ask_to_stop();
        timeout(DEADLINE, self.task).await.expect("stops in time").expect("consumer");
    }

    /// Drops it, in the middle of whatever it does.
    pub async fn die(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}
