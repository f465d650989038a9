//! What the databases make of the statements: plans, locks, and the order of numbers and
//! transactions.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lapin_idempotent::outbox::{Confirmed, Failed, Lane, NewRow, Next, Outbox, RowId};
use sqlx::{MySql, Postgres};
use tokio::time::timeout;

use super::{Boxed, Kind, failed, row, rows, short, support::eventually};

trials! {
    plan_is_an_index_scan_whatever_the_statistics_say,
    transaction_that_took_its_xid_first_does_not_overtake,
    transaction_has_its_identity_before_its_rows_have_numbers,
    snapshot_tells_which_transactions_have_ended,
    producer_is_never_blocked_by_a_read,
    relay_waits_for_no_open_transaction<Postgres, MySql>,
    relay_at_work_blocks_no_producer<Postgres, MySql>,
}

/// Tables that were analyzed when they were empty, or full, or never.
pub async fn plan_is_an_index_scan_whatever_the_statistics_say() {
    const ROWS: i64 = 60_000;
    let watcher = Boxed::<Postgres>::create().await;
    for analyzed in ["never", "empty", "full"] {
        let name = short("ob");
        let url = Postgres::url();
        let url = format!("{url}{}application_name={name}", if url.contains('?') { '&' } else { '?' });
        let boxed = Boxed::<Postgres>::open(&url, &name).await;
        boxed.outbox.create_schema().await.expect("schema");
        let scans = async |what: &str| {
            watcher
                .number(&format!("SELECT {what} FROM pg_stat_user_tables WHERE relid = '{name}'::regclass"))
                .await
        };
        boxed.sql(&format!("ALTER TABLE {name} SET (autovacuum_enabled = false)")).await;
        if analyzed == "empty" {
            boxed.sql(&format!("ANALYZE {name}")).await;
        }
        let fill = format!(
            "INSERT INTO {name} (lane, message_id, exchange, routing_key, body) \
             SELECT n % 16, 'm' || n, 'e', 'r', 'x' FROM generate_series(1, {ROWS}) n"
        );
        boxed.sql(&fill).await;
        if analyzed == "full" {
            // All of it is one lane to the planner, and then nothing is.
            boxed.sql(&format!("UPDATE {name} SET lane = 3")).await;
            boxed.sql(&format!("ANALYZE {name}")).await;
            boxed.sql(&format!("DELETE FROM {name}; {fill}")).await;
        }
        // A session tells what it did before it is gone.
        let sessions = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
        let gone = async || (watcher.number(&sessions).await == 0).then_some(());
        boxed.outbox.pool().close().await;
        eventually("what was done is counted", gone).await;
        let before = (scans("seq_scan").await, scans("idx_scan").await, scans("idx_tup_fetch").await);
        let relay = Boxed::<Postgres>::open(&url, &name).await;
        let batch = relay.read(&relay.starts(), &["k".to_owned()], 1000, 1 << 20).await;
        assert_eq!(batch.rows.len(), 16_000);
        let ids: Vec<Confirmed> = batch.rows.iter().step_by(16).map(Confirmed::from).collect();
        assert_eq!(relay.outbox.remove(&ids).await.expect("remove").rows, 1000);
        relay.outbox.pool().close().await;
        eventually("what was done is counted", gone).await;
        assert_eq!(scans("seq_scan").await, before.0, "{analyzed} analyzed");
        let (scanned, fetched) =
            (scans("idx_scan").await - before.1, scans("idx_tup_fetch").await - before.2);
        assert_eq!(scanned, 16 + 1000, "{analyzed} analyzed: 16 lanes were read and 1,000 rows deleted");
        assert!(fetched <= 16_000 + 1000 + 16, "{analyzed} analyzed: {fetched} rows were touched");
    }
}

