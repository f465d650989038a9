//! The contract of an outbox, in each database.

mod broker;
mod children;
mod confirms;
mod conformance;
mod cuts;
mod failures;
mod frozen;
mod killed;
mod lanes;
mod listening;
mod orders;
mod parking;
mod plans;
mod relaying;
mod rows;
mod schema;

use std::{iter, time::Duration};

use lapin_idempotent::{
    MessageId,
    outbox::{
        Batch, Confirmed, Failed, Lane, NewRow, Next, Outbox, ReadRequest, RelayId, Route, Row, RowId, Term,
    },
    store::SqlOutbox,
};
use libtest_mimic::Trial;
use sqlx::Transaction;
use uuid::Uuid;

use super::{
    database::{Kind, short},
    support,
};

pub fn trials(there: bool) -> Vec<Trial> {
    let modules = [
        children::trials,
        confirms::trials,
        conformance::trials,
        cuts::trials,
        broker::trials,
        failures::trials,
        frozen::trials,
        killed::trials,
        lanes::trials,
        listening::trials,
        parking::trials,
        plans::trials,
        relaying::trials,
        rows::trials,
        schema::trials,
    ];
    modules.iter().flat_map(|trials| trials(there)).collect()
}

/// Longer than any test.
const LEASE: Duration = Duration::from_secs(3600);

/// An outbox with tables of its own. Dropping it leaves them; the server is the tests' own.
struct Boxed<K: Kind> {
    url: String,
    name: String,
    outbox: SqlOutbox<K>,
}

impl<K: Kind> Boxed<K> {
    async fn create() -> Self {
        let boxed = Self::open(&K::url(), &short("ob")).await;
        boxed.outbox.create_schema().await.expect("schema");
        boxed
    }

    async fn open(url: &str, name: &str) -> Self {
        let outbox = SqlOutbox::<K>::connect(url).await.expect("connect").table(name).expect("name");
        Self { url: url.to_owned(), name: name.to_owned(), outbox }
    }

    /// The same tables by another pool, as another process has it.
    async fn again(&self) -> Self {
        Self::open(&self.url, &self.name).await
    }

    async fn sql(&self, sql: &str) -> u64 {
        let mut connection = self.outbox.pool().acquire().await.expect("connection");
        K::run(&mut connection, sql).await.expect("statement")
    }

    async fn number(&self, sql: &str) -> i64 {
        K::number(self.outbox.pool(), sql).await.expect("number")
    }

    async fn begin(&self) -> Transaction<'static, K> {
        self.outbox.pool().begin().await.expect("begin")
    }

    async fn put(&self, rows: &[NewRow]) {
        let mut tx = self.begin().await;
        self.outbox.put(&mut tx, rows).await.expect("put");
        tx.commit().await.expect("commit");
    }

    /// All there is in all lanes.
    async fn all(&self) -> Vec<Row> {
        self.read(&self.starts(), &[], u32::MAX, u64::MAX).await.rows
    }

    /// The same, as if all were confirmed.
    async fn confirmed(&self) -> Vec<Confirmed> {
        self.all().await.iter().map(Confirmed::from).collect()
    }

    async fn ids(&self) -> Vec<String> {
        self.all().await.iter().map(|row| row.message_id.to_string()).collect()
    }

    /// The beginning of each lane.
    fn starts(&self) -> Vec<RowId> {
        (0..self.outbox.lanes()).map(|lane| RowId { lane: Lane(lane), seq: 0 }).collect()
    }

    async fn read(&self, from: &[RowId], without_keys: &[String], rows: u32, bytes: u64) -> Batch {
        let without = (without_keys, &[] as &[Route]);
        self.read_without(from, without, rows, bytes).await
    }

    async fn read_without(
        &self,
        from: &[RowId],
        (without_keys, without_routes): (&[String], &[Route]),
        rows: u32,
        bytes: u64,
    ) -> Batch {
        let request = ReadRequest { from, without_rows: &[], without_keys, without_routes, rows, bytes };
        self.outbox.read(&request).await.expect("read")
    }

    /// Waits until nothing is left to be published.
    async fn drained(&self, what: &str) {
        support::eventually(what, async || {
            (self.outbox.status().await.expect("status").backlog == 0).then_some(())
        })
        .await;
    }

    async fn relay(&self) -> RelayId {
        let relay = RelayId(Uuid::new_v4());
        self.outbox.register(relay, "a relay").await.expect("register");
        relay
    }

    /// The lanes as they are, with these numbers.
    async fn terms(&self, lanes: &[u16]) -> Vec<Term> {
        let all = self.outbox.ownership(LEASE).await.expect("ownership").lanes;
        all.into_iter().map(|(term, _)| term).filter(|term| lanes.contains(&term.lane.0)).collect()
    }

    /// Takes a lane for a relay that was just registered.
    async fn take(&self, lane: u16) -> (RelayId, Term) {
        let relay = self.relay().await;
        let taken = self.outbox.take(relay, &self.terms(&[lane]).await, LEASE).await.expect("take");
        (relay, *taken.first().expect("it is free"))
    }

    /// Makes the last beat of a relay older, as if it had frozen.
    async fn freeze(&self, relay: RelayId, seconds: u32) {
        let beat = match K::NAME {
            "PostgreSQL" => format!("beat_at - interval '{seconds} seconds'"),
            "MySQL" => format!("beat_at - INTERVAL {seconds} SECOND"),
            _ => format!("beat_at - {seconds} * 1000"),
        };
        let sql = format!("UPDATE {}_relays SET beat_at = {beat} WHERE relay = '{}'", self.name, relay.0);
        assert_eq!(self.sql(&sql).await, 1);
    }
}

/// A row for lane 0.
fn row(id: &str) -> NewRow {
    NewRow {
        lane: Lane(0),
        message_id: MessageId::new(id).expect("ID"),
        exchange: "orders".to_owned(),
        routing_key: "placed".to_owned(),
        order_key: None,
        properties: None,
        body: "body".into(),
    }
}

/// A failure that is counted.
fn failed(of: &Confirmed, next: Next) -> Failed {
    let Confirmed { row, message_id } = of.clone();
    Failed { row, message_id, counted: true, next, error: "312 NO_ROUTE".to_owned() }
}

/// Rows `name0`, `name1` and so on.
fn rows(name: &str, count: usize) -> Vec<NewRow> {
    iter::successors(Some(0), |n| Some(n + 1)).take(count).map(|n| row(&format!("{name}{n}"))).collect()
}
