//! What the task that keeps the lanes and the one that sends tell each other.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::outbox::contract::{Lane, Term};

/// The lanes that are held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// Greater with every change of the lanes.
    pub(super) version: u64,
    pub(super) terms: Vec<Term>,
    /// Those of them that are to be given back: nothing new is sent, until they are empty.
    pub(super) giving: Vec<Lane>,
    /// Until when they are this relay's for certain, by its own clock.
    pub(super) until: Option<Instant>,
}

/// Which of the lanes to be given back have nothing in flight and nothing to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Emptied {
    /// Of the holding that this is the answer to.
    pub(super) version: u64,
    pub(super) lanes: Vec<Lane>,
}

/// The lanes to be given back, each with the version of the holding that first said so: what was
/// empty before may have been used since.
#[derive(Debug, Default)]
pub(super) struct Giving(BTreeMap<Lane, u64>);

impl Giving {
    /// Wants to give these back and no others, from `version` on.
    pub(super) fn want(&mut self, lanes: &[Lane], version: u64) {
        self.0.retain(|lane, _| lanes.contains(lane));
        for lane in lanes {
            self.0.entry(*lane).or_insert(version);
        }
    }

    pub(super) fn lanes(&self) -> Vec<Lane> {
        self.0.keys().copied().collect()
    }

    /// Those that may be given back now (O5).
    pub(super) fn empty(&self, emptied: &Emptied) -> Vec<Lane> {
        let is_empty =
            |(lane, version): &(&Lane, &u64)| emptied.version >= **version && emptied.lanes.contains(lane);
        self.0.iter().filter(is_empty).map(|(lane, _)| *lane).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lane_is_empty_only_as_of_when_it_was_asked_for() {
        let (first, second) = (Lane(1), Lane(2));
        let mut giving = Giving::default();
        giving.want(&[first, second], 3);
        let emptied = Emptied { version: 3, lanes: vec![first] };
        assert_eq!(giving.empty(&emptied), [first]);
        giving.want(&[second], 4);
        giving.want(&[first, second], 5);
        assert_eq!(giving.empty(&emptied), [] as [Lane; 0], "it was used in between");
        assert_eq!(giving.empty(&Emptied { version: 5, lanes: vec![first] }), [first]);
        assert_eq!(giving.lanes(), [first, second]);
    }
}
