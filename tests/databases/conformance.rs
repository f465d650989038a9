//! The suite that anybody's store can be tried with, on the SQL stores: by transactions, by leases,
//! in partitions, behind an `Arc`.

use std::{num::NonZero, sync::Arc, time::Duration};

use lapin_idempotent::{
    BoxError, IdempotencyStore,
    store::SqlStore,
    testing::conformance::{self, Capabilities, Effects},
};
use sqlx::{Postgres, Transaction};

use super::database::{Kind, Table};

trials! {
    of_transactions<Postgres, MySql, Sqlite>,
    of_transactions_behind_an_arc<Postgres, MySql, Sqlite>,
    of_leases<Postgres, MySql, Sqlite>,
    of_partitions,
}

const LEASE: Duration = Duration::from_millis(800);

/// One row for each effect, with nothing that would stop a second one.
struct Rows<K: Kind>(Table<K>);

impl<K: Kind, S> Effects<S> for Rows<K>
where
    S: IdempotencyStore<Session = Transaction<'static, K>>,
{
    async fn write(&self, session: &mut Transaction<'static, K>, name: &str) -> Result<(), BoxError> {
        self.0.insert().write::<K>(name, session).await?;
        Ok(())
    }

    async fn count(&self, name: &str) -> u64 {
        let count = format!("SELECT count(*) FROM {} WHERE message_id = '{name}'", self.0.effects);
        K::number(self.0.store.pool(), &count).await.expect("count").try_into().expect("a count")
    }
}

fn transactions<K: Kind>() -> Capabilities {
    let capabilities = Capabilities::transactional().batches(true).waits(true);
    if K::NAME == "SQLite" { capabilities.exclusive() } else { capabilities }
}

async fn open<K: Kind>(table: &Table<K>) -> SqlStore<K> {
    table.again().await.store.lock_timeout(Duration::from_secs(1))
}

pub async fn of_transactions<K: Kind>() {
    let table = Table::<K>::create().await;
    let open = || open(&table);
    conformance::run_with_effects(open, transactions::<K>(), Rows(table.clone())).await.assert();
    conformance::run_inspection(open, transactions::<K>()).await.assert();
}

pub async fn of_transactions_behind_an_arc<K: Kind>() {
    let table = Table::<K>::create().await;
    let open = async || Arc::new(open(&table).await);
    conformance::run_with_effects(&open, transactions::<K>(), Rows(table.clone())).await.assert();
}

pub async fn of_leases<K: Kind>() {
    let table = Table::<K>::create().await;
    let open = async || open(&table).await.leased(LEASE).expect("lease");
    conformance::run(&open, Capabilities::leased(LEASE)).await.assert();
    conformance::run_inspection(&open, Capabilities::leased(LEASE)).await.assert();
}

pub async fn of_partitions() {
    let table = super::partitions::partitioned(&Postgres::url()).await;
    let hours = NonZero::new(1).unwrap();
    let open = async || open(&table).await.partitioned(hours);
    let capabilities = transactions::<Postgres>();
    conformance::run_with_effects(&open, capabilities, Rows(table.clone())).await.assert();
    conformance::run_inspection(&open, transactions::<Postgres>()).await.assert();
    let leased = async || open().await.leased(LEASE).expect("lease");
    conformance::run(&leased, Capabilities::leased(LEASE)).await.assert();
}
