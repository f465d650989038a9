//! What differs between the databases for an outbox.

use std::{future::Future, sync::Arc};

use futures_util::future::BoxFuture;
use sqlx::{Database, Pool, query::Query};
use tokio::sync::watch;
use uuid::Uuid;

use super::{rows::Cells, statements::OutboxStatements};
use crate::{
    outbox::{Confirmed, NewRow, ReadRequest, Removed, Wake},
    store::sql::{dialect::Dialect, table::TableName},
};

/// One of the databases. Public only so that `SqlDatabase` can rest on it; its path is private.
pub trait OutboxDialect: Dialect + Database<Row: Cells> {
    /// How many lanes a table has, for ever: the lane of a key depends on it.
    const LANES: u16;
    /// How many order keys, and how many routes, a query can leave out.
    const LEFT_OUT: (usize, usize) = (usize::MAX, usize::MAX);
    /// The primary key of the table.
    const ROW_KEY: &'static [&'static str];
    /// Begins the transaction in which the table is read, where a plain SELECT might be planned
    /// badly.
    const READING: Option<&'static str> = None;
    /// Whether it tells which transactions have ended.
    const TELLS_ENDED: bool = false;
    /// Whether [`notify`](Self::notify) reaches other processes.
    const NOTIFIES: bool = false;

    fn outbox(table: TableName) -> OutboxStatements;

    /// All rows of a query.
    fn fetch(
        connection: &mut Self::Connection,
        query: Query<'_, Self, Self::Arguments>,
    ) -> impl Future<Output = Result<Vec<Self::Row>, sqlx::Error>> + Send;

    /// Inserts a few rows, as many as fit into one statement.
    fn put(
        connection: &mut Self::Connection,
        statements: &OutboxStatements,
        rows: &[NewRow],
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// The queries for a request. Their rows are the columns of the statements, the number of the
    /// row behind it if there is one, and the lowest identity of a transaction that had not ended,
    /// as text; that alone if there are no rows. What is to be left out beyond the first
    /// [`LEFT_OUT`](Self::LEFT_OUT) may be among them.
    fn read<'q>(
        statements: &OutboxStatements,
        request: &ReadRequest<'q>,
    ) -> Vec<Query<'q, Self, Self::Arguments>>;

    /// Deletes rows, which are in the order of their key, if they hold these messages.
    fn remove(
        pool: &Pool<Self>,
        statements: &OutboxStatements,
        confirmed: &[Confirmed],
    ) -> impl Future<Output = Result<Removed, sqlx::Error>> + Send;

    /// What this server lacks that an outbox needs.
    fn lacks(
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<Option<&'static str>, sqlx::Error>> + Send {
        let _ = connection;
        std::future::ready(Ok(None))
    }

    /// Tells other processes, in a transaction of its own.
    fn notify(
        pool: &Pool<Self>,
        statements: &OutboxStatements,
        from: Uuid,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send {
        let _ = (pool, statements, from);
        std::future::ready(Ok(()))
    }

    /// Hears of commits for ever, if the database tells.
    fn listen(ear: Ear<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            // Held, as a receiver takes an end of the sender for an end of the listener.
            let _ear = ear;
            std::future::pending::<()>().await;
        })
    }
}

/// What a listener has to work with.
#[derive(Debug)]
#[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "only PostgreSQL tells who notifies"))]
pub struct Ear<DB: OutboxDialect> {
    pub(in crate::store) pool: Pool<DB>,
    pub(in crate::store) statements: Arc<OutboxStatements>,
    /// Who notifies for this outbox, and needs not be heard.
    pub(in crate::store) me: Uuid,
    pub(in crate::store) wake: Wake,
    /// Whether it hears.
    pub(in crate::store) hears: watch::Sender<bool>,
}

/// What leaves so many keys and so many routes out, to be bound in this order; `rows` begins a list
/// of rows.
#[cfg(any(feature = "mysql", feature = "sqlite"))]
pub(in crate::store) fn without(keys: usize, routes: usize, rows: &str) -> String {
    let list = |what: &str, count: usize| vec![what; count].join(", ");
    let without_keys = format!("AND (order_key IS NULL OR order_key NOT IN ({})) ", list("?", keys));
    let routes_of = list("(?, ?)", routes);
    let without_routes =
        format!("AND (order_key IS NOT NULL OR (exchange, routing_key) NOT IN ({rows}{routes_of})) ");
    let parts = [(keys, without_keys), (routes, without_routes)];
    parts.into_iter().filter(|(count, _)| *count > 0).map(|(_, sql)| sql).collect()
}
