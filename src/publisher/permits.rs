//! The window of a publisher: how many messages, and how many bytes, may be unanswered together.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::{AcquireError, Semaphore, TryAcquireError};

/// The permits of a publisher; callers wait for one in the order in which they came.
pub(crate) struct InFlightPermits {
    messages: Semaphore,
    bytes: Semaphore,
    max_messages: usize,
    max_bytes: u32,
    /// The semaphore does not tell: a caller that waits for many permits takes what there is while
    /// it waits.
    held_bytes: AtomicUsize,
}

/// One message's permit, with room for its body; free again when this is dropped.
pub(crate) struct Permit {
    permits: Arc<InFlightPermits>,
    bytes: u32,
    held: bool,
}

/// Permits that become free together: cheaper than one by one.
#[derive(Debug, Default)]
pub(crate) struct Released {
    messages: usize,
    bytes: usize,
}

impl InFlightPermits {
    pub(crate) fn new(max_messages: usize, max_bytes: u32) -> Self {
        Self {
            messages: Semaphore::new(max_messages),
            bytes: Semaphore::new(max_bytes as usize),
            max_messages,
            max_bytes,
            held_bytes: AtomicUsize::new(0),
        }
    }

    /// What a body takes of the room. One that is larger than all of it takes all, so that it can
    /// be sent, alone.
    fn weight(&self, body: usize) -> u32 {
        u32::try_from(body).map_or(self.max_bytes, |bytes| bytes.min(self.max_bytes))
    }

    /// A permit, if one is free now.
    pub(crate) fn try_enter(self: &Arc<Self>, body: usize) -> Result<Permit, TryAcquireError> {
        let bytes = self.weight(body);
        let room = self.bytes.try_acquire_many(bytes)?;
        self.messages.try_acquire()?.forget();
        room.forget();
        Ok(self.permit(bytes))
    }

    /// A permit, as soon as one is free.
    pub(crate) async fn enter(self: Arc<Self>, body: usize) -> Result<Permit, AcquireError> {
        let bytes = self.weight(body);
        let room = self.bytes.acquire_many(bytes).await?;
        self.messages.acquire().await?.forget();
        room.forget();
        Ok(self.permit(bytes))
    }

    fn permit(self: &Arc<Self>, bytes: u32) -> Permit {
        self.held_bytes.fetch_add(bytes as usize, Relaxed);
        Permit { permits: Arc::clone(self), bytes, held: true }
    }

    pub(crate) fn release(&self, released: &mut Released) {
        if released.messages > 0 {
            self.messages.add_permits(std::mem::take(&mut released.messages));
        }
        if released.bytes > 0 {
            let bytes = std::mem::take(&mut released.bytes);
            self.held_bytes.fetch_sub(bytes, Relaxed);
            self.bytes.add_permits(bytes);
        }
    }

    /// Nobody gets a permit from now on.
    pub(crate) fn close(&self) {
        self.messages.close();
        self.bytes.close();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.messages.is_closed()
    }

    pub(crate) fn max_messages(&self) -> usize {
        self.max_messages
    }

    /// How many messages, and how many bytes of bodies, hold a permit.
    pub(crate) fn taken(&self) -> (usize, usize) {
        let messages = self.max_messages.saturating_sub(self.messages.available_permits());
        (messages, self.held_bytes.load(Relaxed))
    }
}

impl Permit {
    /// Gives the permit back with others.
    pub(crate) fn release_into(&mut self, released: &mut Released) {
        if std::mem::take(&mut self.held) {
            released.messages += 1;
            released.bytes += self.bytes as usize;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut released = Released::default();
        self.release_into(&mut released);
        self.permits.release(&mut released);
    }
}

impl fmt::Debug for InFlightPermits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (messages, bytes) = self.taken();
        f.debug_struct("InFlightPermits")
            .field("messages", &messages)
            .field("bytes", &bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_takes_one_of_the_count_and_its_bytes() {
        let permits = Arc::new(InFlightPermits::new(2, 100));
        let first = permits.try_enter(60).unwrap();
        assert!(permits.try_enter(60).is_err(), "no room");
        assert_eq!(permits.taken(), (1, 60), "a failed try takes nothing");
        let second = permits.try_enter(40).unwrap();
        assert!(permits.try_enter(0).is_err(), "no permit");
        drop((first, second));
        assert_eq!(permits.taken(), (0, 0));
    }

    #[test]
    fn a_body_larger_than_the_room_goes_alone() {
        let permits = Arc::new(InFlightPermits::new(8, 100));
        let large = permits.try_enter(usize::MAX).unwrap();
        assert!(permits.try_enter(1).is_err());
        drop(large);
        assert!(permits.try_enter(1).is_ok());
    }

    #[test]
    fn places_released_together_are_free_once() {
        let permits = Arc::new(InFlightPermits::new(4, 100));
        let mut released = Released::default();
        let mut entered: Vec<Permit> = (0..3).map(|_| permits.try_enter(10).unwrap()).collect();
        for permit in &mut entered {
            permit.release_into(&mut released);
            permit.release_into(&mut released);
        }
        permits.release(&mut released);
        drop(entered);
        assert_eq!((permits.taken(), permits.messages.available_permits()), ((0, 0), 4));
    }

    #[tokio::test]
    async fn a_cancelled_wait_takes_nothing() {
        let permits = Arc::new(InFlightPermits::new(1, 100));
        let held = permits.try_enter(1).unwrap();
        let wait = tokio::time::timeout(std::time::Duration::ZERO, Arc::clone(&permits).enter(50));
        assert!(wait.await.is_err());
        drop(held);
        assert_eq!(permits.taken(), (0, 0));
    }
}