/// By their identities the second transaction would come first: cause before effect is the order of
/// numbers.
pub async fn transaction_that_took_its_xid_first_does_not_overtake() {
    let boxed = Boxed::<Postgres>::create().await;
    let mut first = boxed.begin().await;
    Postgres::run(&mut first, "SELECT pg_current_xact_id()").await.expect("xid");
    boxed.put(&[row("a")]).await;
    boxed.outbox.put(&mut first, &[row("b")]).await.expect("put");
    first.commit().await.expect("commit");
    assert_eq!(boxed.ids().await, ["a", "b"]);
}

/// Whoever has a number has an identity: a relay rests on it.
pub async fn transaction_has_its_identity_before_its_rows_have_numbers() {
    let boxed = Boxed::<Postgres>::create().await;
    let name = &boxed.name;
    boxed
        .sql(&format!(
            "CREATE FUNCTION {name}_next() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN \
             IF pg_current_xact_id_if_assigned() IS NULL THEN RAISE 'no identity yet'; END IF; \
             RETURN nextval('{name}_numbers'); END $$; CREATE SEQUENCE {name}_numbers; \
             ALTER TABLE {name} ALTER COLUMN seq DROP IDENTITY, ALTER COLUMN seq SET DEFAULT {name}_next()"
        ))
        .await;
    for count in [1, 2, 2000] {
        boxed.put(&rows("a", count)).await;
    }
    assert_eq!(boxed.all().await.len(), 2003);
    // It would be noticed.
    let by_hand = format!(
        "INSERT INTO {name} (lane, message_id, exchange, routing_key, body) VALUES (0, 'm', '', '', '')"
    );
    let mut connection = boxed.outbox.pool().acquire().await.expect("connection");
    assert!(Postgres::run(&mut connection, &by_hand).await.is_err());
}

pub async fn snapshot_tells_which_transactions_have_ended() {
    let boxed = Boxed::<Postgres>::create().await;
    let ended =
        async || boxed.read(&boxed.starts(), &[], 10, 1000).await.ended_below.expect("PostgreSQL tells");
    // Also of lanes in which there is nothing.
    let nothing = ended().await;
    let mut slow = boxed.begin().await;
    boxed.outbox.put(&mut slow, &[row("low")]).await.expect("put");
    let own: i64 = sqlx::query_scalar("SELECT pg_current_xact_id()::text::bigint")
        .fetch_one(&mut *slow)
        .await
        .expect("xid");
    let own = own.cast_unsigned();
    assert!(nothing <= own);
    boxed.put(&[row("high")]).await;
    let gone = Confirmed { row: RowId { lane: Lane(0), seq: 999 }, message_id: row("gone").message_id };
    let removed = boxed.outbox.remove(&[gone]).await.expect("remove");
    assert!(removed.transaction.expect("its identity") > own);
    assert!(ended().await <= own, "it has not ended");
    slow.commit().await.expect("commit");
    // Other tests have transactions open, too.
    let passed = async || (ended().await > own).then_some(());
    eventually("all below have ended", passed).await;
    assert_eq!(boxed.ids().await, ["low", "high"]);
}

/// Under REPEATABLE READ, the default there, a locking read keeps producers from the end of the
/// table until its transaction ends.
pub async fn producer_is_never_blocked_by_a_read() {
    let boxed = Boxed::<MySql>::create().await;
    boxed.put(&rows("a", 50)).await;
    let producer = boxed.again().await;
    let ids = boxed.confirmed().await;
    let (_, term) = boxed.take(0).await;
    for n in 0..20 {
        let mut tx = producer.begin().await;
        // Both have the default isolation, REPEATABLE READ.
        MySql::run(&mut tx, "SET SESSION innodb_lock_wait_timeout = 1").await.expect("limit");
        producer.outbox.put(&mut tx, &[row(&format!("b{n}"))]).await.expect("put");
        // The relay waits for no producer either, and sees what was there.
        let reading = async { boxed.read(&boxed.starts(), &["k".to_owned()], 1000, 1 << 20).await };
        let read = timeout(Duration::from_secs(1), reading).await.expect("in time");
        assert_eq!(read.rows.len(), 50, "of those that were there, one is removed and one comes each time");
        let working = async {
            boxed.outbox.remove(&ids[n..=n]).await.expect("remove");
            let failed = failed(&ids[n + 1], Next::Retry(Duration::ZERO));
            boxed.outbox.fail(&[term], &[failed]).await.expect("fail");
        };
        timeout(Duration::from_secs(1), working).await.expect("in time");
        tx.commit().await.expect("commit");
    }
}

