//! What took effect does so once more, on purpose, and once.

mod consumers;
mod effects;
mod leases;
mod openings;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use lapin_idempotent::{
    Guard, HandlerError, HandlerResult, IdempotentHandler, IncomingMessage, Outcome, Scope,
    idempotency::ReplayPolicy,
    message::Epoch,
    store::{ReplayedMessage, Replays, SqlStore},
};
use sqlx::Transaction;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    database::{Insert, Kind, Table, message},
    support,
};

pub fn trials(there: bool) -> Vec<libtest_mimic::Trial> {
    [effects::trials, consumers::trials, leases::trials, openings::trials]
        .iter()
        .flat_map(|of| of(there))
        .collect()
}

const EPOCH: &str = "2026-11-vat-fix";

pub fn epoch(name: &str) -> Epoch {
    Epoch::new(name).expect("epoch")
}

pub fn scope(name: &str) -> Scope {
    Scope::new(name).expect("scope")
}

/// Identities, effects and replays in one database.
pub struct Books<K: Kind> {
    pub table: Table<K>,
    pub replays: Replays<K>,
}

impl<K: Kind> Books<K> {
    /// With the epoch open in the scope `test`.
    pub async fn open() -> Self {
        let books = Self::create().await;
        assert!(
            books.replays.open(&scope("test"), &epoch(EPOCH), "ops", "VAT was 16 %").await.expect("open")
        );
        books
    }

    pub async fn create() -> Self {
        let table = Table::<K>::create().await;
        let replays = Replays::new(table.store.clone());
        replays.create_schema().await.expect("schema");
        Self { table, replays }
    }

    /// By another pool, as another process has it.
    pub async fn again(&self) -> Self {
        let table = self.table.again().await;
        Self { replays: Replays::new(table.store.clone()), table }
    }

    pub fn guard(&self) -> Guard<SqlStore<K>> {
        self.table.guard().replays(ReplayPolicy::Opened)
    }

    /// One delivery of a replay.
    pub async fn replay(&self, id: &str) -> Outcome {
        self.guard().process(&replayed(id), &self.table.insert()).await
    }

    pub async fn recorded(&self) -> Vec<ReplayedMessage> {
        self.replays.replayed(&scope("test"), &epoch(EPOCH), None, 100).await.expect("replayed")
    }
}

/// A copy of a message, in the epoch.
pub fn replayed(id: &str) -> IncomingMessage {
    message(id).with_replay_epoch(epoch(EPOCH))
}

pub fn names(outcomes: &[Outcome]) -> Vec<&'static str> {
    outcomes.iter().map(Outcome::name).collect()
}

/// Writes its effect, notes what it was told, and waits behind its statement where it is told to.
pub struct Gated {
    insert: Insert,
    epochs: Mutex<Vec<(String, Option<String>)>>,
    /// Whether it waits.
    waits: AtomicBool,
    /// Permits of those that have come, and that may go.
    gate: (Semaphore, Semaphore),
}

impl Gated {
    pub fn new<K: Kind>(table: &Table<K>, waits: bool) -> Arc<Self> {
        Arc::new(Self {
            insert: table.insert(),
            epochs: Mutex::default(),
            waits: waits.into(),
            gate: (Semaphore::new(0), Semaphore::new(0)),
        })
    }

    pub async fn has_come(&self) {
        let come = timeout(support::DEADLINE, self.gate.0.acquire()).await.expect("the handler is called");
        come.expect("gate").forget();
    }

    pub fn let_go(&self) {
        self.waits.store(false, Ordering::SeqCst);
        self.gate.1.add_permits(1);
    }

    pub fn told(&self) -> Vec<(String, Option<String>)> {
        self.epochs.lock().unwrap().clone()
    }
}

pub struct Through(pub Arc<Gated>);

impl<K: Kind> IdempotentHandler<SqlStore<K>> for Through {
    async fn handle(&self, message: &IncomingMessage, tx: &mut Transaction<'static, K>) -> HandlerResult {
        let (id, gated) = (message.raw_message_id().unwrap_or_default(), &self.0);
        gated.epochs.lock().unwrap().push((id.to_owned(), message.replay_epoch().map(str::to_owned)));
        gated.insert.write::<K>(id, tx).await?;
        if gated.waits.load(Ordering::SeqCst) {
            gated.gate.0.add_permits(1);
            gated.gate.1.acquire().await?.forget();
        }
        if message.text()? == "fails" { Err(HandlerError::retry("not yet")) } else { Ok(()) }
    }
}
