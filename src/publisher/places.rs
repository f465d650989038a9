//! The window of a publisher: how many messages, and how many bytes, may be unanswered at once.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::{AcquireError, Semaphore, TryAcquireError};

/// The places in the window; callers wait for one in the order in which they came.
pub(crate) struct Places {
    messages: Semaphore,
    bytes: Semaphore,
    max_messages: usize,
    max_bytes: u32,
    /// The semaphore does not tell: whoever waits for many permits takes what there is while it waits.
    held_bytes: AtomicUsize,
}

/// One message's place, with room for its body; free again when this is dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    bytes: u32,
    held: bool,
}

/// Places that become free together: cheaper than one by one.
#[derive(Debug, Default)]
pub(crate) struct Released {
    messages: usize,
    bytes: usize,
}

impl Places {
    pub(crate) fn new(max_messages: usize, max_bytes: u32) -> Self {
        Self {
            messages: Semaphore::new(max_messages),
            bytes: Semaphore::new(max_bytes as usize),
            max_messages,
            max_bytes,
            held_bytes: AtomicUsize::new(0),
        }
    }

    /// What a body takes of the room. One that is larger than all of it takes all, so that it can be sent, alone.
    fn weight(&self, body: usize) -> u32 {
        u32::try_from(body).map_or(self.max_bytes, |bytes| bytes.min(self.max_bytes))
    }

    /// A place, if one is free now.
    pub(crate) fn try_enter(self: &Arc<Self>, body: usize) -> Result<Place, TryAcquireError> {
        let bytes = self.weight(body);
        let room = self.bytes.try_acquire_many(bytes)?;
        self.messages.try_acquire()?.forget();
        room.forget();
        Ok(self.place(bytes))
    }

    /// A place, as soon as one is free.
    pub(crate) async fn enter(self: Arc<Self>, body: usize) -> Result<Place, AcquireError> {
        let bytes = self.weight(body);
        let room = self.bytes.acquire_many(bytes).await?;
        self.messages.acquire().await?.forget();
        room.forget();
        Ok(self.place(bytes))
    }

    fn place(self: &Arc<Self>, bytes: u32) -> Place {
        self.held_bytes.fetch_add(bytes as usize, Relaxed);
        Place { places: Arc::clone(self), bytes, held: true }
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

    /// Nobody gets a place from now on.
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

    /// How many messages, and how many bytes of bodies, hold a place.
    pub(crate) fn taken(&self) -> (usize, usize) {
        let messages = self.max_messages.saturating_sub(self.messages.available_permits());
        (messages, self.held_bytes.load(Relaxed))
    }
}

impl Place {
    /// Gives the place back with others.
    pub(crate) fn release_into(&mut self, released: &mut Released) {
        if std::mem::take(&mut self.held) {
            released.messages += 1;
            released.bytes += self.bytes as usize;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut released = Released::default();
        self.release_into(&mut released);
        self.places.release(&mut released);
    }
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (messages, bytes) = self.taken();
        f.debug_struct("Places").field("messages", &messages).field("bytes", &bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_takes_one_of_the_count_and_its_bytes() {
        let places = Arc::new(Places::new(2, 100));
        let first = places.try_enter(60).unwrap();
        assert!(places.try_enter(60).is_err(), "no room");
        assert_eq!(places.taken(), (1, 60), "a failed try takes nothing");
        let second = places.try_enter(40).unwrap();
        assert!(places.try_enter(0).is_err(), "no place");
        drop((first, second));
        assert_eq!(places.taken(), (0, 0));
    }

    #[test]
    fn a_body_larger_than_the_room_goes_alone() {
        let places = Arc::new(Places::new(8, 100));
        let large = places.try_enter(usize::MAX).unwrap();
        assert!(places.try_enter(1).is_err());
        drop(large);
        assert!(places.try_enter(1).is_ok());
    }

    #[test]
    fn places_released_together_are_free_once() {
        let places = Arc::new(Places::new(4, 100));
        let mut released = Released::default();
        let mut entered: Vec<Place> = (0..3).map(|_| places.try_enter(10).unwrap()).collect();
        for place in &mut entered {
            place.release_into(&mut released);
            place.release_into(&mut released);
        }
        places.release(&mut released);
        drop(entered);
        assert_eq!((places.taken(), places.messages.available_permits()), ((0, 0), 4));
    }

    #[tokio::test]
    async fn a_cancelled_wait_takes_nothing() {
        let places = Arc::new(Places::new(1, 100));
        let held = places.try_enter(1).unwrap();
        let wait = tokio::time::timeout(std::time::Duration::ZERO, Arc::clone(&places).enter(50));
        assert!(wait.await.is_err());
        drop(held);
        assert_eq!(places.taken(), (0, 0));
    }
}
