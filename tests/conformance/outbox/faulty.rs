//! An outbox in memory, right or with one fault.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::BoxFuture;
use lapin_idempotent::{
    BoxError, MessageId,
    idempotency::{StoreError, StoreErrorKind},
    outbox::{
        Batch, Confirmed, Failed, Lane, NewRow, Outbox, Ownership, ParkedKey, ParkedRow, ReadRequest,
        RelayId, Removed, Row, RowId, Select, TableStatus, Term, Wake,
    },
    testing::{MemoryOutbox, MemoryTransaction, conformance::Transactions},
};
use tokio::sync::watch;

use super::{fault::Fault, reads::swapped};

pub(super) const LONG: Duration = Duration::from_secs(3600);

/// One of two handles on a table.
pub(crate) struct Faulty {
    pub(super) fault: Fault,
    pub(super) inner: MemoryOutbox,
    shared: Arc<Mutex<Shared>>,
}

/// What faults keep.
#[derive(Default)]
pub(super) struct Shared {
    pub(super) seen: BTreeSet<RowId>,
    pub(super) highest: BTreeMap<Lane, i64>,
    left: BTreeSet<RelayId>,
    pub(super) failed: BTreeSet<RowId>,
}

/// The transactions of [`Faulty`].
pub(crate) struct InMemory;

impl Transactions<Faulty> for InMemory {
    type Transaction = MemoryTransaction;

    async fn begin(&self, outbox: &Faulty) -> Result<MemoryTransaction, BoxError> {
        Ok(outbox.inner.begin())
    }

    fn connection<'t>(&self, transaction: &'t mut MemoryTransaction) -> &'t mut MemoryTransaction {
        transaction
    }

    async fn commit(&self, transaction: MemoryTransaction) -> Result<(), BoxError> {
        transaction.commit();
        Ok(())
    }
}

impl Transactions<MemoryOutbox> for InMemory {
    type Transaction = MemoryTransaction;

    async fn begin(&self, outbox: &MemoryOutbox) -> Result<MemoryTransaction, BoxError> {
        Ok(outbox.begin())
    }

    fn connection<'t>(&self, transaction: &'t mut MemoryTransaction) -> &'t mut MemoryTransaction {
        transaction
    }

    async fn commit(&self, transaction: MemoryTransaction) -> Result<(), BoxError> {
        transaction.commit();
        Ok(())
    }
}

impl Faulty {
    pub(crate) fn pair(fault: Fault, lanes: u16) -> [Self; 2] {
        let inner = MemoryOutbox::with_lanes(lanes);
        let shared = Arc::default();
        let first = Self { fault, inner: inner.elsewhere(), shared: Arc::clone(&shared) };
        [first, Self { fault, inner, shared }]
    }

    pub(super) fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    fn spoiled(&self, mut row: NewRow) -> NewRow {
        let texts = |row: &mut NewRow, change: fn(&str) -> String| {
            row.exchange = change(&row.exchange);
            row.routing_key = change(&row.routing_key);
            row.order_key = row.order_key.as_deref().map(change);
            row.message_id = MessageId::new(change(row.message_id.as_str())).unwrap();
        };
        match self.fault {
            Fault::FoldsCase => texts(&mut row, str::to_lowercase),
            Fault::TrimsSpaces => texts(&mut row, |text| text.trim_end().to_owned()),
            Fault::Normalizes => texts(&mut row, |text| text.replace("E\u{301}", "É")),
            Fault::StripsQuotes => texts(&mut row, |text| text.replace('\'', "")),
            Fault::EmptyIsNull => row.properties = row.properties.filter(|text| !text.is_empty()),
            Fault::BodiesAreText => row.body = String::from_utf8_lossy(&row.body).into_owned().into(),
            Fault::BodiesEndWithZero => {
                let end = row.body.iter().position(|byte| *byte == 0).unwrap_or(row.body.len());
                row.body.truncate(end);
            }
            Fault::CutsBodies => row.body.truncate(65_535),
            _ => {}
        }
        row
    }
}

impl Outbox for Faulty {
    type Connection = MemoryTransaction;

    fn lanes(&self) -> u16 {
        self.inner.lanes()
    }

