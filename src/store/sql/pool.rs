//! Pools that are opened by a URL.

use std::str::FromStr;

use sqlx::{ConnectOptions as _, Pool, pool::PoolOptions};
use tokio::time::timeout;

use super::{
    dialect::{ConnectOptions, Dialect},
    error::failed,
    options::Limits,
};
use crate::idempotency::{StoreError, StoreErrorKind};

/// A pool that has connected once.
pub(super) async fn connected<DB: Dialect>(
    url: &str,
    limits: &Limits,
    set_up: impl FnOnce(PoolOptions<DB>) -> PoolOptions<DB>,
) -> Result<Pool<DB>, StoreError> {
    let settings = settings::<DB>(url, limits)?;
    let pool = match set_up(DB::pool(limits)).connect_with(settings.clone()).await {
        // The pool has tried until its time was over, and does not say what was wrong.
        Err(sqlx::Error::PoolTimedOut) => match timeout(limits.acquire, settings.connect()).await {
            Ok(Err(reason)) => Err(reason),
            _ => Err(sqlx::Error::PoolTimedOut),
        },
        tried => tried,
    };
    pool.map_err(failed::<DB>)
}

/// A pool that connects when it is asked for a connection.
pub(super) fn lazy<DB: Dialect>(
    url: &str,
    limits: &Limits,
    set_up: impl FnOnce(PoolOptions<DB>) -> PoolOptions<DB>,
) -> Result<Pool<DB>, StoreError> {
    let settings = settings::<DB>(url, limits)?;
    Ok(set_up(DB::pool(limits)).connect_lazy_with(settings))
}

fn settings<DB: Dialect>(url: &str, limits: &Limits) -> Result<ConnectOptions<DB>, StoreError> {
    let url = ConnectOptions::<DB>::from_str(url);
    let url = url.map_err(|error| StoreError::new(StoreErrorKind::Configuration, error))?;
    Ok(DB::settings(url, limits))
}