/// Also where the planner would rather read all of a small table, and lock it, than look for a row:
/// MariaDB does when a statement that was prepared is run once more.
pub async fn relay_waits_for_no_open_transaction<K: Kind>() {
    let boxed = Boxed::<K>::create().await;
    let (_, term) = boxed.take(0).await;
    for round in 0..5 {
        let mut open = boxed.begin().await;
        boxed.outbox.put(&mut open, &[row("open")]).await.expect("put");
        boxed.put(&rows("a", 2)).await;
        boxed.outbox.put(&mut open, &[row("open")]).await.expect("put");
        let ids = boxed.confirmed().await;
        let failed = failed(ids.last().expect("rows"), Next::Retry(Duration::ZERO));
        let working = async {
            assert_eq!(boxed.outbox.fail(&[term], &[failed]).await.expect("fail"), []);
            boxed.outbox.remove(&ids).await.expect("remove").rows
        };
        let removed = timeout(Duration::from_secs(10), working).await.expect("it waits for nobody");
        assert_eq!(removed, ids.len() as u64, "round {round}");
        open.commit().await.expect("commit");
    }
}

/// Producers with no patience, beside a relay that reads, removes and notes failures all the time.
pub async fn relay_at_work_blocks_no_producer<K: Kind>() {
    const EACH: usize = 150;
    let boxed = Boxed::<K>::create().await;
    let over = AtomicBool::new(false);
    let impatient = if K::NAME == "MySQL" {
        "SET SESSION innodb_lock_wait_timeout = 1"
    } else {
        "SET LOCAL lock_timeout = '1s'"
    };
    let produce = async {
        let producers = (0..4_u16).map(|producer| {
            let boxed = &boxed;
            async move {
                let own = boxed.again().await;
                for n in 0..EACH {
                    let mut tx = own.begin().await;
                    K::run(&mut tx, impatient).await.expect("limit");
                    let put = NewRow { lane: Lane(producer * 4), ..row(&format!("p{producer}-{n}")) };
                    own.outbox.put(&mut tx, &[put]).await.expect("no wait for the relay");
                    if n % 5 == 0 {
                        tx.rollback().await.expect("rollback");
                    } else {
                        tx.commit().await.expect("commit");
                    }
                }
            }
        });
        futures_util::future::join_all(producers).await;
        over.store(true, Ordering::Release);
    };
    let relay = async {
        let mut removed = 0;
        let relay = boxed.relay().await;
        let lanes: Vec<u16> = (0..16).collect();
        let held = boxed.outbox.take(relay, &boxed.terms(&lanes).await, super::LEASE).await.expect("take");
        loop {
            let last = over.load(Ordering::Acquire);
            let ids = boxed.confirmed().await;
            let (gone, failing) = ids.split_at(if last { ids.len() } else { ids.len() / 2 });
            let failed: Vec<Failed> =
                failing.iter().map(|of| failed(of, Next::Retry(Duration::ZERO))).collect();
            assert_eq!(boxed.outbox.fail(&held, &failed).await.expect("fail"), []);
            removed += boxed.outbox.remove(gone).await.expect("remove").rows;
            if last {
                return removed;
            }
        }
    };
    let ((), removed) = tokio::join!(produce, relay);
    assert_eq!(removed, 4 * EACH as u64 * 4 / 5, "what was committed, each once");
}
