//! What is known of the table while reads and writes are under way.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    holding::Holding,
    memory::{Memory, OnPoison, Outgoing, Sent},
    pace::Room,
    verdicts::Refusal,
};
use crate::{
    message::MessageId,
    outbox::{
        contract::{Batch, Confirmed, Lane, Removed, Row, RowId, Term},
        verdict::Patience,
    },
    publisher::PublishErrorKind,
};

const LANE: Lane = Lane(0);
const ROOM: Room = Room { rows: 100, bytes: 1_000, is_all: false };

fn memory() -> Memory {
    let second = Duration::from_secs(1);
    let patience = Patience { first: second, longest: 9 * second, max_attempts: 9 };
    let mut memory = Memory::new(patience, OnPoison::BlockKey);
    let terms = vec![Term { lane: LANE, term: 1 }];
    memory.hold(&Holding { version: 1, terms, ..Holding::default() });
    memory.loaded(&[LANE], Vec::new(), Instant::now());
    memory
}

fn row(seq: i64, key: Option<&str>) -> Row {
    Row {
        id: RowId { lane: LANE, seq },
        message_id: MessageId::random(),
        exchange: "e".to_owned(),
        routing_key: "k".to_owned(),
        order_key: key.map(str::to_owned),
        properties: None,
        body: "body".into(),
        age: Duration::ZERO,
        attempts: 0,
        retry_in: Duration::ZERO,
    }
}

/// Reads all of these, as far as the read is to have them.
fn read(memory: &mut Memory, table: &[(i64, Option<&str>)]) {
    let reading = memory.begin_read(&[LANE], (100, 1_000));
    let batch = seen(&reading.from, &reading.without_keys, table);
    memory.end_read(&reading, batch, ROOM, Instant::now());
}

fn seen(from: &[RowId], without: &[String], table: &[(i64, Option<&str>)]) -> Batch {
    let is_wanted = |(seq, key): &&(i64, Option<&str>)| {
        *seq > from[0].seq && key.is_none_or(|key| !without.iter().any(|without| without == key))
    };
    Batch {
        rows: table.iter().filter(is_wanted).map(|(seq, key)| row(*seq, *key)).collect(),
        ..Batch::default()
    }
}

fn next(memory: &mut Memory) -> Option<Sent> {
    match memory.next(Instant::now())? {
        Outgoing::Message(sent, _) | Outgoing::Unreadable(sent, _) => Some(sent),
    }
}

fn seqs(memory: &mut Memory) -> Vec<i64> {
    std::iter::from_fn(|| next(memory)).map(|sent| sent.id.seq).collect()
}

fn refused(memory: &mut Memory, sent: &Sent, kind: PublishErrorKind) {
    let refusal = Refusal { kind, reason: "no".to_owned(), is_ready: false };
    memory.verdict(sent, Err(refusal), Instant::now());
}

/// Its row is known until then, and what comes behind it would look like the oldest.
#[tokio::test(start_paused = true)]
async fn key_whose_failure_is_not_written_stays_blocked() {
    let mut memory = memory();
    let table = [(1, Some("a")), (2, Some("a"))];
    read(&mut memory, &table);
    let first = next(&mut memory).unwrap();
    // An alarm of an earlier failure, say before the lane was lost and taken again.
    memory.unblock_at(&"a".into(), Instant::now());
    refused(&mut memory, &first, PublishErrorKind::Unroutable);
    memory.tick(Instant::now());
    read(&mut memory, &table);
    assert!(seqs(&mut memory).is_empty());
    let failures = memory.settling.next_failures(Instant::now(), true).unwrap();
    memory.failed(failures, &[], Instant::now());
    tokio::time::advance(Duration::from_secs(1)).await;
    memory.tick(Instant::now());
    read(&mut memory, &table);
    assert_eq!(seqs(&mut memory), [1]);
}