    async fn put(&self, connection: &mut MemoryTransaction, rows: &[NewRow]) -> Result<(), StoreError> {
        let mut rows: Vec<NewRow> = rows.iter().map(|row| self.spoiled(row.clone())).collect();
        match self.fault {
            Fault::PutsOutsideTheTransaction => {
                let mut own = self.inner.begin();
                self.inner.put(&mut own, &rows).await?;
                own.commit();
                return Ok(());
            }
            Fault::PutsTheFirstThousand => rows.truncate(1000),
            Fault::PutsBackwards => rows.reverse(),
            _ => {}
        }
        self.inner.put(connection, &rows).await
    }

    async fn register(&self, relay: RelayId, name: &str) -> Result<(), StoreError> {
        self.inner.register(relay, name).await
    }

    async fn beat(&self, relay: RelayId, lease: Duration) -> Result<bool, StoreError> {
        let known =
            async |lease| Ok::<_, StoreError>(self.inner.ownership(lease).await?.relays.contains(&relay));
        match self.fault {
            Fault::BeatsForever if known(LONG).await? => {
                self.inner.register(relay, "again").await?;
                Ok(true)
            }
            Fault::BeatsInVain => known(lease).await,
            Fault::KnowsEverybody if !known(LONG).await? => Ok(true),
            Fault::LeavesLanesBehind if self.shared().left.contains(&relay) => Ok(false),
            _ => self.inner.beat(relay, lease).await,
        }
    }

    async fn ownership(&self, lease: Duration) -> Result<Ownership, StoreError> {
        let mut there = self.inner.ownership(lease).await?;
        match self.fault {
            Fault::ForgetsALane => drop(there.lanes.pop()),
            Fault::TellsOfNoRelays => there.relays.clear(),
            Fault::TellsOfDeadRelays => there.relays = self.inner.ownership(LONG).await?.relays,
            Fault::KnowsNoTerms => there.lanes.iter_mut().for_each(|(term, _)| term.term = 0),
            Fault::LeavesLanesBehind => there.relays.retain(|relay| !self.shared().left.contains(relay)),
            _ => {}
        }
        Ok(there)
    }

    async fn take(&self, relay: RelayId, lanes: &[Term], lease: Duration) -> Result<Vec<Term>, StoreError> {
        self.take_lanes(relay, lanes, lease).await
    }

    async fn release(&self, lanes: &[Term]) -> Result<(), StoreError> {
        match self.fault {
            Fault::ReleasesNothing => Ok(()),
            Fault::ReleasesAnyTerm | Fault::KnowsNoTerms => {
                let now = self.current(lanes).await?;
                self.inner.release(&now).await
            }
            Fault::ReleasesAll => {
                let all = self.inner.ownership(LONG).await?.lanes;
                let all: Vec<Term> = all.into_iter().map(|(term, _)| term).collect();
                let as_told = lanes.iter().any(|lane| all.contains(lane));
                self.inner.release(if as_told { &all } else { &[] }).await
            }
            _ => self.inner.release(lanes).await,
        }
    }

    async fn leave(&self, relay: RelayId) -> Result<(), StoreError> {
        match self.fault {
            Fault::LeavesLanesBehind => {
                self.shared().left.insert(relay);
                Ok(())
            }
            Fault::StaysKnown => {
                let lanes = self.inner.ownership(LONG).await?.lanes;
                let own = lanes.into_iter().filter(|(_, owner)| *owner == Some(relay));
                let own: Vec<Term> = own.map(|(term, _)| term).collect();
                self.inner.release(&own).await
            }
            Fault::LeavesWithAll => {
                for relay in self.inner.ownership(LONG).await?.relays {
                    self.inner.leave(relay).await?;
                }
                Ok(())
            }
            Fault::LeavesOnce if !self.inner.ownership(LONG).await?.relays.contains(&relay) => {
                Err(StoreErrorKind::Refused.into())
            }
            _ => self.inner.leave(relay).await,
        }
    }

    async fn read(&self, request: &ReadRequest<'_>) -> Result<Batch, StoreError> {
        self.read_rows(request).await
    }

    async fn parked_keys(&self, lanes: &[Lane]) -> Result<Vec<ParkedKey>, StoreError> {
        if self.is(Fault::TellsTheKeysOfAllLanes) {
            return self.inner.parked_keys(&(0..self.lanes()).map(Lane).collect::<Vec<_>>()).await;
        }
        let mut keys = self.inner.parked_keys(lanes).await?;
        if self.is(Fault::TellsTheLastOfAKey) {
            for parked in self.inner.list_parked(&Select::All, 0, u32::MAX).await? {
                let of = |key: &&mut ParkedKey| Some(&key.key) == parked.row.order_key.as_ref();
                keys.iter_mut().filter(of).for_each(|key| key.first = key.first.max(parked.row.id.seq));
            }
        }
        Ok(keys)
    }

