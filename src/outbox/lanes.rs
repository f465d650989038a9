//! Who should have which lane.
//!
//! Every relay computes the same from what the table says: the live relays in order, and lane `n`
//! is that of relay `n` modulo their number. What it computes is only a wish. A lane is had by
//! taking it, which the table decides (O5 and the contract, 5), so two relays that see different
//! things never both have one.

use super::contract::{Lane, Ownership, RelayId, Term};

/// What one relay has to do about the lanes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    /// Lanes to take: they should be its own, and nobody alive has them.
    pub(super) take: Vec<Term>,
    /// Lanes that it has without knowing: the answer to taking or giving them back was lost.
    pub(super) found: Vec<Term>,
    /// Lanes that it had, and that somebody has taken since.
    pub(super) lost: Vec<Term>,
    /// Lanes to give back, once nothing of them is in flight.
    pub(super) give: Vec<Lane>,
    /// Whether a lane that should be its own is another live relay's yet.
    pub(super) waits: bool,
}

/// What `me` should do, who holds `held` as far as it knows.
pub(super) fn plan(me: RelayId, held: &[Term], seen: &Ownership) -> Plan {
    let relays = {
        let mut relays = seen.relays.clone();
        // Its own beat may be younger than what was seen.
        relays.push(me);
        relays.sort_unstable();
        relays.dedup();
        relays
    };
    let mut plan = Plan::default();
    for (term, owner) in &seen.lanes {
        let own = entitled(term.lane, &relays) == Some(me);
        let known = held.iter().find(|held| held.lane == term.lane);
        if let Some(known) = known.filter(|known| *owner != Some(me) || known.term != term.term) {
            plan.lost.push(*known);
        }
        match owner {
            Some(owner) if *owner == me => {
                if known.is_none_or(|known| known.term != term.term) {
                    plan.found.push(*term);
                }
                if !own {
                    plan.give.push(term.lane);
                }
            }
            Some(owner) if relays.contains(owner) => plan.waits |= own,
            _ if own => plan.take.push(*term),
            _ => {}
        }
    }
    plan
}

