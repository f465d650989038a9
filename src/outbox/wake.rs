//! The signal that something was committed.

use std::sync::Arc;

use tokio::sync::watch;

/// Wakes the relays of this process. Clones are the same signal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Wake {
    count: Arc<watch::Sender<u64>>,
}

impl Wake {
    /// Tells every relay that listens. Never waits and never fails.
    pub fn wake(&self) {
        self.count.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// To wait for the next call, also one between two waits.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.count.subscribe()
    }
}

impl Default for Wake {
    fn default() -> Self {
        Self { count: Arc::new(watch::Sender::new(0)) }
    }
}
