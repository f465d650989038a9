//! The tables.

use std::{error::Error, num::NonZeroU16};

use lapin_idempotent::{
    idempotency::{StoreError, StoreErrorKind},
    store::{InvalidTableName, Replays, Replies, SchemaMismatch},
};

use crate::{
    ask::{Done, Failure, chain, may},
    options::{Database, Schema, Tables},
    print::{Printer, Record, verbatim},
    replay::with_replays,
    servers::{AnyOutbox, AnyStore, Kind, Servers, with_outbox},
};

pub(crate) async fn run(command: &Schema, servers: &Servers, printer: Printer) -> Result<Done, Failure> {
    match command {
        Schema::Print { tables, database } => print(tables, *database, servers, printer),
        Schema::Apply { tables, consent } => {
            // Redis has no tables, and says so before it is asked whether to make some.
            let (store, outbox) = both(tables, servers)?;
            let of_store = of_store(tables);
            let replays = if tables.replays { Some(servers.store_that_may_be_made()?) } else { None };
            let named =
                [(of_store, store.is_some()), ("outbox", outbox.is_some()), ("replays", replays.is_some())];
            let named: Vec<&str> =
                named.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect();
            let what = format!("make the tables of: {}; where they are missing", named.join(", "));
            if !may(consent, &what)? {
                return Ok(Done::Well);
            }
            let mut made = Vec::new();
            if let Some(store) = store {
                match &store {
                    AnyStore::Postgres(store) => store.create_schema().await?,
                    AnyStore::MySql(store) => store.create_schema().await?,
                    AnyStore::Sqlite(store) => store.create_schema().await?,
                    AnyStore::Redis(_) => {}
                }
                made.push(row(of_store, None));
            }
            if let Some(outbox) = outbox {
                with_outbox!(&outbox, outbox => outbox.create_schema().await)?;
                made.push(row("outbox", None));
            }
            if let Some(store) = replays {
                with_replays!(&store, replays => replays.create_schema().await)?;
                made.push(row("replays", None));
            }
            printer.list(&made)?;
            Ok(Done::Well)
        }
        Schema::Check { tables } => check(tables, servers, printer).await,
    }
}

fn both(tables: &Tables, servers: &Servers) -> Result<(Option<AnyStore>, Option<AnyOutbox>), Failure> {
    let store =
        if tables.of_store() { Some(laid_out(servers.store_that_may_be_made()?, tables)?) } else { None };
    let outbox = if tables.outbox { Some(servers.outbox_that_may_be_made()?) } else { None };
    Ok((store, outbox))
}

/// The store with the tables that were named.
fn laid_out(store: AnyStore, tables: &Tables) -> Result<AnyStore, Failure> {
    let store = partitioned(store, tables.partitioned)?;
    if !tables.with_replies() {
        return Ok(store);
    }
    let replies = tables.replies_table.as_ref().map_or_else(Replies::new, Replies::table);
    let invalid = |error: InvalidTableName| Failure::usage(error.to_string());
    Ok(match store {
        AnyStore::Postgres(store) => AnyStore::Postgres(store.with_replies(replies).map_err(invalid)?),
        AnyStore::MySql(store) => AnyStore::MySql(store.with_replies(replies).map_err(invalid)?),
        AnyStore::Sqlite(store) => AnyStore::Sqlite(store.with_replies(replies).map_err(invalid)?),
        AnyStore::Redis(_) => return Err(Failure::usage("Redis has no tables, and keeps no replies")),
    })
}

/// What is made, printed and checked as one.
fn of_store(tables: &Tables) -> &'static str {
    if tables.with_replies() { "identities and replies" } else { "identities" }
}

fn partitioned(store: AnyStore, hours: Option<NonZeroU16>) -> Result<AnyStore, Failure> {
    match (store, hours) {
        (store, None) => Ok(store),
        (AnyStore::Postgres(store), Some(hours)) => Ok(AnyStore::Postgres(store.partitioned(hours))),
        _ => Err(Failure::usage("only PostgreSQL has partitions")),
    }
}