/// The broker was away, or the pause of its oldest row has ended: what the read gives of the key
/// may lack that row.
#[tokio::test(start_paused = true)]
async fn key_that_is_let_in_while_a_read_is_under_way_is_read_again() {
    let mut memory = memory();
    read(&mut memory, &[(7, Some("a")), (9, Some("b"))]);
    let first = next(&mut memory).unwrap();
    let reading = memory.begin_read(&[LANE], (100, 1_000));
    refused(&mut memory, &first, PublishErrorKind::Disconnected);
    // It began behind the first one; and the transaction of 6 was open until now.
    let batch = Batch { rows: vec![row(6, Some("a")), row(8, Some("a"))], ..Batch::default() };
    memory.end_read(&reading, batch, ROOM, Instant::now());
    assert_eq!(seqs(&mut memory), [9]);
    read(&mut memory, &[(6, Some("a")), (7, Some("a")), (8, Some("a")), (9, Some("b"))]);
    assert_eq!(seqs(&mut memory), [6]);
}

/// What a read gives of a lane that was lost and taken again is of the time before.
#[tokio::test(start_paused = true)]
async fn read_of_a_lane_that_was_taken_anew_is_not_used() {
    let mut memory = memory();
    let reading = memory.begin_read(&[LANE], (100, 1_000));
    memory.hold(&Holding::default());
    let terms = vec![Term { lane: LANE, term: 3 }];
    memory.hold(&Holding { version: 3, terms, ..Holding::default() });
    let batch = Batch { rows: vec![row(5, None)], ..Batch::default() };
    let took = memory.end_read(&reading, batch, ROOM, Instant::now());
    assert_eq!((took.rows, seqs(&mut memory)), (0, vec![]));
    read(&mut memory, &[(5, None)]);
    assert_eq!(seqs(&mut memory), [5]);
}

#[tokio::test(start_paused = true)]
async fn lane_is_empty_when_nothing_of_it_is_in_flight_or_to_be_written() {
    let mut memory = memory();
    read(&mut memory, &[(1, None), (2, None), (3, Some("a"))]);
    let (first, second) = (next(&mut memory).unwrap(), next(&mut memory).unwrap());
    let terms = memory.terms();
    memory.hold(&Holding { version: 2, terms, giving: vec![LANE], until: None });
    assert!(seqs(&mut memory).is_empty(), "what waited is the next owner's");
    memory.verdict(&first, Ok(()), Instant::now());
    refused(&mut memory, &second, PublishErrorKind::Unroutable);
    assert!(memory.emptied(2).lanes.is_empty());
    let rows = memory.settling.next_removals(Instant::now(), true).unwrap();
    memory.removed(&rows, &Removed { rows: 1, transaction: None });
    assert!(memory.emptied(2).lanes.is_empty());
    let failures = memory.settling.next_failures(Instant::now(), true).unwrap();
    memory.failed(failures, &[], Instant::now());
    assert_eq!(memory.emptied(2).lanes, [LANE]);
}

/// The database has lost a row that is under way, and gives its number to another message, which
/// reads leave out as known.
#[tokio::test(start_paused = true)]
async fn places_of_a_removal_that_found_too_little_are_read_again() {
    let mut memory = memory();
    read(&mut memory, &[(1, None), (2, None)]);
    let (first, second) = (next(&mut memory).unwrap(), next(&mut memory).unwrap());
    memory.removed(&[], &Removed { rows: 0, transaction: Some(7) });
    let reading = memory.begin_read(&[LANE], (100, 1_000));
    memory.end_read(&reading, Batch { ended_below: Some(7), ..Batch::default() }, ROOM, Instant::now());
    for (sent, found, from) in [(first, 1, 2), (second, 0, 1)] {
        memory.verdict(&sent, Ok(()), Instant::now());
        let rows = memory.settling.next_removals(Instant::now(), true).unwrap();
        assert_eq!(rows, [Confirmed { row: sent.id, message_id: sent.message_id.clone() }]);
        memory.removed(&rows, &Removed { rows: found, transaction: None });
        let reading = memory.begin_read(&[LANE], (100, 1_000));
        assert_eq!((reading.from[0].seq, reading.without_rows.contains(&sent.id)), (from, false));
    }
}
