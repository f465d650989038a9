//! Rows are put in, read and removed: points 1 to 4 and 7 of the contract.

use std::error::Error;

use lapin_idempotent::{
    idempotency::StoreErrorKind,
    outbox::{Confirmed, Lane, NewRow, Outbox, Route, Row, RowId},
};

use super::{Boxed, Kind, row, rows};

trials! {
    enqueued_and_rolled_back_is_never_read<Postgres, MySql, Sqlite>,
    every_byte_comes_back<Postgres, MySql, Sqlite>,
    numbers_grow_and_are_never_used_again<Postgres, MySql, Sqlite>,
    low_number_that_commits_late_is_read<Postgres, MySql>,
    limits_say_what_they_cut<Postgres, MySql, Sqlite>,
    oversized_row_is_read_alone<Postgres, MySql, Sqlite>,
    rows_of_given_keys_are_left_out<Postgres, MySql, Sqlite>,
    rows_of_given_routes_are_left_out_unless_they_have_a_key<Postgres, MySql, Sqlite>,
    each_lane_is_read_behind_its_number<Postgres, MySql>,
    removed_rows_are_gone_and_counted<Postgres, MySql, Sqlite>,
    row_that_is_no_message_stops_no_other<Postgres, MySql, Sqlite>,
    row_that_cannot_be_kept_is_refused<Postgres, MySql, Sqlite>,
}

pub async fn enqueued_and_rolled_back_is_never_read<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let mut tx = boxed.begin().await;
    boxed.outbox.put(&mut tx, &rows("undone", 3)).await.expect("put");
    if K::NAME != "SQLite" {
        assert_eq!(boxed.ids().await, [""; 0], "not committed yet");
    }
    tx.rollback().await.expect("rollback");
    assert_eq!(boxed.ids().await, [""; 0]);
    boxed.put(&[row("done")]).await;
    assert_eq!(boxed.ids().await, ["done"]);
    boxed.put(&[]).await;
    assert_eq!(boxed.ids().await, ["done"]);
}

/// What a row was put in as.
fn as_put(row: Row) -> NewRow {
    NewRow {
        lane: row.id.lane,
        message_id: row.message_id,
        exchange: row.exchange,
        routing_key: row.routing_key,
        order_key: row.order_key,
        properties: row.properties,
        body: row.body,
    }
}

pub async fn every_byte_comes_back<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let all_bytes: Vec<u8> = (0..=255).collect();
    let put = vec![
        row("plain"),
        NewRow {
            exchange: String::new(),
            routing_key: "a ".repeat(127) + "A",
            order_key: Some("k".repeat(255)),
            body: all_bytes.repeat(8 << 10).into(),
            ..row(&"i".repeat(255))
        },
        NewRow {
            order_key: Some("Straße 🦀 ".to_owned()),
            routing_key: "E\u{301}É".to_owned(),
            properties: Some("{\"h\":\"\\u0000'\\\"\u{1f980} \"}  ".to_owned()),
            body: "\0\0".into(),
            ..row("Case ")
        },
        NewRow {
            order_key: Some("x".to_owned()),
            properties: Some(String::new()),
            body: "".into(),
            ..row("case")
        },
        NewRow { order_key: Some(" x".to_owned()), ..row("case ") },
    ];
    boxed.put(&put).await;
    let read = boxed.all().await;
    for row in &read {
        assert_eq!((row.attempts, row.retry_in.as_secs()), (0, 0));
        assert!(row.age.as_secs() < 60, "{:?}", row.age);
    }
    let read: Vec<NewRow> = read.into_iter().map(as_put).collect();
    assert!(read == put, "{read:?}");
}

pub async fn numbers_grow_and_are_never_used_again<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    // More than one statement takes.
    let put = rows("a", 2500);
    boxed.put(&put).await;
    let read = boxed.all().await;
    let ids = |rows: &[Row]| rows.iter().map(|row| row.message_id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&read), put.iter().map(|row| row.message_id.clone()).collect::<Vec<_>>());
    assert!(read.is_sorted_by(|a, b| a.id.seq < b.id.seq));
    let last = read.last().expect("a row").id;
    let all: Vec<Confirmed> = read.iter().map(Confirmed::from).collect();
    assert_eq!(boxed.outbox.remove(&all).await.expect("remove").rows, 2500);
    let mut tx = boxed.begin().await;
    boxed.outbox.put(&mut tx, &[row("b")]).await.expect("put");
    boxed.outbox.put(&mut tx, &[row("c")]).await.expect("put");
    tx.commit().await.expect("commit");
    let after = boxed.all().await;
    assert_eq!(boxed.ids().await, ["b", "c"]);
    assert!(last.seq < after[0].id.seq && after[0].id.seq < after[1].id.seq);
}

pub async fn low_number_that_commits_late_is_read<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let mut slow = boxed.begin().await;
    boxed.outbox.put(&mut slow, &[row("low")]).await.expect("put");
    boxed.put(&[row("high")]).await;
    assert_eq!(boxed.ids().await, ["high"]);
    slow.commit().await.expect("commit");
    assert_eq!(boxed.ids().await, ["low", "high"]);
}

