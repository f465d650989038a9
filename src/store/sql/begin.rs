//! The begin of a transaction, which is never left half done.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use sqlx::{AssertSqlSafe, Pool, Transaction};
use tokio::runtime::Handle;

use super::dialect::Dialect;

/// Begins a transaction. If whoever waits for it is gone while the server begins it, it is begun
/// all the same, and rolled back: the driver would not know of it, and would put the connection
/// back into its pool as it is.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub(in crate::store) async fn begun<DB: Dialect>(
    pool: &Pool<DB>,
    statement: impl Into<Arc<str>>,
) -> Result<Transaction<'static, DB>, sqlx::Error> {
    let (pool, statement) = (pool.clone(), AssertSqlSafe(statement.into()));
    let beginning = Box::pin(async move { pool.begin_with(statement).await });
    Finished { beginning: Some(beginning), runtime: Handle::current() }.await
}

/// Runs to its end, also when it is dropped.
struct Finished<F: Future<Output: Send> + Send + 'static> {
    beginning: Option<Pin<Box<F>>>,
    runtime: Handle,
}

impl<F: Future<Output: Send> + Send + 'static> Future for Finished<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(beginning) = &mut self.beginning else { return Poll::Pending };
        let begun = ready!(beginning.as_mut().poll(cx));
        self.beginning = None;
        Poll::Ready(begun)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for Finished<F> {
    fn drop(&mut self) {
        if let Some(beginning) = self.beginning.take() {
            self.runtime.spawn(async move { drop(beginning.await) });
        }
    }
}