/// Whose a lane should be, of relays that are sorted.
fn entitled(lane: Lane, relays: &[RelayId]) -> Option<RelayId> {
    let turn = usize::from(lane.0).checked_rem(relays.len())?;
    relays.get(turn).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn relay(number: u8) -> RelayId {
        RelayId(Uuid::from_u128(number.into()))
    }

    fn term(lane: u16, term: i64) -> Term {
        Term { lane: Lane(lane), term }
    }

    fn seen(relays: &[u8], lanes: &[(Term, Option<u8>)]) -> Ownership {
        Ownership {
            relays: relays.iter().copied().map(relay).collect(),
            lanes: lanes.iter().map(|(term, owner)| (*term, owner.map(relay))).collect(),
        }
    }

    #[test]
    fn free_lanes_and_those_of_the_dead_are_taken() {
        let seen = seen(&[1, 2], &[(term(0, 4), None), (term(1, 1), None), (term(2, 7), Some(9))]);
        let mine = plan(relay(1), &[], &seen);
        assert_eq!(mine, Plan { take: vec![term(0, 4), term(2, 7)], ..Plan::default() });
        assert_eq!(plan(relay(2), &[], &seen).take, [term(1, 1)]);
        assert_eq!(plan(relay(3), &[], &seen).take, [term(2, 7)], "a newcomer counts itself");
    }

    #[test]
    fn lanes_of_live_relays_are_waited_for_and_given_back() {
        let seen = seen(&[1, 2], &[(term(0, 1), Some(1)), (term(1, 1), Some(1))]);
        let first = plan(relay(1), &[term(0, 1), term(1, 1)], &seen);
        assert_eq!(first, Plan { give: vec![Lane(1)], ..Plan::default() });
        assert_eq!(plan(relay(2), &[], &seen), Plan { waits: true, ..Plan::default() });
    }

    #[test]
    fn what_the_table_says_is_believed() {
        let seen = seen(&[1], &[(term(0, 5), Some(1)), (term(1, 2), Some(2)), (term(2, 3), None)]);
        let plan = plan(relay(1), &[term(0, 4), term(1, 1), term(2, 3)], &seen);
        assert_eq!(plan.lost, [term(0, 4), term(1, 1), term(2, 3)]);
        assert_eq!((plan.found, plan.take), (vec![term(0, 5)], vec![term(1, 2), term(2, 3)]));
    }

    proptest! {
        #[test]
        fn shares_are_disjoint_and_even(relays: BTreeSet<u8>, lanes in 1_u16..64) {
            prop_assume!(!relays.is_empty());
            let free: Vec<(Term, Option<u8>)> = (0..lanes).map(|lane| (term(lane, 0), None)).collect();
            let all: Vec<u8> = relays.iter().copied().collect();
            let takes = relays.iter().map(|me| plan(relay(*me), &[], &seen(&all, &free)).take);
            let takes: Vec<Vec<Term>> = takes.collect();
            let distinct: BTreeSet<Lane> = takes.iter().flatten().map(|term| term.lane).collect();
            prop_assert_eq!(takes.iter().map(Vec::len).sum::<usize>(), usize::from(lanes));
            prop_assert_eq!(distinct.len(), usize::from(lanes));
            let sizes = || takes.iter().map(Vec::len);
            prop_assert!(sizes().max().unwrap() - sizes().min().unwrap() <= 1);
        }

        /// Relays come, leave and die; at the end those that are left have all lanes, and never
        /// have two had one.
        #[test]
        fn relays_that_come_and_go_leave_no_lane_without_owner(
            steps in prop::collection::vec((0_u8..5, 0_u8..6), 0..60),
        ) {
            let mut table: BTreeMap<u16, (i64, Option<u8>)> = (0..16).map(|lane| (lane, (0, None))).collect();
            let mut alive: BTreeMap<u8, BTreeSet<u16>> = BTreeMap::new();
            let round = |me: u8,
                         table: &mut BTreeMap<u16, (i64, Option<u8>)>,
                         alive: &mut BTreeMap<u8, BTreeSet<u16>>| {
                let Some(held) = alive.get(&me) else { return };
                let held: Vec<Term> = held.iter().map(|lane| term(*lane, table[lane].0)).collect();
                let lanes: Vec<(Term, Option<u8>)> =
                    table.iter().map(|(lane, (number, owner))| (term(*lane, *number), *owner)).collect();
                let all: Vec<u8> = alive.keys().copied().collect();
                let plan = plan(relay(me), &held, &seen(&all, &lanes));
                assert!(plan.lost.is_empty() && plan.found.is_empty(), "{plan:?}");
                for Term { lane: Lane(lane), .. } in plan.take {
                    let (number, owner) = table[&lane];
                    assert!(owner.is_none_or(|owner| !alive.contains_key(&owner)), "taken from a live one");
                    table.insert(lane, (number + 1, Some(me)));
                    alive.entry(me).or_default().insert(lane);
                }
                for Lane(lane) in plan.give {
                    table.insert(lane, (table[&lane].0, None));
                    alive.entry(me).or_default().remove(&lane);
                }
            };
            let mut last = 0;
            for (at, what) in steps {
                let chosen = alive.keys().nth(usize::from(at)).copied();
                match (what, chosen) {
                    (0, Some(me)) => drop(alive.remove(&me)), // it dies
                    (1, Some(me)) => {
                        for lane in alive.remove(&me).unwrap() {
                            table.get_mut(&lane).unwrap().1 = None;
                        }
                    }
                    (2, _) => {
                        last += 1; // a restarted one is another
                        alive.insert(last, BTreeSet::new());
                    }
                    (_, Some(me)) => round(me, &mut table, &mut alive),
                    (_, None) => {}
                }
            }
            alive.insert(last + 1, BTreeSet::new());
            for _ in 0..2 {
                for me in alive.keys().copied().collect::<Vec<u8>>() {
                    round(me, &mut table, &mut alive);
                }
            }
            prop_assert!(table.values().all(|(_, owner)| owner.is_some_and(|owner| alive.contains_key(&owner))));
            prop_assert_eq!(alive.values().map(BTreeSet::len).sum::<usize>(), 16);
        }
    }
}
