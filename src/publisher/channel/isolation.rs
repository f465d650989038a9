//! Which of many messages ended a channel.
//!
//! The broker ends a channel, or a whole connection, over one message and does not say which.
//! Everything that was in flight is then a suspect. Suspects are sent in groups, and nothing beside
//! them: half of them first; a group that ends its channel is followed by half of what is left of
//! it, one that is answered by one of twice its size. A suspect that was answered is none any more.
//! So one culprit among `n` is found with about `log2(n)` channels, and `k` of them with no more
//! than `k` channels beyond that for each time that they are far apart; one at a time would take
//! `n` round trips.

/// How many suspects go into the next group.
#[derive(Debug, Default)]
pub(crate) struct Isolation {
    limit: usize,
    sent: usize,
}

impl Isolation {
    /// A channel ended with so many suspects in flight.
    pub(crate) fn ended(&mut self, suspects: usize) {
        self.limit = (suspects / 2).max(1);
        self.sent = 0;
    }

    /// Whether one more may be sent beside the suspects that are in flight.
    pub(crate) fn has_room(&self) -> bool {
        self.sent < self.limit
    }

    /// Notes that a suspect is sent: as the first of a group, or beside others.
    pub(crate) fn sends(&mut self, first: bool) {
        if first {
            if self.sent > 0 {
                // The group before was answered: none of it was the culprit.
                // A worker that took them over from another begins with one.
                self.limit = self.limit.max(1).saturating_mul(2);
            }
            self.sent = 0;
        }
        self.sent += 1;
    }
}

/// The exchange that the broker names when it closes a channel over a message: `no exchange 'e' in
/// vhost '/'`, `access to exchange 'e' in vhost '/' refused`, `access to topic 'k' in exchange 'e'
/// in vhost '/' refused`.
///
/// The publisher that chose the name could have chosen one that reads like this sentence, so what
/// is found is a hint: it is only followed if a message in flight has that exchange.
pub(crate) fn named_exchange(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("exchange '")?;
    let (name, _) = rest.rsplit_once("' in vhost '")?;
    Some(name)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use proptest::prelude::*;

    use super::*;

    /// Sends all of `count` messages; those in `culprits` end the channel. Gives those named, and
    /// how many channels ended.
    fn isolate(count: usize, culprits: &BTreeSet<usize>) -> (BTreeSet<usize>, usize) {
        let mut suspects: VecDeque<usize> = (0..count).collect();
        let mut isolation = Isolation::default();
        let (mut named, mut ended) = (BTreeSet::new(), 1);
        isolation.ended(count);
        while !suspects.is_empty() {
            let mut group = Vec::new();
            while group.is_empty() || isolation.has_room() {
                let Some(suspect) = suspects.pop_front() else { break };
                isolation.sends(group.is_empty());
                group.push(suspect);
            }
            if group.iter().any(|message| culprits.contains(message)) {
                ended += 1;
                isolation.ended(group.len());
                if let [alone] = group[..] {
                    assert!(named.insert(alone));
                } else {
                    group.into_iter().rev().for_each(|message| suspects.push_front(message));
                }
            }
        }
        (named, ended)
    }

    proptest! {
        #[test]
        fn exactly_the_culprits_are_named(
            count in 1_usize..400,
            culprits in proptest::collection::btree_set(0_usize..400, 0..20),
        ) {
            let culprits = culprits.into_iter().filter(|culprit| *culprit < count).collect();
            prop_assert_eq!(isolate(count, &culprits).0, culprits);
        }
    }

    #[test]
    fn one_among_a_thousand_costs_few_channels() {
        for culprit in 0..1_024 {
            let (named, ended) = isolate(1_024, &BTreeSet::from([culprit]));
            assert_eq!(named, BTreeSet::from([culprit]));
            assert!(ended <= 20, "{ended}");
        }
    }

    #[test]
    fn suspects_of_another_lane_come_in_growing_groups() {
        let mut isolation = Isolation::default();
        let groups: Vec<usize> = (0..5)
            .map(|_| {
                let mut group = 0;
                while group == 0 || isolation.has_room() {
                    isolation.sends(group == 0);
                    group += 1;
                }
                group
            })
            .collect();
        assert_eq!(groups, [1, 2, 4, 8, 16]);
    }

    #[test]
    fn nothing_but_culprits_costs_a_channel_each() {
        let all: BTreeSet<usize> = (0..1_000).collect();
        let (named, ended) = isolate(1_000, &all);
        assert_eq!(named, all);
        assert!(ended <= 1_012, "{ended}");
    }

    #[test]
    fn exchange_is_read_from_what_the_broker_says() {
        for (text, name) in [
            ("NOT_FOUND - no exchange 'orders' in vhost '/'", Some("orders")),
            ("ACCESS_REFUSED - access to exchange 'a'b' in vhost 'v' refused for user 'u'", Some("a'b")),
            (
                "ACCESS_REFUSED - access to topic 'k' in exchange 'e' in vhost '/' refused for user 'u'",
                Some("e"),
            ),
            ("NOT_FOUND - no exchange 'eeee", None),
            ("PRECONDITION_FAILED - invalid expiration", None),
        ] {
            assert_eq!(named_exchange(text), name);
        }
    }
}
