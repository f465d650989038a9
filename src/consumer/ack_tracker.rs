//! Which deliveries of a channel may be acked together.
//!
//! `basic.ack` with `multiple` settles every delivery up to a tag, so it must never reach past one
//! that is not ready to be acked: a message that is still being handled, or one that is held to be
//! given back.

use std::collections::VecDeque;

/// The unsettled deliveries of one channel, whose tags count up from one.
#[derive(Debug)]
pub(crate) struct AckTracker {
    /// The tag of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// Not to be acked yet, or settled in another way soon.
    Held,
    /// To be acked.
    Handled,
    /// Settled by itself.
    Settled,
}

/// An ack to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) tag: u64,
    pub(crate) multiple: bool,
}

impl AckTracker {
    pub(crate) fn new() -> Self {
        Self { first: 1, slots: VecDeque::new() }
    }

    /// A delivery came.
    pub(crate) fn deliver(&mut self, tag: u64) {
        if self.slots.is_empty() {
            self.first = tag;
        }
        // The broker counts one by one; were it to skip a tag, nothing would be acked with that
        // one.
        while self.first + (self.slots.len() as u64) < tag {
            self.slots.push_back(Slot::Settled);
        }
        self.slots.push_back(Slot::Held);
    }

    /// A delivery was settled by itself.
    pub(crate) fn settled(&mut self, tag: u64) {
        self.set(tag, Slot::Settled);
    }

    /// These deliveries may be acked: the acks to write, in this order.
    ///
    /// One for all at the front, and one for each behind a delivery that is not ready: it must not
    /// keep them from making room.
    pub(crate) fn handled(&mut self, tags: impl IntoIterator<Item = u64>) -> Vec<Ack> {
        let mut later = Vec::new();
        for tag in tags {
            self.set(tag, Slot::Handled);
            later.push(tag);
        }
        let mut acks: Vec<Ack> = self.front().into_iter().collect();
        later.retain(|tag| *tag >= self.first);
        for tag in later {
            self.set(tag, Slot::Settled);
            acks.push(Ack { tag, multiple: false });
        }
        acks
    }

    /// One ack for all that is ready at the front.
    fn front(&mut self) -> Option<Ack> {
        let (mut last, mut count) = (None, 0);
        while let Some(slot) = self.slots.front().filter(|slot| **slot != Slot::Held) {
            if *slot == Slot::Handled {
                // The broker knows this tag: it was not settled before.
                last = Some(self.first);
                count += 1;
            }
            self.slots.pop_front();
            self.first += 1;
        }
        last.map(|tag| Ack { tag, multiple: count > 1 })
    }

    fn set(&mut self, tag: u64, slot: Slot) {
        let index = tag.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(old) = index.and_then(|index| self.slots.get_mut(index)) {
            *old = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn one(tag: u64) -> Ack {
        Ack { tag, multiple: false }
    }

    fn up_to(tag: u64) -> Ack {
        Ack { tag, multiple: true }
    }

    fn window(deliveries: u64) -> AckTracker {
        let mut window = AckTracker::new();
        (1..=deliveries).for_each(|tag| window.deliver(tag));
        window
    }

    #[test]
    fn a_batch_at_the_front_is_one_ack() {
        let mut window = window(6);
        assert_eq!(window.handled(1..=4), [up_to(4)]);
        assert_eq!(window.handled([5]), [one(5)]);
        window.deliver(7);
        assert_eq!(window.handled([7, 6]), [up_to(7)]);
    }

    #[test]
    fn nothing_is_acked_past_a_delivery_that_is_held() {
        let mut window = window(6);
        assert_eq!(window.handled([2, 3, 5]), [one(2), one(3), one(5)]);
        assert_eq!(window.handled([6]), [one(6)]);
        // Given back by itself; what is behind it was acked before.
        window.settled(1);
        assert_eq!(window.handled([4]), [one(4)]);
        window.deliver(7);
        assert_eq!(window.handled([7]), [one(7)]);
    }

    #[test]
    fn the_tag_of_an_ack_was_never_settled_before() {
        let mut window = window(4);
        window.settled(4);
        assert_eq!(window.handled([1, 2, 3]), [up_to(3)]);
    }

    /// Against the broker's own rule, in random orders: an ack with `multiple` settles all up to
    /// its tag, which must be outstanding.
    #[test]
    fn random_orders_ack_what_is_handled_and_nothing_else() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let (mut window, mut next) = (AckTracker::new(), 1);
            let (mut outstanding, mut handled) = (BTreeSet::new(), BTreeSet::new());
            let (mut held, mut acked): (Vec<u64>, _) = (Vec::new(), BTreeSet::new());
            while next <= 40 || !held.is_empty() {
                if next <= 40 && random.bool() {
                    window.deliver(next);
                    outstanding.insert(next);
                    held.push(next);
                    next += 1;
                    continue;
                }
                let size = random.usize(0..=held.len().min(5));
                random.shuffle(&mut held);
                let batch: Vec<u64> = held.drain(..size).collect();
                let (given_back, done): (Vec<u64>, Vec<u64>) =
                    batch.into_iter().partition(|tag| tag % 7 == 0);
                for tag in given_back {
                    window.settled(tag);
                    outstanding.remove(&tag);
                }
                handled.extend(&done);
                for Ack { tag, multiple } in window.handled(done) {
                    assert!(outstanding.contains(&tag), "the broker would close the channel");
                    let settled: Vec<u64> =
                        if multiple { outstanding.range(..=tag).copied().collect() } else { vec![tag] };
                    for tag in settled {
                        outstanding.remove(&tag);
                        acked.insert(tag);
                    }
                }
                assert!(acked.is_subset(&handled), "acked {acked:?}, handled {handled:?}");
            }
            assert_eq!(acked, handled, "all that was handled is acked in the end");
            assert!(outstanding.is_empty());
        }
    }
}
