//! What a case works with: two handles on one table, and what all cases ask of them.

use std::{fmt::Debug, sync::Arc, time::Duration};

use uuid::Uuid;

use super::{Transactions, capabilities::OutboxCapabilities};
use crate::{
    error::BoxError,
    message::MessageId,
    outbox::{
        Batch, Confirmed, Failed, Lane, NewRow, Next, Outbox, ParkedRow, ReadRequest, RelayId, Row, RowId,
        Select, Term,
    },
    testing::conformance::{
        capabilities::Need,
        fixture::{Outcome, Stop, ensure, error, failed},
    },
};

/// Longer than any case.
pub(super) const LONG: Duration = Duration::from_secs(3600);

/// A lease that runs out.
pub(super) const SHORT: Duration = Duration::from_secs(1);

/// How long to wait until it has.
pub(super) const OVER: Duration = Duration::from_millis(1200);

/// More than any body of the suite.
const MUCH: u64 = 1 << 30;

pub(super) struct Handles<O, T> {
    pub(super) a: Arc<O>,
    pub(super) b: Arc<O>,
    pub(super) transactions: Arc<T>,
    pub(super) capabilities: OutboxCapabilities,
}

/// A row for lane 0.
#[allow(clippy::expect_used, reason = "a mistake in a case; a panic fails it")]
pub(super) fn row(id: &str) -> NewRow {
    NewRow {
        lane: Lane(0),
        message_id: MessageId::new(id).expect("the suite's own message ID"),
        exchange: "orders".to_owned(),
        routing_key: "placed".to_owned(),
        order_key: None,
        properties: None,
        body: "body".into(),
    }
}

pub(super) fn keyed(id: &str, key: &str) -> NewRow {
    NewRow { order_key: Some(key.to_owned()), ..row(id) }
}

/// Rows `name0`, `name1` and so on.
pub(super) fn rows(name: &str, count: usize) -> Vec<NewRow> {
    (0..count).map(|n| row(&format!("{name}{n}"))).collect()
}

/// A failure that is an attempt.
pub(super) fn counted(of: &Confirmed, next: Next) -> Failed {
    let Confirmed { row, message_id } = of.clone();
    Failed { row, message_id, counted: true, next, error: "312 NO_ROUTE".to_owned() }
}

/// Reads what is behind these numbers, and leaves nothing out.
pub(super) fn behind(from: &[RowId], rows: u32, bytes: u64) -> ReadRequest<'_> {
    ReadRequest { from, without_rows: &[], without_keys: &[], without_routes: &[], rows, bytes }
}

/// The same rows with other messages, whose IDs are nearly the same.
pub(super) fn strangers(of: &[Confirmed]) -> Vec<Vec<Confirmed>> {
    let others: [fn(&str) -> String; 4] = [
        |id| format!("{id} "),
        |id| id.trim_end().to_owned(),
        str::to_uppercase,
        |id| id.replace("E\u{301}", "\u{c9}"),
    ];
    let other = |of: &Confirmed, change: fn(&str) -> String| {
        let message_id = MessageId::new(change(of.message_id.as_str())).ok()?;
        (message_id != of.message_id).then_some(Confirmed { row: of.row, message_id })
    };
    others.iter().map(|change| of.iter().filter_map(|of| other(of, *change)).collect()).collect()
}

pub(super) fn ids(rows: &[Row]) -> Vec<String> {
    rows.iter().map(|row| row.message_id.to_string()).collect()
}

pub(super) fn row_ids(rows: &[Row]) -> Vec<RowId> {
    rows.iter().map(|row| row.id).collect()
}

pub(super) fn parked_ids(rows: &[ParkedRow]) -> Vec<String> {
    rows.iter().map(|parked| parked.row.message_id.to_string()).collect()
}

/// Fails a case unless what came is what was expected.
pub(super) fn same<A: PartialEq<B> + Debug + ?Sized, B: Debug>(
    what: &str,
    came: &A,
    expected: &B,
) -> Outcome {
    ensure!(came == expected, "{what}: expected {expected:?}; came {came:?}");
    Ok(())
}

fn broken(what: &'static str) -> impl Fn(BoxError) -> Stop {
    move |error| failed(format!("{what}: expected Ok; came {error}"))
}

impl<O: Outbox, T: Transactions<O>> Handles<O, T> {
    pub(super) fn new([a, b]: [O; 2], transactions: Arc<T>, capabilities: OutboxCapabilities) -> Self {
        Self { a: Arc::new(a), b: Arc::new(b), transactions, capabilities }
    }

    pub(super) fn is_concurrent(&self) -> bool {
        self.capabilities.has(Need::Concurrency)
    }

    /// The last lane, which is the first where there is one.
    pub(super) fn last(&self) -> Lane {
        Lane(self.a.lanes().saturating_sub(1))
    }

    /// Ends a case that needs two lanes, if there is one.
    pub(super) fn has_lanes(&self) -> Outcome {
        if self.last() == Lane(0) {
            return Err(Stop::NotApplicable("the table has one lane".to_owned()));
        }
        Ok(())
    }

    pub(super) async fn begin(&self) -> Result<T::Transaction, Stop> {
        self.transactions.begin(&self.a).await.map_err(broken("begin"))
    }

