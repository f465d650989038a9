//! Publishing that goes on until it is told to stop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use lapin_idempotent::{IdempotentPublisher, PublishError, Receipt, RetryPolicy};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use super::support::load;

/// How many messages are published together.
const TOGETHER: usize = 10;

/// Longer than any fault here, so that only a hang can reach it.
const PATIENCE: Duration = Duration::from_secs(150);

/// The numbered messages of [`load`], from `m-0`, to one queue.
pub struct Flow {
    stop: watch::Sender<bool>,
    confirmed: Arc<AtomicUsize>,
    publishing: JoinHandle<()>,
}

impl Flow {
    /// About so many messages a second, if the broker takes them.
    pub async fn start(url: &str, queue: &str, rate: u32) -> Self {
        let patient = RetryPolicy::default().max_elapsed(PATIENCE).max_attempts(1000).retry_unroutable(true);
        let publisher = IdempotentPublisher::builder(url).retry(patient).connect().await.expect("connect");
        let (stop, stopped) = watch::channel(false);
        let confirmed = Arc::new(AtomicUsize::new(0));
        let (count, queue) = (Arc::clone(&confirmed), queue.to_owned());
        let mut pace = interval(Duration::from_secs(1) * u32::try_from(TOGETHER).expect("few") / rate);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let publishing = tokio::spawn(async move {
            while !*stopped.borrow() {
                pace.tick().await;
                let first = count.load(Ordering::SeqCst);
                let messages = (first..first + TOGETHER).map(|n| load::message(&queue, n));
                let results: Vec<Result<Receipt, PublishError>> =
                    publisher.publish_all(messages).collect().await;
                for result in results {
                    result.expect("published");
                }
                count.fetch_add(TOGETHER, Ordering::SeqCst);
            }
        });
        Self { stop, confirmed, publishing }
    }

    /// How many messages the broker has confirmed.
    pub fn confirmed(&self) -> usize {
        self.confirmed.load(Ordering::SeqCst)
    }

    /// The number of the first message that is not begun, nor is any after it.
    pub fn next(&self) -> usize {
        self.confirmed() + TOGETHER
    }

    /// Ends, and gives the number of messages: all of them are confirmed.
    pub async fn stop(self) -> i64 {
        self.stop.send(true).expect("it publishes");
        timeout(PATIENCE, self.publishing).await.expect("no call hangs").expect("all are published");
        self.confirmed.load(Ordering::SeqCst).try_into().expect("not that many")
    }
}