fn print(
    tables: &Tables,
    database: Option<Database>,
    servers: &Servers,
    printer: Printer,
) -> Result<Done, Failure> {
    // Nobody connects.
    let url = match database {
        Some(Database::Postgres) => "postgres://localhost",
        Some(Database::Mysql) => "mysql://localhost",
        Some(Database::Sqlite) => "sqlite::memory:",
        None => match servers.kind()? {
            Kind::Postgres => "postgres://localhost",
            Kind::MySql => "mysql://localhost",
            Kind::Sqlite => "sqlite::memory:",
            Kind::Redis => return Err(Failure::usage("Redis has no tables")),
        },
    };
    let servers = servers.with_store_url(url);
    let (store, outbox) = both(tables, &servers)?;
    let mut texts = Vec::new();
    match &store {
        Some(AnyStore::Postgres(store)) => texts.push((of_store(tables), store.schema_sql())),
        Some(AnyStore::MySql(store)) => texts.push((of_store(tables), store.schema_sql())),
        Some(AnyStore::Sqlite(store)) => texts.push((of_store(tables), store.schema_sql())),
        Some(AnyStore::Redis(_)) | None => {}
    }
    if let Some(outbox) = &outbox {
        texts.push(("outbox", with_outbox!(outbox, outbox => outbox.schema_sql())));
    }
    if tables.replays {
        let store = servers.store_that_may_be_made()?;
        texts.push(("replays", with_replays!(&store, replays => replays.schema_sql())));
    }
    for (tables, sql) in texts {
        if printer.json {
            printer.one(&vec![("tables", tables.into()), ("sql", sql.into())])?;
        } else {
            verbatim(&sql)?;
        }
    }
    Ok(Done::Well)
}

async fn check(tables: &Tables, servers: &Servers, printer: Printer) -> Result<Done, Failure> {
    let mut rows = Vec::new();
    if servers.kind()? == Kind::Redis {
        if tables.outbox || tables.replays || tables.with_replies() || tables.partitioned.is_some() {
            return Err(Failure::usage(
                "Redis has no tables: there is no outbox on it, and there are no replies",
            ));
        }
        let missing = lacking(servers.store()?.check().await)?;
        rows.push(row("settings", missing));
    } else {
        // A file that is not there is not made by a look at it.
        if tables.of_store() {
            let store = laid_out(servers.store()?, tables)?;
            rows.push(row(of_store(tables), lacking(store.check().await)?));
        }
        if tables.outbox {
            let outbox = servers.outbox()?;
            let checked = with_outbox!(&outbox, outbox => outbox.check_schema().await);
            rows.push(row("outbox", lacking(checked)?));
        }
        if tables.replays {
            let checked = with_replays!(&servers.store()?, replays => replays.check_schema().await);
            rows.push(row("replays", lacking(checked)?));
        }
    }
    let lacks = rows.iter().any(|row| !row[2].1.is_null());
    if printer.json {
        printer.list(&rows)?;
    } else {
        for row in &rows {
            let text = row[2].1.as_str().unwrap_or("as it should be");
            printer.note(&crate::print::escaped(
                &format!("{}: {text}", row[0].1.as_str().unwrap_or_default()),
                4096,
            ))?;
        }
        if lacks && servers.kind()? != Kind::Redis {
            printer.note("`schema apply` makes what is missing, `schema print` prints the SQL")?;
        }
    }
    Ok(if lacks { Done::Found } else { Done::Well })
}

fn row(tables: &str, missing: Option<String>) -> Record {
    vec![("tables", tables.into()), ("ok", missing.is_none().into()), ("missing", missing.into())]
}

/// What is missing, if something is; other errors are failures.
fn lacking(checked: Result<(), StoreError>) -> Result<Option<String>, Failure> {
    match checked {
        Ok(()) => Ok(None),
        Err(error) => match missing(&error) {
            Some(missing) => Ok(Some(missing)),
            None => Err(error.into()),
        },
    }
}

/// What a store that answers is not fit for.
pub(crate) fn missing(error: &StoreError) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = error.source();
    while let Some(error) = cause {
        if let Some(mismatch) = error.downcast_ref::<SchemaMismatch>() {
            return Some(mismatch.missing().to_owned());
        }
        cause = error.source();
    }
    // What Redis objects to; a login that fails has this kind as well, and says what it is.
    (error.kind() == StoreErrorKind::Configuration).then(|| chain(error))
}