    async fn remove(&self, confirmed: &[Confirmed]) -> Result<Removed, StoreError> {
        self.remove_rows(confirmed).await
    }

    async fn fail(&self, held: &[Term], failed: &[Failed]) -> Result<Vec<Lane>, StoreError> {
        self.note(held, failed).await
    }

    async fn status(&self) -> Result<TableStatus, StoreError> {
        let mut status = self.inner.status().await?;
        match self.fault {
            Fault::CountsParkedRowsTwice => status.backlog += status.parked,
            Fault::TellsOfNoOldest => status.oldest = None,
            Fault::TellsOfNoRelays => status.relays = 0,
            Fault::KnowsNoAge => status.oldest = status.oldest.map(|_| Duration::ZERO),
            _ => {}
        }
        Ok(status)
    }

    async fn list_parked(
        &self,
        select: &Select,
        behind: i64,
        limit: u32,
    ) -> Result<Vec<ParkedRow>, StoreError> {
        let mut rows = match self.fault {
            Fault::ListsAll => self.inner.list_parked(&Select::All, behind, limit).await?,
            Fault::ListsFromTheStart => self.inner.list_parked(select, 0, limit).await?,
            Fault::ListsWithoutLimit => self.inner.list_parked(select, behind, u32::MAX).await?,
            _ => self.inner.list_parked(select, behind, limit).await?,
        };
        if self.is(Fault::ListsBackwards) {
            rows.reverse();
        }
        if self.is(Fault::SwapsNumbers) {
            for parked in &mut rows {
                parked.row.id.seq = swapped(parked.row.id.seq);
            }
        }
        Ok(rows)
    }

    async fn unpark(&self, select: &Select) -> Result<u64, StoreError> {
        match self.fault {
            Fault::UnparksNothing => Ok(self.inner.list_parked(select, 0, u32::MAX).await?.len() as u64),
            Fault::UnparksAll => self.inner.unpark(&Select::All).await,
            Fault::UnparksUnderNewNumbers => {
                let mut transaction = self.inner.begin();
                for ParkedRow { row, .. } in self.inner.list_parked(select, 0, u32::MAX).await? {
                    let lane = row.id.lane;
                    let Row { message_id, exchange, routing_key, order_key, properties, body, .. } = row;
                    let again =
                        NewRow { lane, message_id, exchange, routing_key, order_key, properties, body };
                    self.inner.put(&mut transaction, &[again]).await?;
                }
                transaction.commit();
                self.inner.discard(select).await
            }
            _ => self.inner.unpark(select).await,
        }
    }

    async fn discard(&self, select: &Select) -> Result<u64, StoreError> {
        match (self.fault, select) {
            (Fault::DiscardsAll, _) => self.inner.discard(&Select::All).await,
            (Fault::DiscardsWhatWaits, Select::Seq(seq)) => {
                let rows = self.everything().await?;
                let rows = rows.iter().filter(|row| row.id.seq == *seq).map(Confirmed::from);
                let rows: Vec<Confirmed> = rows.collect();
                Ok(self.inner.remove(&rows).await?.rows + self.inner.discard(select).await?)
            }
            _ => self.inner.discard(select).await,
        }
    }

    async fn check(&self) -> Result<(), StoreError> {
        if self.is(Fault::IsNotReady) { Err(StoreErrorKind::Schema.into()) } else { Ok(()) }
    }

    fn waker(&self) -> &Wake {
        self.inner.waker()
    }

    fn wake(&self) {
        if !self.is(Fault::WakesNobody) {
            self.inner.waker().wake();
        }
    }

    fn listen(&self, hears: watch::Sender<bool>) -> BoxFuture<'static, ()> {
        let fault = self.fault;
        Box::pin(async move {
            match fault {
                Fault::StopsListening => {}
                Fault::HearsInVain => {
                    hears.send_replace(true);
                    std::future::pending::<()>().await;
                }
                Fault::DropsTheSender => {
                    drop(hears);
                    std::future::pending::<()>().await;
                }
                _ => {
                    hears.closed().await;
                    std::future::pending::<()>().await;
                }
            }
        })
    }
}