    pub(super) async fn put_in(&self, transaction: &mut T::Transaction, rows: &[NewRow]) -> Outcome {
        let connection = self.transactions.connection(transaction);
        self.a.put(connection, rows).await.map_err(error("put"))
    }

    pub(super) async fn commit(&self, transaction: T::Transaction) -> Outcome {
        self.transactions.commit(transaction).await.map_err(broken("commit"))
    }

    pub(super) async fn rollback(&self, transaction: T::Transaction) -> Outcome {
        self.transactions.rollback(transaction).await.map_err(broken("rollback"))
    }

    /// Puts rows in, in a transaction of their own.
    pub(super) async fn put(&self, rows: &[NewRow]) -> Outcome {
        self.put_by(&self.a, rows).await
    }

    pub(super) async fn put_by(&self, outbox: &O, rows: &[NewRow]) -> Outcome {
        let mut transaction = self.transactions.begin(outbox).await.map_err(broken("begin"))?;
        let put = outbox.put(self.transactions.connection(&mut transaction), rows).await;
        put.map_err(error("put"))?;
        self.commit(transaction).await
    }

    pub(super) async fn read(&self, request: &ReadRequest<'_>) -> Result<Batch, Stop> {
        self.b.read(request).await.map_err(error("read"))
    }

    /// The beginning of each lane.
    pub(super) fn starts(&self) -> Vec<RowId> {
        (0..self.a.lanes()).map(|lane| RowId { lane: Lane(lane), seq: 0 }).collect()
    }

    /// Reads all lanes with these limits.
    pub(super) async fn read_at_most(&self, rows: u32, bytes: u64) -> Result<Batch, Stop> {
        let from = self.starts();
        self.read(&behind(&from, rows, bytes)).await
    }

    /// All there is in all lanes.
    pub(super) async fn all(&self) -> Result<Vec<Row>, Stop> {
        Ok(self.read_at_most(100_000, MUCH).await?.rows)
    }

    pub(super) async fn all_ids(&self) -> Result<Vec<RowId>, Stop> {
        Ok(row_ids(&self.all().await?))
    }

    /// The same, as if all were confirmed.
    pub(super) async fn confirmed(&self) -> Result<Vec<Confirmed>, Stop> {
        Ok(self.all().await?.iter().map(Confirmed::from).collect())
    }

    /// Checks that these messages are in the table, in this order, and no others.
    pub(super) async fn holds(&self, when: &str, expected: &[&str]) -> Outcome {
        same(&format!("read {when}"), &ids(&self.all().await?), &expected)
    }

    /// A relay that was just heard of.
    pub(super) async fn relay(&self, outbox: &O) -> Result<RelayId, Stop> {
        let relay = RelayId(Uuid::new_v4());
        outbox.register(relay, "a relay").await.map_err(error("register"))?;
        Ok(relay)
    }

    /// Every lane with its term and its owner.
    pub(super) async fn owners(&self) -> Result<Vec<(Term, Option<RelayId>)>, Stop> {
        Ok(self.b.ownership(LONG).await.map_err(error("ownership"))?.lanes)
    }

    /// A lane with its term and its owner.
    pub(super) async fn owner(&self, lane: Lane) -> Result<(Term, Option<RelayId>), Stop> {
        let owners = self.owners().await?;
        let found = owners.into_iter().find(|(term, _)| term.lane == lane);
        found.ok_or_else(|| failed(format!("ownership: expected {lane:?} among others; it is not there")))
    }

    /// Takes a lane that is free, for a relay that was just heard of.
    pub(super) async fn take(&self, lane: Lane) -> Result<(RelayId, Term), Stop> {
        let relay = self.relay(&self.a).await?;
        let (free, _) = self.owner(lane).await?;
        let taken = self.a.take(relay, &[free], LONG).await.map_err(error("take"))?;
        match taken.as_slice() {
            [term] if term.lane == lane => Ok((relay, *term)),
            other => Err(failed(format!("take of {free:?}, which is free: expected it; came {other:?}"))),
        }
    }

    /// Gives back all that a relay has.
    pub(super) async fn leave(&self, relay: RelayId) -> Outcome {
        self.a.leave(relay).await.map_err(error("leave"))
    }

    /// Notes failures for lanes that are held; gives those that are not.
    pub(super) async fn fail(&self, held: &[Term], failures: &[Failed]) -> Result<Vec<Lane>, Stop> {
        self.a.fail(held, failures).await.map_err(error("fail"))
    }

    /// Notes one failure, as the owner of its lane.
    pub(super) async fn note(&self, failure: Failed) -> Outcome {
        let (relay, term) = self.take(failure.row.lane).await?;
        same("lanes that are lost, says fail", &self.fail(&[term], &[failure]).await?, &[] as &[Lane; 0])?;
        self.leave(relay).await
    }

    /// Parks rows, each after one attempt.
    pub(super) async fn park(&self, rows: &[Confirmed]) -> Outcome {
        for row in rows {
            self.note(counted(row, Next::Park)).await?;
        }
        Ok(())
    }

    /// All that is parked.
    pub(super) async fn parked(&self) -> Result<Vec<ParkedRow>, Stop> {
        self.b.list_parked(&Select::All, 0, 1000).await.map_err(error("list_parked"))
    }
}
