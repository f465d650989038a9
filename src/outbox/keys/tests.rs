//! The order of what is sent.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;

use super::*;
use crate::message::MessageId;
use crate::outbox::contract::RowId;

fn entry(lane: u16, seq: i64, key: Option<&str>) -> Entry {
    let row = Row {
        id: RowId { lane: Lane(lane), seq },
        message_id: MessageId::random(),
        exchange: "e".to_owned(),
        routing_key: "k".to_owned(),
        order_key: key.map(str::to_owned),
        properties: None,
        body: "four".into(),
        age: Duration::ZERO,
        attempts: 0,
        retry_in: Duration::ZERO,
    };
    Entry { row, key: key.map(Key::from), read: Instant::now() }
}

fn sent(keys: &mut Keys) -> Vec<i64> {
    std::iter::from_fn(|| keys.next()).map(|entry| entry.row.id.seq).collect()
}

#[test]
fn unordered_rows_go_at_once_and_of_a_key_only_the_oldest() {
    let mut keys = Keys::default();
    for (seq, key) in [(1, None), (2, Some("a")), (3, Some("a")), (4, Some("b")), (5, None)] {
        assert_eq!(keys.insert(entry(0, seq, key)), Inserted::Waits);
    }
    assert_eq!(keys.waiting(), (5, 20));
    assert_eq!(sent(&mut keys), [1, 2, 4, 5]);
    assert_eq!(keys.waiting(), (1, 4));
    assert!(!keys.done(&"a".into()));
    assert_eq!(sent(&mut keys), [3]);
    assert!(!keys.done(&"a".into()) && !keys.done(&"b".into()));
    assert!(keys.queues.is_empty() && keys.waiting() == (0, 0));
}

#[test]
fn head_stays_the_head_whatever_is_read_meanwhile() {
    let mut keys = Keys::default();
    keys.insert(entry(0, 5, Some("a")));
    assert_eq!(sent(&mut keys), [5]);
    keys.insert(entry(0, 9, Some("a")));
    keys.insert(entry(0, 4, Some("a"))); // its transaction was open when 5 was read
    assert_eq!(sent(&mut keys), [] as [i64; 0]);
    keys.done(&"a".into());
    assert_eq!(sent(&mut keys), [4]);
    keys.done(&"a".into());
    assert_eq!(sent(&mut keys), [9]);
}

#[test]
fn blocked_key_keeps_nothing_and_takes_nothing() {
    let mut keys = Keys::default();
    let key = Key::from("a");
    (1..4).for_each(|seq| _ = keys.insert(entry(0, seq, Some("a"))));
    assert_eq!(sent(&mut keys), [1]);
    let gone: Vec<i64> = keys.block(&key, Lane(0)).iter().map(|entry| entry.row.id.seq).collect();
    assert_eq!((gone, keys.waiting()), (vec![2, 3], (0, 0)));
    assert!(keys.is_blocked(&key) && keys.left_out().len() == 1);
    assert_eq!(keys.insert(entry(0, 2, Some("a"))), Inserted::Blocked);
    assert!(keys.forget(&key).is_empty() && !keys.is_blocked(&key) && keys.left_out().len() == 0);
    keys.insert(entry(0, 1, Some("a")));
    assert_eq!(sent(&mut keys), [1], "the turn from before is not a second one");
    assert!(keys.next().is_none());
}

#[test]
fn hot_key_is_left_out_until_it_has_cooled() {
    let mut keys = Keys::default();
    let (key, hot) = (Key::from("a"), i64::try_from(HOT).unwrap());
    for seq in 1..hot {
        assert_eq!(keys.insert(entry(0, seq, Some("a"))), Inserted::Waits);
    }
    assert_eq!(keys.insert(entry(0, hot, Some("a"))), Inserted::Hot);
    assert_eq!(keys.insert(entry(0, hot + 1, Some("a"))), Inserted::Full);
    assert_eq!(keys.left_out().len(), 1);
    let mut cooled = Vec::new();
    while let Some(sent) = keys.next() {
        if keys.done(&key) {
            cooled.push(sent.row.id.seq);
        }
    }
    assert_eq!((cooled.len(), keys.left_out().len()), (1, 0));
}

