//! A parking queue, looked at by one request at a time and not at every request.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use lapin_idempotent::consumer::{ConsumeError, LookedAt, Parked, ParkedChoice, Unparked};
use tokio::sync::Mutex;

use crate::snapshot::{Key, ParkingQueue, Row, Snapshot};

/// For as long, a page that is loaded again is not looked up again.
const FRESH: Duration = Duration::from_secs(5);

/// A queue, and what is known of it.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) queue: ParkingQueue,
    most: u64,
    /// Held by whoever looks or changes: two who look take each other's messages away.
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    snapshot: Option<(Instant, Arc<Snapshot>)>,
    count: Option<(Instant, u64)>,
}

impl Watched {
    pub(crate) fn new(queue: ParkingQueue, most: u64) -> Self {
        Self { queue, most, known: Mutex::default() }
    }

    /// How many messages are there. Looks at none.
    pub(crate) async fn count(&self) -> Result<u64, ConsumeError> {
        let mut known = self.known.lock().await;
        let seen = known.snapshot.as_ref().map(|(at, snapshot)| (*at, snapshot.there));
        let fresh = [known.count, seen].into_iter().flatten().find(|(at, _)| at.elapsed() < FRESH);
        if let Some((_, count)) = fresh {
            return Ok(count);
        }
        let looked =
            Parked::new(&self.queue.amqp, &self.queue.name).limit(0).each(|_| ParkedChoice::Leave).await?;
        known.count = Some((Instant::now(), looked.there));
        Ok(looked.there)
    }

    /// What is there, or was a few seconds ago.
    pub(crate) async fn snapshot(&self) -> Result<Arc<Snapshot>, ConsumeError> {
        self.known_with(|at, _| at.elapsed() < FRESH).await
    }

    /// A message that somebody was shown, from when they were shown it, if that is still known.
    pub(crate) async fn row(&self, key: &Key) -> Result<Option<(Row, Arc<Snapshot>)>, ConsumeError> {
        // A key that nobody was shown must not have the queue read at every request.
        let will_do = |at: Instant, seen: &Snapshot| at.elapsed() < FRESH || row(seen, key).is_some();
        let snapshot = self.known_with(will_do).await?;
        Ok(row(&snapshot, key).cloned().map(|row| (row, snapshot)))
    }

    /// The snapshot that has all of these, if that is still known.
    pub(crate) async fn rows(&self, keys: &HashSet<Key>) -> Result<Arc<Snapshot>, ConsumeError> {
        self.known_with(|_, snapshot| {
            let there: HashSet<&Key> = snapshot.rows.iter().map(|row| &row.key).collect();
            keys.iter().all(|key| there.contains(key))
        })
        .await
    }

    pub(crate) async fn unpark(&self, keys: HashSet<Key>) -> Result<Unparked, ConsumeError> {
        let mut known = self.known.lock().await;
        *known = Known::default();
        self.queue.unpark(keys).await
    }

    pub(crate) async fn discard(&self, keys: &HashSet<Key>, because: &str) -> Result<LookedAt, ConsumeError> {
        let mut known = self.known.lock().await;
        *known = Known::default();
        self.queue.discard(keys, because).await
    }

    /// Waits for whoever looks or changes.
    pub(crate) async fn idle(&self) {
        drop(self.known.lock().await);
    }

    async fn known_with(
        &self,
        will_do: impl Fn(Instant, &Snapshot) -> bool,
    ) -> Result<Arc<Snapshot>, ConsumeError> {
        let mut known = self.known.lock().await;
        if let Some((at, snapshot)) = &known.snapshot
            && will_do(*at, snapshot)
        {
            return Ok(Arc::clone(snapshot));
        }
        // First, or there would be two of them in memory.
        *known = Known::default();
        let snapshot = Arc::new(self.queue.snapshot(self.most).await?);
        known.snapshot = Some((Instant::now(), Arc::clone(&snapshot)));
        Ok(snapshot)
    }
}

fn row<'a>(snapshot: &'a Snapshot, key: &Key) -> Option<&'a Row> {
    snapshot.rows.iter().find(|row| row.key == *key)
}