pub async fn limits_say_what_they_cut<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let last = boxed.outbox.lanes() - 1;
    let mut put = rows("a", 10);
    // One lane has many, the other few, where there are two.
    put.extend(
        rows("b", if last == 0 { 0 } else { 3 }).into_iter().map(|row| NewRow { lane: Lane(last), ..row }),
    );
    boxed.put(&put).await;
    let read = async |rows, bytes| {
        let batch = boxed.read(&boxed.starts(), &[], rows, bytes).await;
        let of = |lane| batch.rows.iter().filter(|row| row.id.lane == Lane(lane)).count();
        (of(0), if last == 0 { 3 } else { of(last) }, batch.cut.clone())
    };
    assert_eq!(read(100, 1000).await, (10, 3, vec![]));
    assert_eq!(read(11, 40).await, (10, 3, vec![]), "all of them fit");
    assert_eq!(read(5, 1000).await, (5, 3, vec![Lane(0)]));
    // Whether there are more is not known.
    assert_eq!(read(10, 1000).await, (10, 3, vec![Lane(0)]));
    // Each body has four bytes.
    assert_eq!(read(100, 27).await, (6, 3, vec![Lane(0)]));
    assert_eq!(read(100, 28).await, (7, 3, vec![Lane(0)]));
    let lanes = if last == 0 { vec![Lane(0)] } else { vec![Lane(0), Lane(last)] };
    let (a, _, cut) = read(100, 1).await;
    assert_eq!((a, cut), (1, lanes), "one row at least");
    let empty = boxed.read(&[], &[], 5, 5).await;
    assert_eq!((empty.rows.len(), empty.cut.len()), (0, 0));
}

pub async fn oversized_row_is_read_alone<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let sized = |id, bytes| NewRow { body: vec![7; bytes].into(), ..row(id) };
    // The third is more than one statement takes with others.
    boxed.put(&[sized("empty", 0), sized("small", 10), sized("large", 5 << 20), sized("next", 10)]).await;
    let mut behind = 0;
    let mut read = Vec::new();
    for _ in 0..4 {
        let batch = boxed.read(&[RowId { lane: Lane(0), seq: behind }], &[], 10, 1000).await;
        read.push(batch.rows.iter().map(|row| row.message_id.to_string()).collect::<Vec<_>>().join(" "));
        assert_eq!(batch.cut.len(), usize::from(read.len() < 3), "{read:?}");
        if batch.cut.is_empty() {
            break;
        }
        behind = batch.rows.last().expect("a row").id.seq;
    }
    assert_eq!(read, ["empty small", "large", "next"]);
}