#[test]
fn lane_that_is_lost_leaves_what_is_under_way() {
    let mut keys = Keys::default();
    let (mine, other) = (Key::from("mine"), Key::from("other"));
    for (lane, seq, key) in
        [(0, 1, None), (1, 2, None), (0, 3, Some("mine")), (0, 4, Some("mine")), (1, 5, Some("other"))]
    {
        keys.insert(entry(lane, seq, key));
    }
    keys.block(&"blocked".into(), Lane(0));
    assert_eq!((0..3).filter_map(|_| keys.next()).map(|entry| entry.row.id.seq).sum::<i64>(), 1 + 2 + 3);
    keys.insert(entry(0, 6, None));
    let gone: BTreeSet<i64> = keys.forget_lane(Lane(0)).iter().map(|entry| entry.row.id.seq).collect();
    assert_eq!(gone, [4, 6].into());
    assert_eq!((keys.waiting(), keys.is_blocked(&"blocked".into())), ((1, 4), false));
    keys.insert(entry(0, 4, Some("mine"))); // taken again
    assert_eq!(sent(&mut keys), [5], "3 is under way");
    keys.done(&mine);
    assert_eq!(sent(&mut keys), [4]);
    keys.done(&other);
    assert!(keys.forget_lane(Lane(1)).is_empty());
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Send,
    /// Of one that is under way.
    Confirm(usize),
    /// It failed, and is left alone.
    Block(usize),
    Unblock(usize),
    /// The broker was away: read again.
    Lost(usize),
    Read,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Send),
        3 => (0_usize..8).prop_map(Step::Confirm),
        1 => (0_usize..8).prop_map(Step::Block),
        2 => (0_usize..8).prop_map(Step::Unblock),
        1 => (0_usize..8).prop_map(Step::Lost),
        2 => Just(Step::Read),
    ];
    prop::collection::vec(step, 0..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// Whatever fails, rows of a key are confirmed in their order, and never are two under way.
    #[test]
    fn random_results_keep_order(classes in prop::collection::vec(0_u8..4, 1..40), steps in steps()) {
        let key = |class: u8| (class > 0).then(|| class.to_string());
        let seqs = 1_i64..;
        let mut table: BTreeMap<i64, u8> = seqs.zip(classes).collect();
        let mut keys = Keys::default();
        let (mut known, mut under_way) = (BTreeSet::new(), BTreeMap::new());
        let mut blocked: BTreeSet<String> = BTreeSet::new();
        let mut confirmed: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
        for step in steps {
            let chosen = |at: usize| under_way.iter().nth(at).map(|(seq, class)| (*seq, *class));
            match step {
                Step::Read => {
                    for (seq, class) in &table {
                        let blocked = key(*class).is_some_and(|key| blocked.contains(&key));
                        if !blocked && known.insert(*seq) {
                            keys.insert(entry(0, *seq, key(*class).as_deref()));
                        }
                    }
                }
                Step::Send => {
                    let Some(entry) = keys.next() else { continue };
                    let (seq, class) = (entry.row.id.seq, table[&entry.row.id.seq]);
                    if class > 0 {
                        let oldest = table.iter().find(|(_, other)| **other == class);
                        prop_assert_eq!(oldest.map(|(seq, _)| *seq), Some(seq));
                        prop_assert!(!under_way.values().any(|other| *other == class));
                    }
                    under_way.insert(seq, class);
                }
                Step::Confirm(at) => {
                    let Some((seq, class)) = chosen(at) else { continue };
                    under_way.remove(&seq);
                    table.remove(&seq);
                    confirmed.entry(class).or_default().push(seq);
                    key(class).map(|key| keys.done(&Key::from(key)));
                }
                Step::Block(at) | Step::Lost(at) => {
                    let Some((seq, class)) = chosen(at) else { continue };
                    under_way.remove(&seq);
                    known.remove(&seq);
                    let Some(key) = key(class) else { continue };
                    let gone = if matches!(step, Step::Block(_)) {
                        blocked.insert(key.clone());
                        keys.block(&key.into(), Lane(0))
                    } else {
                        keys.forget(&key.into())
                    };
                    for entry in gone {
                        known.remove(&entry.row.id.seq);
                    }
                }
                Step::Unblock(at) => {
                    let Some(key) = blocked.iter().nth(at).cloned() else { continue };
                    blocked.remove(&key);
                    keys.forget(&key.into());
                }
            }
        }
        for (class, order) in confirmed {
            prop_assert!(class == 0 || order.is_sorted(), "{order:?}");
        }
    }
}
