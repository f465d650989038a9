//! Accounts and a ledger in SQLite, and the handler that debits them.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use lapin_idempotent::{
    BoxError, HandlerResult, IdempotentHandler, IncomingMessage, SqliteStore, store::SqliteTransaction,
};
use serde::{Deserialize, Serialize};
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};

const OPENING_BALANCE: i64 = 1_000_000;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) amount: i64,
}

/// The handler: one debit and one row in the ledger, in the guard's transaction. The ledger has no
/// unique key, so that a second effect would show.
pub(crate) struct Debit;

impl IdempotentHandler<SqliteStore> for Debit {
    async fn handle(&self, message: &IncomingMessage, tx: &mut SqliteTransaction) -> HandlerResult {
        let order: Order = message.json()?;
        sqlx::query("UPDATE account SET balance = balance - ? WHERE id = ?")
            .bind(order.amount)
            .bind(&order.account)
            .execute(&mut **tx)
            .await?;
        sqlx::query("INSERT INTO ledger (order_id, account, amount) VALUES (?, ?, ?)")
            .bind(&order.id)
            .bind(&order.account)
            .bind(order.amount)
            .execute(&mut **tx)
            .await?;
        Ok(())
    }
}

pub(crate) struct Bank {
    pub(crate) store: SqliteStore,
    reader: SqlitePool,
    directory: std::path::PathBuf,
}

/// What the books say in the end.
pub(crate) struct Books {
    pub(crate) ledger_rows: i64,
    pub(crate) expected: i64,
    pub(crate) found: i64,
    pub(crate) accounts: usize,
    pub(crate) accounts_off: usize,
}

impl Bank {
    pub(crate) async fn open(orders: &[Order]) -> Result<Self, BoxError> {
        let directory = std::env::temp_dir().join(format!("payments-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&directory)?;
        let file = directory.join("bank.db");
        let store = SqliteStore::connect(&format!("sqlite:{}", file.display())).await?;
        store.create_schema().await?;
        sqlx::raw_sql(
            "CREATE TABLE account (id TEXT PRIMARY KEY, balance INTEGER NOT NULL);
             CREATE TABLE ledger (order_id TEXT NOT NULL, account TEXT NOT NULL, amount INTEGER NOT NULL)",
        )
        .execute(store.pool())
        .await?;
        for account in orders.iter().map(|order| order.account.as_str()).collect::<HashSet<_>>() {
            sqlx::query("INSERT INTO account VALUES (?, ?)")
                .bind(account)
                .bind(OPENING_BALANCE)
                .execute(store.pool())
                .await?;
        }
        let reader = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&file)).await?;
        Ok(Self { store, reader, directory })
    }

    /// How many orders have taken effect, once or more.
    pub(crate) async fn handled(&self) -> Result<usize, BoxError> {
        let (count,): (i64,) =
            sqlx::query_as("SELECT count(DISTINCT order_id) FROM ledger").fetch_one(&self.reader).await?;
        Ok(usize::try_from(count)?)
    }

    /// Compares every balance with what the orders make of it.
    pub(crate) async fn books(&self, orders: &[Order]) -> Result<Books, BoxError> {
        let mut expected: BTreeMap<&str, i64> = BTreeMap::new();
        for order in orders {
            *expected.entry(&order.account).or_insert(OPENING_BALANCE) -= order.amount;
        }
        let found: Vec<(String, i64)> =
            sqlx::query_as("SELECT id, balance FROM account").fetch_all(&self.reader).await?;
        let (ledger_rows,): (i64,) =
            sqlx::query_as("SELECT count(*) FROM ledger").fetch_one(&self.reader).await?;
        let off = found.iter().filter(|(id, balance)| expected.get(id.as_str()) != Some(balance)).count();
        Ok(Books {
            ledger_rows,
            expected: expected.values().sum(),
            found: found.iter().map(|(_, balance)| balance).sum(),
            accounts: found.len(),
            accounts_off: off + expected.len().abs_diff(found.len()),
        })
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn made_up_orders(count: usize) -> Vec<Order> {
    let order = |n: i64| Order {
        id: format!("order-{n}"),
        account: format!("account-{:02}", n % 20),
        amount: 500 + (n * 37) % 100,
    };
    (1..).take(count).map(order).collect()
}

/// Reads orders, and refuses a file in which one ID names two orders.
pub(crate) fn read_orders(file: &Path) -> Result<Vec<Order>, BoxError> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    let mut ids = HashSet::new();
    let mut orders = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let order: Order =
            serde_json::from_str(line).map_err(|error| format!("line {} is no order: {error}", index + 1))?;
        if !ids.insert(order.id.clone()) {
            return Err(format!("line {}: there is another order {:?}", index + 1, order.id).into());
        }
        orders.push(order);
    }
    Ok(orders)
}