pub async fn rows_of_given_keys_are_left_out<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let keyed = |id, key: &str| NewRow { order_key: Some(key.to_owned()), ..row(id) };
    boxed.put(&[row("none"), keyed("a", "k"), keyed("b", "K"), keyed("c", "k "), keyed("d", "ß'\"\\")]).await;
    let without = async |keys: &[&str], rows| {
        let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
        let batch = boxed.read(&boxed.starts(), &keys, rows, 1000).await;
        batch.rows.iter().map(|row| row.message_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(without(&[], 10).await, ["none", "a", "b", "c", "d"]);
    assert_eq!(without(&["k"], 10).await, ["none", "b", "c", "d"]);
    assert_eq!(without(&["K", "k ", "x"], 10).await, ["none", "a", "d"]);
    assert_eq!(without(&["ß'\"\\"], 10).await, ["none", "a", "b", "c"]);
    // What is left out takes nobody's place.
    assert_eq!(without(&["k", "K"], 2).await, ["none", "c"]);
    for count in [1, 2, 3, 17, 5_000, 70_000] {
        let many: Vec<String> = (0..count).map(|n| format!("other{n}")).chain(["k".to_owned()]).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(without(&many, 10).await, ["none", "b", "c", "d"], "{count}");
    }
}

pub async fn rows_of_given_routes_are_left_out_unless_they_have_a_key<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let routed = |id, exchange: &str, routing_key: &str| NewRow {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        ..row(id)
    };
    let keyed = NewRow { order_key: Some("k".to_owned()), ..routed("keyed", "e", "r") };
    let put = [
        routed("er", "e", "r"),
        keyed,
        routed("er ", "e", "r "),
        routed("E", "E", "r"),
        routed("q", "", "q"),
    ];
    boxed.put(&put).await;
    let without = async |keys: &[&str], routes: &[(&str, &str)], rows| {
        let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
        let route = |&(exchange, routing_key): &(&str, &str)| Route {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
        };
        let routes: Vec<Route> = routes.iter().map(route).collect();
        let batch = boxed.read_without(&boxed.starts(), (&keys, &routes), rows, 1000).await;
        batch.rows.iter().map(|row| row.message_id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(without(&[], &[("e", "r")], 10).await, ["keyed", "er ", "E", "q"]);
    assert_eq!(without(&["k"], &[("e", "r")], 10).await, ["er ", "E", "q"]);
    assert_eq!(without(&[], &[("", "q"), ("r", "e"), ("E", "r")], 10).await, ["er", "keyed", "er "]);
    // What is left out takes nobody's place.
    assert_eq!(without(&["k"], &[("e", "r"), ("e", "r ")], 1).await, ["E"]);
    for count in [3, 100, 10_000] {
        let many: Vec<String> = (0..count).map(|n| format!("r{n}")).collect();
        let mut routes: Vec<(&str, &str)> = many.iter().map(|name| ("e", name.as_str())).collect();
        routes.push(("e", "r"));
        let keys: Vec<&str> = many.iter().map(String::as_str).chain(["k"]).collect();
        assert_eq!(without(&keys, &routes, 10).await, ["er ", "E", "q"], "{count}");
    }
}

pub async fn each_lane_is_read_behind_its_number<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let lanes = boxed.outbox.lanes();
    let put: Vec<NewRow> =
        rows("a", 160).into_iter().zip(0..).map(|(row, n)| NewRow { lane: Lane(n % lanes), ..row }).collect();
    boxed.put(&put).await;
    let all = boxed.all().await;
    assert_eq!(all.len(), 160);
    assert!(all.is_sorted_by(|a, b| a.id < b.id), "in the order of lanes and numbers");
    let middle: Vec<RowId> = all.chunks(10).map(|of_lane| of_lane[4].id).collect();
    assert!(middle.iter().zip(0..).all(|(id, lane)| id.lane == Lane(lane)));
    let some = [middle[3], middle[12]];
    let read = boxed.read(&some, &[], 100, 10_000).await;
    let expected: Vec<RowId> = all
        .iter()
        .map(|row| row.id)
        .filter(|id| some.iter().any(|s| s.lane == id.lane && s.seq < id.seq))
        .collect();
    assert_eq!(read.rows.iter().map(|row| row.id).collect::<Vec<_>>(), expected);
    assert_eq!(expected.len(), 10);
}

pub async fn removed_rows_are_gone_and_counted<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    boxed.put(&rows("a", 1100)).await;
    let mut ids = boxed.confirmed().await;
    let kept = ids.remove(500);
    // In any order, and one that is not there, and one that holds another message.
    ids.reverse();
    ids.push(Confirmed { row: RowId { lane: Lane(0), seq: i64::MAX }, ..kept.clone() });
    let other = "another".parse().expect("ID");
    ids.push(Confirmed { message_id: other, ..kept.clone() });
    let removed = boxed.outbox.remove(&ids).await.expect("remove");
    assert_eq!(removed.rows, 1099);
    assert_eq!(removed.transaction.is_some(), K::NAME == "PostgreSQL");
    assert_eq!(boxed.confirmed().await, [kept]);
    let again = boxed.outbox.remove(&ids).await.expect("remove");
    assert_eq!(again.rows, 0);
    if let (Some(first), Some(second)) = (removed.transaction, again.transaction) {
        assert!(first < second);
    }
    // Relays rest their floors on it while nothing is confirmed.
    let empty = boxed.outbox.remove(&[]).await.expect("remove");
    assert_eq!((empty.rows, empty.transaction.is_some()), (0, K::NAME == "PostgreSQL"));
    assert!(empty.transaction.is_none() || empty.transaction > again.transaction);
}

pub async fn row_that_is_no_message_stops_no_other<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    boxed.put(&[row("before")]).await;
    let wrong = format!(
        "INSERT INTO {} (lane, message_id, exchange, routing_key, body) VALUES (0, 'a\tb', '', '', '')",
        boxed.name
    );
    boxed.sql(&if K::NAME == "SQLite" { wrong.replace("'')", "x'')") } else { wrong }).await;
    boxed.put(&[row("behind")]).await;
    assert_eq!(boxed.ids().await, ["before", "behind"]);
    // It counts as one that was read.
    let batch = boxed.read(&boxed.starts(), &[], 2, 1000).await;
    assert_eq!((batch.rows.len(), batch.cut.len()), (1, 1));
}

pub async fn row_that_cannot_be_kept_is_refused<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let mut tx = boxed.begin().await;
    let lane = NewRow { lane: Lane(boxed.outbox.lanes()), ..row("a") };
    let error = boxed.outbox.put(&mut tx, &[row("b"), lane]).await.expect_err("no such lane");
    assert_eq!(error.kind(), StoreErrorKind::Configuration, "{error:?}");
    assert!(error.source().expect("why").to_string().starts_with("lane "), "{error:?}");
    // Found out before anything was sent.
    boxed.outbox.put(&mut tx, &[row("c")]).await.expect("the transaction goes on");
    tx.commit().await.expect("commit");
    assert_eq!(boxed.ids().await, ["c"]);
    let mut tx = boxed.begin().await;
    let key = NewRow { order_key: Some("k".repeat(256)), ..row("d") };
    let error = boxed.outbox.put(&mut tx, &[key]).await.expect_err("too long");
    assert_eq!(error.kind(), StoreErrorKind::Refused, "{error:?}");
    tx.rollback().await.expect("rollback");
    assert_eq!(boxed.ids().await, ["c"]);
}
