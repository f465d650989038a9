//! The suite that anybody's table can be tried with, on the SQL outboxes.

use std::time::Duration;

use lapin_idempotent::{
    BoxError,
    store::SqlOutbox,
    testing::conformance::{self, OutboxCapabilities, Transactions},
};
use sqlx::Transaction;

use super::{Boxed, Kind, short};

trials! {
    of_tables_of_messages<Postgres, MySql, Sqlite>,
    of_a_check_without_tables<Postgres, MySql, Sqlite>,
}

struct Pooled;

impl<K: Kind> Transactions<SqlOutbox<K>> for Pooled {
    type Transaction = Transaction<'static, K>;

    async fn begin(&self, outbox: &SqlOutbox<K>) -> Result<Transaction<'static, K>, BoxError> {
        Ok(outbox.pool().begin().await?)
    }

    fn connection<'t>(&self, transaction: &'t mut Transaction<'static, K>) -> &'t mut K::Connection {
        transaction
    }

    async fn commit(&self, transaction: Transaction<'static, K>) -> Result<(), BoxError> {
        Ok(transaction.commit().await?)
    }

    async fn rollback(&self, transaction: Transaction<'static, K>) -> Result<(), BoxError> {
        Ok(transaction.rollback().await?)
    }
}

fn capabilities<K: Kind>() -> OutboxCapabilities {
    // Other tests have transactions open, too.
    let capabilities = OutboxCapabilities::new().time_limit(Duration::from_secs(180));
    match K::NAME {
        "PostgreSQL" => capabilities.tells_ended(),
        "SQLite" => capabilities.exclusive(),
        _ => capabilities,
    }
}

pub async fn of_tables_of_messages<K: Kind>() {
    let open = async || {
        let boxed = Boxed::<K>::create().await;
        [boxed.again().await.outbox, boxed.outbox]
    };
    let report = conformance::run_outbox(open, capabilities::<K>(), Pooled).await;
    report.assert();
}

pub async fn of_a_check_without_tables<K: Kind>() {
    let open = async || Boxed::<K>::open(&K::url(), &short("ob")).await.outbox;
    conformance::run_outbox_check(open).await.assert();
}
