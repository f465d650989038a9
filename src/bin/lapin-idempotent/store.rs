//! What a store remembers.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use lapin_idempotent::{
    MessageId, Scope,
    idempotency::{IdempotencyStore, Inspect, Record as Known, StoreError},
};

use crate::{
    ask::{Done, Failure, may},
    options::Store,
    print::{Printer, Record, span, utc},
    progress::Progress,
    servers::{AnyStore, Servers, with_store},
};

pub(crate) async fn run(command: &Store, servers: &Servers, printer: Printer) -> Result<Done, Failure> {
    match command {
        Store::Find { scope, id } => {
            let (scope, id) = identity(scope, id)?;
            let known = with_store!(&servers.store()?, store => store.find(&scope, &id).await)?;
            let mut record: Record = vec![("scope", scope.as_str().into()), ("id", id.as_str().into())];
            record.extend(told(known));
            printer.one(&record)?;
        }
        Store::Count { scope } => {
            let scope = self::scope(scope)?;
            let count = with_store!(&servers.store()?, store => store.count(&scope).await)?;
            printer.one(&vec![("scope", scope.as_str().into()), ("completed", count.into())])?;
        }
        Store::Forget { scope, id, because, consent } => {
            let (scope, id) = identity(scope, id)?;
            let store = servers.store()?;
            let what = format!(
                "forget {:?} in scope {:?}: its message takes effect once more when it comes",
                id.as_str(),
                scope.as_str()
            );
            if !may(consent, &what)? {
                return Ok(Done::Well);
            }
            let forgotten = with_store!(&store, store => store.forget(&scope, &id).await)?;
            tracing::warn!(because, forgotten, "asked for on the command line");
            printer.one(&vec![
                ("scope", scope.as_str().into()),
                ("id", id.as_str().into()),
                ("forgotten", forgotten.into()),
                ("because", because.as_str().into()),
            ])?;
        }
        Store::Purge { older_than, batch, consent } => {
            let store = servers.store()?;
            // Redis forgets by itself; it is asked all the same, as it knows its retention.
            let old = match &store {
                AnyStore::Postgres(store) => store.count_older(*older_than).await?,
                AnyStore::MySql(store) => store.count_older(*older_than).await?,
                AnyStore::Sqlite(store) => store.count_older(*older_than).await?,
                AnyStore::Redis(_) => 0,
            };
            if consent.dry_run {
                printer.one(&vec![("would_forget", old.into())])?;
                return Ok(Done::Well);
            }
            if !may(consent, &format!("forget {old} identities older than {}", span(*older_than)))? {
                return Ok(Done::Well);
            }
            let progress = Progress::new(printer, "forgetting", Some(old));
            let forgotten = with_store!(&store, store => purge(store, *older_than, *batch, &progress).await);
            drop(progress);
            let forgotten = forgotten?;
            printer.one(&vec![("forgotten", forgotten.into())])?;
        }
    }
    Ok(Done::Well)
}

/// As a `Sweeper` does, batch by batch.
async fn purge(
    store: &impl IdempotencyStore,
    older_than: Duration,
    batch: u32,
    progress: &Progress,
) -> Result<u64, StoreError> {
    let mut forgotten = 0;
    loop {
        let some = store.purge(older_than, batch).await?;
        if some == 0 {
            return Ok(forgotten);
        }
        forgotten += some;
        progress.add(some);
    }
}

fn scope(scope: &str) -> Result<Scope, Failure> {
    Scope::new(scope).map_err(|error| Failure::usage(crate::ask::chain(&error)))
}

fn identity(scope: &str, id: &str) -> Result<(Scope, MessageId), Failure> {
    let id = MessageId::new(id).map_err(|error| Failure::usage(crate::ask::chain(&error)))?;
    Ok((self::scope(scope)?, id))
}

fn told(known: Option<Known>) -> Record {
    match known {
        None => vec![("state", "unknown".into())],
        Some(Known::Completed { fingerprint, processed_at, .. }) => {
            let age = SystemTime::now().duration_since(processed_at).unwrap_or_default();
            let fingerprint = fingerprint.as_bytes().iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            vec![
                ("state", "completed".into()),
                ("processed_at", utc(processed_at).into()),
                ("ago", span(age).into()),
                ("fingerprint", fingerprint.into()),
            ]
        }
        Some(Known::InProgress { remaining, .. }) => {
            vec![("state", "in progress".into()), ("lease_remaining", span(remaining).into())]
        }
        // A state that a later version of the library knows.
        Some(other) => vec![("state", format!("{other:?}").into())],
    }
}
